"""A JSON object split at its top level only: every value keeps the bytes that it came with."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator

import msgspec

from aigw.protocols.skip import without_surrogates
from aigw.protocols.walk import MOST_MEMBERS, Members, TooMuch, Walk, whole

SMALL = 256 * 1024  # is read at once, in milliseconds whatever stands in it
PIECE = 256 * 1024
MOST_LOOKED_AT = 16 * 1024
MOST_OF_AN_ERROR = 64 * 1024

# ``model`` and ``stream`` in letters of other cases, ſ being an s. A provider that matches names without case, as Go's
# encoding/json does, would take the value of such a member for theirs.
OTHER_CASES = frozenset(
    "".join(letters)
    for name in ("model", "stream")
    for letters in itertools.product(*[(c, c.upper(), *("ſ" * (c == "s"))) for c in name])
) - {"model", "stream"}

_members = msgspec.json.Decoder(Members)
_NOTHING = re.compile(rb"null|\[\s*\]")
_NO_NUMBER = re.compile(rb"(?<=[:,\[\s])-?(?:NaN|Infinity)(?=[,\]}\s])")


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


def carries(raw: msgspec.Raw) -> bool:
    """Whether a member is there and neither null nor an empty list."""
    return raw is not ABSENT and (len(raw) > MOST_LOOKED_AT or _NOTHING.fullmatch(raw) is None)


ABSENT = msgspec.Raw()


class Outline(msgspec.Struct, gc=False):
    """What is looked at in a provider's answer. Its other members are passed over, not made."""

    id: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT
    status: msgspec.Raw = ABSENT
    choices: msgspec.Raw = ABSENT
    data: msgspec.Raw = ABSENT
    output: msgspec.Raw = ABSENT
    content: msgspec.Raw = ABSENT
    input_tokens: msgspec.Raw = ABSENT


_outline = msgspec.json.Decoder(Outline)


def is_list(raw: msgspec.Raw) -> bool:
    """Whether a member's value is a list."""
    return bytes(memoryview(raw)[:1]) == b"["


def outlined(body: bytes) -> Outline:
    """What is looked at of the object that ``body`` holds. Raises ValueError.

    NaN and Infinity are no JSON; Python writes and reads them.
    """
    try:
        try:
            return _outlined(body)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            if b"NaN" not in body and b"Infinity" not in body:
                raise
        return _outlined(_NO_NUMBER.sub(b"null", body))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _outlined(body: bytes) -> Outline:
    try:
        return _outline.decode(body)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        if b"\\u" not in body:
            raise
    found = _outline.decode(without_surrogates(body))
    if len(body) <= MOST_OF_AN_ERROR:  # then as it came
        found.error = whole(Walk(body).members()).get("error", ABSENT)
    return found
