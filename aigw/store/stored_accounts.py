"""Accounts as the scripts of the store know them: their names and limits on the way there, and the answers.

Also the share of a limit that one gateway has while the store is away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from aigw.access.claim import Claim
from aigw.access.ledger import Ledger, LimitReached
from aigw.access.limit_lines import of_requests, of_tokens
from aigw.access.limits import end_of_period
from aigw.settings.callers import PICO, Account
from aigw.settings.limit_values import Rate

AFTER_PERIOD = 86400  # seconds for which a budget is kept when its period is over: clocks differ
LARGEST = 2.0**63
_KINDS = ("", "requests", "tokens", "concurrency", "budget")
_MOST_KNOWN = 20_000


def prefixed(account: Account) -> str:
    """The name of the account's hash in the store; the braces are the tag that keeps all on one node of a cluster.

    A colon of the account's name is doubled: a single one is before the rest of another key of an account.
    """
    return f"aigw:{{limits}}:{account.name.replace(':', '::')}"


class Described:
    """Gives the keys and arguments of accounts. ``wall`` gives Unix seconds; periods are those of its calendar."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._ends: dict[tuple[str, str], float] = {}
        self._known: dict[Account, tuple[list[str], list[str]]] = {}

    def of(self, accounts: Sequence[Account]) -> tuple[list[str], list[str]]:
        """The names in the store, and the number of accounts with the limits of each."""
        keys: list[str] = []
        args = [str(len(accounts))]
        for account in accounts:
            found = self._known.get(account)
            if found is None:
                if len(self._known) >= _MOST_KNOWN:
                    self._known.clear()
                name = prefixed(account)
                found = self._known[account] = [name, f"{name}:leases", f"{name}:over"], _limits(account)
            keys += found[0]
            args += found[1]
            for budget in account.budgets:
                ends = self.ends(budget.per, budget.zone)
                keys.append(f"{found[0][0]}:{budget.key}:{ends:.0f}")
                args += [str(budget.limit), "1" if budget.in_usd else "0", f"{(ends + AFTER_PERIOD) * 1000:.0f}"]
        return keys, args

    def ends(self, per: str, zone: str) -> float:
        """When the present period ends. A clock that is set back changes nothing until it reaches that time again."""
        now, ends = self._wall(), self._ends.get((per, zone), 0.0)
        if now >= ends:
            ends = self._ends[per, zone] = end_of_period(per, zone, now)
        return ends

    def seconds_to(self, ends: float) -> float:
        """How long until then."""
        return ends - self._wall()

    def shown(self, account: Account, numbers: Sequence[float]) -> dict[str, object]:
        """What the script USAGE has answered, in the form of Ledger.usage_of."""
        taken, used, cost, refused, running, requests, spent, held, reset, held_money, *budgets = numbers
        kind, _, name = account.name.partition(" ")
        limits: dict[str, object] = {}
        if (rate := account.requests) is not None:
            left, reset_s = max(0, int(rate.limit - requests + 1e-6)), round(requests * rate.seconds / rate.limit, 3)
            limits["requests"] = {"limit": rate.limit, "per_s": rate.seconds, "remaining": left, "reset_s": reset_s}
        if (rate := account.tokens) is not None:
            amounts = {"spent": round(spent), "reserved": round(held)}
            left = max(0, round(rate.limit - spent - held))
            window = {"limit": rate.limit, "per_s": rate.seconds, **amounts, "remaining": left}
            limits["tokens"] = {**window, "reset_s": round(reset / 1000, 3)}
        if account.concurrency is not None:
            left = account.concurrency - round(running)
            limits["concurrency"] = {"limit": account.concurrency, "remaining": left}
        if account.budgets:
            listed = []
            for budget, gone in zip(account.budgets, budgets, strict=True):
                reserved = held_money if budget.in_usd else held
                left = max(0, round(budget.limit - gone - reserved))
                all_of = {"limit": budget.limit, "spent": round(gone), "reserved": round(reserved), "remaining": left}
                listed.append(
                    {
                        "unit": "usd" if budget.in_usd else "tokens",
                        "per": budget.per,
                        "zone": budget.zone,
                        **{each: amount / PICO if budget.in_usd else amount for each, amount in all_of.items()},
                        "resets_at": round(self.ends(budget.per, budget.zone)),
                    }
                )
            limits["budget"] = listed
        return {
            kind: name,
            "requests": round(taken - running + refused),  # those that have ended, as without a store
            "tokens": round(used),
            "cost_usd": cost / PICO,
            "refused": round(refused),
            "running": round(running),
            "limits": limits,
        }


