"""Streams: how much of one is held, when it is committed, and when it is complete. And which kind an answer is."""

from __future__ import annotations

import math
from collections.abc import Callable

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from aigw.errors import StreamBroken, UpstreamBroken
from aigw.protocols import sse
from aigw.protocols.endpoint import Call
from aigw.protocols.meaning import END, ERROR, OUTPUT, SILENCE, Meaning
from aigw.protocols.refusals import reason_in
from aigw.protocols.scanner import HOLD_STREAM
from aigw.protocols.shaping import UNCHANGED, Difference
from aigw.proxy.committed import Follows
from aigw.proxy.plain import Flowing, Plain, cut_short
from aigw.proxy.relay import END_SECONDS, Relay
from aigw.proxy.responder import BodySink
from aigw.upstream.attempt import Attempt
from aigw.upstream.response import Response

NO_STREAM = "answered a streaming request without a stream"

MustFinish = Callable[[], bool]


class Stream(Relay):
    """Server-sent events. They are held until the first output; then the endpoint's scanner decides what is sent."""

    cut_short = "stream_truncated"
    default_type = b"text/event-stream"
    flows = True
    flushes = True

    def __init__(
        self,
        call: Call,
        clock: IReactorTime,
        label: bytes,
        must_finish: MustFinish,
        difference: Difference,
        follows: Follows | None = None,
    ) -> None:
        """``label`` is the Content-Type in lower case; ``must_finish``: whether the model gives a ``finish_reason``;
        ``difference`` is that between the request that was sent and the client's."""
        endpoint = call.endpoint
        super().__init__(endpoint, clock, follows)
        without_usage = endpoint.scanner_without_usage if difference.hides_usage else None
        self._scanner = (without_usage or endpoint.scanner)()
        self._scanner.is_known_to_finish = must_finish
        self._scanner.results = difference.results or call.results
        self.reported = self._scanner.usage
        self.mislabelled = bool(label) and not label.startswith(b"text/event-stream")
        self._first: bytes | None = b""  # the first bytes, until it is known whether they are a stream
        self._body: bytearray | None = None  # the bytes, if they are not a stream
        self._held_size = 0
        self._full = False
        self._last_meaning = SILENCE  # before the commit point, and at the end
        self._ends_at = math.inf  # the time limit for the end after the provider reported a failure or the end

    @property
    def finished(self) -> bool:
        """See Relay."""
        return self._scanner.finished

    @property
    def failure(self) -> StreamBroken | None:
        """See Relay."""
        return self._scanner.failure

    def dataReceived(self, data: bytes, chunk: bytes = b"") -> None:
        """See Relay. This runs for each chunk of a stream. ``chunk`` is the data in its frame, if there is one."""
        client = self._client
        if client is None:
            self._hold(data)
            return
        if self._last_meaning is END:
            self._write(b"\n" if data[:1] == b"\n" else b"")
            self._end_as_it_did(let_end=True)
            return
        passed, meaning = self._scanner.feed(data)
        if meaning is END and self.flowing is self._follows and not self._scanner.failure and passed[-1:] != b"\r":
            self.bytes_out += len(passed)
            self.last = passed
            self._finish(None, let_end=True)
            return
        if passed:
            self.bytes_out += len(passed)
            client.write(passed, chunk if passed is data else b"")
        if meaning is OUTPUT:
            seconds = self._seconds  # Python calls a function by a name of here faster than an attribute of an object
            self._last_activity = seconds()
        elif meaning is END:
            self._at_the_end(passed)
        elif meaning is ERROR:
            self._expect_the_end()

    chunkReceived = dataReceived

    # Up to the commit point

    def _hold(self, data: bytes) -> None:
        if self._first is not None:
            data, self._first = self._first + data, None
            is_stream = data.startswith(b"data:") or sse.begins_a_stream(data, self.mislabelled)
            if is_stream is None:
                self._first = data[:HOLD_STREAM]
                return
            if not is_stream:
                self._body = bytearray()
        if self._body is not None:
            self._body += data
            if len(self._body) > HOLD_STREAM:
                self._fail(UpstreamBroken(NO_STREAM))
            return
        passed, meaning = self._scanner.feed(data)
        self._last_meaning = meaning
        if self._scanner.has_output:
            self._pieces.append(passed)
            if not self.held.called:  # else flow() follows in this turn of the reactor
                self.held.callback(self)
        elif meaning is not SILENCE:
            self._fail(_no_output(meaning, self._scanner.error))
        elif passed:
            self._hold_nothing(passed)

    def _hold_nothing(self, passed: bytes) -> None:
        """Keep events that are not output. Above HOLD_STREAM bytes, comments and later events are dropped."""
        if not self._full:
            self._pieces.append(passed)
            self._held_size += len(passed)
            if self._held_size <= HOLD_STREAM:
                return
            self._full = True
            passed, self._pieces, self._held_size = b"".join(self._pieces), [], 0
        for event in sse.events(passed):
            if not sse.is_silence(event) and self._held_size + len(event) <= HOLD_STREAM:
                self._pieces.append(event)
                self._held_size += len(event)

    def flow(self, client: BodySink, seconds: float) -> Deferred[None]:
        """See Relay."""
        passed = self._pieces[-1]
        flowing = super().flow(client, seconds)
        if self._last_meaning is END and not self._over:
            self._at_the_end(passed)
        elif self._last_meaning is ERROR:
            self._expect_the_end()
        return flowing

    # The end

    def _at_the_end(self, passed: bytes) -> None:
        """Called when the event that ends the stream has been passed on."""
        if passed.endswith(b"\r"):  # the LF of its empty line may be in the next read
            self._last_meaning = END
            self._expect_the_end()
        else:
            self._end_as_it_did(let_end=True)

    def _expect_the_end(self) -> None:
        """Limit the time for the end, because the provider has reported a failure or the end."""
        if self._ends_at == math.inf and self._is_producer:
            self._ends_at = self._clock.seconds() + END_SECONDS
            if self._timer is not None:
                self._timer.reset(END_SECONDS)
            elif self._follows is not None:
                self._follows.leave()

    def _end_as_it_did(self, let_end: bool = False) -> None:
        """End the client's answer, after an error event if the official clients would not detect the failure."""
        failure = self._scanner.failure
        if failure is not None and not failure.reported:
            self._report(failure)
            self._write(self._scanner.last)
        self._finish(failure, let_end)

    def _ended(self, whole: bool, reason: Failure) -> None:
        if self._client is None:
            self._fail(self._no_stream(whole, reason))
            return
        scanner = self._scanner
        if self._last_meaning is END:
            self._end_as_it_did()
            return
        rest = scanner.finish() if whole else b""
        if whole and (scanner.complete or scanner.failure is not None):
            self._write(rest)
            self._end_as_it_did()
        elif scanner.failure is not None:
            self._break(scanner.failure.code, scanner.failure.message)
        elif reason.check(error.ConnectionLost):
            self._break("stream_reset", "The provider's connection was reset in the middle of the stream.")
        else:
            self._break(self.cut_short, "The provider's stream ended before it was complete.")

    def _no_stream(self, whole: bool, reason: Failure) -> UpstreamBroken:
        if not whole:
            return cut_short(reason)
        if self._body is None and not self._first:
            return _no_output(END, None)
        found = self._endpoint.check_answer(bytes(self._body or b""))
        return UpstreamBroken(found[0], detail=found[1]) if found else UpstreamBroken(NO_STREAM)

    def time_left(self) -> float:
        """See Relay."""
        return super().time_left() if self._ends_at == math.inf else self._ends_at - self._clock.seconds()

    def _too_late(self) -> None:
        if self._scanner.failure is not None or self._last_meaning is END:
            self._end_as_it_did()
            self.transport.stopProducing()  # its body has not ended
        else:
            self._break("stream_idle_timeout", f"The provider sent nothing for {self._limit:g} s.")

    def _report(self, broken: StreamBroken) -> None:
        self._write(self._scanner.error_event(broken))
        broken.reported = self._scanner.error_event_ends_it

    def _break(self, code: str, message: str) -> None:
        failure = self._scanner.failure
        broken = StreamBroken(code, message, detail=failure.detail if failure else None)
        if failure is None or not failure.reported:
            self._report(broken)
        self._finish(broken)


def hold(
    response: Response, call: Call, clock: IReactorTime, must_finish: MustFinish, attempt: Attempt | None
) -> Relay:
    """Read a 2xx answer to ``attempt`` up to the commit point; see ``Relay.held``. A cancel aborts the answer."""
    relay: Relay
    endpoint = call.endpoint
    label = response.given.get(b"content-type", [b""])[-1].lower()
    if call.stream:
        difference = UNCHANGED if attempt is None else attempt.difference
        relay = Stream(call, clock, label, must_finish, difference)
    elif endpoint.flows is not None:
        relay = Flowing(endpoint, clock, label, endpoint.flows)
    else:
        relay = Plain(endpoint, clock, label)
    response.deliverBody(relay)
    return relay


def _no_output(meaning: Meaning, error: object) -> UpstreamBroken:
    if meaning is ERROR:
        return UpstreamBroken("began its stream with an error", detail=reason_in(error))
    return UpstreamBroken("ended its stream without output")
