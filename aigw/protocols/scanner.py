"""What the bytes of a streamed answer mean, and what of them may be passed on now.

A scanner is fed every read of one answer. It knows no connection, no client and no clock.
"""

from __future__ import annotations

import enum
import json
import re
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from aigw.errors import StreamBroken
from aigw.protocols import sse
from aigw.protocols.envelope import MOST_OF_AN_ERROR
from aigw.protocols.error_bodies import error_event
from aigw.protocols.usage import MOST, ReportedUsage, find_usage

HOLD_STREAM = 64 * 1024  # bytes of an event that waits for its end, and of a stream that waits for its first output
HOLD_EVENTS = 64  # without output; after that the next ones count as output
OVERLAP = MOST + 64  # of an event in pieces: what is looked for stands whole in a piece and so much before it

# An unescaped quote cannot stand inside a JSON string, nor a line end: neither this pattern nor that of a protocol is
# met by what a model writes. Each begins with what is found fast: as alternatives of one they cost 25 times as much.
_DONE = re.compile(rb"data:[ \t]*\[DONE\][ \t]*(?:[\r\n]|\Z)")
_PLAIN = re.compile(rb"data: ?([^\r\n]*)\n\n").fullmatch
# Tuples: what stands in an event's ``type`` may be unhashable.
_PINGS = ("ping", "keepalive")
_FAILURES = ("error", "response.failed")


class Meaning(enum.Enum):
    """What some of a stream means. Of several meanings the one that stands last here counts."""

    SILENCE = "comments, and before the first output also pings, roles, empty deltas"
    OUTPUT = "part of the answer, or something that is not understood"
    END = "the end of the stream"
    ERROR = "a failure"


SILENCE, OUTPUT, END, ERROR = Meaning


