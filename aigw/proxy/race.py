"""The attempts of a request: one, or two at once on a route with ``hedge``. The first to reach its commit point wins.

Only the winner's Relay gets the client, so no byte of the other attempt is ever sent.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from aigw.errors import UpstreamFailure
from aigw.net.lateness import Limit
from aigw.proxy.committed import Answer
from aigw.proxy.running_attempt import RunningAttempt
from aigw.routing.hedge import Budget
from aigw.routing.retry_policy import Verdict
from aigw.settings.route_settings import Hedge
from aigw.telemetry.record import RecordBuilder


class Chain(Protocol):
    """The steps of the request's route, and what becomes of each attempt."""

    def next_step(self, beside: RunningAttempt) -> Deferred[None]:
        """Try the next step beside this attempt; it comes back by ``Race.enter``."""

    def may_start_beside(self, running: RunningAttempt) -> bool:
        """Whether the request may have a second attempt, and a step for it."""

    def commit(self, held: Answer, running: RunningAttempt) -> Deferred[None]:
        """The attempt's answer goes to the client."""

    def fall_through(self, failure: Failure, running: RunningAttempt) -> Deferred[None]:
        """The attempt failed before its commit point, and no other one runs."""

    def is_final(self, error: UpstreamFailure) -> bool:
        """Whether the client gets this failure, whatever another attempt does."""

    def note_failure(self, error: UpstreamFailure, running: RunningAttempt) -> Verdict:
        """The attempt failed: record it, and what it means for its step."""

    def note_cancelled(self, running: RunningAttempt) -> None:
        """The attempt was cancelled: it lost, its client left, or the gateway stops."""


class Race:
    """The attempts of one request on a route with ``hedge``. Once in a request a second one starts beside the first,
    if that has no output ``after`` so many seconds, and ``budget`` allows it."""

    def __init__(self, chain: Chain, hedge: Hedge, budget: Budget, record: RecordBuilder, clock: IReactorTime) -> None:
        self._chain = chain
        self._after = hedge.after
        self._budget = budget
        self._record = record
        self._clock = clock
        self._running: list[RunningAttempt] = []
        self._second: RunningAttempt | None = None
        self._over: Deferred[Any] = Deferred()  # of those that run now
        self._limit: Limit | None = None
        self._hedged = False
        self._cancelled = False
        budget.add(hedge.share)

    def enter(self, running: RunningAttempt) -> Deferred[None]:
        """An attempt was sent. Fires when the request is over; cancelling cancels all attempts."""
        self._running.append(running)
        if len(self._running) == 1:
            self._over = Deferred(self._cancel)
            self._over.addCallback(self._decided)
            if not self._hedged:
                self._limit = Limit(self._clock, self._after, self._hedge)
        else:
            self._second = running
        over: Deferred[None] = self._over
        if running.held is not None:
            running.held.addBoth(self._ended, running)
        return over

    def _hedge(self) -> None:
        """The first attempt has had no output for ``after``."""
        self._limit = None
        (first,) = self._running
        if first.has_output or not self._chain.may_start_beside(first):
            return
        self._hedged = True
        if not self._budget.take():
            self._record.hedge = "over_share"
            return
        self._record.hedge = "no_answer"
        self._record.waited += self._clock.seconds() - self._record.waiting_since  # the second attempt resets that
        self._chain.next_step(first)

    def _ended(self, result: Any, running: RunningAttempt) -> None:
        """The attempt has reached its commit point, has failed, or is cancelled."""
        self._running.remove(running)
        if isinstance(result, Failure) and isinstance(result.value, UpstreamFailure):
            result.tb = None  # its frames refer to this, and would keep the request's body in memory
        if self._cancelled or running.lost:
            self._chain.note_cancelled(running)
        elif self._running and (error := self._not_final(result)):
            self._chain.note_failure(error, running)
        else:
            self._stop()
            self._over.callback((result, running))

    def _not_final(self, result: Any) -> UpstreamFailure | None:
        """The failure of an attempt, where the other attempt may still succeed."""
        if not isinstance(result, Failure) or not isinstance(result.value, UpstreamFailure):
            return None
        return None if self._chain.is_final(result.value) else result.value

    def _decided(self, ended: tuple[Any, RunningAttempt]) -> Deferred[None]:
        result, running = ended
        second, self._second = self._second, None
        if isinstance(result, Failure):
            return self._chain.fall_through(result, running)
        if second is not None:
            self._record.hedge = "won" if running is second else "lost"
        return self._chain.commit(result, running)

    def _stop(self) -> None:
        """End what runs beside the attempt that decides, and start nothing more."""
        limit, self._limit = self._limit, None
        if limit is not None:
            limit.stop()
        for other in list(self._running):
            other.lost = not self._cancelled
            other.cancel()

    def _cancel(self, _: Deferred[Any]) -> None:
        self._cancelled = True
        self._stop()
