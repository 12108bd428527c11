"""The counts of limits that several gateways share, in a Valkey or Redis; without one, those of this process.

Each admission is one script for all limits of a request. A store that does not answer in LIMIT_SECONDS never keeps a
request waiting: its limits are then local ones, a share of the whole, until the store answers again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from aigw.access.admission import Reached
from aigw.access.amounts import Counts
from aigw.access.claim import Claim
from aigw.access.errors import StoreUnavailable
from aigw.access.journal import FOLLOW_SECONDS
from aigw.access.journaled_ledger import JournaledLedger
from aigw.access.ledger import Ledger, LimitReached
from aigw.config.model import Config
from aigw.settings.callers import Account
from aigw.settings.store import StoreAddress
from aigw.store.script_parts import LEASE_SECONDS, RENEW_SECONDS
from aigw.store.scripts import ADMIT, REFUSE, RENEW, SETTLE
from aigw.store.store_debts import Debts, Settlement
from aigw.store.store_link import Connect, RedisLink
from aigw.store.store_state import ShortLimit, StoreState
from aigw.store.stored_accounts import Described, Share, is_admitted, numbers_in, prefixed, reached_in
from aigw.store.stored_usage import StoredUsage

MOST_LEASES = 1000  # renewed by one script


class SharedStore:
    """See Store in ``admission``."""

    admit: Callable[[Claim], Reached]
    settle: Callable[..., object]

    def __init__(
        self,
        clock: IReactorTime,
        seconds: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        connect: Connect = RedisLink,
    ) -> None:
        self._clock = clock
        self.state = StoreState(clock, connect, self._recovered, self._renew_in_time)
        self._alone = JournaledLedger(seconds, wall)
        self._following = LoopingCall(self._alone.follow)
        self._following.clock = clock
        self._spare = Ledger(seconds, wall)  # while the store is away
        self._share = Share(self._spare)
        self._described = Described(wall)
        self._looks = StoredUsage(clock, self.state, self._described, self._share)
        self._store: StoreAddress | None = None
        self._refuses = False
        self._started = False
        self._renewed = 0.0
        self._held: dict[Claim, str] = {}  # the leases
        self._name = os.urandom(8).hex()
        self._leases = 0
        self._debts = Debts(self._name)
        self._epoch = ""
        self.admit, self.settle = self._alone.admit, self._alone.settle  # without a store there is nothing between

    @property
    def failures(self) -> int:
        """How many calls of the store failed or took too long, since the start."""
        return self.state.failures

    # Begin and end

    def use(self, config: Config) -> None:
        """See Store. Another store takes over at once, with the debts; what the old one counted stays there."""
        self._share.instances, self._refuses = config.instances, config.on_store_failure == "refuse"
        store = config.store
        if store is None:
            self._alone.use(config)
            self._follow()
        if store == self._store:
            return
        self.state.close()
        self._store = store
        if store is None:
            self.admit = self._alone.admit
            return
        self.admit, self.settle = self._admit, self._settle  # a settlement finds out where the claim was admitted
        if self._started:
            self.state.open(store, self._instead)

    def start(self) -> None:
        """See Store."""
        self._started = True
        self._alone.start()
        self._follow()
        if self._store is not None:
            self.state.open(self._store, self._instead)

    def finish(self) -> None:
        """See Store."""
        self.state.close()
        if self._following.running:
            self._following.stop()
        self._alone.finish()

    def _follow(self) -> None:
        if self._started and self._alone.is_kept and not self._following.running:
            self._following.start(FOLLOW_SECONDS, now=False)

    def _instead(self) -> str:
        return "requests of keys with limits get 503" if self._refuses else "limits are local ones"

    # Admission

    def _admit(self, claim: Claim) -> Reached:
        if not self.state.is_up:
            return self._admit_locally(claim)
        self._leases += 1
        lease = f"{self._name}-{self._leases}|{claim.tokens}|{claim.money}"
        keys, args = self._described.of(claim.accounts)
        first = [lease.partition("|")[0], str(claim.tokens), str(claim.money), _milliseconds(LEASE_SECONDS)]
        result: Deferred[LimitReached | None] = Deferred(lambda _: None)
        accounts = claim.accounts

        def too_late() -> None:
            self.state.too_slow()
            instead()

        def instead() -> None:
            if not result.called:
                try:
                    result.callback(self._admit_locally(claim))
                except StoreUnavailable as error:
                    result.errback(error)

        def answered(line: str) -> None:
            limit.stop()
            numbers = numbers_in(line)
            if result.called:  # too late, so the claim has other lines, or the client has left
                if is_admitted(numbers):
                    self._charge(lease, Settlement(accounts))
                return
            reached = reached_in(numbers, claim, self._described)
            if reached is None:
                self._held[claim] = lease
            result.callback(reached)

        def failed(failure: Failure) -> None:
            limit.stop()
            self._debts.add(lease, Settlement(accounts))  # it may have been admitted
            self.state.failed(failure)
            instead()

        limit = ShortLimit(self._clock, too_late)
        self.state.run(ADMIT, keys, [*first, *args]).addCallback(answered).addErrback(failed)
        return result

    def _admit_locally(self, claim: Claim) -> LimitReached | None:
        """Raises StoreUnavailable where no local limits are wanted."""
        if self._refuses:
            raise StoreUnavailable("The gateway cannot reach the store of its limits. Please try again.")
        return self._share.admit(claim)

    # Settlement

    def _settle(self, claim: Claim, tokens: int, money: int = 0) -> object:
        lease = self._held.pop(claim, None)
        if lease is not None:
            return self._charge(lease, Settlement(claim.accounts, tokens, money))
        if self._share.settle(claim, tokens, money):
            if self.state.is_open:
                self._debts.add_used(Settlement(claim.accounts, tokens, money, taken=1))
                self._pay()
            return None
        self._alone.settle(claim, tokens, money)  # there was no store when it was admitted
        return None

    def _charge(self, lease: str, settlement: Settlement) -> Deferred[None] | None:
        if not self.state.is_open:
            return None
        if not self.state.is_up:
            self._debts.add(lease, settlement)
            return None
        accounts, tokens, money, taken, how = settlement
        keys, args = self._described.of(accounts)

        def failed(failure: Failure) -> None:
            self._debts.add(lease, settlement)
            self.state.failed(failure)

        sent = self.state.run(SETTLE, keys, [lease, str(tokens), str(money), str(taken), how, *args])
        return sent.addCallbacks(lambda _: None, failed)

    def _pay(self) -> None:
        """Settle what the store does not know yet, as soon as it can be used."""
        if self.state.is_up:
            for lease, settlement in self._debts.take():
                self._charge(lease, settlement)

    def count_request(self, claim: Claim) -> object:
        """See Store."""
        claim.tokens = claim.money = 0

        def counted(reached: LimitReached | None) -> None:
            if reached is None:
                self.settle(claim, 0)

        if self._store is None:
            self._alone.count_request(claim)
            return None
        if self._refuses and not self.state.is_up:
            return None
        reached = self._admit(claim)
        if isinstance(reached, Deferred):
            return reached.addCallback(counted).addErrback(lambda failure: failure.trap(StoreUnavailable) and None)
        counted(reached)
        return None

    def count_refused(self, claim: Claim) -> object:
        """See Store."""
        if not self.state.is_up:
            ledger = self._alone if self._store is None else self._spare
            ledger.count_refused(claim)
            return None
        names = [prefixed(account) for account in claim.accounts]
        return self.state.run(REFUSE, names, []).addErrback(self.state.failed)

    def counts_of(self, account: Account) -> Counts:
        """What this process counts by itself, where there is no store."""
        return self._alone.counts_of(account)

    def usage_of(self, account: Account) -> dict[str, object] | Deferred[dict[str, object]]:
        """See Store."""
        if self._store is None:
            return self._alone.usage_of(account)
        return self._looks.usage_of(account)

    def known_usage_of(self, account: Account) -> dict[str, object]:
        """See Store."""
        return self._alone.usage_of(account) if self._store is None else self._looks.known_usage_of(account)

    # Leases, and what the store has missed

    def _recovered(self, epoch: str) -> None:
        if epoch != self._epoch and self._epoch:
            self._debts.emptied()
        self._epoch = epoch
        self._renew()
        self._pay()

    def _renew_in_time(self) -> None:
        self._looks.refresh()
        if self._clock.seconds() - self._renewed >= RENEW_SECONDS:
            self._renew()

    def _renew(self) -> None:
        """Renew the leases of running requests; those that the store has lost are there again."""
        self._renewed = self._clock.seconds()
        held: dict[str, tuple[Account, list[str]]] = {}
        for claim, lease in self._held.items():
            for account in claim.accounts:
                held.setdefault(account.name, (account, []))[1].append(lease)
        for account, leases in held.values():
            keys, described = self._described.of((account,))
            for first in range(0, len(leases), MOST_LEASES):
                args = [_milliseconds(LEASE_SECONDS), *described, *leases[first : first + MOST_LEASES]]
                self.state.run(RENEW, keys, args).addErrback(self.state.failed)


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