class StreamScanner(ABC):
    """One streamed answer.

    ``has_output``: the first output was seen. ``complete``: an event was seen that completes the stream. ``error`` is
    the error object of a stream that failed before its first output. ``usage`` has the tokens that were reported.

    A subclass holds what a protocol has of its own. ``sign`` stands in whatever may complete a stream. Most events hold
    it in one of the ``usual`` forms, which complete nothing; those events are not looked at any closer.
    """

    sign: ClassVar[bytes]
    usual: ClassVar[tuple[bytes, bytes]]
    completing_is_the_end: ClassVar[bool] = False  # else events may follow, as of usage
    error_event_ends_it: ClassVar[bool] = False  # clients take it for an end that is one only if the body ends rightly

    def __init__(self) -> None:
        self.has_output = False
        self.complete = False
        self.error: Any = None
        self.usage = ReportedUsage()
        self._rest = bytearray()  # of an event whose end is to come
        self._rest_is_silence: bool | None = None  # None: not looked at yet
        self._size = 0  # before the first output
        self._events = 0
        self._in_pieces = False  # an event is being passed on that was too large to wait for
        self._before = b""  # what was passed on of it last
        self.passed_last = b""  # of what was no comment; looked at only where the stream breaks

    @abstractmethod
    def meaning(self, value: dict[str, Any]) -> Meaning:
        """What one JSON object means before the first output: SILENCE or OUTPUT. When in doubt it is output."""

    @abstractmethod
    def completes(self, data: bytes) -> bool:
        """Whether whole events complete the stream, apart from ``[DONE]``."""

    def note(self, data: bytes) -> None:
        """Remember what an ``error_event`` repeats of a large event."""
        self.passed_last = data

    def feed(self, data: bytes) -> tuple[bytes, Meaning]:
        """What may be passed on of the answer after these bytes of it, and what they mean.

        It may be nothing: whole events are passed on, the beginning of one waits for its end. Up to the first output
        what is passed on is to be held back. An ERROR or an END before it means that there is no output.
        """
        if not self.has_output:
            data, meaning = self._feed_first(data)
            if not self.has_output:
                return data, meaning
        if self._rest or self._in_pieces or data[-2:] != b"\n\n" or data[:1] in b":\r\n":
            return self._feed_any(data)
        # Whole events, as nearly always. Only what may matter is looked at: no function of Python's own is called.
        self.passed_last = data
        signs = data.count(self.sign)
        if (
            (signs != data.count(self.usual[0]) and signs != data.count(self.usual[1]))
            or b"[DONE]" in data
            or (b'"usage"' in data and find_usage(data))
        ):
            return data, self._look_at(data)
        return data, OUTPUT

    def finish(self) -> bytes:
        """What may still be passed on at the end of the body, whose framing was right, if the stream is ``complete``.

        The event at the end may lack its empty line.
        """
        rest, self._rest = bytes(self._rest), bytearray()
        if self._in_pieces or sse.is_whole(rest):
            self._look_at(self._before + rest)
        return rest

    def error_event(self, broken: StreamBroken) -> bytes:
        """The event that reports to the client that the stream broke here. An event that is not whole is given up."""
        return self.give_up_event() + error_event(broken)

    def give_up_event(self) -> bytes:
        """What ends an event that was passed on in part."""
        return b"\n\n" if self._in_pieces else b""

    # Before the first output: event by event

    def _feed_first(self, data: bytes) -> tuple[bytes, Meaning]:
        """The same, or all that was not passed on if the first output is in it."""
        self._size += len(data)
        if self._rest:
            if self._size < HOLD_STREAM and self._continues_the_rest(data):
                self._rest += data
                return b"", SILENCE
            data, self._rest = bytes(self._rest) + data, bytearray()
        seen = 0
        while end := sse.find_end(data, seen):
            event, seen = data[seen : end.end()], end.end()
            self._events += 1
            meaning = self._meaning_of(event)
            if meaning is END or meaning is ERROR:
                return data[:seen], meaning
            if meaning is OUTPUT or self._events >= HOLD_EVENTS:
                self.has_output = True
                return data, OUTPUT
        if self._size >= HOLD_STREAM:
            self.has_output = True
            return data, OUTPUT
        self._rest += data[seen:]
        whole = data[:seen]
        if find_usage(whole):
            self.usage.add(whole)
        return whole, SILENCE

    def _meaning_of(self, event: bytes) -> Meaning:
        plain = _PLAIN(event)  # as nearly always
        name, data = ("", plain[1]) if plain else sse.fields(event)
        if data is None or not data.strip():
            return ERROR if name == "error" else SILENCE
        if data.strip() == b"[DONE]":
            return END
        try:
            value = json.loads(data) if len(data) <= 2 * MOST_OF_AN_ERROR else None
        except (ValueError, RecursionError):
            value = None
        if name == "error":
            self.error = value.get("error", value) if isinstance(value, dict) else value
            return ERROR
        if not isinstance(value, dict):
            return OUTPUT
        if name in _PINGS or value.get("type") in _PINGS:
            return SILENCE
        if value.get("error") or value.get("type") in _FAILURES:
            response = value.get("response")
            self.error = value.get("error") or (response.get("error") if isinstance(response, dict) else value)
            return ERROR
        return self.meaning(value)

    # After it: as far as whole events go

    def _feed_any(self, data: bytes) -> tuple[bytes, Meaning]:
        if self._rest:
            if len(self._rest) + len(data) <= HOLD_STREAM and self._continues_the_rest(data):
                return b"", self._keep(data)
            data, self._rest, self._rest_is_silence = bytes(self._rest) + data, bytearray(), None
        meaning = OUTPUT if self._in_pieces or not sse.is_silence(data) else SILENCE
        end = self._end_of_events(data)
        if end != len(data):
            if (self._in_pieces and end == 0) or len(data) - end > HOLD_STREAM:
                end = 0  # too large to wait for: it goes out in pieces
            else:
                data, self._rest = data[:end], bytearray(data[end:])
        if data:
            seen = self._before + data
            self._in_pieces = end == 0
            if self._in_pieces or self._before:
                self.note(seen)
            elif meaning is not SILENCE:
                self.passed_last = data
            self._before = b" " + seen[-OVERLAP:] if self._in_pieces else b""
            if self._look_at(seen) is END:
                meaning = END
        return data, meaning

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

    def _end_of_events(self, data: bytes) -> int:
        """The offset behind the last event that ends in ``data``, whose end may have begun in what went out before."""
        before = self._before[-3:]
        end = max(0, sse.boundary(before + data) - len(before))
        if end or not self._in_pieces:
            while data[end : end + 1] in (b"\r", b"\n"):  # the LF of a CRLF that was cut in two waits for nothing
                end += 1
        return end

    def _look_at(self, data: bytes) -> Meaning:
        """Note the usage in events, and whether they complete the stream or end it."""
        if find_usage(data):
            self.usage.add(data)
        if b"[DONE]" in data:
            starts = [match.start() for match in _DONE.finditer(data)]
            if any([start == 0 or data[start - 1] in b"\r\n" for start in starts]):
                self.complete = True
                return END
        if self.completes(data):
            self.complete = True
            return END if self.completing_is_the_end else OUTPUT
        return OUTPUT
