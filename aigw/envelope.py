"""A JSON object split at its top level only: every value keeps the bytes that it came with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import msgspec

from aigw.skip import without_surrogates
from aigw.walk import MOST_MEMBERS, Members, TooMuch, Walk, whole

SMALL = 256 * 1024  # is read at once, in milliseconds whatever stands in it
PIECE = 256 * 1024
MOST_LOOKED_AT = 16 * 1024
MOST_OF_AN_ERROR = 64 * 1024

_members = msgspec.json.Decoder(Members)
_NOTHING = re.compile(rb"null|\[\s*\]")


def split_small(body: bytes | bytearray) -> Members | None:
    """The members of the object that ``body`` holds; None where it takes a Walk. Raises ValueError, or TooMuch.

    Of a name that stands twice the last value counts. msgspec refuses lone surrogate escapes, which RFC 8259 allows and
    JavaScript clients send.
    """
    if len(body) > SMALL:
        return None
    try:
        members = _members.decode(body)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except msgspec.ValidationError:
        raise ValueError("something else stands at its top level") from None
    except msgspec.DecodeError as error:
        if b"\\u" in body:
            return None
        raise ValueError(str(error)) from None
    if len(members) > MOST_MEMBERS:
        raise TooMuch(f"has over {MOST_MEMBERS} members at its top level")
    return members


def split_members(body: bytes | bytearray) -> Members:
    """The same, however long it takes."""
    members = split_small(body)
    return whole(Walk(body).members()) if members is None else members


class Pieces:
    """A large object to be sent piece by piece, so that it is never copied as a whole."""

    def __init__(self, members: Members) -> None:
        self._members = {name: memoryview(raw) for name, raw in members.items()}
        self._names = {name: _encoded(name) + b":" for name in members}
        values = sum([len(raw) for raw in self._members.values()])
        self._size = values + sum([len(name) for name in self._names.values()]) + len(members) + 1

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        piece = bytearray()
        between = b"{"
        for name, raw in self._members.items():
            piece += between + self._names[name]
            between = b","
            for start in range(0, len(raw), PIECE):
                piece += raw[start : start + PIECE]
                if len(piece) >= PIECE:
                    yield bytes(piece)
                    piece.clear()
        yield bytes(piece) + b"}"


def dumps(members: Members) -> bytes:
    """The object that has these members, of which there is at least one."""
    try:
        return msgspec.json.encode(members)
    except UnicodeEncodeError:  # a lone surrogate in a name
        return b"".join(Pieces(members))


def _encoded(name: str) -> bytes:
    try:
        return msgspec.json.encode(name)
    except UnicodeEncodeError:
        return json.dumps(name).encode()


def carries(raw: msgspec.Raw | None) -> bool:
    """Whether a member is there and neither null nor an empty list."""
    return raw is not None and (len(raw) > MOST_LOOKED_AT or _NOTHING.fullmatch(raw) is None)


class Outline(msgspec.Struct, gc=False):
    """What is looked at in a provider's answer. Its other members are passed over, not made."""

    error: msgspec.Raw = msgspec.Raw()
    choices: msgspec.Raw = msgspec.Raw()
    data: msgspec.Raw = msgspec.Raw()
    output: msgspec.Raw = msgspec.Raw()


_outline = msgspec.json.Decoder(Outline)


def outline(body: bytes) -> Outline:
    """Of the object that ``body`` holds. Raises ValueError."""
    try:
        try:
            return _outline.decode(body)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            if b"\\u" not in body:
                raise
        outlined = _outline.decode(without_surrogates(body))
        if len(body) <= MOST_OF_AN_ERROR:  # then as it came
            outlined.error = whole(Walk(body).members()).get("error", outlined.error)
        return outlined
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
