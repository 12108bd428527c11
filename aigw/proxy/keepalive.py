"""``keepalive``: comments in a stream that would be silent for so long that a proxy closes the client's connection.

The writer of these comments is the client that the exchange has: it writes the events too, so that a comment is never
inside an event. It only measures what the client gets. Whether the provider is alive is measured elsewhere.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from aigw.errors import Draining, GatewayError, StreamBroken
from aigw.net import headers
from aigw.protocols import sse
from aigw.protocols.endpoint import Call
from aigw.protocols.refusals import read_refusal
from aigw.proxy.responder import Responder
from aigw.settings.route_settings import KeepAlive
from aigw.telemetry.record import RecordBuilder

_TYPE = (b"content-type", b"text/event-stream")


@implementer(IPushProducer)
class KeptAlive:
    """The client of one stream; a Responder in front of another."""

    def __init__(
        self, client: Responder, settings: KeepAlive, call: Call, record: RecordBuilder, clock: IReactorTime
    ) -> None:
        self._client = client
        self._every = settings.every
        self._endpoint = call.endpoint
        self._record = record
        self._clock = clock
        self._may_begin = settings.before_output
        self._has_begun = False  # the head of the answer is written
        self._is_early = False  # it was written before a step had answered
        self._is_committed = False  # a step has answered
        self._is_first = False  # the next bytes are the first of the provider's, behind a keep-alive
        self._refusal: int | None = None  # the status of a refusal that comes too late for a status
        self._written = 0  # bytes of keep-alives
        self._last = clock.seconds()
        self._tail = b"\n\n"  # of what was written
        self._producer: IPushProducer | None = None
        self._is_paused = False
        self._timer: IDelayedCall | None = clock.callLater(self._every, self._check_silence)

    def allow(self) -> None:
        """From now on keep-alives may begin the answer: the first output is there, but it is held."""
        self._may_begin = True
        if self._timer is not None and not self._has_begun:
            self._timer.reset(max(0.0, self._last + self._every - self._clock.seconds()))

    def _check_silence(self) -> None:
        """Set again only here, so that a chunk costs no timer."""
        left = self._last + self._every - self._clock.seconds()
        self._timer = self._clock.callLater(left if left > 0 else self._every, self._check_silence)
        may_write = (self._has_begun or self._may_begin) and not self._is_paused
        if left <= 0 and may_write and sse.is_between_events(self._tail):
            self._keep_alive()

    def _keep_alive(self) -> None:
        if not self._has_begun:
            self._has_begun = self._is_early = True
            self._client.begin(200, headers.of_a_stream([_TYPE], False), None, is_early=True)
            self._client.registerProducer(self, True)
        self._record.keepalives += 1
        self._written += len(self._endpoint.keepalive)
        self._last = self._clock.seconds()
        self._client.write(self._endpoint.keepalive)

    # From the exchange

    def header(self, name: bytes) -> bytes | None:
        """See Responder."""
        return self._client.header(name)

    def begin(self, status: int, sent: list[headers.Header], length: int | None, is_early: bool = False) -> None:
        """See Responder. If the answer has begun already, its head cannot be changed."""
        if self._is_early:
            self._client.release_body()
            self._is_first = True
            if status >= 300:
                self._refusal = status
        else:
            self._client.begin(status, sent, length)
        self._has_begun = self._is_committed = True

    def release_body(self) -> None:
        """See Responder."""
        self._client.release_body()

    def write(self, data: bytes, chunk: bytes = b"") -> None:
        """See Responder. This is in the way of each chunk."""
        if self._refusal is not None:
            self._refuse(self._refusal, data)
            return
        if self._is_first:
            self._is_first = False
            data, chunk = data.removeprefix(sse.BOM), b""  # which is one only at the beginning of a stream
        self._last = self._clock.seconds()
        self._tail = data[-3:] if len(data) > 2 else (self._tail + data)[-3:]
        self._client.write(data, chunk)

    def end(self) -> None:
        """See Responder."""
        if self._refusal is None:
            self._close()
            self._client.end()

    def cut(self, flush: bool | None) -> None:
        """See Responder."""
        self._close()
        self._client.cut(flush)

    def until(self, served: Deferred[None]) -> Deferred[None]:
        """``served`` is the whole exchange: end with it, and report its failure in the stream if that has begun."""
        return served.addBoth(self._served)

    def _served(self, result: Any) -> Any:
        self._close()
        error = result.value if isinstance(result, Failure) else None
        if not isinstance(error, GatewayError) or not self._is_early or self._is_committed:
            return result
        code = error.code or error.type
        self._record.error = code
        self._fail(StreamBroken(code, error.message), "draining" if isinstance(error, Draining) else code)
        return None

    def _refuse(self, status: int, body: bytes) -> None:
        """A refusal that goes to the client as the provider sent it, but its status cannot."""
        refusal = read_refusal(body)
        self._close()
        self._record.bytes_out = 0  # its body is not sent
        self._fail(StreamBroken("provider_error", f"The provider answered {status}.", detail=refusal.reason))

    def _fail(self, broken: StreamBroken, outcome: str = "") -> None:
        self._record.outcome = outcome or broken.code
        scanner = self._endpoint.scanner()
        self._client.write(scanner.error_event(broken))
        if scanner.error_event_ends_it:
            self._client.end()
        else:
            self._client.cut(flush=True)

    def _close(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            if self._is_early and self._producer is None:
                self._client.unregisterProducer()
            if self._record.bytes_out:
                self._record.bytes_out += self._written

    # A client that does not read is sent no keep-alives

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """See IConsumer."""
        self._producer = producer
        if not self._is_early:
            self._client.registerProducer(self, streaming)
        elif self._is_paused:  # since a keep-alive
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """See IConsumer."""
        self._producer, self._is_paused = None, False
        self._client.unregisterProducer()

    def pauseProducing(self) -> None:
        """See IPushProducer."""
        self._is_paused = True
        if self._producer is not None:
            self._producer.pauseProducing()

    def resumeProducing(self) -> None:
        """See IPushProducer."""
        self._is_paused = False
        if self._producer is not None:
            self._producer.resumeProducing()

    def stopProducing(self) -> None:
        """See IPushProducer."""
        if self._producer is not None:
            self._producer.stopProducing()
