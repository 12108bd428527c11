"""Events of a stream that are like one before, with another text: most are, and they need not be examined. Pure."""

from __future__ import annotations

import re


class LikeEvents:
    """What is around the text of one event.

    An event is like it if it begins with ``head``, ends with ``tail``, and its ``text`` has no quote, which would begin
    another member, and no line end, which would begin another event. Escapes do not matter: with a backslash too many
    the event is malformed, and means nothing.
    """

    __slots__ = ("_between", "_lines", "_quotes", "head", "tail", "text")

    def __init__(self, head: bytes, tail: bytes) -> None:
        self.head: bytes | tuple[()] = head
        self.tail = tail
        self.text = slice(len(head), -len(tail))
        self._between = b""  # the texts of two such events, once there are two
        self._quotes = self._lines = 0  # in it

    def has_texts_only(self, text: bytes) -> bool:
        """Whether ``text``, between a head and a tail, is one text, or several with a tail and a head between them."""
        # Each search for all that is between, some 200 bytes, costs Python some 4 us before it begins (fastsearch.h): a
        # count is one search, a split one for each event.
        if not self._between:
            self._between = self.tail + bytes(self.head)
            self._quotes, self._lines = self._between.count(b'"'), self._between.count(b"\n")
        others = text.count(self._between)
        return (
            13 not in text and text.count(b'"') == others * self._quotes and text.count(b"\n") == others * self._lines
        )

    def end_in(self, data: bytes, start: int) -> int:
        """The offset after the events like it that begin at ``start``; 0 where that is not found fast."""
        if not data.startswith(self.head, start):
            return 0
        start += len(self.head)
        at = data.rfind(self.tail, start)
        return at + len(self.tail) if at > 0 and self.has_texts_only(data[start:at]) else 0


NONE = LikeEvents(b"", b"")  # of no event
NONE.head = ()  # nothing begins with this


def like_the_last(data: bytes, text: re.Pattern[bytes]) -> LikeEvents | None:
    """Those like the last one of the whole events ``data``, in which ``text`` finds its text; None if it has none."""
    if 13 in data:
        return None
    before = data.rfind(b"\n\n", 0, len(data) - 2)
    event = data if before < 0 else data[before + 2 :]
    at = text.search(event)
    return None if at is None else LikeEvents(event[: at.start(1)], event[at.end(1) :])
