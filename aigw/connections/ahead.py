"""Data that a client sends before the gateway reads it: kept up to a limit, and read in a later turn."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from aigw.net.interfaces import ClientTransport

MAX_BEHIND = 256 * 1024


class Ahead:
    """``data`` came behind a request of the connection whose ``transport`` this is; ``read`` gets it in its time.

    Each request in one read takes its own turn of the reactor, so one client cannot fill a turn with requests.
    """

    def __init__(self, clock: IReactorTime, transport: ClientTransport, read: Callable[[bytes], None]) -> None:
        self._clock = clock
        self._transport = transport
        self._read = read
        self.data = bytearray()
        self._size = 0  # of what is kept, or was dropped
        self._turn: IDelayedCall | None = None

    @property
    def waits_for_turn(self) -> bool:
        """Whether the data will be read in the next turn."""
        return self._turn is not None

    def keep(self, data: bytes) -> bool:
        """Keep the data; over the limit the connection is aborted, and the result is False."""
        self._size += len(data)
        if self._size > MAX_BEHIND:
            self._transport.abortConnection()
            return False
        self.data += data
        return True

    def drop(self, data: bytes) -> bool:
        """Count data that is dropped; gives whether it is over the limit."""
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
        """The connection is lost."""
        self.forget()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
