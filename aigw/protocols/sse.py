"""Server-sent events as bytes: where one ends, and what its fields are.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation: a line ends in LF, CRLF or
CR, and an empty line ends an event.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import pairwise

BLOCK = 16
KEEP_ALIVE = b": keep-alive\n\n"  # a comment of the gateway's own

_END = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
find_end = _END.search
_LINE = re.compile(rb"\r\n|\n|\r")
_SILENCE = re.compile(rb"(?:[\r\n]|:[^\r\n]*(?:[\r\n]|\Z))*")
BOM = b"\xef\xbb\xbf"
_BEGINNINGS = BOM, b"data:", b"event:", b"id:", b"retry:", b":", b"error:"


def boundary(data: bytes | bytearray) -> int:
    """The offset behind the last event that is whole in ``data``; 0 if none is."""
    if b"\r" not in data:
        at = data.rfind(b"\n\n")
        return at + 2 if at >= 0 else 0
    end = 0
    for match in _END.finditer(data):
        end = match.end()
    return end


def events(data: bytes) -> Iterator[bytes]:
    """The whole events in ``data``."""
    start = 0
    for match in _END.finditer(data):
        yield data[start : match.end()]
        start = match.end()


def that_matter(data: bytes, matters: Callable[[bytes], bool]) -> Iterator[tuple[int, int]]:
    """Where in ``data`` the whole events are that matter, mostly one of many: BLOCK of them are asked about at once."""
    ends = [0, *[match.end() for match in _END.finditer(data)]]
    for first in range(0, len(ends) - 1, BLOCK):
        block = ends[first : first + BLOCK + 1]
        if matters(data[block[0] : block[-1]]):
            for start, end in pairwise(block):
                if matters(data[start:end]):
                    yield start, end


def fields(event: bytes) -> tuple[str, bytes | None]:
    """An event's name (empty if it has none) and its data, ``None`` where it has no ``data`` line at all."""
    name, data = "", []
    for line in _LINE.split(event.removeprefix(BOM)):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.decode(errors="replace")
    return name, b"\n".join(data) if data else None


def end_of_events(before: bytes, data: bytes, inside: bool) -> int:
    """The offset behind the last event that ends in ``data``, 0 if none does; its end may have begun in ``before``.

    ``inside``: ``data`` begins within an event.
    """
    before = before[-3:]
    end = max(0, boundary(before + data) - len(before))
    if end or not inside:
        while data[end : end + 1] in (b"\r", b"\n"):  # the LF of a CRLF that was cut in two waits for nothing
            end += 1
    return end


def is_between_events(tail: bytes) -> bool:
    """Whether a stream whose last three bytes are these is between two events. Behind CRLF and CR an LF may follow."""
    return tail.endswith((b"\n\n", b"\n\r\n", b"\r\r", b"\r\r\n"))


def is_whole(rest: bytes) -> bool:
    """Whether what stands behind the last event is one itself but for its empty line, and not the half of one."""
    _, data = fields(rest)
    if data is None or data.strip() == b"[DONE]":
        return True
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def is_silence(data: bytes) -> bool:
    """Whether ``data``, which begins at the start of a line, is only comments and blank lines."""
    return data[:1] in b":\r\n" and _SILENCE.fullmatch(data) is not None


def begins_a_stream(data: bytes, doubtful: bool) -> bool | None:
    """Whether ``data`` begins a stream and not a body; None where more has to come.

    ``doubtful``: it was announced as something else, and has to begin as a stream does.
    """
    first = data.removeprefix(BOM).lstrip()
    if not first:
        return None
    if first[:1] in b"{[<":
        return False
    if not doubtful or first.startswith(_BEGINNINGS):
        return True
    return None if any(beginning.startswith(first) for beginning in _BEGINNINGS) else False
