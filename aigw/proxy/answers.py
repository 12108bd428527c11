"""The kinds of answers: what is held of each, when it is committed, and when it is complete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from aigw.errors import StreamBroken, UpstreamBroken, UpstreamFailure
from aigw.protocols.answers import message_in
from aigw.protocols.endpoint import Endpoint
from aigw.protocols.scanner import END, ERROR, SILENCE, Meaning
from aigw.protocols.usage import ReportedUsage
from aigw.proxy.relay import Relay
from aigw.upstream.connection import Response

HOLD_PLAIN = 1024 * 1024
HOLD_NO_STREAM = 64 * 1024
NO_STREAM = "answered a streaming request without a stream"


class Plain(Relay):
    """An answer in one piece: judged when it is whole, or let go when it is larger than what is held.

    Its limit counts from the commit point, not from the last byte: the time is that of the whole answer.
    """

    most = HOLD_PLAIN
    cut_short = "answer_truncated"

    def __init__(self, endpoint: Endpoint, clock: IReactorTime) -> None:
        super().__init__(endpoint, clock)
        self._size = 0
        self._usage = ReportedUsage()

    @property
    def usage(self) -> dict[str, int]:
        """See Relay."""
        return self._usage.counts()

    def dataReceived(self, data: bytes) -> None:
        """See Relay."""
        if self._client is not None:
            self._usage.add_some(data)
            self._write(data)
            return
        self._pieces.append(data)
        self._size += len(data)
        if self._size > self.most and not self.held.called:
            self._too_large_to_hold()

    def _too_large_to_hold(self) -> None:
        self._usage.add_some(b"".join(self._pieces))
        self.held.callback(self)

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
        self.length = self._size
        self._usage.add(body)
        self.held.callback(self)

    def _mistake(self, body: bytes, whole: bool, reason: Failure) -> UpstreamFailure | None:
        if not whole:
            return _cut_short(reason)
        found = self._endpoint.check_answer(body)
        return UpstreamBroken(found[0], detail=message_in(found[1])) if found else None

    def _too_late(self) -> None:
        self._break("answer_timeout", "The provider's answer was not whole within its time limit.")


class NoStream(Plain):
    """A plain answer to a client that asked for a stream and could not read it: never an answer."""

    most = HOLD_NO_STREAM

    def _too_large_to_hold(self) -> None:
        self._fail(UpstreamBroken(NO_STREAM))

    def _mistake(self, body: bytes, whole: bool, reason: Failure) -> UpstreamFailure | None:
        return super()._mistake(body, whole, reason) or UpstreamBroken(NO_STREAM)


class Stream(Relay):
    """Server-sent events: held until the first output, then passed on as far as the endpoint's scanner lets them."""

    cut_short = "stream_truncated"

    def __init__(self, endpoint: Endpoint, clock: IReactorTime) -> None:
        super().__init__(endpoint, clock)
        self._scanner = endpoint.scanner()

    @property
    def usage(self) -> dict[str, int]:
        """See Relay."""
        return self._scanner.usage.counts()

    def dataReceived(self, data: bytes) -> None:
        """See Relay. This is the whole way of a chunk, and runs for each."""
        scanner, client = self._scanner, self._client
        passed, meaning = scanner.feed(data)
        if client is not None:
            if meaning is not SILENCE:
                self._last_activity = self._clock.seconds()
            if passed:
                self.bytes_out += len(passed)
                client.write(passed)
            return
        if passed:
            self._pieces.append(passed)
        if not scanner.has_output:
            if meaning is not SILENCE:
                self._fail(_no_output(meaning, scanner.error))
        elif not self.held.called:  # else flow() is called in this turn
            self.held.callback(self)

    def _ended(self, whole: bool, reason: Failure) -> None:
        if self._client is None:
            self._fail(_no_output(END, None) if whole else _cut_short(reason))
            return
        rest = self._scanner.finish() if whole else b""
        if whole and self._scanner.complete:
            self._write(rest)
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
        self._last_activity = self._clock.seconds()

    def _break(self, code: str, message: str) -> None:
        broken = StreamBroken(code, message, self._scanner.error_event_ends_it)
        self._write(self._scanner.error_event(broken))
        self._finish(broken)


def hold(response: Response, endpoint: Endpoint, stream: bool, clock: IReactorTime) -> Deferred[Relay]:
    """Read a 2xx answer up to the commit point. Fails with UpstreamBroken; cancelling hangs up on the provider."""
    relay = _kind_of(response, stream)(endpoint, clock)
    response.deliverBody(relay)
    return relay.held


def _kind_of(response: Response, stream: bool) -> Callable[[Endpoint, IReactorTime], Relay]:
    if not stream:
        return Plain
    kind = response.given.get(b"content-type", [b""])[-1].lower()
    return NoStream if b"json" in kind or b"html" in kind else Stream


def _no_output(meaning: Meaning, error: Any) -> UpstreamBroken:
    if meaning is ERROR:
        return UpstreamBroken("began its stream with an error", detail=message_in(error))
    return UpstreamBroken("ended its stream without output")


def _cut_short(reason: Failure) -> UpstreamBroken:
    if isinstance(reason.value, UpstreamBroken):
        return UpstreamBroken(f"answered with {reason.value.message}")
    return UpstreamBroken("connection closed in the middle of its answer")
