"""What the store does not know yet: settlements that failed, and what was used by local limits while it was away.

A settlement that failed may have been made, if only its answer was lost. So it keeps its lease, by which the store
finds that out, and what was used locally gets an id of its own, as if it had a lease.
"""

from __future__ import annotations

from typing import NamedTuple

from aigw.settings.callers import Account
from aigw.store.script_parts import AGAIN, FIRST, ONCE

MOST_KEPT = 10_000  # leases; what more of them used is kept by account, and charged besides what they had reserved


class Settlement(NamedTuple):
    """What the requests of a lease used; ``taken`` counts the requests that the store has not counted yet."""

    accounts: tuple[Account, ...]
    tokens: int = 0
    money: int = 0
    taken: int = 0
    how: str = FIRST

    def again(self, how: str) -> Settlement:
        """The same, to be sent in this way."""
        return Settlement(self.accounts, self.tokens, self.money, self.taken, how)


class Debts:
    """Bounded: ``name`` is that of the process, in ids that no other process has."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._numbers = 0
        self._leases: dict[str, Settlement] = {}
        self._used: dict[str, Settlement] = {}  # by the name of the account

    def __len__(self) -> int:
        return len(self._leases) + len(self._used)

    def add(self, lease: str, settlement: Settlement) -> None:
        """A settlement failed, or was not tried."""
        if lease in self._leases or len(self._leases) < MOST_KEPT:
            how = AGAIN if settlement.how == FIRST else settlement.how
            self._leases[lease] = settlement.again(how)
        else:
            self.add_used(settlement)

    def add_used(self, settlement: Settlement) -> None:
        """Something was used without a lease."""
        for account in settlement.accounts:
            _, *before, _ = self._used.get(account.name, Settlement(()))
            tokens, money, taken = before
            sums = tokens + settlement.tokens, money + settlement.money, taken + settlement.taken
            self._used[account.name] = Settlement((account,), *sums, ONCE)

    def emptied(self) -> None:
        """The store is another one, or was emptied: no lease is there any more, and none was settled there."""
        self._leases = {lease: each.again(ONCE) for lease, each in self._leases.items()}

    def take(self) -> list[tuple[str, Settlement]]:
        """All of them, each with its lease or an id; one that fails again has to be added again."""
        leases, self._leases = self._leases, {}
        used, self._used = self._used, {}
        for each in used.values():
            if each.tokens or each.money or each.taken:
                self._numbers += 1
                leases[f"{self._name}-used{self._numbers}|0|0"] = each
        return list(leases.items())
