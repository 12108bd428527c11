"""The kinds of answers: what is held of each, when it is committed, and when it is complete."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from aigw.errors import StreamBroken, UpstreamBroken, UpstreamFailure
from aigw.protocols import sse
from aigw.protocols.answers import is_complete, meaning_of, message_in, mistake_in_answer
from aigw.protocols.endpoints import Endpoint
from aigw.protocols.error_bodies import error_event
from aigw.protocols.sse import Meaning
from aigw.protocols.usage import MOST, mentions_usage
from aigw.proxy.relay import Relay
from aigw.upstream.connection import Response

HOLD_PLAIN = 1024 * 1024
HOLD_STREAM = 64 * 1024
HOLD_EVENTS = 64
TAIL = 64
NO_STREAM = "answered a streaming request without a stream"


class Plain(Relay):
    """An answer in one piece: judged when it is whole, or let go when it is larger than what is held.

    Its limit counts from the commit point, not from the last byte: the time is that of the whole answer.
    """

    most = HOLD_PLAIN
    cut_short = "answer_truncated"

    def _hold(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        if self._size > self.most:
            self._too_large_to_hold()

    def _too_large_to_hold(self) -> None:
        self._commit()

    def _pass_on(self, data: bytes) -> None:
        if self._over:
            self._usage_source = data
        else:  # too large to be held: usage stands at its start or its end
            self._usage_first = self._usage_first or data[:MOST]
            self._usage_source = (self._usage_source + data)[-MOST:]
        self._write(data)

    def _ended(self, whole: bool, reason: Failure) -> None:
        if self._client is not None:
            if whole:
                self._finish(None)
            else:
                self._break(self.cut_short, "The provider's answer was cut short.")
            return
        body = b"".join(self._pieces)
        mistake = self._mistake(body, whole, reason)
        if mistake is not None:
            self._fail(mistake)
            return
        self._over = True
        self._pieces = [body]
        self._commit()

    def _mistake(self, body: bytes, whole: bool, reason: Failure) -> UpstreamFailure | None:
        if not whole:
            return _cut_short(reason)
        found = mistake_in_answer(self._endpoint, body)
        return UpstreamBroken(found[0], detail=message_in(found[1])) if found else None

    def _too_late(self) -> None:
        self._break("answer_timeout", "The provider's answer was not whole within its time limit.")


class NoStream(Plain):
    """A plain answer to a client that asked for a stream and could not read it: never an answer."""

    most = HOLD_STREAM

    def _too_large_to_hold(self) -> None:
        self._fail(UpstreamBroken(NO_STREAM))

    def _mistake(self, body: bytes, whole: bool, reason: Failure) -> UpstreamFailure | None:
        return super()._mistake(body, whole, reason) or UpstreamBroken(NO_STREAM)


class Stream(Relay):
    """Server-sent events: held until the first output, then passed on whole event by whole event."""

    cut_short = "stream_truncated"

    def __init__(self, endpoint: Endpoint, clock: IReactorTime) -> None:
        super().__init__(endpoint, clock)
        self._rest = bytearray()
        self._rest_is_silence: bool | None = None  # None: not looked at yet
        self._events = 0
        self._complete = False
        self._inside_an_event = False
        self._usage_wanted = 0
        self._tail = b""  # of an event that is passed on in pieces, so that what they share is found

    def _hold(self, data: bytes) -> None:
        self._size += len(data)
        if self._size < HOLD_STREAM and self._belongs_to_the_rest(data):
            self._rest += data
            return
        data = bytes(self._rest) + data
        seen = 0
        for event in sse.events(data):
            seen += len(event)
            self._pieces.append(event)
            self._events += 1
            meaning, said = meaning_of(self._endpoint, event)
            if meaning is Meaning.ERROR:
                self._fail(UpstreamBroken("began its stream with an error", detail=message_in(said)))
                return
            if meaning is Meaning.DONE:
                self._fail(UpstreamBroken("ended its stream without output"))
                return
            if meaning is Meaning.OUTPUT or self._events >= HOLD_EVENTS:
                self._commit_with(data[seen:])
                return
        self._rest = bytearray(data[seen:])
        if self._size >= HOLD_STREAM:
            self._commit_with(data[seen:])

    def _commit_with(self, rest: bytes) -> None:
        self._pieces.append(rest)
        self._rest = bytearray()
        self._commit()

    def _belongs_to_the_rest(self, data: bytes) -> bool:
        """Whether ``data`` only continues the event that is incomplete, which is then not searched once more.

        A provider that sends byte after byte would have 64 KiB of it searched at each. An end of four bytes at most can
        begin in what is there already.
        """
        return bool(self._rest) and not sse.boundary(self._rest[-3:] + data)

    def _pass_on(self, data: bytes) -> None:
        if self._rest:
            if len(self._rest) + len(data) <= HOLD_STREAM and self._belongs_to_the_rest(data):
                self._continue_the_rest(data)
                return
            data, self._rest, self._rest_is_silence = bytes(self._rest) + data, bytearray(), None
        if self._inside_an_event or not sse.is_silence(data):
            self._heard = self._clock.seconds()
        end = self._end_of_events(data)
        if end != len(data):
            if (self._inside_an_event and end == 0) or len(data) - end > HOLD_STREAM:
                end = 0  # too large to wait for: it goes out in pieces
            else:
                data, self._rest = data[:end], bytearray(data[end:])
        if data:
            self._look_for_the_end(self._tail + data)
            self._inside_an_event = end == 0
            self._tail = b" " + (self._tail + data)[-TAIL:] if end == 0 else b""
            self._write(data)

    def _continue_the_rest(self, data: bytes) -> None:
        """Keep more of an incomplete event; only a comment is no sign of life."""
        if self._rest_is_silence is None:
            self._rest_is_silence = sse.is_silence(bytes(self._rest))
        if self._rest_is_silence:
            at_a_line = self._rest.endswith((b"\r", b"\n"))
            self._rest_is_silence = sse.is_silence(data if at_a_line else b":" + data)
        if not self._rest_is_silence:
            self._heard = self._clock.seconds()
        self._rest += data

    def _end_of_events(self, data: bytes) -> int:
        """The offset behind the last event that ends in ``data``, whose end may have begun in what went out before."""
        before = self._tail[-3:]
        end = max(0, sse.boundary(before + data) - len(before))
        if end or not self._inside_an_event:
            while data[end : end + 1] in (b"\r", b"\n"):  # the LF of a CRLF that was cut in two waits for nothing
                end += 1
        return end

    def _look_for_the_end(self, data: bytes) -> None:
        if not self._complete and is_complete(self._endpoint, data):
            self._complete = True
        if mentions_usage(data):
            self._usage_first = self._usage_first or self._usage_source
            self._usage_source, self._usage_wanted = data, MOST
        elif self._tail and self._usage_wanted:  # an event in pieces, cut in the middle of its usage
            more = data[len(self._tail) :][: self._usage_wanted]
            self._usage_source += more
            self._usage_wanted -= len(more)

    def _ended(self, whole: bool, reason: Failure) -> None:
        if self._client is None:
            self._fail(UpstreamBroken("ended its stream without output") if whole else _cut_short(reason))
            return
        if whole and (self._inside_an_event or sse.is_whole(bytes(self._rest))):
            self._look_for_the_end(self._tail + bytes(self._rest))
        if whole and self._complete:
            self._write(bytes(self._rest))
            self._finish(None)
        elif reason.check(error.ConnectionLost):
            self._break("stream_reset", "The provider's connection was reset in the middle of the stream.")
        else:
            self._break(self.cut_short, "The provider's stream ended before it was complete.")

    def _too_late(self) -> None:
        self._break("stream_idle_timeout", f"The provider sent nothing for {self._limit:g} s.")

    def resumeProducing(self) -> None:
        """The client has caught up; whatever silence there was before it counts no more."""
        super().resumeProducing()
        self._heard = self._clock.seconds()

    def _break(self, code: str, message: str) -> None:
        broken = StreamBroken(code, message)
        self._write((b"\n\n" if self._inside_an_event else b"") + error_event(broken))
        self._finish(broken)


def hold(response: Response, endpoint: Endpoint, stream: bool, clock: IReactorTime) -> Deferred[Relay]:
    """Read a 2xx answer up to the commit point. Fails with UpstreamBroken; cancelling hangs up on the provider."""
    relay = _kind_of(response, stream)(endpoint, clock)
    response.deliverBody(relay)
    return relay.held


def _kind_of(response: Response, stream: bool) -> Callable[[Endpoint, IReactorTime], Relay]:
    if not stream:
        return Plain
    kind = (response.header(b"content-type") or b"").lower()
    return NoStream if b"json" in kind or b"html" in kind else Stream


def _cut_short(reason: Failure) -> UpstreamBroken:
    if isinstance(reason.value, UpstreamBroken):
        return UpstreamBroken(f"answered with {reason.value.message}")
    return UpstreamBroken("connection closed in the middle of its answer")
