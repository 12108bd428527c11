"""Admits the requests of callers with limits: at once, after a wait for a slot, or not. Settles them at their end."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from aigw.access.errors import refused
from aigw.access.ledger import Claim, LimitReached
from aigw.config.callers import Account
from aigw.config.model import Config

MOST_WAITING = 100  # requests that wait for a slot of one account


class Store(Protocol):
    """Keeps the counts of all accounts. Each method is one call, with all limits of a request at once.

    A store in this process gives values. One elsewhere may give Deferreds; a cancel of one must free what it took.
    """

    def use(self, config: Config) -> None:
        """Limits are those of this configuration from now on."""

    def start(self) -> None:
        """The process has forked, and no request was admitted yet."""

    def finish(self) -> None:
        """The process ends."""

    def admit(self, claim: Claim) -> LimitReached | Deferred[LimitReached | None] | None:
        """Take all that the claim asks for, or nothing; gives the limit that is reached."""

    def settle(self, claim: Claim, tokens: int, money: int = 0) -> object:
        """Charge what an admitted request used, and free the rest."""

    def count_request(self, claim: Claim) -> object:
        """Count a request that is over already."""

    def count_refused(self, claim: Claim) -> object:
        """Count a request that found no slot in its time, for all accounts of its caller."""

    def usage_of(self, account: Account) -> dict[str, object]:
        """What the account has used and what it has left, as JSON."""


class _Waiting:
    """A request that waits for a slot."""

    __slots__ = ("claim", "done", "reached", "timer")

    def __init__(self, claim: Claim, reached: LimitReached, done: Deferred[None]) -> None:
        self.claim = claim
        self.reached = reached
        self.done = done
        self.timer: IDelayedCall | None = None

    def stop(self) -> None:
        """It waits no more."""
        timer, self.timer = self.timer, None
        if timer is not None and timer.active():
            timer.cancel()


class Admission:
    """Outlives a reload. ``wall`` gives Unix seconds. ``queues`` is empty where nothing waits."""

    def __init__(self, store: Store, clock: IReactorTime, wall: Callable[[], float] = time.time) -> None:
        self.store = store
        self._clock = clock
        self._wall = wall
        self.queues: dict[str, OrderedDict[_Waiting, None]] = {}  # by the account whose slots are taken

    def ask(self, claim: Claim, wait: float) -> Deferred[None] | None:
        """Admit a request, or have it wait so many seconds for a slot; None if that is done. Raises RequestError."""
        return self.decide(self.store.admit(claim), claim, wait)

    def decide(
        self, reached: LimitReached | Deferred[LimitReached | None] | None, claim: Claim, wait: float
    ) -> Deferred[None] | None:
        """The same, where the store has been asked."""
        return (
            reached.addCallback(self._decide, claim, wait)
            if isinstance(reached, Deferred)
            else self._decide(reached, claim, wait)
        )

    def _decide(self, reached: LimitReached | None, claim: Claim, wait: float) -> Deferred[None] | None:
        if reached is None:
            return None
        if reached.kind != "concurrency":
            raise refused(reached, self._wall())
        if not wait or len(self.queues.get(reached.account.name, ())) >= MOST_WAITING:
            self.store.count_refused(claim)
            raise refused(reached, self._wall())
        done: Deferred[None] = Deferred(lambda _: self._leave(waiting))
        waiting = _Waiting(claim, reached, done)
        waiting.timer = self._clock.callLater(wait, self._too_late, waiting)
        self.queues.setdefault(reached.account.name, OrderedDict())[waiting] = None
        return done

    def end(self, claim: Claim, tokens: int, money: int = 0) -> None:
        """The request is over: charge it, and let those in that wait for its slots."""
        settled = self.store.settle(claim, tokens, money)
        if self.queues:
            self.settled(settled, claim)

    def settled(self, settled: object, claim: Claim) -> None:
        """Slots of the claim's accounts are free, when the store has answered."""
        if isinstance(settled, Deferred):
            settled.addBoth(lambda _: self._advance(claim))
        else:
            self._advance(claim)

    # The queue

    def _leave(self, waiting: _Waiting) -> None:
        """Its client has left."""
        waiting.stop()
        self._remove(waiting)

    def _too_late(self, waiting: _Waiting) -> None:
        self._remove(waiting)
        self.store.count_refused(waiting.claim)
        waiting.done.errback(refused(waiting.reached, self._wall()))

    def _remove(self, waiting: _Waiting) -> None:
        name = waiting.reached.account.name
        queue = self.queues.get(name, OrderedDict())
        queue.pop(waiting, None)
        if not queue:
            self.queues.pop(name, None)

    def _advance(self, claim: Claim) -> None:
        """A slot of these accounts is free: it is for the request that has waited longest."""
        for account in claim.accounts:
            queue = self.queues.get(account.name)
            if queue:
                self._retry(next(iter(queue)))

    def _retry(self, waiting: _Waiting) -> None:
        self._remove(waiting)
        waiting.claim.requests = waiting.claim.window = None
        reached = self.store.admit(waiting.claim)
        if isinstance(reached, Deferred):
            reached.addCallbacks(self._retried, waiting.done.errback, (waiting,))
        else:
            self._retried(reached, waiting)

    def _retried(self, reached: LimitReached | None, waiting: _Waiting) -> None:
        if waiting.done.called:  # its client has left, or its time is over
            if reached is None:
                self.end(waiting.claim, 0)
            return
        if reached is not None and reached.kind == "concurrency":  # of this account or of another one of it
            waiting.reached = reached
            queue = self.queues.setdefault(reached.account.name, OrderedDict())
            queue[waiting] = None
            queue.move_to_end(waiting, last=False)
            return
        waiting.stop()
        if reached is None:
            waiting.done.callback(None)
            return
        waiting.done.errback(refused(reached, self._wall()))
        self._advance(waiting.claim)  # the slot is still free
