"""The event loop's pulse: how late it is, and the sign of life that systemd's watchdog waits for."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from aigw.telemetry import logs

BEAT_SECONDS = 0.25
WARN_SECONDS = 0.2
WARN_EVERY = 10.0


class Watchdog:
    """Beats four times a second. ``lag`` is by how much the last beat was late, ``worst`` the most since a warning."""

    def __init__(self, clock: IReactorTime, alive: Callable[[], None], feed_every: float) -> None:
        """``alive`` is called at least every ``feed_every`` seconds, as long as the loop turns."""
        self._clock = clock
        self._alive = alive
        self._feed_every = feed_every
        self._fed = self._due = clock.seconds()
        self._warned = self._due - WARN_EVERY
        self._timer: IDelayedCall | None = None
        self.lag = 0.0
        self.worst = 0.0

    def start(self) -> None:
        """Beat until ``stop``."""
        self._due = self._clock.seconds() + BEAT_SECONDS
        self._timer = self._clock.callLater(BEAT_SECONDS, self._beat)

    def stop(self) -> None:
        """Beat no more."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _beat(self) -> None:
        now = self._clock.seconds()
        self.lag = max(0.0, now - self._due)
        self.worst = max(self.worst, self.lag)
        if self.worst > WARN_SECONDS and now - self._warned >= WARN_EVERY:
            logs.warn("The event loop was held up", lag_ms=round(self.worst * 1000))
            self._warned, self.worst = now, 0.0
        if now - self._fed >= self._feed_every - BEAT_SECONDS:
            self._fed = now
            self._alive()
        self.start()