def _limits(account: Account) -> list[str]:
    words = []
    for rate in (account.requests, account.tokens):
        words += ["-1", "-1"] if rate is None else [str(rate.limit), f"{rate.seconds * 1000:.0f}"]
    return [*words, "-1" if account.concurrency is None else str(account.concurrency), str(len(account.budgets))]


def numbers_in(line: str) -> list[float]:
    """What a script has answered. Raises ValueError for what no script answers."""
    numbers = [float(word) for word in line.split()]
    if not all(math.fabs(number) < LARGEST for number in numbers):
        raise ValueError("it answers with numbers that are none")
    return numbers


def is_admitted(numbers: Sequence[float]) -> bool:
    """Whether the script ADMIT has taken all that it was asked for."""
    return not numbers[0]


def reached_in(numbers: Sequence[float], claim: Claim, described: Described) -> LimitReached | None:
    """What the script ADMIT has answered; the room that is left goes to the claim."""
    kind, which, wait, used, number, rate, left, reset, window, window_left, window_reset = numbers
    claim.lines = of_requests(round(rate), round(left), reset / 1000) if rate > 0 else b""
    if window > 0:
        claim.lines += of_tokens(round(window), round(window_left), window_reset / 1000)
    if not kind:
        return None
    account = claim.accounts[round(which) - 1]
    if number:
        budget = account.budgets[round(number) - 1]
        seconds = described.seconds_to(described.ends(budget.per, budget.zone))
        asked = claim.money if budget.in_usd else claim.tokens
        return LimitReached("budget", account, seconds, asked, round(used), budget)
    named = _KINDS[round(kind)]
    needed = claim.tokens if named == "tokens" else 1
    return LimitReached(named, account, None if wait < 0 else wait / 1000, needed, round(used))


class Share:
    """Admits claims by a share of their limits, one of ``instances``. A request that fits a limit fits the share."""

    def __init__(self, ledger: Ledger) -> None:
        self.instances = 1
        self._ledger = ledger
        self._admitted: dict[Claim, Claim] = {}

    def admit(self, claim: Claim) -> LimitReached | None:
        """See Ledger."""
        accounts = tuple([self._part(account, claim.tokens, claim.money) for account in claim.accounts])
        part = Claim(accounts, claim.tokens, claim.money)
        reached = self._ledger.admit(part)
        claim.lines = part.lines
        if reached is None:
            self._admitted[claim] = part
        return reached

    def settle(self, claim: Claim, tokens: int, money: int) -> bool:
        """See Ledger. False if the claim was not admitted here."""
        part = self._admitted.pop(claim, None)
        if part is not None:
            self._ledger.settle(part, tokens, money)
        return part is not None

    def usage_of(self, account: Account) -> dict[str, object]:
        """See Ledger."""
        return self._ledger.usage_of(self._part(account))

    def _part(self, account: Account, tokens: int = 0, money: int = 0) -> Account:
        return msgspec.structs.replace(
            account,
            requests=self._of_rate(account.requests, 1),
            tokens=self._of_rate(account.tokens, tokens),
            concurrency=None if account.concurrency is None else self._of(account.concurrency, 1),
            budgets=tuple(
                [
                    msgspec.structs.replace(budget, limit=self._of(budget.limit, money if budget.in_usd else tokens))
                    for budget in account.budgets
                ]
            ),
        )

    def _of_rate(self, rate: Rate | None, needed: int) -> Rate | None:
        return None if rate is None else Rate(self._of(rate.limit, needed), rate.seconds)

    def _of(self, limit: int, needed: int) -> int:
        return max(limit // self.instances, min(max(1, needed), limit))
