"""What a command that prints a key may print: the key alone, or JSON as the tools of the clouds have it."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import msgspec

from aigw.secret import KeySearch, Secret

MOST_SHOWN = 500  # characters
_TOKENS = ("access_token", "accessToken", "token", "id_token")
_AROUND = ("status", "credential")  # of kubectl's credential plugins, and of gcloud's config-helper
_ENDS = ("expires_at", "expires_on", "expiresOn", "expirationTimestamp", "token_expiry", "expiry", "expireTime")
_NUMBER = re.compile(r"\d{1,15}(?:\.\d*)?")
_FRACTION = re.compile(r"\.\d+")
_LATEST_SECOND = 10**11  # a larger number counts milliseconds
_WORD = re.compile(r"[A-Za-z0-9._~+/=-]{20,}")
_SEGMENT = re.compile(r"[^/]{20,}")


def read_printed(out: bytes, now: float) -> tuple[str, float | None]:
    """The key, and for how many seconds it is valid from ``now``, which is Unix time; None if that is not known.

    Raises ValueError with a text that follows "it".
    """
    try:
        text = out.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ValueError("printed what is not text") from None
    if not text.startswith(("{", '"')):
        return text, None
    try:
        read = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        raise ValueError("printed JSON that is malformed") from None
    if isinstance(read, str):
        return read, None
    for name in _AROUND:
        if isinstance(inner := read.get(name), dict):
            read = inner
    token = next((read[name] for name in _TOKENS if read.get(name)), None)
    if not isinstance(token, str):
        raise ValueError(f"printed JSON without a token; it needs {_TOKENS[0]} or token")
    return token, _seconds(read, now)


def _seconds(read: dict[str, Any], now: float) -> float | None:
    found = []
    if (within := read.get("expires_in")) is not None:
        found.append(_number(within, "expires_in"))
    name = next((name for name in _ENDS if read.get(name) is not None), None)
    if name is not None:
        found.append(_time(read[name], name) - now)
    return min(found, default=None)


def _number(value: object, name: str) -> float:
    if not isinstance(value, bool) and isinstance(value, int | float | str) and _NUMBER.fullmatch(str(value).strip()):
        return float(value)
    raise ValueError(f"printed JSON in which {name} is not a number of seconds")


def _time(value: object, name: str) -> float:
    """A time as Unix seconds, Unix milliseconds or RFC 3339; without a zone it is local time, as for Azure's tool."""
    text = str(value).strip()
    if not isinstance(value, bool) and _NUMBER.fullmatch(text):
        number = float(text)
        return number / 1000 if number > _LATEST_SECOND else number
    try:
        return datetime.fromisoformat(_FRACTION.sub("", text).upper().replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"printed JSON in which {name} is not a time; it needs Unix seconds or RFC 3339") from None


def shown(error: bytes, out: bytes) -> str:
    """What a command wrote to its standard error, for the log: in one line, bounded, without what may be a key."""
    printed = out.decode(errors="replace").split()[:20]
    keys = KeySearch(Secret(word) for word in printed if len(word) >= 8 and _is_mixed(word))
    text = keys.hide(" ".join(error.decode(errors="replace").split()))
    text = _WORD.sub(_without_key, text)
    text = "".join(each if each.isprintable() else "?" for each in text)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]} ..."


def _without_key(word: re.Match[str]) -> str:
    if word[0].startswith("/"):  # a path
        return _SEGMENT.sub(lambda each: "***" if _is_mixed(each[0]) else each[0], word[0])
    return "***" if _is_mixed(word[0]) else word[0]


def _is_mixed(word: str) -> bool:
    return any(map(str.isdigit, word)) and any(map(str.isalpha, word))
