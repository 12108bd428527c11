"""A provider's body to the client: the commit point, back-pressure, and the limit on silence.

The commit point is the moment in which the first byte of the answer is written to the client. Before it a bad answer is
an UpstreamFailure, and the next step may be tried. After it the bytes are the provider's: a stream that breaks gets an
error event inside the stream, and nothing is switched, repaired or hidden. What the bytes mean is not decided here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol as BodyProtocol
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from zope.interface import implementer

from aigw.errors import StreamBroken, UpstreamFailure
from aigw.net.headers import Header
from aigw.net.lateness import GRACE_SECONDS, lateness
from aigw.protocols.endpoint import Endpoint
from aigw.upstream import body

END_SECONDS = 1.0  # that a body may take to end when the answer in it is over
_WHOLE = Failure(ResponseDone())


class BodySink(Protocol):
    """Where the bytes go."""

    def write(self, data: bytes) -> None:
        """Send some of the body."""

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """See IConsumer; the producer is paused while the client does not read."""

    def unregisterProducer(self) -> None:
        """See IConsumer."""


class Responder(BodySink, Protocol):
    """Who asked."""

    def begin(self, status: int, headers: list[Header], length: int | None) -> None:
        """Commit: send the head of the answer; ``length`` is that of the body where it is known."""

    def end(self) -> None:
        """The answer is whole."""

    def cut(self, flush: bool) -> None:
        """The answer broke: close without a proper end, after what was written is sent if ``flush``."""


@implementer(IPushProducer)
class Relay(BodyProtocol, ABC):
    """One answer on its way. ``held`` fires with this Relay at the commit point; then ``flow`` lets it go on."""

    transport: Any
    mislabelled = False  # a stream whose Content-Type is that of something else
    cut_short = ""  # the code of an answer that ends too early

    def __init__(self, endpoint: Endpoint, clock: IReactorTime) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self.held: Deferred[Relay] = Deferred(self.hang_up)
        self.length: int | None = None  # the size of the answer, if it is held whole at the commit point
        self.bytes_out = 0
        self._flowing: Deferred[None] = Deferred(self.hang_up)
        self._client: BodySink | None = None
        self._pieces: list[bytes] = []  # that wait for the commit point
        self._end: Failure | None = None
        self._timer: IDelayedCall | None = None
        self._limit = 0.0
        self._last_activity = 0.0
        self._paused = False
        self._paused_at = 0.0
        self._over = False

    def rewrite(self, changes: Iterable[Callable[[bytes], bytes]]) -> None:
        """Change an answer that is held whole, before it flows; any other stays as it is."""
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
        """Write what was held, then the rest. Fails with StreamBroken; cancelling hangs up on the provider.

        ``seconds`` is the limit that ends a silence, or, for an answer that is no stream, all that is left of its time.
        """
        self._client = client
        self._last_activity = self._clock.seconds()
        self._limit = seconds
        pieces, self._pieces = self._pieces, []
        self._write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if not self._over:
            client.registerProducer(self, True)
            self._timer = self._clock.callLater(seconds, self._look_at_the_clock)
        if self._over:
            self._finish(None)
        elif self._end is not None:
            self.connectionLost(self._end)
        return self._flowing

    # What the kinds of answers do differently

    @property
    @abstractmethod
    def usage(self) -> dict[str, int]:
        """The tokens that the provider reported."""

    @property
    def finished(self) -> bool:
        """Whether the model gave a ``finish_reason`` in its stream."""
        return False

    @property
    def failure(self) -> StreamBroken | None:
        """What the provider itself reported after the commit point."""
        return None

    @abstractmethod
    def dataReceived(self, data: bytes) -> None:
        """One network read's worth of the body."""

    @abstractmethod
    def _ended(self, whole: bool, reason: Failure) -> None:
        """The body is over; ``whole``: HTTP's framing shows that nothing is missing."""

    @abstractmethod
    def _too_late(self) -> None:
        """The limit has passed."""

    def _time_left(self) -> float:
        return self._limit if self._paused else self._last_activity + self._limit - self._clock.seconds()

    # The body's end, from the agent

    def connectionLost(self, reason: Failure = _WHOLE) -> None:
        """The body ended, one way or another."""
        if self._client is None and self.held.called:
            self._end = reason
        elif not self._over:
            self._ended(reason.check(ResponseDone, PotentialDataLoss) is not None, reason)

    def _fail(self, failure: UpstreamFailure) -> None:
        """Before the commit point."""
        self._over = True
        self.transport.stopProducing()
        self.held.errback(failure)

    def _write(self, data: bytes) -> None:
        if self._client is not None and data:
            self.bytes_out += len(data)
            self._client.write(data)

    def _finish(self, broken: StreamBroken | None, let_end: bool = False) -> None:
        """After the commit point; once. ``let_end``: the provider has said all, and its body may end by itself."""
        self._let_go()
        if let_end:
            body.let_end(self.transport, END_SECONDS, self._clock)
        elif broken is not None:
            self.transport.stopProducing()
        if broken is None:
            self._flowing.callback(None)
        else:
            self._flowing.errback(broken)

    def interrupt(self) -> None:
        """The gateway is stopping: the answer breaks."""
        if not self._over:
            self._break(self.cut_short, "The gateway is stopping.")

    def hang_up(self, _: Deferred[Any] | None = None) -> None:
        """Stop the provider; the client gets nothing more."""
        self._let_go()
        self.transport.stopProducing()

    def _let_go(self) -> None:
        self._over = True
        timer, self._timer = self._timer, None
        if timer is not None and self._client is not None:
            if timer.active():
                timer.cancel()
            self._client.unregisterProducer()

    # Time and back-pressure, from the client

    def _look_at_the_clock(self) -> None:
        """The limit may have passed; re-armed only here, so that a chunk costs no timer."""
        left = self._time_left()
        if self._timer is not None and lateness(self._timer, self._clock):
            left = max(left, GRACE_SECONDS)
        if left > 0:
            self._timer = self._clock.callLater(left, self._look_at_the_clock)
        else:
            self._too_late()

    def _break(self, code: str, message: str) -> None:
        self._finish(StreamBroken(code, message))

    def pauseProducing(self) -> None:
        """The client does not read as fast as the provider writes; its time is not the provider's."""
        self._paused = True
        self._paused_at = self._clock.seconds()
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """The client has caught up."""
        if self._paused:
            self._last_activity += self._clock.seconds() - self._paused_at
            due = self._last_activity + self._limit
            if self._timer is not None and self._timer.active() and self._timer.getTime() > due:  # set while it waited
                self._timer.reset(max(0.0, due - self._clock.seconds()))
        self._paused = False
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """The client is gone: its request is cancelled, and that ends this."""
