"""Admits the requests of callers with limits: at once, after a wait for a slot, or not. Settles them at their end."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from aigw.access.claim import Claim
from aigw.access.errors import refused
from aigw.access.ledger import LimitReached
from aigw.config.model import Config
from aigw.errors import RequestError
from aigw.settings.callers import Account

Reached = LimitReached | Deferred[LimitReached | None] | None  # the answer of a store to an admission

POLL_SECONDS = 0.5
MOST_WAITING = 100  # requests that wait for a slot of one account


class Store(Protocol):
    """Keeps the counts of all accounts. Each method is one call, with all limits of a request at once.

    A store in this process gives values. One elsewhere may give Deferreds; a cancel of one must free what it took.
    """

    @property
    def failures(self) -> int:
        """How often it could not be used in time, since the start."""

    def use(self, config: Config) -> None:
        """Limits are those of this configuration from now on."""

    def start(self) -> None:
        """The process has forked, and no request was admitted yet."""

    def finish(self) -> None:
        """The process ends."""

    def admit(self, claim: Claim) -> Reached:
        """Take all that the claim asks for, or nothing; gives the limit that is reached."""

    def settle(self, claim: Claim, tokens: int, money: int = 0) -> object:
        """Charge what an admitted request used, and free the rest."""

    def count_request(self, claim: Claim) -> object:
        """Count a request that is over already."""

    def count_refused(self, claim: Claim) -> object:
        """Count a request that found no slot in its time, for all accounts of its caller."""

    def usage_of(self, account: Account) -> dict[str, object] | Deferred[dict[str, object]]:
        """What the account has used and what it has left, as JSON."""

    def known_usage_of(self, account: Account) -> dict[str, object]:
        """The same at once, at most some seconds old; a thread may call it."""


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
        self._polling: IDelayedCall | None = None  # while requests wait for slots that other processes use too
        self._free: list[str] = []  # accounts whose queues may move on
        self._is_advancing = False

    def use(self, config: Config) -> None:
        """Limits are those of this configuration from now on, also for the requests that wait."""
        self.store.use(config)
        accounts = {account.name: account for caller in config.callers for account in caller.accounts}
        for queue in self.queues.values():
            for waiting in queue:
                old = waiting.claim.accounts
                waiting.claim.use(tuple([accounts.get(each.name, each) for each in old]))
        self._advance([*self.queues])

    def start(self) -> None:
        """The process has forked, and no request was admitted yet."""
        self.store.start()

    def finish(self) -> None:
        """The process ends."""
        self.store.finish()

    def ask(self, claim: Claim, wait: float) -> Deferred[None] | None:
        """Admit a request, or have it wait so many seconds for a slot; None if that is done. Raises RequestError."""
        return self.decide(self.store.admit(claim), claim, wait)

    def decide(self, reached: Reached, claim: Claim, wait: float) -> Deferred[None] | None:
        """The same, where the store has been asked."""
        return (
            reached.addCallback(self._decide, claim, wait, True)
            if isinstance(reached, Deferred)
            else self._decide(reached, claim, wait)
        )

    def _decide(
        self, reached: LimitReached | None, claim: Claim, wait: float, is_shared: bool = False
    ) -> Deferred[None] | None:
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
        if is_shared and self._polling is None:
            self._polling = self._clock.callLater(POLL_SECONDS, self._poll)
        return done

    def end(self, claim: Claim, tokens: int, money: int = 0) -> None:
        """The request is over: charge it, and let those in that wait for its slots."""
        settled = self.store.settle(claim, tokens, money)
        if self.queues:
            self.settled(settled, claim)

    def settled(self, settled: object, claim: Claim) -> None:
        """Slots of the claim's accounts are free, when the store has answered."""
        names = [each.name for each in claim.accounts]
        if isinstance(settled, Deferred):
            settled.addBoth(lambda _: self._advance(names))
        else:
            self._advance(names)

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

    def _advance(self, accounts: Iterable[str]) -> None:
        """Slots of these accounts may be free: they are for the requests that have waited longest.

        A request that is admitted here may end at once, and free its slot again: that is for a later turn of the loop.
        """
        self._free += [name for name in accounts if name in self.queues]
        if self._is_advancing:
            return
        self._is_advancing = True
        try:
            while self._free:
                queue = self.queues.get(self._free.pop(0))
                if queue:
                    self._retry(next(iter(queue)))
        finally:
            self._is_advancing = False

    def _poll(self) -> None:
        """A slot that another process frees is for the request that has waited longest in this one."""
        self._polling = self._clock.callLater(POLL_SECONDS, self._poll) if self.queues else None
        for queue in list(self.queues.values()):
            self._retry(next(iter(queue)))

    def _retry(self, waiting: _Waiting) -> None:
        self._remove(waiting)
        try:
            reached = self.store.admit(waiting.claim)
        except RequestError:
            self._not_retried(Failure(), waiting)
            return
        if isinstance(reached, Deferred):
            reached.addCallbacks(self._retried, self._not_retried, (waiting,), errbackArgs=(waiting,))
        else:
            self._retried(reached, waiting)

    def _not_retried(self, failure: Failure, waiting: _Waiting) -> None:
        """The store is away, and requests are to be refused then."""
        waiting.stop()
        if not waiting.done.called:
            waiting.done.errback(failure)

    def _retried(self, reached: LimitReached | None, waiting: _Waiting) -> None:
        before = waiting.reached.account.name
        if waiting.done.called:  # its client has left, or its time is over
            if reached is None:
                self.end(waiting.claim, 0)
            return
        if reached is not None and reached.kind == "concurrency":
            waiting.reached = reached
            queue = self.queues.setdefault(reached.account.name, OrderedDict())
            queue[waiting] = None
            queue.move_to_end(waiting, last=False)
            if reached.account.name != before:  # the slot that was free is for the next one
                self._advance([before])
            return
        waiting.stop()
        if reached is None:
            waiting.done.callback(None)
        else:
            waiting.done.errback(refused(reached, self._wall()))
        self._advance([before])  # there may be more free slots than one
