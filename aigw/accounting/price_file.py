"""The file of prices, which is read again when it has changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeAlias, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from aigw.config.prices import Prices, load_prices
from aigw.errors import ConfigError
from aigw.telemetry import logs
from aigw.telemetry.tracing import TelemetryReactor

SECONDS = 0.5  # between two checks; the file is read when two of them find the same new state
State: TypeAlias = "tuple[int, int, int] | None"

T = TypeVar("T")


class PriceFile:
    """Calls ``take`` with new prices. Where the file has mistakes the old prices stay, and the log has the mistakes."""

    def __init__(self, reactor: TelemetryReactor, take: Callable[[Prices], None]) -> None:
        self._reactor = reactor
        self._take = take
        self._started = False
        self._path: str | None = None
        self._known: State = None  # of the file that was read
        self._seen: State = None  # at the last check
        self._timer = LoopingCall(self._check)
        self._timer.clock = reactor

    def use(self, path: str | None) -> None:
        """Check this file from now on, or none."""
        self._path, self._known = path, None
        self._start_or_stop()

    def start(self) -> None:
        """Begin to check, if there is a file."""
        self._started = True
        self._start_or_stop()

    def stop(self) -> None:
        """Check no more."""
        self._started = False
        self._start_or_stop()

    def _start_or_stop(self) -> None:
        wanted = self._started and self._path is not None
        if wanted and not self._timer.running:
            self._timer.start(SECONDS, now=False).addErrback(_log_fault)
        elif not wanted and self._timer.running:
            self._timer.stop()

    def _check(self) -> Deferred[None] | None:
        path = self._path
        return None if path is None else self._in_thread(_state_of, path).addCallback(self._compare, path)

    def _compare(self, state: State, path: str) -> Deferred[None] | None:
        seen, self._seen = self._seen, state
        if path != self._path or state == self._known or state != seen:
            return None
        self._known = state
        return self._in_thread(load_prices, path).addCallbacks(self._read, self._refused, (path,), {}, (path,))

    def _read(self, read: tuple[Prices, list[str]], path: str) -> None:
        prices, warnings = read
        if path == self._path:
            self._take(prices)
            for warning in warnings:
                logs.warn(warning)

    def _refused(self, failure: Failure, path: str) -> None:
        problem = failure.value  # a fault too: the next change of the file is checked
        mistakes = problem.mistakes if isinstance(problem, ConfigError) else [f"{path}: cannot be read: {problem}"]
        logs.error("The gateway did not take the new prices: their file has mistakes", mistakes=mistakes)

    def _in_thread(self, call: Callable[[str], T], path: str) -> Deferred[T]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), call, path)


def _state_of(path: str) -> State:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _log_fault(failure: Failure) -> None:
    logs.log.failure("The gateway cannot check for new prices any more", failure=failure)
