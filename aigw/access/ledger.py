"""What callers and groups have used: the counts of all limits, in the memory of this process. They outlive a reload.

An admission is one call, for all limits of a request at once: all of them are taken, or none. A settlement is one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from aigw.access.limits import TOLERANCE, RequestCount, WindowCount, end_of_period
from aigw.config.model import Config
from aigw.settings.callers import PICO, Account, Budgeted

Note = Callable[[str, str, WindowCount], None]
Room = tuple[int, int, float]
"""The limit, how much of it is left, and in how many seconds all of it is."""


class LimitReached(NamedTuple):
    """Which limit is reached. ``seconds`` is the time until there is room, None if time does not help.

    ``kind`` is ``requests``, ``tokens``, ``concurrency`` or ``budget``; ``needed`` and ``used`` are in the unit of it.
    """

    kind: str
    account: Account
    seconds: float | None
    needed: int = 1
    used: int = 0
    budget: Budgeted | None = None


class Counts:
    """What one account has used, and what it has reserved."""

    __slots__ = ("budgets", "cost", "refused", "requests", "running", "taken", "tokens", "used")

    def __init__(self) -> None:
        self.requests = RequestCount()
        self.tokens = WindowCount()
        self.budgets: dict[str, WindowCount] = {}  # by the key of a Budgeted
        self.running = 0
        self.taken = 0  # requests since the start, and the next ones too
        self.used = 0  # tokens
        self.cost = 0  # PICO
        self.refused = 0

    def of(self, budget: Budgeted) -> WindowCount:
        """The count of a budget."""
        found = self.budgets.get(budget.key)
        if found is None:
            found = self.budgets[budget.key] = WindowCount()
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

    failures = 0  # memory is always there

    def __init__(self, seconds: Callable[[], float], wall: Callable[[], float]) -> None:
        self._seconds = seconds
        self._wall = wall
        self._counts: dict[str, Counts] = {}
        self.note: Note | None = None  # is called after each change of a budget

    def use(self, config: Config) -> None:
        """Limits are those of this configuration from now on."""

    def start(self) -> None:
        """The process has forked, and no request was admitted yet."""

    def finish(self) -> None:
        """The process ends."""

    def restore(self, account: str, budget: str, ends: float, spent: int) -> None:
        """What was spent before the process started, in a period that ends at ``ends``; what is known counts more."""
        count = self._counts.setdefault(account, Counts()).budgets.setdefault(budget, WindowCount())
        if (ends, spent) > (count.ends, count.spent):
            count.ends, count.spent = ends, spent

    def budgets(self) -> Iterator[tuple[str, str, WindowCount]]:
        """All budgets that were used: of which account, which one, and its count."""
        for account, counts in self._counts.items():
            for budget, count in counts.budgets.items():
                yield account, budget, count

    def counts_of(self, account: Account) -> Counts:
        """The counts of an account; those of a new one are 0."""
        found = self._counts.get(account.name)
        if found is None:
            found = self._counts[account.name] = Counts()
        return found

    # Admission

    def admit(self, claim: Claim) -> LimitReached | None:
        """Take all that the claim asks for, or nothing; note the room that is left, where it is least."""
        now, known, tokens = self._seconds(), self._counts, claim.tokens
        reached: LimitReached | None = None
        for account in claim.accounts:
            counts = known.get(account.name) or self.counts_of(account)
            if account.budgets and reached is None:
                reached = self._spent(account, counts, claim)
            rate = account.tokens
            if rate is not None:
                window, limit = counts.tokens, rate.limit
                if now >= window.ends:
                    window.spent, window.ends = 0, now + rate.seconds
                used = window.spent + window.reserved
                if used + tokens > limit and tokens and reached is None:
                    wait = None if tokens > limit else window.ends - now
                    reached = LimitReached("tokens", account, wait, tokens, used)
                left = limit - used - tokens
                if claim.window is None or left < claim.window[1]:
                    claim.window = limit, left, window.ends - now
            rate = account.requests
            if rate is not None:
                limit, seconds = rate
                requests = counts.requests
                share, elapsed = requests.used, now - requests.at
                if elapsed > 0:  # as drain does it
                    requests.at = now
                    share -= elapsed * limit / seconds
                    requests.used = share = share if share > 0 else 0.0
                free = limit - share - 1 + TOLERANCE
                if free < 0 and reached is None:
                    reached = LimitReached("requests", account, requests.seconds_to_room(rate), 1, limit)
                if claim.requests is None or free < claim.requests[1]:
                    claim.requests = limit, int(free), (share + 1) * seconds / limit
        if reached is None:  # a request that waits for a slot has passed all other limits
            for account in claim.accounts:
                slots = account.concurrency
                if slots is not None and known[account.name].running >= slots:
                    reached = LimitReached("concurrency", account, 1.0, 1, slots)
        if reached is not None:
            if reached.kind != "concurrency":
                self.count_refused(claim)
            self._show(claim, now)
            return reached
        claim.admitted = True
        for account in claim.accounts:
            counts = known[account.name]
            counts.running += 1
            counts.taken += 1
            if account.requests is not None:
                counts.requests.used += 1
            counts.tokens.reserved += tokens
            for budget in account.budgets:
                count = counts.budgets[budget.key]
                count.reserved += claim.money if budget.in_usd else tokens
                if self.note is not None:
                    self.note(account.name, budget.key, count)
        return None

    def _spent(self, account: Account, counts: Counts, claim: Claim) -> LimitReached | None:
        """The budget of the account that is spent."""
        wall = self._wall()
        for budget in account.budgets:
            count = counts.budgets.get(budget.key) or counts.of(budget)
            if wall >= count.ends:
                count.turn_to_calendar(budget.per, budget.zone, wall)
            asked = claim.money if budget.in_usd else claim.tokens
            used = count.spent + count.reserved
            if used + asked > budget.limit or (budget.in_usd and used >= budget.limit):
                count.correct(budget.per, budget.zone, wall)
                return LimitReached("budget", account, count.ends - wall, asked, used, budget)
        return None

    def _show(self, claim: Claim, now: float) -> None:
        """Note the room that is left without this claim, which takes nothing."""
        claim.requests = claim.window = None
        for account in claim.accounts:
            counts = self.counts_of(account)
            if (rate := account.requests) is not None:
                used = counts.requests.drain(rate, now)
                free = int(rate.limit - used + TOLERANCE)
                if claim.requests is None or free < claim.requests[1]:
                    claim.requests = rate.limit, free, used * rate.seconds / rate.limit
            if (rate := account.tokens) is not None:
                window = counts.tokens
                window.turn(rate.seconds, now)
                left = rate.limit - window.spent - window.reserved
                if claim.window is None or left < claim.window[1]:
                    claim.window = rate.limit, left, window.ends - now

    def count_refused(self, claim: Claim) -> None:
        """Count a request that is refused, for the key and for its group, whichever of them has the limit."""
        for account in claim.accounts:
            self.counts_of(account).refused += 1

    # Settlement

    def settle(self, claim: Claim, tokens: int, money: int = 0) -> None:
        """Charge what an admitted request used, even past a limit, and free the rest."""
        for account in claim.accounts:
            counts = self._counts[account.name]
            counts.running -= 1
            counts.used += tokens
            counts.cost += money
            window, rate = counts.tokens, account.tokens
            window.reserved -= claim.tokens
            if rate is not None:
                now = self._seconds()
                if now >= window.ends:
                    window.spent, window.ends = 0, now + rate.seconds
                window.spent += tokens
            if account.budgets:
                wall = self._wall()
                for budget in account.budgets:
                    count = counts.budgets[budget.key]
                    if wall >= count.ends:
                        count.turn_to_calendar(budget.per, budget.zone, wall)
                    count.reserved -= claim.money if budget.in_usd else claim.tokens
                    count.spent += money if budget.in_usd else tokens
                    if self.note is not None:
                        self.note(account.name, budget.key, count)

    def count_request(self, claim: Claim) -> None:
        """Count a request that is over already, such as one that is malformed; past no limit."""
        claim.tokens = claim.money = 0
        if self.admit(claim) is None:
            self.settle(claim, 0)

    # What is shown: a look changes nothing, so a thread may take one, and it begins no window

    def known_usage_of(self, account: Account) -> dict[str, object]:
        """See Store: nothing is older than this."""
        return self.usage_of(account)

    def usage_of(self, account: Account) -> dict[str, object]:
        """What the account has used and what it has left, as JSON."""
        counts = self._counts.get(account.name) or Counts()
        now, wall = self._seconds(), self._wall()
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
        if (rate := account.requests) is not None:
            used = counts.requests.used_at(rate, now)
            limits["requests"] = {
                "limit": rate.limit,
                "per_s": rate.seconds,
                "remaining": max(0, int(rate.limit - used + TOLERANCE)),
                "reset_s": round(used * rate.seconds / rate.limit, 3),
            }
        if (rate := account.tokens) is not None:
            window = counts.tokens
            spent, reserved = window.spent_at(now), window.reserved
            limits["tokens"] = {
                "limit": rate.limit,
                "per_s": rate.seconds,
                "spent": spent,
                "reserved": reserved,
                "remaining": max(0, rate.limit - spent - reserved),
                "reset_s": round(max(0.0, window.ends - now), 3),
            }
        if account.concurrency is not None:
            left = max(0, account.concurrency - counts.running)
            limits["concurrency"] = {"limit": account.concurrency, "remaining": left}
        if account.budgets:
            found = [(budget, counts.budgets.get(budget.key) or WindowCount()) for budget in account.budgets]
            limits["budget"] = [_shown(budget, count, wall) for budget, count in found]
        return {**shown, "limits": limits}


def _shown(budget: Budgeted, count: WindowCount, wall: float) -> dict[str, object]:
    spent, reserved = count.spent_at(wall), count.reserved
    left = max(0, budget.limit - spent - reserved)
    amounts = {"limit": budget.limit, "spent": spent, "reserved": reserved, "remaining": left}
    return {
        "unit": "usd" if budget.in_usd else "tokens",
        "per": budget.per,
        "zone": budget.zone,
        **{name: amount / PICO if budget.in_usd else amount for name, amount in amounts.items()},
        "resets_at": round(count.ends if wall < count.ends else end_of_period(budget.per, budget.zone, wall)),
    }
