"""Work in pieces: a bounded number of them in each turn of the event loop, however many clients wait for theirs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

PER_TURN = 8


class Turns:
    """Who waits for a turn, in the order in which they came."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._waiting: deque[Callable[[], bool]] = deque()

    def add(self, work: Callable[[], bool]) -> None:
        """Call ``work`` in another turn, and again as long as it says that there is more."""
        self._waiting.append(work)
        if len(self._waiting) == 1:
            self._clock.callLater(0, self._run)

    def _run(self) -> None:
        waiting = self._waiting
        try:
            for _ in range(min(PER_TURN, len(waiting))):
                more = False
                try:
                    more = waiting[0]()
                finally:  # what raises has had its turns; the others still have theirs
                    waiting.rotate(-1) if more else waiting.popleft()
        finally:
            if waiting:
                self._clock.callLater(0, self._run)
