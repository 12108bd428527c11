"""Behind one JSON value, and behind a large one in short steps.

A parser in C holds the whole process while it reads 32 MiB, in a thread too. So it is given pieces, each made a
document of its own: ``[[1,2`` and ``,3],4]`` are checked as ``[[1,2]]`` and ``[[null,3],4]``.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
Steps = Generator[None, None, T]

PIECE = 64 * 1024  # takes a millisecond, rarely ten; no number in a large value may be longer
MOST_DEPTH = 1000
_SPACE = b" \t\n\r"
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SCALAR = bytes(set(range(256)) - set(b'[]{},:"' + _SPACE))
_CUT_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_TRAILING = re.compile(r"trailing characters \(byte (\d+)\)")
_CLOSES = {ord("["): ord("]"), ord("{"): ord("}")}
_NAME, _VALUE = b'"', b"0"
# By the bracket that is to close and what came last: how a piece begins and how it ends, to be a document.
_AROUND = {
    b"][": (b"[", b"]"),
    b"],": (b"[null,", b"null]"),
    b"]0": (b"[null", b"]"),
    b"}{": (b"{", b"}"),
    b"},": (b'{"":null,', b'"":null}'),
    b'}"': (b'{""', b":null}"),
    b"}:": (b'{"":', b"null}"),
    b"}0": (b'{"":null', b"}"),
}
_raw = msgspec.json.Decoder(msgspec.Raw)


def without_surrogates(data: bytes) -> bytes:
    """As many bytes, as good or bad as JSON, with other characters: msgspec refuses lone surrogates, JSON does not."""
    return data.replace(rb"\ud", rb"\u0").replace(rb"\uD", rb"\u0")


def end_of_value(data: bytes | memoryview, decoder: msgspec.json.Decoder[Any] = _raw, beyond: bool = False) -> int:
    """The offset of what comes behind the value that begins ``data``, or of its end unless it must be ``beyond``.

    Raises ValueError.
    """
    try:
        try:
            return _end_of_value(data, decoder, beyond)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            written = bytes(data)
            if beyond or b"\\u" not in written:
                raise
        return _end_of_value(without_surrogates(written), decoder)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _end_of_value(data: bytes | memoryview, decoder: msgspec.json.Decoder[Any], beyond: bool = False) -> int:
    try:
        decoder.decode(data)
    except msgspec.DecodeError as error:
        trailing = _TRAILING.search(str(error))  # nothing else gives the end of a value without making it
        if trailing is None:
            raise
        return int(trailing[1]) - 1
    if beyond:
        raise ValueError("nothing stands behind it")
    return len(data)


def skip(body: bytes | bytearray, at: int) -> Steps[int]:
    """The offset of what comes behind the large value that begins at ``at``. Raises ValueError."""
    place = _Place()
    while True:
        piece = bytes(body[at : at + PIECE])
        at += place.take(piece, at + len(piece) == len(body))
        if place.over:
            return at
        yield


class _Place:
    """Where in a value one is: which brackets are to close, what came last, and whether a string is not at its end."""

    def __init__(self) -> None:
        self._closing = bytearray()
        self._last = b""
        self._in_string = False
        self.over = False

    def take(self, piece: bytes, is_last: bool) -> int:
        """Check the piece, as far as that can be done by itself; how far that is, or where the value ends."""
        before, in_string, alone = self._around(0), self._in_string, not self._closing
        plain = piece.replace(b"\\\\", b"//").replace(b'\\"', b"//") if b"\\" in piece else piece
        parts = plain.split(b'"')
        self._in_string = in_string ^ (len(parts) % 2 == 0)
        size = len(piece)
        if self._in_string:
            cut = _CUT_ESCAPE.search(plain, max(0, size - 5))
            size = cut.start() if cut else size
        elif not is_last:
            last = parts[-1]
            parts[-1] = last.rstrip(_SCALAR)
            size -= len(last) - len(parts[-1])
            if not size:
                raise ValueError(f"it has a number of over {PIECE} bytes")
        self.over = (alone and in_string and len(parts) > 1) or self._move_brackets(parts[in_string::2])
        if self.over:
            start = before + (b'"' if in_string else b"")
            return end_of_value(start + piece) - len(start)
        self._move(parts, in_string)
        if is_last:
            raise ValueError("it ends too early")
        start = before + (b'"' if in_string else b"")
        document = start + piece[:size] + (b'"' if self._in_string else b"") + self._around(1)
        if end_of_value(document) != len(document):
            raise ValueError("a bracket or a quote is wrong")
        return size

    def _move_brackets(self, outside: list[bytes]) -> bool:
        """Open and close what the piece does; whether the last was closed."""
        brackets = b"".join(outside).translate(None, _NO_BRACKETS)
        size = 2 * len(brackets)
        while len(brackets) < size * 7 // 8:  # mostly side by side; those in one another take longer this way
            size = len(brackets)
            brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        closing = self._closing
        for bracket in brackets:
            if bracket in _CLOSES:
                closing.append(_CLOSES[bracket])
            elif not closing or closing.pop() != bracket:
                raise ValueError("a bracket is wrong")
            elif not closing:
                return True
        if len(closing) > MOST_DEPTH:
            raise ValueError("it is nested too deeply")
        return False

    def _move(self, parts: list[bytes], in_string: bool) -> None:
        """What came last, by what stands outside strings."""
        behind = b"" if self._in_string else parts[-1].rstrip(_SPACE)
        if behind:
            self._last = _kind(behind)
            return
        at = len(parts) - (2 if self._in_string else 3)  # what stands before the last string
        if at >= in_string:
            self._last = _kind(parts[at].rstrip(_SPACE)) or self._last
        if not self._in_string and len(parts) > 1:  # a string came last
            is_name = self._closing[-1:] == b"}" and self._last in (b"{", b",")
            self._last = _NAME if is_name else _VALUE

    def _around(self, side: int) -> bytes:
        """What is to stand before a piece that begins here, or behind one that ends here."""
        if not self._closing:
            return b""
        last = self._last
        if side and self._in_string:  # as behind that string
            last = _NAME if self._closing[-1:] == b"}" and last in (b"{", b",") else _VALUE
        inner = _AROUND.get(bytes(self._closing[-1:]) + last, (b"", b""))[side]
        outer = self._closing[:-1]
        if side:
            return inner + bytes(outer[::-1])
        return bytes(outer.replace(b"]", b"[").replace(b"}", b'{"":')) + inner


def _kind(behind: bytes) -> bytes:
    """What came last in a piece outside strings; nothing where it is empty."""
    last = behind[-1:]
    return last if last in b"[{,:" else _VALUE
