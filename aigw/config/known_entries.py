"""What was made of the entries of a long list when it was read last: of 10,000 keys only those that changed are read.

An entry is known by a hash of all that is written in it, so no key is kept here.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any


class KnownEntries:
    """Those of one list. A reading calls ``begin``, and ``made`` for each entry. What it did not ask for is dropped."""

    def __init__(self) -> None:
        self._before: dict[bytes, Any] = {}
        self._now: dict[bytes, Any] = {}
        self.read = 0  # how many entries were not known, since ``begin``

    def begin(self) -> None:
        """The list is read again."""
        self._before, self._now, self.read = self._now or self._before, {}, 0

    def made(self, written: list[Any], make: Callable[[], tuple[Any, bool]]) -> Any:
        """What ``make`` makes of an entry, all of which is ``written``, or what it made the last time.

        It also gives whether that may be kept: an entry with a mistake or a warning has it each time.
        """
        key = blake2b(repr(written).encode(), digest_size=16).digest()
        found = self._before.get(key)
        if found is None:
            self.read += 1
            found, is_good = make()
            if not is_good:
                return found
        self._now[key] = found
        return found
