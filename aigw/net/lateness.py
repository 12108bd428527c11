"""Time in which the event loop did not run: the process was stopped, or its machine was moved.

The reactor runs timers before it reads. After a pause that was longer than a limit every peer would seem too slow,
although the kernel holds what the peer sent in time. So a limit that fires much too late is checked again after that
is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

T = TypeVar("T")

LATE_SECONDS = 1.0  # no turn of the event loop takes as long
GRACE_SECONDS = 2.0


def lateness(timer: IDelayedCall, clock: IReactorTime) -> float:
    """The seconds by which ``timer``, which fires now, is late; 0 if they are few."""
    late: float = clock.seconds() - timer.getTime()
    return late if late > LATE_SECONDS else 0.0


class Limit:
    """Calls ``passed`` after the seconds, unless it is stopped before; a late timer waits GRACE_SECONDS more."""

    def __init__(self, clock: IReactorTime, seconds: float, passed: Callable[[], None]) -> None:
        self._clock = clock
        self._passed: Callable[[], None] | None = passed
        self._timer: IDelayedCall | None = clock.callLater(max(0.0, seconds), self._fire)

    def _fire(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and lateness(timer, self._clock):
            self._timer = self._clock.callLater(GRACE_SECONDS, self._fire)
        elif self._passed is not None:
            self._passed()

    def stop(self) -> None:
        """Remove the limit."""
        timer, self._timer, self._passed = self._timer, None, None
        if timer is not None:
            timer.cancel()


def within(limited: Deferred[T], seconds: float, clock: IReactorTime, reason: Callable[[], Exception]) -> Deferred[T]:
    """``limited``, cancelled after the seconds; then it fails with ``reason()`` in place of the cancel's failure.

    Like Deferred.addTimeout, but with a Limit: a request is not cancelled while its answer waits in the kernel.
    """
    fired = False

    def too_late() -> None:
        nonlocal fired
        fired = True
        limited.cancel()

    def settle(result: T | Failure) -> T | Failure:
        limit.stop()
        return Failure(reason()) if fired and isinstance(result, Failure) else result

    limit = Limit(clock, seconds, too_late)
    limited.addBoth(settle)
    if seconds <= 0 and not limited.called:  # found late elsewhere
        too_late()
    return limited
