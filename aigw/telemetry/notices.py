"""Log lines about what clients do, at most a few in LOG_SECONDS for each kind: how often, and from which addresses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from aigw.telemetry import logs

LOG_SECONDS = 10.0
MAX_ADDRESSES = 10  # named in one line of the log

# From how often it happened, in all and by address, to the fields of its line. No address means: other addresses.
Fields = Callable[[int, dict[str, int]], Mapping[str, object]]


class Notice:
    """One kind of event that clients cause. The first is logged at once; later ones are summed up for LOG_SECONDS.

    ``lines`` is the limit of lines in that time: 1 is one line for all addresses, more is one line for each of the
    addresses with the most events and one line for all others. At most ``addresses`` are counted separately.
    """

    def __init__(
        self, clock: IReactorTime, message: str, fields: Fields, lines: int = 1, addresses: int = MAX_ADDRESSES
    ) -> None:
        self._clock = clock
        self._message = message
        self._fields = fields
        self._lines = lines
        self._addresses = addresses
        # The addresses with a line in the last LOG_SECONDS; None stands for a line about all addresses.
        self._written: set[str | None] = set()
        self._unwritten: Counter[str] = Counter()
        self._unwritten_of_others = 0
        self._timer: IDelayedCall | None = None

    def note(self, address: str | None = None, count: int = 1, shown: str | None = None) -> None:
        """Count ``count`` events from ``address``. A line with this address alone names it as ``shown``."""
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
        logs.warn(self._message, request_id=None, **self._fields(count, by_address))

    def close(self) -> None:
        """Write the events that are not logged yet; for the time after the listeners are closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._write_more()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
