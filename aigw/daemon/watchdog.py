"""Measures the delay of the event loop, and notifies systemd's watchdog."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from aigw.telemetry import logs

CHECK_SECONDS = 0.25
WARN_SECONDS = 0.2
WARN_EVERY = 10.0


class Watchdog:
    """Checks four times a second. ``lag`` is the delay of the last check, ``worst`` the largest since a warning."""

    def __init__(self, clock: IReactorTime, alive: Callable[[], None], notify_every: float) -> None:
        """``alive`` is called at least every ``notify_every`` seconds, as long as the event loop runs."""
        self._clock = clock
        self._alive = alive
        self._notify_every = notify_every
        self._notified = self._due = clock.seconds()
        self._warned = self._due - WARN_EVERY
        self._timer: IDelayedCall | None = None
        self.lag = 0.0
        self.worst = 0.0

    def start(self) -> None:
        """Check until ``stop``."""
        self._due = self._clock.seconds() + CHECK_SECONDS
        self._timer = self._clock.callLater(CHECK_SECONDS, self._check)

    def stop(self) -> None:
        """End the checks."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _check(self) -> None:
        now = self._clock.seconds()
        self.lag = max(0.0, now - self._due)
        self.worst = max(self.worst, self.lag)
        if self.worst > WARN_SECONDS and now - self._warned >= WARN_EVERY:
            logs.warn("The event loop was blocked", lag_ms=round(self.worst * 1000))
            self._warned, self.worst = now, 0.0
        if now - self._notified >= self._notify_every - CHECK_SECONDS:
            self._notified = now
            self._alive()
        self.start()
