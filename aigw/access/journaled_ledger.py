"""The ledger of a process whose budgets are on the disk, together with those of other processes with that folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aigw.access.journal import Journal
from aigw.access.ledger import Ledger
from aigw.access.other_journals import LONGEST_SECONDS, Key, Sum
from aigw.config.model import Config


class JournaledLedger(Ledger):
    """A Ledger whose budgets are kept in the folder ``state``, if there is one."""

    def __init__(self, seconds: Callable[[], float], wall: Callable[[], float]) -> None:
        super().__init__(seconds, wall)
        self._journal: Journal | None = None
        self._folder: str | None = None
        self._started = False

    def use(self, config: Config) -> None:
        """See Ledger."""
        has_budgets = any(account.budgets for caller in config.callers for account in caller.accounts)
        self._folder = config.state if has_budgets or self._journal is not None else None
        if self._started:
            self._open()

    def start(self) -> None:
        """See Ledger. Budgets of earlier processes count from now on."""
        self._started = True
        self._open()

    def finish(self) -> None:
        """See Ledger."""
        if self._journal is not None:
            self._journal.finish()

    @property
    def is_kept(self) -> bool:
        """Whether budgets are on the disk, so ``follow`` is to be called each FOLLOW_SECONDS."""
        return self._journal is not None

    def follow(self) -> None:
        """Add what other processes have spent since the last time."""
        if self._journal is not None and (sums := self._journal.take_news()) is not None:
            self._add(self._journal.elsewhere, sums)

    def _add(self, added: dict[Key, Sum], sums: Mapping[Key, Sum]) -> None:
        """Make ``sums`` of what was ``added`` to the counts before."""
        now = self._wall()
        for key in added.keys() - sums.keys():
            count = self._budget(*key)
            ends, amount = added.pop(key)
            if count.ends <= ends:
                count.spent -= amount
        for key, (ends, amount) in sums.items():
            if now >= ends:  # it has ended since the thread read it
                continue
            count = self._budget(*key)
            if now >= count.ends:
                count.ends, count.spent = ends, 0
            before = added.get(key)
            count.spent += amount - (before[1] if before is not None and count.ends <= before[0] else 0)
            added[key] = max(ends, count.ends), amount

    def _open(self) -> None:
        folder = self._folder
        if folder is None or (self._journal is not None and self._journal.folder == folder):
            return
        if self._journal is not None:
            self._journal.finish()
            self._add(self._journal.elsewhere, {})
        self._journal = Journal(folder)
        now = self._wall()
        for (account, budget), (ends, spent, reserved) in self._journal.load().items():
            if now < ends < now + LONGEST_SECONDS:
                self.restore(account, budget, ends, spent + reserved)
        for account, budget, count in self.budgets():
            self._journal.note(account, budget, count)
        self.follow()
        self.note = self._journal.note
        self._journal.start()
