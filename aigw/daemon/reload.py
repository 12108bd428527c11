"""One reload at a time: what is to run is read in a thread, and taken in one turn of the reactor, or not at all."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from aigw.daemon.systemd import Notify
from aigw.errors import CannotListen, ConfigError
from aigw.telemetry import logs
from aigw.telemetry.snapshot import Reloads

T = TypeVar("T")


class Reload(Generic[T]):
    """``read`` gives what is to run; ``swap`` takes it, or says that it did not, or raises; then nothing is changed."""

    def __init__(
        self, reactor: Any, read: Callable[[], T], swap: Callable[[T], bool], notify: Notify, reloads: Reloads
    ) -> None:
        self._reactor = reactor
        self._read = read
        self._swap = swap
        self._notify = notify
        self._reloads = reloads
        self._running: Deferred[bool] | None = None
        self._again = False

    def begin(self) -> Deferred[bool]:
        """Whether what was read was taken. Who asks while a reload is under way has one more begin behind it."""
        if self._running is not None:
            self._again = True  # what is being read may be the files of before
            return self._running
        self._notify.reloading()
        reading: Deferred[Any] = deferToThreadPool(
            self._reactor, self._reactor.getThreadPool(), uncollected, self._read
        )
        self._running = reading
        return reading.addCallback(self._swap).addErrback(self._refuse).addBoth(self._once_more)

    def _refuse(self, failure: Failure) -> bool:
        problem = failure.value
        mistakes = problem.mistakes if isinstance(problem, ConfigError) else [str(problem)]
        self._reloads.refuse(mistakes)
        logs.error("Not reloaded: the old configuration goes on", mistakes=mistakes)
        if not isinstance(problem, ConfigError | CannotListen):
            logs.log.failure("Unexpected failure of a reload", failure=failure)
        self._notify.ready(f"Not reloaded at {clock_time()}, the old configuration goes on: {'; '.join(mistakes)}")
        return False

    def _once_more(self, swapped: Any) -> Any:
        self._running = None
        again, self._again = self._again, False
        return self.begin() if again else swapped


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
    """Now, for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z")
