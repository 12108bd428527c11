"""The end of the daemon: from the stop signal to the last byte that a client gets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

FLUSH_SECONDS = 2.0


class DrainableSite(Protocol):
    """The clients' connections."""

    def drain(self) -> Deferred[None]:
        """Accept at most one more request of each client; fires when all connections are closed."""

    def end(self) -> None:
        """Close every connection when what was written is sent."""

    def abort(self) -> None:
        """Close every connection now."""


class Interruptible(Protocol):
    """A request that is being answered."""

    def interrupt(self) -> None:
        """Send its client the error that the gateway is stopping, in its stream or instead of an answer."""


class Drain:
    """Waits ``seconds`` for running answers; then ends them, and waits until what was written is sent."""

    def __init__(
        self, site: DrainableSite, running: Iterable[Interruptible], clock: IReactorTime, seconds: float
    ) -> None:
        self._site = site
        self._running = running
        self._clock = clock
        self._seconds = seconds
        self._timer: IDelayedCall | None = None

    def begin(self) -> Deferred[None]:
        """Fires when no client is connected any more."""
        done = self._site.drain()
        if not done.called:
            self._timer = self._clock.callLater(self._seconds, self._interrupt)
        return done.addBoth(self._stop_timer)

    def give_up(self) -> None:
        """Close every connection now; running requests are recorded as ended by the gateway."""
        self._end_exchanges()
        self._site.end()  # so that an incomplete request is not recorded as one whose client left
        self._site.abort()

    def _interrupt(self) -> None:
        self._timer = self._clock.callLater(FLUSH_SECONDS, self.give_up)
        self._end_exchanges()
        self._site.end()

    def _end_exchanges(self) -> None:
        for exchange in list(self._running):
            exchange.interrupt()

    def _stop_timer(self, _: object) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
