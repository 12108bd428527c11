"""What a client sends before it is read: kept within a bound, and read in a turn of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

MAX_BEHIND = 256 * 1024


class Ahead:
    """``data`` came behind a request of the connection whose ``transport`` this is; ``read`` gets it in its time.

    Requests in one read take a turn each: a client could else have any number of them served in one turn.
    """

    def __init__(self, clock: IReactorTime, transport: Any, read: Callable[[bytes], None]) -> None:
        self._clock = clock
        self._transport = transport
        self._read = read
        self.data = bytearray()
        self._size = 0  # of what is kept, or was dropped
        self._turn: IDelayedCall | None = None

    @property
    def waits_for_turn(self) -> bool:
        """Whether it is about to be read."""
        return self._turn is not None

    def keep(self, data: bytes) -> bool:
        """Keep so much more; nobody pipelines more than the bound, and whoever does is cut: then it is False."""
        self._size += len(data)
        if self._size > MAX_BEHIND:
            self._transport.abortConnection()
            return False
        self.data += data
        return True

    def drop(self, data: bytes) -> bool:
        """Count what is read for nothing; whether it is over the bound."""
        self._size += len(data)
        return self._size > MAX_BEHIND

    def forget(self) -> None:
        """None of it will be read."""
        self.data = bytearray()
        self._size = 0

    def read_soon(self) -> None:
        """Read in another turn what there is."""
        if self.data and self._turn is None:
            self._turn = self._clock.callLater(0, self._go_on)

    def _go_on(self) -> None:
        self._turn = None
        data, self.data, self._size = self.data, bytearray(), 0
        self._read(bytes(data))

    def stop(self) -> None:
        """The connection is gone."""
        self.forget()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
