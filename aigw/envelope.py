"""A JSON object split at its top level only: every value keeps the bytes that it came with."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import msgspec

Members = dict[str, msgspec.Raw]


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_members = msgspec.json.Decoder(Members)
# Numbers are measured, not made: they may have any size, and nobody reads them.
_standard = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=_refuse)
_NOTHING = re.compile(rb"null|\[\s*\]")
_MOST_WALKED = 1000  # each takes microseconds, in which nobody else is served
_SPACE = re.compile(r"[ \t\n\r]*")


def split_members(body: bytes | bytearray) -> Members:
    """The members of the object that ``body`` holds. Raises ValueError, also where it is nested too deeply.

    Of a key that stands twice the last value counts. msgspec refuses lone surrogate escapes, which RFC 8259 allows and
    JavaScript clients send: then the top level is walked once more with the standard library.
    """
    try:
        return _members.decode(body)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except msgspec.ValidationError:
        raise ValueError("something else stands at its top level") from None
    except msgspec.DecodeError as error:
        if b"\\u" not in body:
            raise ValueError(str(error)) from None
    try:
        return _walk(body.decode(errors="surrogateescape"))
    except IndexError:
        raise ValueError("it ends too early") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def loads(raw: msgspec.Raw | bytes) -> Any:
    """A value as Python objects, lone surrogates included; numbers become their length. Raises ValueError."""
    return _standard.decode(bytes(raw).decode(errors="surrogateescape"))


def dumps(members: Members) -> bytes:
    """The object that has these members."""
    try:
        return msgspec.json.encode(members)
    except UnicodeEncodeError:  # a lone surrogate in a key
        return b"{%s}" % b",".join(json.dumps(key).encode() + b":" + bytes(raw) for key, raw in members.items())


def carries(members: Members, name: str) -> bool:
    """Whether the member is there and neither null nor an empty list."""
    return name in members and _NOTHING.fullmatch(members[name]) is None


def _walk(text: str) -> Members:
    def expect(at: int, what: str) -> int:
        """The offset of the next token behind ``what``, which stands at ``at``."""
        if text[at] != what:
            raise ValueError(f"{what} expected at character {at}")
        return skip(at + 1)

    def skip(at: int) -> int:
        match = _SPACE.match(text, at)
        return match.end() if match else at

    members: Members = {}
    at = expect(skip(0), "{")
    while text[at] != "}":
        if members:
            at = expect(at, ",")
        if text[at] != '"':
            raise ValueError(f"a key expected at character {at}")
        if len(members) >= _MOST_WALKED:
            raise ValueError(f"it has over {_MOST_WALKED} members at its top level")
        key, end = _standard.raw_decode(text, at)
        start = expect(skip(end), ":")
        _, end = _standard.raw_decode(text, start)
        members[key] = msgspec.Raw(text[start:end].encode(errors="surrogateescape"))
        at = skip(end)
    if skip(at + 1) != len(text):
        raise ValueError("something stands behind it")
    return members
