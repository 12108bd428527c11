"""Log lines on what clients do: at most one in a while for each kind, which says how often it came, and from where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from aigw.telemetry import logs

LOG_SECONDS = 10.0
MAX_ADDRESSES = 10  # named in one line of the log


class Notice:
    """One line for all that came since the last, which was LOG_SECONDS ago or more.

    ``fields`` gives what else the line holds, by what was counted and by the addresses that it came from.
    """

    def __init__(
        self, clock: IReactorTime, message: str, fields: Callable[[int, dict[str, int]], dict[str, Any]]
    ) -> None:
        self._clock = clock
        self._message = message
        self._fields = fields
        self._count = 0
        self._by_address: Counter[str] = Counter()
        self._timer: IDelayedCall | None = None

    def note(self, address: str | None = None) -> None:
        """It came once more."""
        self._count += 1
        if address is not None and (address in self._by_address or len(self._by_address) < MAX_ADDRESSES):
            self._by_address[address] += 1
        if self._timer is None:
            self._write()

    def _write(self) -> None:
        self._timer = None
        if not self._count:
            return
        logs.warn(self._message, **self._fields(self._count, dict(self._by_address)))
        self._count = 0
        self._by_address.clear()
        self._timer = self._clock.callLater(LOG_SECONDS, self._write)

    def close(self) -> None:
        """Nothing listens any more: write what is not written."""
        if self._timer is not None:
            self._timer.cancel()
        self._write()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
