"""What callers and groups have used: the counts of all limits, in the memory of this process. They outlive a reload.

An admission is one call, for all limits of a request at once: all of them are taken, or none. A settlement is one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from aigw.access.amounts import Counts, usage_of
from aigw.access.limits import TOLERANCE, WindowCount
from aigw.config.model import Config
from aigw.settings.callers import Account, Budgeted

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
        count = self._budget(account, budget)
        if (ends, spent) > (count.ends, count.spent):
            count.ends, count.spent = ends, spent

    def _budget(self, account: str, budget: str) -> WindowCount:
        return self._counts.setdefault(account, Counts()).budgets.setdefault(budget, WindowCount())

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
        # This runs for every request of a key with limits, so the arithmetic is written out instead of called. It
        # takes as it goes, and gives back if the limit of another account is reached.
        now, known, tokens, money = self._seconds(), self._counts, claim.tokens, claim.money
        for number, account in enumerate(claim.accounts):
            counts = known.get(account.name) or self.counts_of(account)
            slots, rate, window_rate = account.concurrency, account.requests, account.tokens
            window = counts.tokens
            if slots is not None and counts.running >= slots:
                return self._refused(claim, number, now)
            if account.budgets:
                wall = self._wall()
                if counts.kept_of is not account:
                    counts.prepare(account)
                for count, most, in_usd, budget in counts.kept:
                    if wall >= count.ends:
                        count.turn_to_calendar(budget.per, budget.zone, wall)
                    spent = count.spent + count.reserved
                    if spent + (money if in_usd else tokens) > most or (in_usd and spent >= most):
                        return self._refused(claim, number, now)
            if window_rate is not None:
                if now >= window.ends:
                    window.spent, window.ends = 0, now + window_rate.seconds
                left = window_rate.limit - window.spent - window.reserved - tokens
                if left < 0 and tokens:
                    return self._refused(claim, number, now)
                room = claim.window
                if room is None or left < room[1]:
                    claim.window = window_rate.limit, left, window.ends - now
            if rate is not None:
                limit, seconds = rate
                requests = counts.requests
                used, elapsed = requests.used, now - requests.at
                if elapsed > 0:  # as drain does it
                    requests.at = now
                    used -= elapsed * limit / seconds
                    requests.used = used = used if used > 0 else 0.0
                share = used + 1
                free = limit - share + TOLERANCE
                if free < 0:
                    return self._refused(claim, number, now)
                requests.used = share
                room = claim.requests
                if room is None or free < room[1]:
                    claim.requests = limit, int(free), share * seconds / limit
            counts.running += 1
            window.reserved += tokens
            if account.budgets:
                for count, _, in_usd, _ in counts.kept:
                    count.reserved += money if in_usd else tokens
        claim.admitted = True
        if self.note is not None:
            self._note_budgets(claim, self.note)
        return None

    def _note_budgets(self, claim: Claim, note: Note) -> None:
        for account in claim.accounts:
            for budget in account.budgets:
                note(account.name, budget.key, self._counts[account.name].budgets[budget.key])

    def _refused(self, claim: Claim, taken: int, now: float) -> LimitReached | None:
        """Give back what the first ``taken`` accounts gave, and find out which limit is reached."""
        for account in claim.accounts[:taken]:
            counts = self._counts[account.name]
            counts.running -= 1
            counts.tokens.reserved -= claim.tokens
            if account.requests is not None:
                counts.requests.used -= 1
            for count, _, in_usd, _ in counts.kept if account.budgets else ():
                count.reserved -= claim.money if in_usd else claim.tokens
        self._show(claim, now)
        found = [self._reached(account, claim, now) for account in claim.accounts]
        reached = [each for each in found if each is not None]
        if not reached:  # a period of the calendar has ended just now
            return self.admit(claim)
        # A request that waits for a slot has passed all other limits.
        return min(reached, key=lambda each: each.kind == "concurrency")

    def _reached(self, account: Account, claim: Claim, now: float) -> LimitReached | None:
        """The limit of this account that is reached."""
        counts, tokens = self.counts_of(account), claim.tokens
        reached = self._spent(account, counts, claim)
        if reached is None and tokens and (rate := account.tokens) is not None:
            used = counts.tokens.spent + counts.tokens.reserved
            if used + tokens > rate.limit:
                wait = None if tokens > rate.limit else counts.tokens.ends - now
                reached = LimitReached("tokens", account, wait, tokens, used)
        if (
            reached is None
            and (rate := account.requests) is not None
            and rate.limit - (counts.requests.used + 1) + TOLERANCE < 0
        ):
            reached = LimitReached("requests", account, counts.requests.seconds_to_room(rate), 1, rate.limit)
        if reached is None and (slots := account.concurrency) is not None and counts.running >= slots:
            reached = LimitReached("concurrency", account, 1.0, 1, slots)
        return reached

    def _spent(self, account: Account, counts: Counts, claim: Claim) -> LimitReached | None:
        """The budget of the account that is spent."""
        wall = self._wall()
        for budget in account.budgets:
            count = counts.of(budget)
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
        """See Store: the record of the request counts it."""

    # Settlement

    def settle(self, claim: Claim, tokens: int, money: int = 0) -> None:
        """Charge what an admitted request used, even past a limit, and free the rest."""
        for account in claim.accounts:
            counts = self._counts[account.name]
            counts.running -= 1
            window, rate = counts.tokens, account.tokens
            window.reserved -= claim.tokens
            if rate is not None:
                now = self._seconds()
                if now >= window.ends:
                    window.spent, window.ends = 0, now + rate.seconds
                window.spent += tokens
            if account.budgets:
                wall = self._wall()
                if counts.kept_of is not account:
                    counts.prepare(account)
                for count, _, in_usd, budget in counts.kept:
                    if wall >= count.ends:
                        count.turn_to_calendar(budget.per, budget.zone, wall)
                    count.reserved -= claim.money if in_usd else claim.tokens
                    count.spent += money if in_usd else tokens
        if self.note is not None:
            self._note_budgets(claim, self.note)

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
        """What runs, and what is left of the limits of the account, as JSON."""
        return usage_of(account, self._counts.get(account.name) or Counts(), self._seconds(), self._wall())
