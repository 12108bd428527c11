"""What the bytes of a streamed answer mean, and which may be passed on. Pure: no connection, client or clock."""

from __future__ import annotations

import re
from collections.abc import Callable

from aigw.errors import StreamBroken
from aigw.protocols import events, like_events, sse
from aigw.protocols.error_bodies import error_event
from aigw.protocols.facts import StreamFacts
from aigw.protocols.meaning import END, ERROR, OUTPUT, SILENCE, Meaning
from aigw.protocols.refusals import reason_in
from aigw.protocols.usage import MOST, ReportedUsage, find_usage

HOLD_STREAM = 64 * 1024  # bytes of an event that waits for its end
HOLD_NOTHING = 1024 * 1024  # bytes of an announcement that waits for its end
OVERLAP = MOST + 64  # bytes of an event in pieces that are searched again with the next piece

# A quote or a line end inside a JSON string is escaped: a model's text cannot match this or a protocol's pattern. Each
# pattern begins with text that is found fast: one pattern with alternatives would cost 25 times as much.
_DONE = re.compile(rb"data:[ \t]*\[DONE\][ \t]*(?:[\r\n]|\Z)")


class StreamScanner(StreamFacts):
    """One streamed answer.

    ``has_output``: the first output was seen. ``complete``: an event was seen that completes the stream. ``finished``:
    the model reported its end; ``must_finish``: it always does, so ``[DONE]`` alone is not enough. ``error`` is what
    was reported before the first output. ``failure`` is why the stream is not a whole answer, even if it ends like one.
    ``last`` is the ``[DONE]`` that is sent after the gateway's error event. ``usage`` has the reported tokens.
    A subclass has the facts of one protocol.
    """

    results = 1  # of the stream, each with an event at its end
    _like = like_events.NONE
    _learns = 64  # how often these may still change: events may have a time

    def __init__(self) -> None:
        self.has_output = self.complete = self.finished = False
        self.failure: StreamBroken | None = None
        self.error: object = None
        self.last = b""
        self.usage = ReportedUsage()
        self._closely = True  # each read is examined, because it may hold parts of events, or events that matter
        self._rest = bytearray()  # the incomplete event
        self._rest_is_silence: bool | None = None  # None: not examined yet
        self._every_event = False  # each event is examined
        self.in_pieces, self._before = False, b""  # whether a large event is sent in pieces, and its last bytes
        self._ends = False  # it ends the stream
        self._is_like_the_first: Callable[[bytes], object] | None = None  # where the members of each event differ

    def feed(self, data: bytes) -> tuple[bytes, Meaning]:
        """The bytes that may be passed on after one more read of the answer, and what they mean.

        Whole events are passed on; an incomplete event waits for its end. The caller holds the bytes back until the
        first output. An ERROR or an END before it means that there is no output. Nothing is passed on after an END.
        """
        like = self._like  # mostly it is an event like one before, or several
        if data.startswith(like.head) and data.endswith(like.tail) and not self._closely:
            text = data[like.text]
            if not (34 in text or 10 in text or 13 in text) or like.has_texts_only(text):
                if self.repeats:
                    self.remember(data)
                return data, OUTPUT
        if self._closely or data[-2:] != b"\n\n" or data[0] in b":\r\n":
            return self._feed_closely(data)
        if self.repeats:
            self.remember(data)
        if self._is_like_the_first is not None and self._is_like_the_first(data):
            return data, OUTPUT
        most_are_like = len(data) > sse.BLOCK and data.startswith(like.head)
        if most_are_like or self._matters(data) or (data.find(b'"usage"') >= 0 and find_usage(data)):
            return self._examine(data)
        self._learn(data)
        return data, OUTPUT

    def finish(self) -> bytes:
        """The bytes that may be passed on at the end of a body whose framing is right.

        The last event may lack its empty line.
        """
        rest, self._rest = bytes(self._rest), bytearray()
        if self.in_pieces:
            self._note_pieces(self._before + rest)
        elif sse.is_whole(rest):
            rest, _ = self._examine(rest, whole=True)
        return rest

    def error_event(self, broken: StreamBroken) -> bytes:
        """The event that reports a broken stream to the client."""
        return self.give_up_event() + error_event(broken)

    def give_up_event(self) -> bytes:
        """The bytes that end an event of which only a part was passed on."""
        return b"\n\n" if self.in_pieces else b""

    def _feed_closely(self, data: bytes) -> tuple[bytes, Meaning]:
        passed = self._feed_any(data) if self.has_output else self._feed_first(data)
        if self.has_output:
            self._closely = self.in_pieces or self._every_event or bool(self._rest)
        return passed

    # Before the first output: event by event

    def _feed_first(self, data: bytes) -> tuple[bytes, Meaning]:
        """See ``feed``. The events of the read that has the first output are also examined for an end."""
        if self._rest:
            if len(self._rest) + len(data) < HOLD_STREAM and self._continues_the_rest(data):
                self._rest += data
                return b"", SILENCE
            data, self._rest = bytes(self._rest) + data, bytearray()
        seen, meaning, has_cr = 0, SILENCE, 13 in data
        while meaning is SILENCE and (end := sse.find_end(data, seen, has_cr)):
            event, seen = data[seen:end], end
            found = self.known.find(event) if self.known is not None else None
            meaning = self.meaning(found[0].value) if found is not None else self._meaning_of(event)
            if meaning is OUTPUT:
                self.has_output, is_alone = True, len(event) == len(data)
                if found is not None:
                    known, self._like = found
                    self._is_like_the_first = known.match if known.changes else None
                    if is_alone:  # no protocol with known events has to remember them
                        return data, OUTPUT
                elif not is_alone and not self._matters(event) and not find_usage(event):
                    self._learn(event)
                    self._teach(event)
                if seen < len(data):
                    return self._feed_any(data, seen - len(event))
                if self.repeats:
                    self.remember(data)
                passed = self._examine(data)
                if is_alone:
                    self._teach(event)
                return passed
        rest = data[seen:] if meaning is SILENCE else b""
        if len(rest) >= HOLD_STREAM:
            if sse.is_silence(rest):
                rest = b":" if rest[-1:] not in (b"\r", b"\n") else b":\n"  # a comment without end
            elif len(rest) >= HOLD_NOTHING or not self.is_announcement(rest):
                self.has_output = True
                return self._feed_any(data)
        self._rest += rest
        if find_usage(data, 0, seen):
            self.usage.add(data[:seen])
        return data[:seen], meaning

    def _meaning_of(self, event: bytes) -> Meaning:
        name, data, value, self.error = events.read(event)
        if self.error is not None:
            return ERROR
        if data is None:
            return SILENCE
        if data.strip() == b"[DONE]":
            return END
        if not isinstance(value, dict):
            self.error = events.malformed(data) if value is None else None
            return OUTPUT if self.error is None else ERROR
        return SILENCE if events.is_ping(name, value) else self.meaning(value)

    # After the first output: whole events

    def _feed_any(self, data: bytes, first: int = 0) -> tuple[bytes, Meaning]:
        """``first`` is the offset of the event that was learned, if there is one."""
        if self._rest:
            if len(self._rest) + len(data) <= HOLD_STREAM and self._continues_the_rest(data):
                return b"", self._keep(data)
            data, self._rest, self._rest_is_silence = bytes(self._rest) + data, bytearray(), None
        meaning = OUTPUT if self.in_pieces or not sse.is_silence(data) else SILENCE
        end = sse.end_of_events(self._before, data, self.in_pieces)
        if end != len(data):
            if (self.in_pieces and end == 0) or len(data) - end > HOLD_STREAM:
                end = 0  # too large to wait for: it is passed on in pieces
            else:
                data, self._rest = data[:end], bytearray(data[end:])
        if not data:
            return data, meaning
        found = OUTPUT
        if self.in_pieces or end == 0:
            seen = self._before + data
            self.in_pieces = end == 0
            self._before = b" " + seen[-OVERLAP:] if self.in_pieces else b""
            self.remember(seen)
            self._ends = self._note_pieces(seen) is END or self._ends
            found = END if self._ends and not self.in_pieces else OUTPUT  # the end is all of its event
        elif meaning is not SILENCE:
            self.remember(data)
            data, found = self._examine(data, first=first)
        return data, meaning if found is OUTPUT else found

    def _continues_the_rest(self, data: bytes) -> bool:
        """Whether ``data`` does not end the incomplete event, so that the whole event need not be searched again.

        If each byte arrived alone, up to 64 KiB would be searched for each byte. The end of an event has at most four
        bytes, so only the last three bytes before ``data`` matter.
        """
        return not sse.boundary(self._rest[-3:] + data)

    def _keep(self, data: bytes) -> Meaning:
        """Add to the incomplete event. Only a comment is silence."""
        if self._rest_is_silence is None:
            self._rest_is_silence = sse.is_silence(bytes(self._rest))
        if self._rest_is_silence:
            at_a_line = self._rest.endswith((b"\r", b"\n"))
            self._rest_is_silence = sse.is_silence(data if at_a_line else b":" + data)
        self._rest += data
        return SILENCE if self._rest_is_silence else OUTPUT

    def _learn(self, data: bytes) -> None:
        """Learn the last of the whole events ``data``, of which none matters."""
        if self._learns and (found := like_events.like_the_last(data, self.text)) is not None:
            self._like, self._learns = found, self._learns - 1

    def _teach(self, event: bytes) -> None:
        """Make the first event with output known to later streams, if it was learned: then it does not matter."""
        if self.known is not None and self._like is not like_events.NONE and self.known.may_learn:
            self.known.learn(event, self._like)

    # The end of the stream, and failures

    def _examine(self, data: bytes, whole: bool = False, first: int = 0) -> tuple[bytes, Meaning]:
        """Note the usage in whole events, and whether they complete the stream, end it or report a failure. See feed.

        ``whole``: ``data`` is one event, which may lack its empty line. ``first`` is where those like others may begin.
        """
        meaning, one, matter = OUTPUT, whole or (data.find(b"\n\n") == len(data) - 2 and 13 not in data), False
        seen = 0 if one or self._every_event else self._like.end_in(data, first)
        first = first if seen else 0
        for start, end in [(0, len(data))] if one else sse.that_matter(data, self._matters, seen, first):
            matter = not one or self._matters(data)
            found = self._note_event(event := data[start:end]) if matter else OUTPUT
            if found is END:
                meaning, data = END, data[:end]
                if self.failure is not None and not self.failure.reported:
                    self.last, data = event, data[:start]
                break
            meaning = ERROR if found is ERROR else meaning
        if data.find(b'"usage"') >= 0 and (find_usage(data, seen) or (first and find_usage(data, 0, first))):
            self.usage.add(data)
        elif not matter and seen < len(data):
            self._learn(data)
        return data, meaning

    def _matters(self, events: bytes) -> bool:
        """Whether one of the events may complete or end the stream or report a failure."""
        find, other = events.find, self.other  # ``in`` reads bytes as a number first, slowly
        if (
            (self._every_event or find(b"error") >= 0 or find(b"[DONE]") >= 0)
            or (find(other[0]) >= 0 or find(other[1]) >= 0 or find(other[2]) >= 0)
            or (find(other[3]) >= 0 or find(other[4]) >= 0)
        ):
            return True
        signs = events.count(self.sign)
        return signs != events.count(self.usual[0]) and signs != events.count(self.usual[1])

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

    def note_failure(self, error: object, reported: bool) -> Meaning:
        """Note a failure. ``reported``: its event makes the official clients raise."""
        if self.failure is None or (reported and not self.failure.reported):
            message = "The provider reported an error in its stream."
            self.failure = StreamBroken("provider_error", message, detail=reason_in(error), reported=reported)
        return ERROR
