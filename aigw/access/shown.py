"""What is left of the limits of one account, as people see it.

A look changes nothing, so a thread may take one, and it begins no window.
"""

from __future__ import annotations

from aigw.access.amounts import Counts
from aigw.access.limits import TOLERANCE, WindowCount, end_of_period
from aigw.settings.callers import PICO, Account, Budgeted


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
