"""Reading a large body: a read takes what has come of it, where Twisted takes 64 KiB a turn.

Twisted asks a transport for its ``bufferSize``, which is public. Above it a producer is paused too, but while a body is
read nothing is written that could pause one.
"""

from __future__ import annotations

from twisted.internet.interfaces import ITransport
from twisted.internet.tcp import Connection

USUAL = Connection.bufferSize
MOST = 256 * 1024  # bytes in one turn, which are received in the time in which a few requests are served


def expect(transport: ITransport, size: int) -> None:
    """Up to ``size`` bytes are expected; 0: a request, of which nothing is known. With TLS it changes nothing."""
    if isinstance(transport, Connection):
        transport.bufferSize = min(max(size, USUAL), MOST)
