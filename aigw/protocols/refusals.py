"""A provider's refusal: its reason, its codes and types, and the pause that it asks for.

Each provider has its own shape of an error. The shapes here are those of their documentation and of their servers'
answers; tests/test_refusals.py has an example of each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime

import msgspec

from aigw.key_forms import shortened
from aigw.protocols import sse

KEY_REFUSED = frozenset([401])  # statuses by which a provider refuses the key; 402 and 403 may be about the request
DEEPEST = 6  # objects within objects
MOST_LISTED = 3  # mistakes of one list that are shown
MOST_OF_TEXT = 300  # characters of a body that is not JSON

_TEXTS = tuple("message msg error_msg error_message errorMessage status_msg error_description title reason".split())
_INNER = ("error", "errors", "detail", "base_resp")
_SERVER_SENT = re.compile(rb"(?:data|event|error|id|retry)?:")
_TITLE = re.compile(r"<title>\s*([^<]*?)\s*</title>", re.IGNORECASE)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(milliseconds?|ms|seconds?|s|minutes?|m|hours?|h)(?![a-z])\s*")
_IN_WORDS = re.compile(rf"(?:try again|retry)\s+(?:in|after)\s+((?:{_AMOUNT.pattern})+)", re.IGNORECASE)
_PLAIN_HTTP = re.compile(
    rb"plain HTTP request was sent to HTTPS port|speaking plain HTTP to an SSL-enabled|"
    rb"HTTP request to an HTTPS server|combination of host and port requires TLS|This is an HTTPS port",
    re.IGNORECASE,
)


class Refusal(msgspec.Struct, frozen=True):
    """``reason`` is the provider's text, ``words`` are its codes and types, ``pause`` is in seconds; each if given."""

    reason: str | None = None
    words: tuple[str, ...] = ()
    pause: float | None = None


def read_refusal(body: bytes) -> Refusal:
    """The Refusal in a body of any shape. Never raises."""
    for value in _values(body):
        objects = list(_objects(value, DEEPEST))
        reason = _reason(value, DEEPEST)
        if reason or objects:
            return Refusal(_encodable(reason), _words(objects), _pause_in(objects, reason or ""))
    return Refusal(_encodable(_text(body)))


def reason_in(value: object) -> str | None:
    """The reason in an error that has been decoded: an object, a list of objects, or a string."""
    return _encodable(_reason(value, DEEPEST))


def pause(get: Callable[[bytes], bytes | None], refusal: Refusal, now: float) -> float | None:
    """The seconds that a refusal asks to wait: by ``retry-after-ms``, else by ``Retry-After``, else by its body.

    RFC 9110, section 10.2.3. ``get`` gives a header by its lower-case name; ``now`` is in Unix seconds. A value that
    cannot be read is ignored. None if there is no value.
    """
    millis, written = get(b"retry-after-ms"), get(b"retry-after")
    for given in (_number(millis, 0.001), _number(written, 1.0), _date(written, now), refusal.pause):
        if given is not None:
            return given
    return None


def asks_for_tls(body: bytes) -> bool:
    """Whether a server reports plain HTTP on its TLS port, as nginx, Apache, Go, Jetty and the gateway do."""
    return _PLAIN_HTTP.search(body[:4096]) is not None


# The error in a body


def _values(body: bytes) -> Iterator[object]:
    """The JSON values in a body, which is one value, an event stream, or one value in each line."""
    body = body.removeprefix(b"\xef\xbb\xbf").strip()
    parts = [body]
    if _SERVER_SENT.match(body):
        parts = [data for event in sse.events(body + b"\n\n") for data in _data_of(event)]
    elif b"\n" in body:
        parts.append(body.partition(b"\n")[0])
    for part in parts:
        if (value := _json(part)) is not None:
            yield value


def _data_of(event: bytes) -> list[bytes]:
    """The data of one event; llama.cpp sends ``error: {...}`` instead of ``data: {...}``."""
    _, data = sse.fields(event)
    if data is not None:
        return [data]
    return [line.partition(b":")[2] for line in event.splitlines() if line.startswith(b"error:")]


