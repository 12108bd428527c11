"""What callers and groups have used: the counts of all limits, in the memory of this process. They outlive a reload.

An admission is one call, for all limits of a request at once: all of them are taken, or none. A settlement is one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import NamedTuple

from aigw.access.amounts import Counts, lines_of
from aigw.access.claim import Claim
from aigw.access.limit_lines import of_requests, of_tokens, reset_of
from aigw.access.limits import TOLERANCE, WindowCount
from aigw.access.shown import usage_of
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
        counts.expire()
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
        # This runs for every request of a key with limits, so the arithmetic is written out instead of called, and
        # there is no loop. A function that is an attribute is called by a name of here: Python calls it faster.
        seconds, tokens, counts = self._seconds, claim.tokens, claim.counts
        now = seconds()
        if counts.account is not claim.account:
            claim.counts = counts = self._prepared(claim.account, now)
        elif now >= counts.until:
            counts.renew(now, self._wall())
        used, running, lines = counts.used, counts.running, counts.first
        taken = used.taken + tokens
        if running >= counts.slots or (taken > counts.top and counts.lacks(taken, tokens, claim.money)):
            return self._refused(claim, now)
        if counts.limit:
            requests = counts.requests
            if now >= requests.idle_at:
                requests.used, requests.at, requests.idle_at = 1.0, now, now + counts.interval
            else:
                share = requests.used - (now - requests.at) / counts.interval  # as drain does it
                if share < 0.0:
                    share = 0.0
                left = int(counts.limit - share + TOLERANCE) - 1
                if left < 0:
                    return self._refused(claim, now)
                requests.used, requests.at = share + 1.0, now
                seconds_used = (share + 1.0) * counts.interval
                requests.idle_at = now + seconds_used
                lines = counts.later % (left, reset_of(seconds_used))
        counts.running = running + 1
        used.taken = taken
        if claim.money:
            counts.money.taken += claim.money
        if claim.group is not None:
            if self._is_refused_by_group(claim, claim.group):
                return self._refused(claim, now)
        elif counts.window is not None:
            left = counts.window_top - taken
            form = counts.both if lines is counts.first else lines + counts.window
            claim.lines = form % (left if left > 0 else 0)
        else:
            claim.lines = lines
        if self.note is not None:
            self._note_budgets(claim, self.note)
        return None

    def _prepared(self, account: Account, now: float) -> Counts:
        """The counts of an account, which count for its limits from now on."""
        counts = self.counts_of(account)
        if counts.account is not account:
            counts.prepare(account, now, self._wall())
        elif now >= counts.until:
            counts.renew(now, self._wall())
        return counts

    def _is_refused_by_group(self, claim: Claim, group: Claim) -> bool:
        """Ask the group for the same; give back what the account gave if the group has no room."""
        counts = claim.counts
        group.tokens, group.money = claim.tokens, claim.money
        if self.admit(group) is None:
            claim.lines = lines_of((counts, group.counts))
            return False
        counts.running -= 1
        counts.used.taken -= claim.tokens
        counts.money.taken -= claim.money
        if claim.account.requests is not None:
            counts.requests.used -= 1
        return True

    def _note_budgets(self, claim: Claim, note: Note) -> None:
        for count, budget in claim.counts.kept:
            note(claim.account.name, budget.key, count)

    def _refused(self, claim: Claim, now: float) -> LimitReached | None:
        """Find out which limit is reached; nothing is taken."""
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
                counts.expire()
                return LimitReached("budget", account, count.ends - wall, asked, used, budget)
        return None

    def _show(self, claim: Claim, now: float) -> None:
        """Note the room that is left without this claim, which takes nothing."""
        requests, tokens = [], []
        for account in claim.accounts:
            counts = self.counts_of(account)
            if (rate := account.requests) is not None:
                used = counts.requests.drain(rate, now)
                requests.append((int(rate.limit - used + TOLERANCE), rate.limit, used * rate.seconds / rate.limit))
            if (rate := account.tokens) is not None:
                window = counts.tokens
                window.turn(rate.seconds, now)
                tokens.append((rate.limit - window.spent - window.reserved, rate.limit, window.ends - now))
        claim.lines = b""
        if requests:
            left, limit, seconds = min(requests, key=itemgetter(0))
            claim.lines += of_requests(limit, left, seconds)
        if tokens:
            left, limit, seconds = min(tokens, key=itemgetter(0))
            claim.lines += of_tokens(limit, left, seconds)

    def count_refused(self, claim: Claim) -> None:
        """See Store: the record of the request counts it."""

    # Settlement

    def settle(self, claim: Claim, tokens: int, money: int = 0) -> None:
        """Charge what an admitted request used, even past a limit, and free the rest."""
        seconds, counts = self._seconds, claim.counts
        now = seconds()
        if now >= counts.until:
            counts.renew(now, self._wall())
        used = counts.used
        counts.running -= 1
        used.spent += tokens
        used.taken += tokens - claim.tokens
        if money or claim.money:
            counts.money.spent += money
            counts.money.taken += money - claim.money
        if claim.group is not None:
            self.settle(claim.group, tokens, money)
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
