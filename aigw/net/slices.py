"""Long work in short steps, between which the reactor serves other connections."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Cooperator, TaskStopped
from twisted.logger import Logger
from twisted.python.failure import Failure

T = TypeVar("T")

AT_ONCE = 3  # steps of about a millisecond

log = Logger()


class Slices:
    """All long work that is running: together it takes about 10 ms of each turn of the reactor."""

    def __init__(self, clock: IReactorTime) -> None:
        self._cooperator = Cooperator(scheduler=lambda turn: clock.callLater(0, turn))

    def add(self, steps: Generator[None, None, None]) -> None:
        """Run the steps, all in later turns of the reactor. An exception in them is logged and ends only them."""
        self._cooperator.cooperate(steps).whenDone().addErrback(
            lambda failure: log.failure("An unexpected error ended a long piece of work", failure=failure)
        )

    def run(self, steps: Generator[None, None, T]) -> Deferred[T]:
        """The result of the steps. It fails as they fail; cancelling ends them. The first steps raise at once."""
        for _ in range(AT_ONCE):
            try:
                next(steps)
            except StopIteration as end:
                return succeed(end.value)
        made: list[T] = []

        def rest() -> Generator[None, None, None]:
            made.append((yield from steps))

        def failed(failure: Failure) -> None:
            if not failure.check(TaskStopped):
                done.errback(failure)

        iterator = rest()
        task = self._cooperator.cooperate(iterator)

        def stop(_: Deferred[T]) -> None:
            task.stop()
            iterator.close()  # now, because the iterator holds its data

        done: Deferred[T] = Deferred(stop)
        task.whenDone().addCallbacks(lambda _: done.callback(made.pop()), failed)
        return done
