"""Who may connect: limits on open connections, judged as one is accepted, before TLS costs anything.

A refused client that speaks plain HTTP is told 503; over TLS that would take the handshake that is to be saved, so its
connection just ends. Either way what the client has sent is read and dropped for a while: closing with input unread
resets the connection, and the client may never see the answer (RFC 9112, 9.6).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IListeningPort,
    IProtocolFactory,
    IReactorTime,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from aigw.errors import Overloaded
from aigw.net.addresses import counts_for
from aigw.protocols.error_bodies import error_body
from aigw.server.mismatch import watch_first_bytes
from aigw.server.open_files import make_room, needed
from aigw.telemetry import logs
from aigw.telemetry.notices import MAX_ADDRESSES, Notice

LINGER_SECONDS = 1.0
MAX_LINGERING = 50  # refused beyond these, a connection is closed at once
MAX_LEAVING = 100  # connections beyond the limit, for a moment: closed to make room, and not gone yet

_BODY = error_body(Overloaded("The gateway has as many connections as it may have. Try again soon."))
_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    b"Retry-After: 1\r\nConnection: close\r\n\r\n%s" % (len(_BODY), _BODY)
)


class ConnectionLimiter:
    """The connections that are open, and how many there may be; both limits may be assigned at any time.

    ``per_address`` counts an IPv6 client by its network of 64 bits, for that is what one subscriber gets, and is None
    for no limit. ``refused`` counts since the start.
    """

    connections = 2000
    per_address: int | None = None

    def __init__(self, clock: IReactorTime, make_way: Callable[[], bool] = lambda: False) -> None:
        """``make_way`` closes a connection that is of no use just now, and says whether there was one."""
        self.clock = clock
        self.open = 0
        self.refused = 0
        self.lingering = 0
        self.leaving = 0  # of those that are open: closed to make room, and not gone yet
        self._make_way = make_way
        self._by_address: Counter[str] = Counter()
        self._refusals = Notice(
            clock,
            "Connections refused: there are as many as limits.connections or limits.connections_per_address allow",
            lambda count, _: {"refused": count, "connections": self.open, "addresses": self._most()},
        )
        self._closed = Notice(
            clock,
            "Connections closed that had no request: others came, and there are as many as limits.connections allows",
            lambda count, _: {"closed": count, "connections": self.open, "addresses": self._most()},
        )

    def limit(self, connections: int, per_address: int | None) -> None:
        """As many as these from now on, or as open files allow; who is connected stays."""
        fit = make_room(connections)
        if fit < connections:
            logs.warn(
                f"The limit of open files is too low for {connections} connections, so there may be {fit}: "
                f"raise it (LimitNOFILE=, ulimit -n) to {needed(connections)}, or lower limits.connections"
            )
        self.connections = fit
        self.per_address = per_address

    def admits(self, peer: Any) -> bool:
        """Whether one more connection, from ``peer``, may be; it is counted as refused if not."""
        address = counts_for(peer)
        if self.per_address and address is not None and self._by_address[address] >= self.per_address:
            return self._refuse()
        return self.open - self.leaving < self.connections or self._has_made_way() or self._refuse()

    def _has_made_way(self) -> bool:
        if self.leaving >= MAX_LEAVING:
            return False
        self.leaving += 1
        if not self._make_way():
            self.leaving -= 1
            return False
        self._closed.note()
        return True

    def entered(self, peer: Any) -> None:
        """A connection from ``peer`` is open."""
        self.open += 1
        if (address := counts_for(peer)) is not None:
            self._by_address[address] += 1

    def left(self, peer: Any, made_way: bool) -> None:
        """A connection from ``peer`` is gone."""
        self.open -= 1
        self.leaving -= made_way
        if (address := counts_for(peer)) is not None:
            self._by_address[address] -= 1
            if self._by_address[address] <= 0:
                del self._by_address[address]

    def _refuse(self) -> bool:
        self.refused += 1
        self._refusals.note()
        return False

    def _most(self) -> dict[str, int]:
        """The addresses with the most connections, and how many those are."""
        return dict(self._by_address.most_common(MAX_ADDRESSES))

    def close(self) -> None:
        """Nothing listens any more: write what is not written."""
        self._refusals.close()
        self._closed.close()


@implementer(IStreamServerEndpoint)
class LimitedEndpoint:
    """An endpoint under an Admission, to be wrapped in TLS if ``secure``."""

    def __init__(self, admission: ConnectionLimiter, endpoint: IStreamServerEndpoint, secure: bool) -> None:
        self._admission = admission
        self._endpoint = endpoint
        self._secure = secure

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """See IStreamServerEndpoint."""
        return self._endpoint.listen(ConnectionGuard(self._admission, protocolFactory, self._secure))


@implementer(IProtocolFactory)
class ConnectionGuard:
    """Builds what ``factory`` builds for whom the Admission admits."""

    def __init__(self, admission: ConnectionLimiter, factory: IProtocolFactory, secure: bool) -> None:
        self._admission = admission
        self._factory = factory
        self._secure = secure
        self._answer = b"" if secure else _ANSWER
        self.doStart = factory.doStart
        self.doStop = factory.doStop

    def buildProtocol(self, addr: IAddress) -> Any:
        """See IProtocolFactory."""
        if self._admission.admits(addr):
            protocol: Any = self._factory.buildProtocol(addr)
            if self._secure:
                watch_first_bytes(protocol)
            return protocol
        if self._admission.lingering < MAX_LINGERING:
            return _RefusedConnection(self._admission, self._answer)
        return None


class _RefusedConnection(Protocol):
    """A connection that was one too many: says so, and waits a while for the client to close."""

    transport: Any
    _closer: IDelayedCall

    def __init__(self, admission: ConnectionLimiter, answer: bytes) -> None:
        self._admission = admission
        self._answer = answer

    def connectionMade(self) -> None:
        """See IProtocol."""
        self._admission.lingering += 1
        self._closer = self._admission.clock.callLater(LINGER_SECONDS, self.transport.abortConnection)
        self.transport.write(self._answer)
        self.transport.loseWriteConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See IProtocol."""
        self._admission.lingering -= 1
        if self._closer.active():
            self._closer.cancel()
