"""``hold: whole``: the commit point of an answer is its end.

A Relay flows as it always does, but not to the client: it flows into a HeldWhole, which the exchange gets when the
answer is complete. An answer that breaks before is a failure of its attempt, and the client has seen nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from aigw.config.model import Step
from aigw.errors import StreamBroken, UpstreamBroken, UpstreamFailure, UpstreamTimeout
from aigw.protocols import sse
from aigw.protocols.endpoint import Call
from aigw.proxy.committed import Answer
from aigw.proxy.held import HeldBytes
from aigw.proxy.held_buffer import HeldBuffer
from aigw.proxy.keepalive import KeptAlive
from aigw.proxy.relay import Relay
from aigw.proxy.responder import BodySink
from aigw.telemetry.record import RecordBuilder

CheckAnswer = Callable[[bytes], "tuple[str, str | None] | None"]

_SILENT = "stream_idle_timeout", "answer_timeout"
_FAILURES = {
    "stream_reset": "connection reset in the middle of its stream",
    "provider_error": "reported an error in its stream",
    "answer_truncated": "connection closed in the middle of its answer",
}


class HoldWhole:
    """Moves the commit point of one call's answers. ``kept_alive`` is the client, if the route has ``keepalive``."""

    def __init__(
        self,
        call: Call,
        record: RecordBuilder,
        held_bytes: HeldBytes,
        kept_alive: KeptAlive | None,
    ) -> None:
        self._call = call
        self._record = record
        self._held_bytes = held_bytes
        self._kept_alive = kept_alive

    def hold(self, at_first_output: Deferred[Relay], step: Step) -> Deferred[Answer]:
        """The answer when it is whole, or when there is no room for more of it. Fails with UpstreamFailure."""
        return cast("Deferred[Answer]", at_first_output.addCallback(self._hold, step))

    def _hold(self, relay: Relay, step: Step) -> Answer | Deferred[Answer]:
        if relay.length is not None:  # a plain answer is held whole up to 1 MiB in any case
            return relay
        if self._kept_alive is not None:
            self._kept_alive.allow()
        check = None if relay.flows else relay.check
        held = HeldWhole(relay, self._record, self._held_bytes, check)
        # The whole of a plain answer has a limit already, which passes first.
        return held.fill(step.idle_timeout if relay.flows else step.timeout)


