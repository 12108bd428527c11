"""One reload at a time: a thread reads the configuration, and one turn of the reactor applies all of it or nothing."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from aigw.daemon.systemd import Notify
from aigw.errors import ConfigError
from aigw.server.listeners import CannotListen
from aigw.telemetry import logs
from aigw.telemetry.snapshot import Reloads

T = TypeVar("T")


class Reload(Generic[T]):
    """``read`` reads the new state; ``swap`` applies it, for True. If it gives False or raises, nothing changed."""

    def __init__(
        self,
        reactor: IReactorThreads,
        read: Callable[[], T],
        swap: Callable[[T], bool],
        notify: Notify,
        reloads: Reloads,
    ) -> None:
        self._reactor = reactor
        self._read = read
        self._swap = swap
        self._notify = notify
        self._reloads = reloads
        self._running: Deferred[bool] | None = None
        self._again = False

    def begin(self) -> Deferred[bool]:
        """Gives whether the new state was applied. During a reload this makes another one follow."""
        if self._running is not None:
            self._again = True  # the running reload may have read the old files
            return self._running
        self._notify.reloading()
        reading: Deferred[T] = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), uncollected, self._read)
        self._running = reading.addCallback(self._swap).addErrback(self._refuse)
        return self._running.addBoth(self._once_more)

    def _refuse(self, failure: Failure) -> bool:
        problem = failure.value
        mistakes = problem.mistakes if isinstance(problem, ConfigError) else [str(problem)]
        self._reloads.refuse(mistakes)
        logs.error(
            "The gateway did not reload: the new configuration has mistakes, and the old one is in use",
            mistakes=mistakes,
        )
        if not isinstance(problem, ConfigError | CannotListen):
            logs.log.failure("A reload failed with an unexpected error", failure=failure)
        self._notify.ready(f"Not reloaded at {clock_time()}; the old configuration is in use: {'; '.join(mistakes)}")
        return False

    def _once_more(self, swapped: bool | Failure) -> Failure | Deferred[bool]:
        self._running = None
        again, self._again = self._again, False
        if again:
            return self.begin()
        return swapped if isinstance(swapped, Failure) else succeed(swapped)


def uncollected(read: Callable[[], T]) -> T:
    """What ``read()`` gives, made without a search for garbage: one that passes over all that a large configuration
    makes holds the event loop for 0.3 s, whichever thread it runs in. References free what is dropped meanwhile.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return read()
    finally:
        if collects:
            gc.enable()


def clock_time() -> str:
    """The present time, for messages."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z")
