"""What one request asks of the limits of its caller, from its admission to its settlement."""

from __future__ import annotations

from aigw.access.amounts import Counts
from aigw.settings.callers import Account

_NOT_ASKED = Counts()
del _NOT_ASKED.used  # to settle a claim that no Ledger was asked for is a fault


class Claim:
    """What a request asks of ``account``, and what it asks of the group's account if its caller has one: ``group``.

    ``tokens`` and ``money`` (PICO) are reserved until it is settled. The store sets ``lines``: the header lines with
    what is left, where it is least. ``counts`` are those of the account, by which a Ledger was asked last. A claim that
    is settled may be used once more.
    """

    __slots__ = ("account", "accounts", "counts", "group", "lines", "money", "tokens")

    def __init__(self, accounts: tuple[Account, ...], tokens: int = 0, money: int = 0) -> None:
        self.tokens = tokens
        self.money = money
        self.lines = b""
        self.use(accounts)

    def use(self, accounts: tuple[Account, ...]) -> None:
        """Ask these, of which there is at least one; not while something is reserved."""
        self.accounts, self.account = accounts, accounts[0]
        self.group = Claim(accounts[1:]) if len(accounts) > 1 else None
        self.counts = _NOT_ASKED
