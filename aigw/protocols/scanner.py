"""What the bytes of a streamed answer mean, and what may be passed on: no connection, no client and no clock here."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from aigw.errors import StreamBroken
from aigw.protocols import events, sse
from aigw.protocols.error_bodies import error_event
from aigw.protocols.meaning import END, ERROR, OUTPUT, SILENCE, Meaning
from aigw.protocols.refusals import reason_in
from aigw.protocols.usage import MOST, ReportedUsage, find_usage

HOLD_STREAM = 64 * 1024  # bytes of an event that waits for its end
HOLD_NOTHING = 1024 * 1024  # the same of one that is known to be no output
OVERLAP = MOST + 64  # of an event in pieces: what is looked for stands whole in a piece and so much before it

# A quote or a line end inside a JSON string is escaped: no model writes what this or a protocol's pattern finds. Each
# begins with what is found fast: as alternatives of one they cost 25 times as much.
_DONE = re.compile(rb"data:[ \t]*\[DONE\][ \t]*(?:[\r\n]|\Z)")


class StreamScanner(ABC):
    """One streamed answer.

    ``has_output``: the first output was seen. ``complete``: an event was seen that completes the stream. ``finished``:
    the answer itself said that it is; ``must_finish``: it always does, so ``[DONE]`` alone is no end. ``error`` is what
    was reported before the first output, ``failure`` why the stream is no whole answer, although it may end as one.
    ``last`` is the ``[DONE]`` that goes on behind our event. ``usage`` has the tokens that were reported.
    A subclass holds what a protocol has of its own. ``sign`` stands in whatever may complete a stream. Most events hold
    it in one of the ``usual`` forms, which complete nothing; where one of the ``other`` stands too, it is looked at.
    """

    sign: ClassVar[bytes]
    usual: ClassVar[tuple[bytes, bytes]]
    other: ClassVar[tuple[bytes, bytes]]
    text: ClassVar[re.Pattern[bytes]]  # finds the text in an event of output
    must_finish = False
    is_known_to_finish: Callable[[], bool] = staticmethod(lambda: False)  # whether this model always does
    error_event_ends_it: ClassVar[bool] = False  # clients take it for an end that is one only if the body ends rightly
    repeats: ClassVar[bool] = False  # an ``error_event`` repeats some of what was passed on

    def __init__(self) -> None:
        self.has_output = False
        self.complete = False
        self.finished = False
        self.failure: StreamBroken | None = None
        self.error: Any = None
        self.last = b""
        self.usage = ReportedUsage()
        self._head, self._tail, self._text = b"?", b"", slice(0)  # what stands around the text of most events
        self._learns = 64  # times, as a time may stand there
        self._closely = True  # not every read is whole events of which most matter little
        self._rest = bytearray()  # of an event whose end is to come
        self._rest_is_silence: bool | None = None  # None: not looked at yet
        self._every_event = False  # is to be looked at
        self._in_pieces = False  # an event is being passed on that was too large to wait for
        self._before = b""  # what was passed on of it last

    @abstractmethod
    def meaning(self, value: dict[str, Any]) -> Meaning:
        """What one JSON object means before the first output: when in doubt it is output."""

    @abstractmethod
    def note(self, value: dict[str, Any]) -> Meaning:
        """Note what one JSON object means for the end of the stream: OUTPUT, ERROR or END."""

    @abstractmethod
    def note_in_pieces(self, data: bytes) -> Meaning:
        """The same of an event that is too large to be read, by a piece of it and what stood before that."""

    @abstractmethod
    def raises(self, name: str, value: dict[str, Any]) -> bool:
        """Whether a failure in an event of this name and value makes the official clients raise."""

    def is_announcement(self, data: bytes) -> bool:
        """Whether an event that begins so is known to be no output, however long it is."""
        return False

    def remember(self, data: bytes) -> None:  # noqa: B027
        """Remember of what is passed on what an ``error_event`` repeats."""

    def feed(self, data: bytes) -> tuple[bytes, Meaning]:
        """What may be passed on of the answer after these bytes of it, and what they mean.

        Whole events are passed on, the beginning of one waits for its end. Up to the first output they are to be held
        back. An ERROR or an END before it means that there is no output. Nothing is passed on behind an END.
        """
        if self._closely:
            return self._feed_closely(data)
        if data[-2:] != b"\n\n" or data[:1] in b":\r\n":
            return self._feed_closely(data)
        if self.repeats:
            self.remember(data)
        if data.startswith(self._head) and data.endswith(self._tail):  # as nearly always: the last event, another text
            text = data[self._text]
            if b'"' not in text and b"\\" not in text and b"\n" not in text and b"\r" not in text:
                return data, OUTPUT
        # Whole events. Only what may matter is looked at: here no function is called, so this repeats ``_matters``.
        signs = data.count(self.sign)
        if (
            (signs != data.count(self.usual[0]) and signs != data.count(self.usual[1]))
            or b"error" in data
            or b"[DONE]" in data
            or self.other[0] in data
            or self.other[1] in data
            or (b'"usage"' in data and find_usage(data))
        ):
            return self._look_at(data)
        if self._learns and (found := self.text.search(data)) and data.find(b"\n\n") == len(data) - 2:
            self._learns -= 1
            self._head, self._tail = data[: found.start(1)], data[found.end(1) :]
            self._text = slice(found.start(1), -len(self._tail))
        return data, OUTPUT

    def finish(self) -> bytes:
        """What may still be passed on at the end of the body, whose framing was right.

        The event at the end may lack its empty line.
        """
        rest, self._rest = bytes(self._rest), bytearray()
        if self._in_pieces:
            self._note_pieces(self._before + rest)
        elif sse.is_whole(rest):
            rest, _ = self._look_at(rest, whole=True)
        return rest

    def error_event(self, broken: StreamBroken) -> bytes:
        """The event that reports to the client that the stream broke here."""
        return self.give_up_event() + error_event(broken)

    def give_up_event(self) -> bytes:
        """What ends an event that was passed on in part."""
        return b"\n\n" if self._in_pieces else b""

    def _feed_closely(self, data: bytes) -> tuple[bytes, Meaning]:
        passed = self._feed_any(data) if self.has_output else self._feed_first(data)
        if self.has_output:
            self._closely = self._in_pieces or self._every_event or bool(self._rest)
        return passed

    # Before the first output: event by event

    def _feed_first(self, data: bytes) -> tuple[bytes, Meaning]:
        """The same; what holds the first output is looked at as what follows it."""
        if self._rest:
            if len(self._rest) + len(data) < HOLD_STREAM and self._continues_the_rest(data):
                self._rest += data
                return b"", SILENCE
            data, self._rest = bytes(self._rest) + data, bytearray()
        seen = 0
        while end := sse.find_end(data, seen):
            event, seen = data[seen : end.end()], end.end()
            meaning = self._meaning_of(event)
            if meaning is END or meaning is ERROR:
                return data[:seen], meaning
            if meaning is OUTPUT:
                self.has_output = True
                if seen < len(data):
                    return self._feed_any(data)
                if self.repeats:
                    self.remember(data)
                return self._look_at(data)
        rest = data[seen:]
        if len(rest) >= HOLD_STREAM:
            if sse.is_silence(rest):
                rest = b":" if rest[-1:] not in (b"\r", b"\n") else b":\n"  # a comment without end
            elif len(rest) >= HOLD_NOTHING or not self.is_announcement(rest):
                self.has_output = True
                return self._feed_any(data)
        self._rest += rest
        if find_usage(data, 0, seen):
            self.usage.add(data[:seen])
        return data[:seen], SILENCE

    def _meaning_of(self, event: bytes) -> Meaning:
        name, data, value, self.error = events.read(event)
        if self.error is not None:
            return ERROR
        if data is None:
            return SILENCE
        if data.strip() == b"[DONE]":
            return END
        if not isinstance(value, dict):
            return OUTPUT
        return SILENCE if events.is_ping(name, value) else self.meaning(value)

    # After it: as far as whole events go

    def _feed_any(self, data: bytes) -> tuple[bytes, Meaning]:
        if self._rest:
            if len(self._rest) + len(data) <= HOLD_STREAM and self._continues_the_rest(data):
                return b"", self._keep(data)
            data, self._rest, self._rest_is_silence = bytes(self._rest) + data, bytearray(), None
        meaning = OUTPUT if self._in_pieces or not sse.is_silence(data) else SILENCE
        end = sse.end_of_events(self._before, data, self._in_pieces)
        if end != len(data):
            if (self._in_pieces and end == 0) or len(data) - end > HOLD_STREAM:
                end = 0  # too large to wait for: it goes out in pieces
            else:
                data, self._rest = data[:end], bytearray(data[end:])
        if not data:
            return data, meaning
        found = OUTPUT
        if self._in_pieces or end == 0:
            seen = self._before + data
            self._in_pieces = end == 0
            self._before = b" " + seen[-OVERLAP:] if self._in_pieces else b""
            self.remember(seen)
            found = self._note_pieces(seen)
        elif meaning is not SILENCE:
            self.remember(data)
            data, found = self._look_at(data)
        return data, meaning if found is OUTPUT else found

    def _continues_the_rest(self, data: bytes) -> bool:
        """Whether ``data`` only continues the event that is incomplete, which is then not searched once more.

        A provider that sends byte after byte would have 64 KiB of it searched at each. An end of four bytes at most can
        begin in what is there already.
        """
        return not sse.boundary(self._rest[-3:] + data)

    def _keep(self, data: bytes) -> Meaning:
        """Keep more of an incomplete event; only a comment is silence."""
        if self._rest_is_silence is None:
            self._rest_is_silence = sse.is_silence(bytes(self._rest))
        if self._rest_is_silence:
            at_a_line = self._rest.endswith((b"\r", b"\n"))
            self._rest_is_silence = sse.is_silence(data if at_a_line else b":" + data)
        self._rest += data
        return SILENCE if self._rest_is_silence else OUTPUT

    # What the end of the stream, and a failure, look like

    def _look_at(self, data: bytes, whole: bool = False) -> tuple[bytes, Meaning]:
        """Note the usage in whole events, and whether they complete the stream, end it or report a failure.

        ``whole``: it is one event, which may lack its empty line. Of the data what may be passed on, and what it means.
        """
        meaning, one = OUTPUT, whole or (data.find(b"\n\n") == len(data) - 2 and b"\r" not in data)
        for start, end in [(0, len(data))] if one else sse.that_matter(data, self._matters):
            event = data[start:end]
            found = self._note_event(event) if not one or self._matters(event) else OUTPUT
            if found is END:
                meaning, data = END, data[:end]
                if self.failure is not None and not self.failure.reported:
                    self.last, data = event, data[:start]
                break
            meaning = ERROR if found is ERROR else meaning
        if find_usage(data):
            self.usage.add(data)
        return data, meaning

    def _matters(self, events: bytes) -> bool:
        """Whether one of them may have to be looked at: a few searches, as most have not."""
        signs = events.count(self.sign)
        return (
            self._every_event
            or (signs != events.count(self.usual[0]) and signs != events.count(self.usual[1]))
            or b"error" in events
            or b"[DONE]" in events
            or self.other[0] in events
            or self.other[1] in events
        )

    def _note_event(self, event: bytes) -> Meaning:
        if _DONE.match(event):
            return self._done()
        name, data, value, error = events.read(event)
        if data is not None and data.strip() == b"[DONE]":
            return self._done()
        meaning = self.note(value) if isinstance(value, dict) else OUTPUT
        if error is not None:
            self.note_failure(error, isinstance(value, dict) and self.raises(name, value))
        return ERROR if error is not None and meaning is not END else meaning

    def _note_pieces(self, data: bytes) -> Meaning:
        if find_usage(data):
            self.usage.add(data)
        if any([match.start() == 0 or data[match.start() - 1] in b"\r\n" for match in _DONE.finditer(data)]):
            return self._done()
        return self.note_in_pieces(data)

    def _done(self) -> Meaning:
        self.complete = True
        if not self.finished and self.failure is None and (self.must_finish or self.is_known_to_finish()):
            self.failure = StreamBroken("stream_truncated", "The provider's stream ended before it was complete.")
        return END

    def note_failure(self, error: Any, reported: bool) -> Meaning:
        """Note a failure; ``reported``: in a form that makes the official clients raise."""
        if self.failure is None or (reported and not self.failure.reported):
            message = "The provider reported an error in its stream."
            self.failure = StreamBroken("provider_error", message, detail=reason_in(error), reported=reported)
        return ERROR
