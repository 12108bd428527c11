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

MOST_WAITING = 100  # requests that wait for a slot of one account


class Store(Protocol):
    """Keeps the counts of all accounts. Each method is one call, with all limits of a request at once.

    A store in this process gives values. One elsewhere may give Deferreds; a cancel of one must free what it took.
    """

    def admit(self, claim: Claim) -> LimitReached | Deferred[LimitReached | None] | None:
        """Take all that the claim asks for, or nothing; gives the limit that is reached."""

    def settle(self, claim: Claim, tokens: int, money: int = 0) -> object:
        """Charge what an admitted request used, and free the rest."""

    def count_request(self, claim: Claim) -> object:
        """Count a request that is over already."""

    def count_refused(self, claim: Claim) -> object:
        """Count a request that found no slot in its time."""

    def usage_of(self, account: Account) -> dict[str, object]:
        """What the account has used and what it has left, as JSON."""


class _Waiting:
    """A request that waits for a slot."""

    __slots__ = ("claim", "done", "refusal", "timer")

    def __init__(self, claim: Claim, refusal: LimitReached, done: Deferred[None]) -> None:
        self.claim = claim
        self.refusal = refusal
        self.done = done
        self.timer: IDelayedCall | None = None

    def stop(self) -> None:
        """It waits no more."""
        timer, self.timer = self.timer, None
        if timer is not None and timer.active():
            timer.cancel()


class Admission:
    """Outlives a reload. ``wall`` gives Unix seconds."""

    def __init__(self, store: Store, clock: IReactorTime, wall: Callable[[], float] = time.time) -> None:
        self.store = store
        self._clock = clock
        self._wall = wall
        self._queues: dict[str, OrderedDict[_Waiting, None]] = {}  # by the account whose slots are taken

    def ask(self, claim: Claim, wait: float) -> Deferred[None] | None:
        """Admit a request, or have it wait so many seconds for a slot; None if that is done. Raises RequestError."""
        refusal = self.store.admit(claim)
        if refusal is None:
            return None
        if isinstance(refusal, Deferred):
            return refusal.addCallback(self._decide, claim, wait)
        return self._decide(refusal, claim, wait)

    def _decide(self, refusal: LimitReached | None, claim: Claim, wait: float) -> Deferred[None] | None:
        if refusal is None:
            return None
        if refusal.kind != "concurrency":
            raise refused(refusal, self._wall())
        if not wait or len(self._queues.get(refusal.account.name, ())) >= MOST_WAITING:
            self.store.count_refused(claim)
            raise refused(refusal, self._wall())
        done: Deferred[None] = Deferred(lambda _: self._leave(waiting))
        waiting = _Waiting(claim, refusal, done)
        waiting.timer = self._clock.callLater(wait, self._too_late, waiting)
        self._queues.setdefault(refusal.account.name, OrderedDict())[waiting] = None
        return done

    def end(self, claim: Claim, tokens: int, money: int = 0) -> None:
        """The request is over: charge it, and let those in that wait for its slots."""
        settled = self.store.settle(claim, tokens, money)
        if not self._queues:
            return
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
        waiting.done.errback(refused(waiting.refusal, self._wall()))

    def _remove(self, waiting: _Waiting) -> None:
        name = waiting.refusal.account.name
        queue = self._queues.get(name, OrderedDict())
        queue.pop(waiting, None)
        if not queue:
            self._queues.pop(name, None)

    def _advance(self, claim: Claim) -> None:
        """A slot of these accounts is free: it is for the request that has waited longest."""
        for account in claim.accounts:
            queue = self._queues.get(account.name)
            if queue:
                self._retry(next(iter(queue)))

    def _retry(self, waiting: _Waiting) -> None:
        self._remove(waiting)
        refusal = self.store.admit(waiting.claim)
        if isinstance(refusal, Deferred):
            refusal.addCallbacks(self._retried, waiting.done.errback, (waiting,))
        else:
            self._retried(refusal, waiting)

    def _retried(self, refusal: LimitReached | None, waiting: _Waiting) -> None:
        if waiting.done.called:  # its client has left, or its time is over
            if refusal is None:
                self.end(waiting.claim, 0)
            return
        if refusal is not None and refusal.kind == "concurrency":  # of this account or of another one of it
            waiting.refusal = refusal
            queue = self._queues.setdefault(refusal.account.name, OrderedDict())
            queue[waiting] = None
            queue.move_to_end(waiting, last=False)
            return
        waiting.stop()
        if refusal is None:
            waiting.done.callback(None)
            return
        waiting.done.errback(refused(refusal, self._wall()))
        self._advance(waiting.claim)  # the slot is still free
