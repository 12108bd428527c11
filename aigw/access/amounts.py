"""What one account has used and reserved of its limits, and what is left of them, as people see it.

A look changes nothing, so a thread may take one, and it begins no window.
"""

from __future__ import annotations

import math

from aigw.access.limit_lines import Room, of_requests, of_window, whole
from aigw.access.limits import TOLERANCE, RequestCount, Total, WindowCount, end_of_period
from aigw.settings.callers import PICO, Account, Budgeted

NO_LIMIT = 10**30
NEVER = math.inf


class Counts:
    """What one account has used, and what it has reserved.

    An admission compares few numbers, which ``prepare`` and ``turn`` make of the limits of ``account``. ``pace`` is how
    many requests a second are free again, 0 without a limit of them. ``window_top`` and ``budget_top`` are how far the
    total of tokens may go for the window and for all budgets in tokens, ``money_top`` that of money. They hold while
    the steady clock is before ``turns``, and that of the calendar before ``renews``. ``first`` is the room that the
    first request leaves, and ``lines`` show that of the window, until ``lines_until`` on the steady clock.
    """

    __slots__ = (
        "account",
        "budget_top",
        "budgets",
        "first",
        "kept",
        "limit",
        "lines",
        "lines_until",
        "money",
        "money_top",
        "pace",
        "renews",
        "requests",
        "running",
        "slots",
        "tokens",
        "turns",
        "used",
        "window_limit",
        "window_top",
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
        self.limit, self.window_limit, self.pace = 0, 0, 0.0
        self.first: Room = (0, 0, 0.0, b"")
        self.lines, self.lines_until = b"", 0.0
        self.slots = self.window_top = self.budget_top = self.money_top = NO_LIMIT
        self.turns = self.renews = NEVER

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
        self.limit, self.pace = 0, 0.0
        if account.requests is not None:
            self.limit, self.pace = account.requests.limit, account.requests.limit / account.requests.seconds
            self.first = (
                self.limit,
                self.limit - 1,
                1 / self.pace,
                of_requests(self.limit, self.limit - 1, 1 / self.pace),
            )
        # A budget that a reload took away still counts: a request that began before the reload may be admitted
        # after one that has the new limits, and brings the old ones back until the next request.
        self.kept = [(self.of(budget), budget) for budget in account.budgets]
        for count, budget in self.kept:
            count.belongs_to(self.money if budget.in_usd else self.used)
        self.turn(now, wall)

    def lacks_money(self, asked: int) -> bool:
        """Whether a budget in USD has no room for it. One that is spent has no room, even for what costs nothing."""
        taken = self.money.taken
        return taken + asked > self.money_top or taken >= self.money_top

    def turn(self, now: float, wall: float) -> None:
        """Begin the windows that are due, and find out how far the totals may go, and until when."""
        self.window_top = self.budget_top = self.money_top = NO_LIMIT
        self.turns = self.renews = NEVER
        self.lines_until = 0.0
        account, window = self.account, self.tokens
        if account is not None and account.tokens is not None:
            window.turn(account.tokens.seconds, now)
            self.window_limit = account.tokens.limit
            self.window_top, self.turns = self.window_limit + window.start, window.ends
        for count, budget in self.kept:
            count.turn_to_calendar(budget.per, budget.zone, wall)
            self.renews = min(self.renews, count.ends)
            top = budget.limit + count.start
            if budget.in_usd:
                self.money_top = min(self.money_top, top)
            else:
                self.budget_top = min(self.budget_top, top)

    def renew_lines(self, now: float) -> None:
        """Make the lines anew, which show the seconds to the end of the window."""
        left = self.turns - now
        shown = whole(left)
        self.lines = of_window(self.window_limit, shown)
        self.lines_until = self.turns - shown + 1 if left > 1 else now


def usage_of(account: Account, counts: Counts, now: float, wall: float) -> dict[str, object]:
    """What runs, and what is left of each limit, as JSON; ``now`` on the steady clock, ``wall`` in Unix seconds."""
    kind, _, name = account.name.partition(" ")
    shown: dict[str, object] = {
        kind: name,
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
