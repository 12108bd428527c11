"""What callers and groups have used: the counts of all limits, in the memory of this process. They outlive a reload.

An admission is one call, for all limits of a request at once: all of them are taken, or none. A settlement is one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from aigw.access.limits import RequestCount, WindowCount
from aigw.config.callers import Account, BudgetLimit

PICO = 10**12  # amounts of money are whole numbers of 1e-12 USD, so that sums are exact


class LimitReached(NamedTuple):
    """Which limit is reached. ``seconds`` is the time until there is room, None if time does not help.

    ``kind`` is ``requests``, ``tokens``, ``concurrency`` or ``budget``; ``needed`` and ``used`` are in the unit of it.
    """

    kind: str
    account: Account
    seconds: float | None
    needed: int = 1
    used: int = 0
    budget: BudgetLimit | None = None


class Room(NamedTuple):
    """What is left of a limit: shown to the client. ``reset`` in seconds."""

    limit: int
    remaining: int
    reset: float


class Counts:
    """What one account has used, and what it has reserved."""

    __slots__ = ("budgets", "cost", "refused", "requests", "running", "taken", "tokens", "used")

    def __init__(self) -> None:
        self.requests = RequestCount()
        self.tokens = WindowCount()
        self.budgets: dict[tuple[bool, str], WindowCount] = {}  # by whether it is in USD, and by its period
        self.running = 0
        self.taken = 0  # requests since the start, and the next ones too
        self.used = 0  # tokens
        self.cost = 0  # PICO
        self.refused = 0

    def of(self, budget: BudgetLimit) -> WindowCount:
        """The count of a budget."""
        key = budget.usd is not None, budget.per
        found = self.budgets.get(key)
        if found is None:
            found = self.budgets[key] = WindowCount()
        return found


class Claim(msgspec.Struct, eq=False):
    """What one request asks for. ``tokens`` and ``money`` (PICO) are reserved until it is settled.

    ``admitted`` is set by the store, and ``shown`` is what the client is shown of its limits.
    """

    accounts: tuple[Account, ...]
    tokens: int = 0
    money: int = 0
    admitted: bool = False
    requests: Room | None = None
    window: Room | None = None


class Ledger:
    """The counts of all accounts, by their names. ``seconds`` is a steady clock, ``wall`` gives Unix seconds."""

    def __init__(self, seconds: Callable[[], float], wall: Callable[[], float]) -> None:
        self._seconds = seconds
        self._wall = wall
        self._counts: dict[str, Counts] = {}

    def counts_of(self, account: Account) -> Counts:
        """The counts of an account; those of a new one are 0."""
        found = self._counts.get(account.name)
        if found is None:
            found = self._counts[account.name] = Counts()
        return found

    # Admission

    def admit(self, claim: Claim) -> LimitReached | None:
        """Take all that the claim asks for, or nothing."""
        now = self._seconds()
        accounts = claim.accounts
        taken = [self.counts_of(account) for account in accounts]
        refusal: LimitReached | None = None
        for account, counts in zip(accounts, taken, strict=True):
            refusal = self._refusal(account, counts, claim, now)
            if refusal is not None:
                counts.refused += refusal.kind != "concurrency"
                break
        else:
            claim.admitted = True
            tokens, money = claim.tokens, claim.money
            for account, counts in zip(accounts, taken, strict=True):
                counts.running += 1
                counts.taken += 1
                if account.requests is not None:
                    counts.requests.used += 1
                counts.tokens.reserved += tokens
                for budget in account.budgets:
                    counts.of(budget).reserved += tokens if budget.usd is None else money
        self._show(claim, taken, now)
        return refusal

    def _refusal(self, account: Account, counts: Counts, claim: Claim, now: float) -> LimitReached | None:
        """The limit of the account that is reached, the one that takes longest first."""
        for budget in account.budgets:
            count, limit = counts.of(budget), _limit_of(budget)
            count.turn_to_calendar(budget.per, budget.zone, wall := self._wall())
            asked = claim.tokens if budget.usd is None else claim.money
            used = count.spent + count.reserved
            if used + asked > limit or (used >= limit and asked >= 0 and budget.usd is not None):
                return LimitReached("budget", account, count.ends - wall, asked, used, budget)
        rate = account.tokens
        if rate is not None and claim.tokens:
            window = counts.tokens
            window.turn(rate.seconds, now)
            if window.spent + window.reserved + claim.tokens > rate.limit:
                seconds = None if claim.tokens > rate.limit else window.ends - now
                return LimitReached("tokens", account, seconds, claim.tokens, window.spent + window.reserved)
        rate = account.requests
        if rate is not None and not counts.requests.has_room(rate, now):
            return LimitReached("requests", account, counts.requests.seconds_to_room(rate), 1, rate.limit)
        if account.concurrency is not None and counts.running >= account.concurrency:
            return LimitReached("concurrency", account, 1.0, 1, counts.running)
        return None

    def _show(self, claim: Claim, taken: list[Counts], now: float) -> None:
        """Note the room that is left: that of the account with the least."""
        for account, counts in zip(claim.accounts, taken, strict=True):
            rate = account.requests
            if rate is not None:
                used = counts.requests.drain(rate, now)
                left = int(rate.limit - used + 1e-6)
                if claim.requests is None or left < claim.requests.remaining:
                    claim.requests = Room(rate.limit, max(0, left), used * rate.seconds / rate.limit)
            rate = account.tokens
            if rate is not None:
                window = counts.tokens
                window.turn(rate.seconds, now)
                left = rate.limit - window.spent - window.reserved
                if claim.window is None or left < claim.window.remaining:
                    claim.window = Room(rate.limit, max(0, left), window.ends - now)

    def count_refused(self, claim: Claim) -> None:
        """Count a request that found no slot in its time."""
        for account in claim.accounts:
            self.counts_of(account).refused += 1

    # Settlement

    def settle(self, claim: Claim, tokens: int, money: int = 0) -> None:
        """Charge what an admitted request used, even past a limit, and free the rest."""
        now = self._seconds()
        for account in claim.accounts:
            counts = self.counts_of(account)
            counts.running -= 1
            counts.used += tokens
            counts.cost += money
            window = counts.tokens
            window.reserved -= claim.tokens
            if account.tokens is not None:
                window.turn(account.tokens.seconds, now)
                window.spent += tokens
            for budget in account.budgets:
                count = counts.of(budget)
                count.turn_to_calendar(budget.per, budget.zone, self._wall())
                in_usd = budget.usd is not None
                count.reserved -= claim.money if in_usd else claim.tokens
                count.spent += money if in_usd else tokens

    def count_request(self, claim: Claim) -> None:
        """Count a request that is over already, such as one that is malformed; past no limit."""
        claim.tokens = claim.money = 0
        if self.admit(claim) is None:
            self.settle(claim, 0)

    # What is shown

    def usage_of(self, account: Account) -> dict[str, object]:
        """What the account has used and what it has left, as JSON."""
        counts, now, wall = self.counts_of(account), self._seconds(), self._wall()
        kind, _, name = account.name.partition(" ")
        shown: dict[str, object] = {
            kind: name,
            "requests": counts.taken,
            "tokens": counts.used,
            "cost_usd": counts.cost / PICO,
            "refused": counts.refused,
            "running": counts.running,
        }
        limits: dict[str, object] = {}
        if account.requests is not None:
            used = counts.requests.drain(account.requests, now)
            left = int(account.requests.limit - used + 1e-6)
            limits["requests"] = {
                "limit": account.requests.limit,
                "per_s": account.requests.seconds,
                "remaining": max(0, left),
                "reset_s": round(used * account.requests.seconds / account.requests.limit, 3),
            }
        if account.tokens is not None:
            window = counts.tokens
            window.turn(account.tokens.seconds, now)
            limits["tokens"] = {
                "limit": account.tokens.limit,
                "per_s": account.tokens.seconds,
                "spent": window.spent,
                "reserved": window.reserved,
                "remaining": max(0, account.tokens.limit - window.spent - window.reserved),
                "reset_s": round(window.ends - now, 3),
            }
        if account.concurrency is not None:
            limits["concurrency"] = {"limit": account.concurrency, "remaining": account.concurrency - counts.running}
        if account.budgets:
            limits["budget"] = [self._budget(budget, counts.of(budget), wall) for budget in account.budgets]
        return {**shown, "limits": limits}

    def _budget(self, budget: BudgetLimit, count: WindowCount, wall: float) -> dict[str, object]:
        count.turn_to_calendar(budget.per, budget.zone, wall)
        scale = 1 if budget.usd is None else PICO
        left = max(0, _limit_of(budget) - count.spent - count.reserved)
        amounts = {"limit": _limit_of(budget), "spent": count.spent, "reserved": count.reserved, "remaining": left}
        return {
            "unit": "tokens" if budget.usd is None else "usd",
            "per": budget.per,
            "zone": budget.zone,
            **{name: amount if scale == 1 else amount / scale for name, amount in amounts.items()},
            "resets_at": round(count.ends),
        }


def _limit_of(budget: BudgetLimit) -> int:
    """In tokens, or in PICO."""
    return budget.tokens if budget.tokens is not None else round((budget.usd or 0) * PICO)
