"""What one account has used and reserved of its limits, as numbers that an admission compares."""

from __future__ import annotations

import math
from operator import itemgetter

from aigw.access.limit_lines import form_of_requests, form_of_tokens, reset_of, whole
from aigw.access.limits import TOLERANCE, RequestCount, Total, WindowCount
from aigw.settings.callers import Account, Budgeted

NO_LIMIT = 10**30
NEVER = math.inf
CHECK_SECONDS = 1.0  # within which a clock of the calendar that was set is noticed


class Counts:
    """What one account has used, and what it has reserved.

    An admission compares few numbers, which are made of the limits of ``account`` and hold while the steady clock is
    before ``until``. A window ends at ``turns`` on it, a budget at ``renews`` in Unix seconds. ``slots`` may run. Of
    the ``limit`` of requests, 0 without one, one is free again each ``interval``, in seconds. ``top`` is how far the
    total of tokens may go: ``lacks`` decides about what is beyond it, and about all with a budget in USD. ``first`` are
    the lines that show the room which the first request leaves, empty without a limit of requests; those of others are
    made by the form ``later``. ``window`` is the form of the lines of the window, None without one, and ``both`` that
    of ``first`` and ``window``.
    """

    __slots__ = (
        *("account", "budgets", "kept", "money", "requests", "running", "tokens", "used"),
        *(
            "budget_top",
            "interval",
            "limit",
            "money_top",
            "renews",
            "slots",
            "top",
            "turns",
            "until",
            "window_top",
        ),
        *("both", "first", "later", "window"),
    )

    def __init__(self) -> None:
        self.account: Account | None = None
        self.running = 0
        self.requests = RequestCount()
        self.used = Total()
        self.money = Total()
        self.tokens = WindowCount()
        self.tokens.belongs_to(self.used)
        self.budgets: dict[str, WindowCount] = {}  # by the key of a Budgeted
        self.kept: list[tuple[WindowCount, Budgeted]] = []  # those that the account has
        self.limit, self.interval = 0, 0.0
        self.first = self.later = self.both = b""
        self.window: bytes | None = None
        self.slots = self.top = self.window_top = self.budget_top = self.money_top = NO_LIMIT
        self.turns = self.renews = self.until = NEVER

    def of(self, budget: Budgeted) -> WindowCount:
        """The count of a budget."""
        found = self.budgets.get(budget.key)
        if found is None:
            found = self.budgets[budget.key] = WindowCount()
        return found

    def prepare(self, account: Account, now: float, wall: float) -> None:
        """Count for these limits from now on: a request looks for none, until a reload has changed the account."""
        self.account = account
        self.slots = NO_LIMIT if account.concurrency is None else account.concurrency
        self.limit, self.first = 0, b""
        if (rate := account.requests) is not None:
            self.limit, self.interval = rate.limit, rate.seconds / rate.limit
            self.requests.idle_at = self.requests.at + self.requests.used * self.interval
            self.later = form_of_requests(rate.limit)
            self.first = self.later % (rate.limit - 1, reset_of(self.interval))
        # A budget that a reload took away still counts: a request that began before the reload may be admitted
        # after one that has the new limits, and brings the old ones back until the next request.
        self.kept = [(self.of(budget), budget) for budget in account.budgets]
        for count, budget in self.kept:
            count.belongs_to(self.money if budget.in_usd else self.used)
        self.turn(now, wall)

    def lacks(self, taken: int, tokens: int, money: int) -> bool:
        """Whether a limit has no room for ``tokens``, which make the total ``taken``, or for the money.

        A budget that is spent has no room, even for what costs nothing.
        """
        spent = self.money.taken
        return (
            taken > self.budget_top
            or (taken > self.window_top and tokens > 0)
            or spent + money > self.money_top
            or spent >= self.money_top
        )

    def turn(self, now: float, wall: float) -> None:
        """Begin the windows that are due, and find out how far the totals may go, and until when."""
        self.window_top = self.budget_top = self.money_top = NO_LIMIT
        self.turns = self.renews = NEVER
        account, window = self.account, self.tokens
        if account is not None and account.tokens is not None:
            window.turn(account.tokens.seconds, now)
            self.window_top, self.turns = account.tokens.limit + window.start, window.ends
        for count, budget in self.kept:
            count.turn_to_calendar(budget.per, budget.zone, wall)
            self.renews = min(self.renews, count.ends)
            top = budget.limit + count.start
            if budget.in_usd:
                self.money_top = min(self.money_top, top)
            else:
                self.budget_top = min(self.budget_top, top)
        self.top = min(self.window_top, self.budget_top) if self.money_top is NO_LIMIT else -1
        self._show_until(now, wall)

    def renew(self, now: float, wall: float) -> None:
        """Do what is due at ``until``."""
        if now >= self.turns or wall >= self.renews:
            self.turn(now, wall)
        else:
            self._show_until(now, wall)

    def expire(self) -> None:
        """A budget is about to be changed: the numbers hold no more."""
        self.turns = self.until = 0.0

    def _show_until(self, now: float, wall: float) -> None:
        """Find out until when the numbers hold, and make the lines of the window: they show the seconds to its end."""
        self.window, self.until = None, self.turns
        if self.renews is not NEVER:  # the clock of the calendar may be set
            self.until = min(self.until, now + min(CHECK_SECONDS, self.renews - wall))
        if self.account is not None and self.account.tokens is not None:
            ends = self.tokens.ends
            shown = whole(ends - now)
            self.window = form_of_tokens(self.account.tokens.limit, shown)
            self.both = self.first + self.window
            self.until = min(self.until, ends - shown + 1 if ends - now > 1 else now)


def lines_of(pair: tuple[Counts, Counts]) -> bytes:
    """The lines of a caller with a group that was admitted just now: of requests and of tokens where least is left."""
    lines = b""
    left = [(int(each.limit - each.requests.used + TOLERANCE), each) for each in pair if each.limit]
    if left:
        fewest, counts = min(left, key=itemgetter(0))
        lines = counts.later % (fewest, reset_of(counts.requests.used * counts.interval))
    left = [(each.window_top - each.used.taken, each) for each in pair if each.window is not None]
    if left:
        least, counts = min(left, key=itemgetter(0))
        lines += (counts.window or b"") % (least if least > 0 else 0)
    return lines
