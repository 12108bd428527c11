"""Sends a provider's body to the client: the commit point, back-pressure, and the limit on silence.

The commit point is the moment when the first byte of the answer is written to the client. Before it a bad answer is an
UpstreamFailure, and the next step may be tried. After it no step is tried and nothing is hidden: a broken stream gets
an error event. What the bytes mean is decided in answers and in the protocols.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol as BodyProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from zope.interface import implementer

from aigw.errors import StreamBroken, UpstreamFailure
from aigw.net.lateness import GRACE_SECONDS, lateness
from aigw.protocols.endpoint import Endpoint
from aigw.protocols.usage import ReportedUsage
from aigw.proxy.committed import Follows
from aigw.proxy.responder import BodySink
from aigw.upstream import body

END_SECONDS = 1.0  # for the end of a body after the end of the answer in it
_WHOLE = Failure(ResponseDone())

log = Logger()


@implementer(IPushProducer)
class Relay(BodyProtocol, ABC):
    """One answer. ``held`` fires with this Relay at the commit point; then ``flow`` sends it to the client."""

    transport: Any
    flowing: Deferred[None]  # from ``flow`` on; fires at the end
    reported: ReportedUsage  # so far, whatever becomes of the answer
    mislabelled = False  # whether the Content-Type of a stream is that of something else
    default_type = b"application/json"  # of an answer without Content-Type
    flows = False  # whether its time limit is that of a pause
    flushes: bool | None = False  # see the Responder
    cut_short = ""  # the code of an answer that ends too early
    last = b""  # what is not written yet at the end: one write sends it with the end

    def __init__(self, endpoint: Endpoint, clock: IReactorTime, follows: Follows | None = None) -> None:
        """``follows`` is in place of both Deferreds, and keeps the limit: it looks how much is left, see time_left."""
        self._endpoint = endpoint
        self._clock = clock
        self._seconds = clock.seconds
        self._follows = cast("Any", follows)  # of which the type checker knows that it is no Deferred
        self.held: Deferred[Relay] = self._follows or Deferred(self.hang_up)
        self.length: int | None = None  # the size of the answer, if it is held whole at the commit point
        self.bytes_out = 0
        self._client: BodySink | None = None
        self._pieces: list[bytes] = []  # held until the commit point
        self._end: Failure | None = None
        self._timer: IDelayedCall | None = None  # if the limit is kept here
        self._is_producer = False  # of the client
        self._limit = 0.0
        self._last_activity = 0.0
        self._paused = False
        self._paused_at = 0.0
        self._over = False

    def rewrite(self, changes: Iterable[Callable[[bytes], bytes]]) -> None:
        """Apply ``changes`` to an answer that is held whole, before ``flow``. Another answer is not changed."""
        if self.length is not None:
            (body,) = self._pieces
            for change in changes:
                body = change(body)
            self._pieces[0] = body
            self.length = len(body)

    @property
    def beginning(self) -> bytes:
        """What is held at the commit point."""
        return b"".join(self._pieces)

    def flow(self, client: BodySink, seconds: float) -> Deferred[None]:
        """Write what was held, then the rest. Fails with StreamBroken. A cancel aborts the provider's answer.

        ``seconds`` is the limit on silence in a stream; for any other answer it is the time that is left for all of it.
        """
        self._client = client
        self.flowing = self._follows or Deferred(self.hang_up)
        self._last_activity = self._clock.seconds()
        self._limit = seconds
        pieces, self._pieces = self._pieces, []
        self._write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if not self._over:
            client.registerProducer(self, True)
            self._is_producer = True
            if self._follows is None:
                self._timer = self._clock.callLater(seconds, self._check_time)
        if self._over:
            self._finish(None)
        elif self._end is not None:
            self.connectionLost(self._end)
        return self.flowing

    def go_on_to(self, client: BodySink) -> Deferred[None]:
        """Write the rest to ``client``, which takes the place of another one. The Deferred is that of ``flow``.

        The limit is kept here from now on.
        """
        self._client = client
        self.flowing = Deferred(self.hang_up)
        last, self.last = self.last, b""
        if last:
            client.write(last)
        if not self._over:
            self._check_time()
        return self.flowing

    # What a kind of answers defines

    @property
    def usage(self) -> dict[str, int]:
        """The tokens that the provider reported."""
        return self.reported.counts()

    @property
    def finished(self) -> bool:
        """Whether the model gave a ``finish_reason`` in its stream."""
        return False

    @property
    def failure(self) -> StreamBroken | None:
        """The failure that the provider itself reported after the commit point, if any."""
        return None

    def check(self, body: bytes) -> tuple[str, str | None] | None:
        """The mistake in the whole body of an answer that was held while it flowed; see Endpoint."""
        return None

    @abstractmethod
    def dataReceived(self, data: bytes) -> None:
        """The bytes of the body from one network read."""

    @abstractmethod
    def _ended(self, whole: bool, reason: Failure) -> None:
        """The body ended. ``whole``: the framing of HTTP shows that nothing is missing."""

    @abstractmethod
    def _too_late(self) -> None:
        """The limit has passed."""

    def time_left(self) -> float:
        """The seconds until the limit has passed, as it is known now."""
        return self._limit if self._paused else self._last_activity + self._limit - self._clock.seconds()

    # The body's end, from the agent

    def connectionLost(self, reason: Failure = _WHOLE) -> None:
        """The body ended, whole or not."""
        if self._client is None and self.held.called:
            self._end = reason
        elif not self._over:
            self._ended(reason.check(ResponseDone, PotentialDataLoss) is not None, reason)

    def _fail(self, failure: UpstreamFailure) -> None:
        """End the answer before the commit point."""
        self._over = True
        self.transport.stopProducing()
        self.held.errback(failure)

    def _write(self, data: bytes) -> None:
        if self._client is not None and data:
            self.bytes_out += len(data)
            self._client.write(data)

    def _finish(self, broken: StreamBroken | None, let_end: bool = False) -> None:
        """End the answer after the commit point. Called once. ``let_end``: the body may take END_SECONDS to end."""
        try:
            self._release()
            if let_end:
                body.let_end(self.transport, END_SECONDS, self._clock)
            elif broken is not None:
                self.transport.stopProducing()
        except Exception:  # the client is not to wait for ever
            log.failure("The gateway could not end a provider's answer: unexpected error")
            with suppress(Exception):
                self.transport.stopProducing()
        if broken is None:
            self.flowing.callback(None)
        else:
            self.flowing.errback(broken)

    def interrupt(self) -> None:
        """Break the answer because the gateway is stopping."""
        if not self._over:
            self._break(self.cut_short, "The gateway is stopping.")

    def hang_up(self, _: object = None) -> None:
        """Abort the provider's answer. Nothing more is sent to the client."""
        self._release()
        self.transport.stopProducing()

    def _release(self) -> None:
        self._over = True
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        if self._is_producer and self._client is not None:
            self._is_producer = False
            self._client.unregisterProducer()

    # Time and back-pressure, from the client

    def renew_limit(self, seconds: float) -> None:
        """The limit begins now, and has so many seconds."""
        self._last_activity, self._limit = self._clock.seconds(), seconds
        if self._timer is not None and self._timer.active():
            self._timer.reset(max(0.0, seconds))

    def _check_time(self) -> None:
        """Check the limit. Only this sets the timer again, so that a chunk need not do it."""
        left = self.time_left()
        if self._timer is not None and lateness(self._timer, self._clock):
            left = max(left, GRACE_SECONDS)
        if left > 0:
            self._timer = self._clock.callLater(left, self._check_time)
        else:
            self._too_late()

    def _break(self, code: str, message: str) -> None:
        self._finish(StreamBroken(code, message))

    def pauseProducing(self) -> None:
        """The client reads slowly: pause the provider. This time is not counted as the provider's silence."""
        self._paused = True
        self._paused_at = self._clock.seconds()
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """The client reads again: resume the provider."""
        if self._paused:
            self._last_activity += self._clock.seconds() - self._paused_at
            due = self._last_activity + self._limit
            if self._timer is not None and self._timer.active() and self._timer.getTime() > due:  # set while paused
                self._timer.reset(max(0.0, due - self._clock.seconds()))
        self._paused = False
        if self.flows:  # the silence of the provider is counted from now on
            self._last_activity = self._clock.seconds()
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """See IPushProducer. Nothing to do: the client left, so its request is cancelled, which ends the relay."""