def _json(text: bytes | str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _objects(value: object, deepest: int) -> Iterator[dict[str, object]]:
    """The objects of an error, the innermost first."""
    if isinstance(value, list) and value and deepest:
        yield from _objects(value[0], deepest - 1)
    elif isinstance(value, dict) and deepest:
        for name in (*_INNER, "message"):
            yield from _objects(value.get(name), deepest - 1)
        yield value


def _reason(value: object, deepest: int) -> str | None:
    if isinstance(value, str):
        inner = _json(value) if deepest and value.lstrip()[:1] in ("{", "[") and value.strip() else None
        return (_reason(inner, deepest - 1) if inner else None) or value.strip() or None
    if isinstance(value, list) and deepest:
        found = [reason for each in value[:MOST_LISTED] if (reason := _reason(each, deepest - 1))]
        return "; ".join(dict.fromkeys(found)) or None
    if not isinstance(value, dict) or not deepest:
        return None
    # A string under ``error`` may be only the name of a status ("Not Found"): other members are read first.
    is_last = isinstance(value.get("error"), str)
    for name in (*_INNER[is_last:], *_TEXTS, *_INNER[:is_last]):
        if reason := _reason(value.get(name), deepest - 1):
            return _with_place(value, reason, deepest) if name in _TEXTS else reason
    return None


def _with_place(value: dict[str, object], reason: str, deepest: int) -> str:
    """The reason with the field that it is about (FastAPI's ``loc``), or with the reason of a router's own provider."""
    place = value.get("loc")
    if isinstance(place, list) and place:
        return f"{'.'.join(str(part) for part in place[:8])}: {reason}"
    metadata = value.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    more = _reason(raw, deepest - 1) if raw else None
    return f"{reason}: {more}" if more and more != reason else reason


def _text(body: bytes) -> str | None:
    """The reason in a body that is not JSON: the title of a page, or the beginning of a text."""
    text = body.decode(errors="replace").strip()
    if "<" in text:
        title = _TITLE.search(text)
        return shortened(title[1], MOST_OF_TEXT) or None if title else None
    is_json = text[:1] in ("{", "[")  # broken, or without a reason
    text = shortened(" ".join(text.split()), MOST_OF_TEXT)
    if not text or text == "null" or is_json or "\ufffd" in text:
        return None
    return text if text.isprintable() else None


def _encodable(reason: str | None) -> str | None:
    """The reason without lone surrogates, which JSON can hold and UTF-8 cannot."""
    return None if reason is None else reason.encode(errors="replace").decode()


def _words(objects: list[dict[str, object]]) -> tuple[str, ...]:
    found = [word for each in objects for name in ("code", "type", "status") if isinstance(word := each.get(name), str)]
    return tuple(word for word in dict.fromkeys(found) if word and word != "error")


# The pause


def _pause_in(objects: list[dict[str, object]], reason: str) -> float | None:
    for each in objects:
        details = each.get("details")
        for detail in [each, *(details if isinstance(details, list) else [])]:
            if not isinstance(detail, dict):
                continue
            for name, unit in (("retryDelay", 1.0), ("retry_after_ms", 0.001), ("retry_after", 1.0)):
                if (seconds := _duration(detail.get(name), unit)) is not None:
                    return seconds
    in_words = _IN_WORDS.search(reason)
    return _duration(in_words[1], 1.0) if in_words else None


def _duration(written: object, unit: float) -> float | None:
    """The seconds of a number of ``unit`` (in seconds), or of a text such as ``17s``, ``1m30.5s`` or ``20 seconds``."""
    if isinstance(written, str):
        amounts = _AMOUNT.findall(written.lower())
        if amounts and not _AMOUNT.sub("", written.lower()).strip():
            written = repr(sum(float(number) * _UNITS[_short(name)] for number, name in amounts) / unit)
        written = written.encode(errors="replace")
    elif isinstance(written, int | float) and not isinstance(written, bool):
        written = repr(written).encode()
    return _number(written, unit) if isinstance(written, bytes) else None


def _short(unit: str) -> str:
    return "ms" if unit.startswith(("ms", "milli")) else unit[0]


def _number(written: bytes | None, unit: float) -> float | None:
    try:
        seconds = float(written) * unit if written else None
    except ValueError:
        return None
    return seconds if seconds is not None and 0 <= seconds < float("inf") else None


def _date(written: bytes | None, now: float) -> float | None:
    try:
        return max(0.0, parsedate_to_datetime(written.decode("latin-1")).timestamp() - now) if written else None
    except (ValueError, TypeError, OverflowError):
        return None
