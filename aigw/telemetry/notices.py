"""Log lines on what clients do: at most a few in a while for each kind, which say how often it came, and from where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from aigw.telemetry import logs

LOG_SECONDS = 10.0
MAX_ADDRESSES = 10  # named in one line of the log

# From how often it came, in all and from each address, to the fields of its line; without an address it is from others.
Fields = Callable[[int, dict[str, int]], dict[str, Any]]


class Notice:
    """One thing that clients do. What is first is written at once, and what comes after it together, LOG_SECONDS later.

    ``lines`` says into how many lines: one for all addresses, or one for each of those from which most came and one for
    all others. No more than ``addresses`` are kept apart.
    """

    def __init__(
        self, clock: IReactorTime, message: str, fields: Fields, lines: int = 1, addresses: int = MAX_ADDRESSES
    ) -> None:
        self._clock = clock
        self._message = message
        self._fields = fields
        self._lines = lines
        self._addresses = addresses
        self._written: set[str | None] = set()  # from where it came when a line was written; less than LOG_SECONDS ago
        self._unwritten: Counter[str] = Counter()
        self._unwritten_of_others = 0
        self._timer: IDelayedCall | None = None

    def note(self, address: str | None = None, count: int = 1, shown: str | None = None) -> None:
        """It came ``count`` times more; a line for this alone may name the address as it is ``shown``."""
        if len(self._written) < self._lines and address not in self._written:
            self._written.add(address)
            name = shown or address
            self._write(count, {} if name is None else {name: count})
        elif address is not None and (address in self._unwritten or len(self._unwritten) < self._addresses):
            self._unwritten[address] += count
        else:
            self._unwritten_of_others += count
        if self._timer is None:
            self._timer = self._clock.callLater(LOG_SECONDS, self._write_more)

    def _write_more(self) -> None:
        self._timer = None
        unwritten, others = self._unwritten, self._unwritten_of_others
        self._unwritten, self._unwritten_of_others = Counter(), 0
        self._written = set()
        if self._lines == 1 and (unwritten or others):
            self._written = {None}
            self._write(unwritten.total() + others, dict(unwritten))
        elif unwritten or others:
            most = unwritten.most_common(self._lines - 1)
            others += unwritten.total() - sum(count for _, count in most)
            self._written = {address for address, _ in most} or {None}
            for address, count in most:
                self._write(count, {address: count})
            if others:
                self._write(others, {})
        if self._written:
            self._timer = self._clock.callLater(LOG_SECONDS, self._write_more)

    def _write(self, count: int, by_address: dict[str, int]) -> None:
        logs.warn(self._message, **self._fields(count, by_address))

    def close(self) -> None:
        """Nothing listens any more: write what is not written."""
        if self._timer is not None:
            self._timer.cancel()
            self._write_more()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
