"""A JSON object split at its top level only. Every value keeps its bytes."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator

import msgspec

from aigw.protocols.skip import without_surrogates
from aigw.protocols.walk import MOST_MEMBERS, Members, TooMuch, Walk, whole

SMALL = 256 * 1024  # bytes that are read at once, in milliseconds whatever they are
PIECE = 256 * 1024  # bytes
MOST_READ = 16 * 1024  # bytes of a member whose value is read
MOST_OF_AN_ERROR = 64 * 1024  # bytes

# ``model`` and ``stream`` with upper-case letters or ſ, the long s. A provider that ignores case in names, as Go's
# encoding/json does, would use the value of such a member.
OTHER_CASES = frozenset(
    "".join(letters)
    for name in ("model", "stream")
    for letters in itertools.product(*[(c, c.upper(), *("ſ" * (c == "s"))) for c in name])
) - {"model", "stream"}

_members = msgspec.json.Decoder(Members)
_NOTHING = re.compile(rb"null|\[\s*\]")
_NO_NUMBER = re.compile(rb"(?<=[:,\[\s])-?(?:NaN|Infinity)(?=[,\]}\s])")


def split_small(body: bytes | bytearray) -> Members | None:
    """The members of the object in ``body``, of at most SMALL bytes; None if a Walk is needed. Raises ValueError, or
    TooMuch.

    If a name is repeated the last value is used. msgspec refuses lone surrogate escapes, which RFC 8259 allows and
    JavaScript clients send: such a body needs a Walk.
    """
    try:
        members = _members.decode(body)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except msgspec.ValidationError:
        raise ValueError("its top level is another value") from None
    except msgspec.DecodeError as error:
        if b"\\u" in body:
            return None
        raise ValueError(str(error)) from None
    if len(members) > MOST_MEMBERS:
        raise TooMuch(f"has over {MOST_MEMBERS} members at its top level")
    return members


def split_members(body: bytes | bytearray) -> Members:
    """The members of the object in ``body``, small or large, read at once. Raises ValueError, or TooMuch."""
    members = split_small(body) if len(body) <= SMALL else None
    return whole(Walk(body).members()) if members is None else members


class Parts:
    """A large body that is sent in pieces, so that it is never copied as a whole."""

    def __init__(self, parts: Iterable[bytes | memoryview]) -> None:
        self._parts = [memoryview(part) for part in parts]
        self._size = sum([len(part) for part in self._parts])

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        piece = bytearray()
        for part in self._parts:
            for start in range(0, len(part), PIECE):
                piece += part[start : start + PIECE]
                if len(piece) >= PIECE:
                    yield bytes(piece)
                    piece.clear()
        if piece:
            yield bytes(piece)


class Pieces(Parts):
    """The object that has these members, of which there is at least one."""

    def __init__(self, members: Members) -> None:
        parts: list[bytes | memoryview] = []
        for name, raw in members.items():
            parts += (b"," if parts else b"{") + _encoded(name) + b":", memoryview(raw)
        super().__init__([*parts, b"}"])


def _encoded(name: str) -> bytes:
    try:
        return msgspec.json.encode(name)
    except UnicodeEncodeError:
        return json.dumps(name).encode()


def carries(raw: msgspec.Raw) -> bool:
    """Whether a member is present and is neither null nor an empty list."""
    return raw is not ABSENT and (len(raw) > MOST_READ or _NOTHING.fullmatch(raw) is None)


ABSENT = msgspec.Raw()


class Outline(msgspec.Struct, gc=False):
    """The members of a provider's answer that are read. The others are skipped."""

    id: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT
    status: msgspec.Raw = ABSENT
    choices: msgspec.Raw = ABSENT
    data: msgspec.Raw = ABSENT
    output: msgspec.Raw = ABSENT
    content: msgspec.Raw = ABSENT
    input_tokens: msgspec.Raw = ABSENT
    results: msgspec.Raw = ABSENT
    text: msgspec.Raw = ABSENT


_outline = msgspec.json.Decoder(Outline)


def is_list(raw: msgspec.Raw) -> bool:
    """Whether a member's value is a list."""
    return bytes(memoryview(raw)[:1]) == b"["


def outlined(body: bytes) -> Outline:
    """The Outline of the object in ``body``. Raises ValueError.

    NaN and Infinity are not JSON, but Python writes them: they are read as null.
    """
    try:
        try:
            return _outline.decode(body)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            return _outlined_leniently(body)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _outlined_leniently(body: bytes) -> Outline:
    try:
        return _outlined(body)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        if b"NaN" not in body and b"Infinity" not in body:
            raise
    return _outlined(_NO_NUMBER.sub(b"null", body))


def _outlined(body: bytes) -> Outline:
    try:
        return _outline.decode(body)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        if b"\\u" not in body:
            raise
    found = _outline.decode(without_surrogates(body))
    if len(body) <= MOST_OF_AN_ERROR:  # then with its surrogates
        found.error = whole(Walk(body).members()).get("error", ABSENT)
    return found
