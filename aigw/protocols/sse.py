"""Server-sent events as bytes: where an event ends, and its fields.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation: a line ends in LF, CRLF or
CR, and an empty line ends an event.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

BLOCK = 4096  # bytes of events that are searched at once
KEEP_ALIVE = b": keep-alive\n\n"  # a comment of the gateway itself

_END = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
_LINE = re.compile(rb"\r\n|\n|\r")
_SILENCE = re.compile(rb"(?:[\r\n]|:[^\r\n]*(?:[\r\n]|\Z))*")
BOM = b"\xef\xbb\xbf"
_BEGINNINGS = BOM, b"data:", b"event:", b"id:", b"retry:", b":", b"error:"


def boundary(data: bytes | bytearray) -> int:
    """The offset after the last whole event in ``data``; 0 if there is none."""
    if 13 not in data:  # a CR
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


def find_end(data: bytes, start: int, has_cr: bool) -> int:
    """The offset after the first end of an event from ``start`` on; 0 if there is none.

    ``has_cr``: whether ``data`` has a CR. Without one the end is found without the pattern, which is slow.
    """
    if not has_cr:
        at = data.find(b"\n\n", start)
        return at + 2 if at >= 0 else 0
    found = _END.search(data, start)
    return found.end() if found else 0


def that_matter(
    data: bytes, matters: Callable[[bytes], bool], start: int, before: int = 0
) -> Iterator[tuple[int, int]]:
    """The start and end of each whole event in ``data`` that may matter, up to ``before`` and from ``start`` on.

    Few matter: BLOCK bytes are searched at once. If there is anything in them, all of their events are given: to note
    one that does not matter is no mistake, and to find out costs as much.
    """
    if before:
        yield from that_matter(data[:before], matters, 0)
    has_cr = 13 in data
    while start < len(data):
        found = find_end(data, start + BLOCK, True) if has_cr else data.find(b"\n\n", start + BLOCK) + 2
        end = found if found > 1 else len(data)
        if matters(data[start:end]):
            while start < end:
                found = find_end(data, start, True) if has_cr else data.find(b"\n\n", start) + 2
                if found < 2:
                    break
                yield start, found
                start = found
        start = max(start, end)


def fields(event: bytes) -> tuple[str, bytes | None]:
    """An event's name (empty if it has none) and its data (None if it has no ``data`` line).

    A BOM in front of it is no part of it, behind empty lines too: these may have been in an earlier read.
    """
    name, data = "", []
    for line in _LINE.split(event.lstrip(b"\r\n").removeprefix(BOM)):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.decode(errors="replace")
    return name, b"\n".join(data) if data else None


def end_of_events(before: bytes, data: bytes, inside: bool) -> int:
    """The offset after the last event that ends in ``data``; 0 if none does. Its empty line may begin in ``before``.

    With ``inside`` set, ``data`` begins within an event.
    """
    before = before[-3:]
    end = max(0, boundary(before + data) - len(before))
    if end or not inside:
        while data[end : end + 1] in (b"\r", b"\n"):  # the LF of a CRLF that is divided between two reads
            end += 1
    return end


def end_of_first(before: bytes, data: bytes) -> int:
    """The offset after the event that ends first in ``data``; its size if none does. See ``end_of_events``."""
    before = before[-3:]
    ends = (end for match in _END.finditer(before + data) if (end := match.end() - len(before)) > 0)
    return next(ends, len(data))


def is_between_events(tail: bytes) -> bool:
    """Whether a stream whose last three bytes are these is between two events. Behind CRLF and CR an LF may follow."""
    return tail.endswith((b"\n\n", b"\n\r\n", b"\r\r", b"\r\r\n"))


def is_whole(rest: bytes) -> bool:
    """Whether the bytes after the last event are a whole event without its empty line."""
    _, data = fields(rest)
    if data is None or data.strip() == b"[DONE]":
        return True
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def is_silence(data: bytes) -> bool:
    """Whether ``data``, which begins at the start of a line, has only comments and empty lines."""
    return not data or (data[0] in b":\r\n" and _SILENCE.fullmatch(data) is not None)


def begins_a_stream(data: bytes, doubtful: bool) -> bool | None:
    """Whether ``data`` is the beginning of an event stream; None if more bytes are needed.

    With ``doubtful`` set, the Content-Type is that of something else, so ``data`` must begin with a field or a comment.
    """
    first = data.removeprefix(BOM).lstrip()
    if not first:
        return None
    if first[:1] in b"{[<":
        return False
    if not doubtful or first.startswith(_BEGINNINGS):
        return True
    return None if any(beginning.startswith(first) for beginning in _BEGINNINGS) else False
