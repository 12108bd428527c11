"""Most events of a stream differ from each other in one text: what was found out of one of them is true of all."""

from __future__ import annotations

import re


class UsualEvent:
    """The bytes around the text of an event. With another text, and the same bytes around it, an event means the same.

    The text is all of a JSON string, so a quote may not be in it. Nor may a line end, which would make other events.
    """

    __slots__ = ("around", "head", "tail", "text")

    def __init__(self, event: bytes, start: int, end: int) -> None:
        """``start`` and ``end`` are those of the text in ``event``."""
        self.head, self.tail = event[:start], event[end:]
        self.text = slice(start, end - len(event))
        self.around = self.tail + self.head  # the text of one event and that of the next

    def size_in(self, data: bytes) -> int:
        """How many bytes at the start of ``data`` are such events."""
        head, tail, around = self.head, self.tail, self.around
        if not data.startswith(head):
            return 0
        last = data.rfind(around, len(head))
        end = data.find(tail, len(head) if last < 0 else last + len(around))
        if end < 0:  # the last one is incomplete, or of another kind
            end = last
        if end < 0:
            return 0
        texts = b"".join(data[len(head) : end].split(around))
        return 0 if 34 in texts or 10 in texts or 13 in texts else end + len(tail)


def usual_event(data: bytes, text: re.Pattern[bytes]) -> UsualEvent | None:
    """The first event in ``data``, which are whole events, if ``text`` finds the text in it."""
    event = data[: data.find(b"\n\n") + 2]
    found = text.search(event)
    return UsualEvent(event, *found.span(1)) if found and 13 not in event else None