@implementer(IPushProducer)
class HeldWhole:
    """An Answer that is held: in place of the client of ``relay``, and then in place of the relay of the client.

    Its bytes count in ``held_bytes`` until they are written to the client, which may be slow.
    """

    def __init__(
        self,
        relay: Relay,
        record: RecordBuilder,
        held_bytes: HeldBytes,
        check: CheckAnswer | None = None,
    ) -> None:
        """``check`` finds the mistake in a plain answer that is whole."""
        self._relay = relay
        self._record = record
        self._held_bytes = held_bytes
        self._check = check
        self.mislabelled = relay.mislabelled
        self.default_type, self.flows, self.flushes = relay.default_type, relay.flows, relay.flushes
        self._beginning = len(relay.beginning)  # before it flows
        self.length: int | None = None
        self.bytes_out = 0
        self._since = record.seconds()
        self._held: Deferred[Answer] = Deferred(lambda _: self.hang_up())
        self._inflow: Deferred[None] = Deferred()
        self._silence = 0.0  # seconds, the longest in a stream
        self._outflow: Deferred[None] = Deferred(lambda _: self.hang_up())
        self._buffer = HeldBuffer()
        self._rest = b""  # the beginning of the event at the beginning of the buffer
        self._counted = 0
        self._client: BodySink | None = None
        self._ended = False  # the relay has come to its end
        self._result: Any = None  # of the relay
        self._over = False
        self._paused = False
        self._holds_up = False  # the relay is paused
        self._hurries = False  # the gateway is stopping

    def fill(self, seconds: float) -> Deferred[Answer]:
        """Hold what the relay sends; ``seconds`` is the limit of its ``flow``."""
        self._silence = seconds
        self._inflow = self._relay.flow(self, seconds)
        self._inflow.addBoth(self._relay_ended)
        return self._held

    @property
    def beginning(self) -> bytes:
        """See Answer: before it flows to the client."""
        return self._buffer.first(self._beginning)

    @property
    def usage(self) -> dict[str, int]:
        """See Answer."""
        return self._relay.usage

    @property
    def finished(self) -> bool:
        """See Answer."""
        return self._relay.finished

    @property
    def failure(self) -> StreamBroken | None:
        """See Answer."""
        return self._relay.failure

    # From the relay

    def write(self, data: bytes, chunk: bytes = b"") -> None:
        """See BodySink."""
        if self._client is not None and not self._buffer.size and not self._paused:
            self._send(data, chunk)
            return
        self._buffer.append(data)
        if not self._held.called:
            if self._held_bytes.take(len(data), self._counted):
                self._counted += len(data)
            else:
                self._held_bytes.note_exhausted(self._record.seconds())
                self._hold_up()
                self._commit()

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """See BodySink: this pauses the relay itself."""

    def unregisterProducer(self) -> None:
        """See BodySink."""

    def _relay_ended(self, result: Any) -> None:
        """The answer is whole, or it broke."""
        if self._over:
            return
        self._ended, self._result = True, result
        if self._held.called:
            if self._client is not None:
                self._drain()
            return
        failure = self._failure_of(result) if isinstance(result, Failure) else self._mistake()
        if failure is None:
            self._commit()
        else:
            self._release()
            self._held.errback(failure)

    def _failure_of(self, result: Failure) -> Failure | UpstreamFailure:
        """Why a held answer is none, in the form of a failure before the commit point."""
        if not isinstance(result.value, StreamBroken):
            return result
        broken = result.value
        if broken.code in _SILENT:
            return UpstreamTimeout("idle", self._silence)
        message = _FAILURES.get(broken.code, "ended its stream before it was complete")
        return UpstreamBroken(message, detail=broken.detail)

    def _mistake(self) -> UpstreamFailure | None:
        if self._check is None:
            return None
        body = self._buffer.take_all()
        found = self._check(body)
        if found:
            return UpstreamBroken(found[0], detail=found[1])
        self._keep_whole(body)
        return None

    def _keep_whole(self, body: bytes) -> None:
        self._buffer.append(body)
        self.length = len(body)

    def _commit(self) -> None:
        self._record.held = self._record.seconds() - self._since
        self._held.callback(self)

    # To the client

    def rewrite(self, changes: Iterable[Callable[[bytes], bytes]]) -> None:
        """See Relay."""
        if self.length is None:
            return
        body = self._buffer.take_all()
        for change in changes:
            body = change(body)
        self._keep_whole(body)

    def flow(self, client: BodySink, seconds: float) -> Deferred[None]:
        """See Relay."""
        self._client = client
        if self._check is not None and not self._ended:
            self._relay.renew_limit(seconds)
        client.registerProducer(self, True)
        self._drain()
        return self._outflow

    def _drain(self) -> None:
        """Write what is held, as fast as the client reads it; then the relay continues, or the answer ends."""
        while self._buffer.size and not self._paused:
            piece = self._rest + self._buffer.take()
            end = sse.boundary(piece) if self._check is None and self._buffer.size else 0
            end = end or len(piece)  # of a stream whole events are written, except of those that are larger
            self._rest = piece[end:]
            self._send(piece[:end])
        if self._buffer.size or self._over:
            return
        if self._ended:
            result = self._result
            self._release()
            self._outflow.callback(result)
        elif self._holds_up and not self._paused:
            self._holds_up = False
            self._relay.resumeProducing()

    def _send(self, data: bytes, chunk: bytes = b"") -> None:
        counted = min(len(data), self._counted)
        if counted:
            self._counted -= counted
            self._held_bytes.give_back(counted)
        self.bytes_out += len(data)
        if self._client is not None:
            self._client.write(data, chunk)

    def _hold_up(self) -> None:
        if not self._holds_up:
            self._holds_up = True
            self._relay.pauseProducing()

    def pauseProducing(self) -> None:
        """See IPushProducer."""
        if not self._hurries:
            self._paused = True
            if not self._ended:
                self._hold_up()

    def resumeProducing(self) -> None:
        """See IPushProducer."""
        self._paused = False
        self._drain()

    def stopProducing(self) -> None:
        """See Relay."""

    # The end

    def interrupt(self) -> None:
        """See Relay. A whole answer is sent to its end, however slow the client is."""
        if not self._over:
            self._hurries, self._paused = True, False
            self._drain()
            self._relay.interrupt()

    def hang_up(self) -> None:
        """See Relay."""
        self._release()
        self._inflow.cancel()

    def _release(self) -> None:
        self._over = True
        self._buffer.clear()
        self._held_bytes.give_back(self._counted)
        self._counted = 0
        if self._client is not None:
            self._client.unregisterProducer()
