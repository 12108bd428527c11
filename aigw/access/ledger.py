"""What callers and groups have used: the counts of all limits, in the memory of this process. They outlive a reload.

An admission is one call, for all limits of a request at once: all of them are taken, or none. A settlement is one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from aigw.access.amounts import NEVER, NO_LIMIT, Counts, usage_of
from aigw.access.limit_lines import Room
from aigw.access.limits import TOLERANCE, WindowCount
from aigw.config.model import Config
from aigw.settings.callers import Account, Budgeted

Note = Callable[[str, str, WindowCount], None]


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


class Claim(msgspec.Struct, eq=False, gc=False):
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
        """One that is about to be changed."""
        counts = self._counts.setdefault(account, Counts())
        counts.renews = 0.0
        return counts.budgets.setdefault(budget, WindowCount())

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
        now, known, tokens = self._seconds(), self._counts, claim.tokens
        for account in claim.accounts:
            try:
                counts = known[account.name]
            except KeyError:
                counts = self.counts_of(account)
            if counts.account is not account:
                counts.prepare(account, now, self._wall())
            elif now >= counts.turns or (counts.renews is not NEVER and self._wall() >= counts.renews):
                counts.turn(now, self._wall())
            used, top = counts.used, counts.window_top
            taken = used.taken + tokens
            if (
                taken > counts.budget_top
                or (taken > top and tokens)
                or counts.running >= counts.slots
                or (counts.money_top is not NO_LIMIT and counts.lacks_money(claim.money))
            ):
                return self._refused(claim, account, now)
            pace = counts.pace
            if pace:
                requests = counts.requests
                share, elapsed = requests.used, now - requests.at
                if elapsed > 0.0:  # as drain does it
                    requests.at = now
                    share -= elapsed * pace
                if share <= 0.0:  # all of it is left, as most requests find it
                    requests.used, left = 1.0, counts.first
                else:
                    limit = counts.limit
                    free = limit - share - 1.0 + TOLERANCE
                    if free < 0.0:
                        requests.used = share
                        return self._refused(claim, account, now)
                    requests.used = share = share + 1.0
                    left = limit, int(free), share / pace, b""
                room = claim.requests
                if room is None or left[1] < room[1]:
                    claim.requests = left
            if top is not NO_LIMIT:
                if now >= counts.lines_until:
                    counts.renew_lines(now)
                room = claim.window
                if room is None or top - taken < room[1]:
                    claim.window = counts.window_limit, top - taken, counts.turns - now, counts.lines
            counts.running += 1
            used.taken = taken
            if claim.money:
                counts.money.taken += claim.money
        claim.admitted = True
        if self.note is not None:
            self._note_budgets(claim, self.note)
        return None

    def _note_budgets(self, claim: Claim, note: Note) -> None:
        for account in claim.accounts:
            for count, budget in self._counts[account.name].kept:
                note(account.name, budget.key, count)

    def _refused(self, claim: Claim, full: Account, now: float) -> LimitReached | None:
        """Give back what the accounts before ``full`` gave, and find out which limit is reached."""
        for account in claim.accounts:
            if account is full:
                break
            counts = self._counts[account.name]
            counts.running -= 1
            counts.used.taken -= claim.tokens
            counts.money.taken -= claim.money
            if account.requests is not None:
                counts.requests.used -= 1
        wall = self._wall()
        for account in claim.accounts:  # a window that the look below began alone would be unknown to ``admit``
            counts = self.counts_of(account)
            if counts.account is account:
                counts.turn(now, wall)
            else:
                counts.prepare(account, now, wall)
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
                counts.renews = 0.0
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
                    claim.requests = rate.limit, free, used * rate.seconds / rate.limit, b""
            if (rate := account.tokens) is not None:
                window = counts.tokens
                window.turn(rate.seconds, now)
                left = rate.limit - window.spent - window.reserved
                if claim.window is None or left < claim.window[1]:
                    claim.window = rate.limit, left, window.ends - now, b""

    def count_refused(self, claim: Claim) -> None:
        """See Store: the record of the request counts it."""

    # Settlement

    def settle(self, claim: Claim, tokens: int, money: int = 0) -> None:
        """Charge what an admitted request used, even past a limit, and free the rest."""
        known, more, has_money = self._counts, tokens - claim.tokens, money or claim.money
        for account in claim.accounts:
            counts = known[account.name]
            if (counts.turns is not NEVER and self._seconds() >= counts.turns) or (
                counts.renews is not NEVER and self._wall() >= counts.renews
            ):
                counts.turn(self._seconds(), self._wall())
            used = counts.used
            counts.running -= 1
            used.spent += tokens
            used.taken += more
            if has_money:
                counts.money.spent += money
                counts.money.taken += money - claim.money
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
