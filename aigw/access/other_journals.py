"""The budgets that other processes keep in the same folder: of those that run, and of those that have ended.

Each process has a file of its own, with what it spent and reserved itself. What all of them spent is the sum of the
files, so no process takes anything over from another one, and nothing is lost or counted twice when one ends.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress

import msgspec

LONGEST_SECONDS = 367 * 86_400.0  # no period is longer; a line that has one is broken

Key = tuple[str, str]
State = tuple[float, int, int]  # the end of the period in Unix seconds, what is spent, and what is reserved
Sum = tuple[float, int]  # the end of the period, and what is spent or reserved

_NAME = re.compile(r"budgets(-[0-9]{1,3})?\.journal")


class BudgetLine(msgspec.Struct, array_like=True):
    """One line: whose budget, which one, and its state."""

    account: str
    budget: str
    ends: float
    spent: int
    reserved: int


_decode = msgspec.json.Decoder(BudgetLine).decode


class JournalFile:
    """Reads what was appended to a file since the last time; all of it, if another file has taken its place."""

    def __init__(self, path: str) -> None:
        self.states: dict[Key, State] = {}
        self._path = path
        self._inode = -1
        self._done = 0  # bytes

    def read(self) -> bool:
        """Whether there was anything new. Broken lines are left out. Raises OSError."""
        with open(self._path, "rb") as file:
            found = os.fstat(file.fileno())
            if found.st_ino != self._inode or found.st_size < self._done:
                self.states, self._inode, self._done = {}, found.st_ino, 0
            elif found.st_size == self._done:
                return False
            file.seek(self._done)
            before = self._done
            for line in file:
                if not line.endswith(b"\n"):
                    break  # the rest of it comes later
                self._done += len(line)
                with suppress(msgspec.DecodeError, UnicodeDecodeError):
                    entry = _decode(line)
                    self.states[entry.account, entry.budget] = entry.ends, entry.spent, entry.reserved
        return before == 0 or self._done > before


class OtherJournals:
    """All files of ``folder`` but the one with the name ``own``."""

    def __init__(self, folder: str, own: str) -> None:
        self._folder = folder
        self._own = own
        self._files: dict[str, JournalFile] = {}

    def read(self) -> bool:
        """Read what is new; whether there was anything. Raises OSError."""
        with os.scandir(self._folder) as entries:
            names = {entry.name for entry in entries if _NAME.fullmatch(entry.name)} - {self._own}
        is_new = bool(self._files.keys() - names)
        self._files = {name: self._files.get(name) or JournalFile(os.path.join(self._folder, name)) for name in names}
        for file in self._files.values():
            with suppress(FileNotFoundError):
                is_new = file.read() or is_new
        return is_new

    def sums(self, now: float) -> Mapping[Key, Sum]:
        """What all of them spent and reserved in periods that are not over."""
        found: dict[Key, Sum] = {}
        for file in self._files.values():
            for key, (ends, spent, reserved) in file.states.items():
                if now < ends < now + LONGEST_SECONDS:
                    before = found.get(key, (0.0, 0))
                    found[key] = max(before[0], ends), before[1] + spent + reserved
        return found
