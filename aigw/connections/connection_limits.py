"""The limits on open connections, checked when a connection is accepted, before the TLS handshake.

A refused client gets 503 over plain HTTP. Over TLS an answer would need the expensive handshake, so the connection is
closed without one. In both cases the data of the client is read and dropped for a short time: closing with input unread
resets the connection, and the client may never see the answer (RFC 9112, 9.6).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from aigw.connections.mismatch import SecureProtocol, check_first_bytes
from aigw.connections.open_files import needed, raise_limit
from aigw.errors import Overloaded
from aigw.net.addresses import counts_for
from aigw.net.interfaces import ClientTransport
from aigw.protocols.error_bodies import error_body
from aigw.telemetry import logs
from aigw.telemetry.notices import MAX_ADDRESSES, Notice

LINGER_SECONDS = 1.0
MAX_LINGERING = 50  # with more of these, a refused connection is closed at once
MAX_LEAVING = 100  # connections over the limit for a moment: they are closing to make room

_BODY = error_body(Overloaded("The gateway has reached its limit of connections. Try again soon."))
_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    b"Retry-After: 1\r\nConnection: close\r\n\r\n%s" % (len(_BODY), _BODY)
)


class ConnectionLimiter:
    """The open connections and their limits; both limits may be assigned at any time.

    ``per_address`` counts an IPv6 client by its network of 64 bits, because one subscriber has such a network. None is
    no limit. ``refused`` counts since the start.
    """

    connections = 2000
    per_address: int | None = None

    def __init__(self, clock: IReactorTime, make_room: Callable[[], bool] = lambda: False) -> None:
        """``make_room`` closes a connection without a request, and gives whether there was one."""
        self.clock = clock
        self.open = 0
        self.refused = 0
        self.lingering = 0
        self.leaving = 0  # of the open ones: closing to make room
        self._make_room = make_room
        self._by_address: Counter[str] = Counter()
        self._refusals = Notice(
            clock,
            "The gateway refused connections: limits.connections or limits.connections_per_address is reached",
            lambda count, _: {"refused": count, "connections": self.open, "addresses": self._most()},
        )
        self._closed = Notice(
            clock,
            "The gateway closed connections without a request to accept new ones: limits.connections is reached",
            lambda count, _: {"closed": count, "connections": self.open, "addresses": self._most()},
        )

    def limit(self, connections: int, per_address: int | None) -> None:
        """Set both limits, ``connections`` at most to what open files allow; open connections stay."""
        fit = raise_limit(connections)
        if fit < connections:
            logs.warn(
                f"The limit of open files allows only {fit} of {connections} connections: "
                f"raise it to {needed(connections)} (LimitNOFILE=, ulimit -n), or lower limits.connections"
            )
        self.connections = fit
        self.per_address = per_address

    def admits(self, peer: IAddress) -> bool:
        """Whether one more connection from ``peer`` is allowed; if not, it is counted as refused."""
        address = counts_for(peer)
        if self.per_address and address is not None and self._by_address[address] >= self.per_address:
            return self._refuse()
        return self.open - self.leaving < self.connections or self._has_made_room() or self._refuse()

    def _has_made_room(self) -> bool:
        if self.leaving >= MAX_LEAVING:
            return False
        self.leaving += 1
        if not self._make_room():
            self.leaving -= 1
            return False
        self._closed.note()
        return True

    def entered(self, peer: IAddress) -> None:
        """A connection from ``peer`` is open."""
        self.open += 1
        if (address := counts_for(peer)) is not None:
            self._by_address[address] += 1

    def left(self, peer: IAddress, made_room: bool) -> None:
        """A connection from ``peer`` is closed."""
        self.open -= 1
        self.leaving -= made_room
        if (address := counts_for(peer)) is not None:
            self._by_address[address] -= 1
            if self._by_address[address] <= 0:
                del self._by_address[address]

    def _refuse(self) -> bool:
        self.refused += 1
        self._refusals.note()
        return False

    def _most(self) -> dict[str, int]:
        """The addresses with the most connections, and their numbers."""
        return dict(self._by_address.most_common(MAX_ADDRESSES))

    def close(self) -> None:
        """All listeners are closed: log the rest."""
        self._refusals.close()
        self._closed.close()


@implementer(IStreamServerEndpoint)
class LimitedEndpoint:
    """An endpoint with a ConnectionLimiter, to be wrapped in TLS if ``secure``."""

    def __init__(self, limiter: ConnectionLimiter, endpoint: IStreamServerEndpoint, secure: bool) -> None:
        self._limiter = limiter
        self._endpoint = endpoint
        self._secure = secure

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """See IStreamServerEndpoint."""
        return self._endpoint.listen(ConnectionGuard(self._limiter, protocolFactory, self._secure))


@implementer(IProtocolFactory)
class ConnectionGuard:
    """Builds the protocol of ``factory`` if the ConnectionLimiter allows the connection."""

    def __init__(self, limiter: ConnectionLimiter, factory: IProtocolFactory, secure: bool) -> None:
        self._limiter = limiter
        self._factory = factory
        self._secure = secure
        self._answer = b"" if secure else _ANSWER
        self.doStart = factory.doStart
        self.doStop = factory.doStop

    def buildProtocol(self, addr: IAddress) -> IProtocol | None:
        """See IProtocolFactory."""
        if self._limiter.admits(addr):
            protocol = self._factory.buildProtocol(addr)
            if self._secure:
                check_first_bytes(cast(SecureProtocol, protocol))
            return protocol
        if self._limiter.lingering < MAX_LINGERING:
            return _RefusedConnection(self._limiter, self._answer)
        return None


class _RefusedConnection(Protocol):
    """A refused connection: it sends the answer, and waits a short time for the client to close."""

    transport: ClientTransport
    _closer: IDelayedCall

    def __init__(self, limiter: ConnectionLimiter, answer: bytes) -> None:
        self._limiter = limiter
        self._answer = answer

    def connectionMade(self) -> None:
        """See IProtocol."""
        self._limiter.lingering += 1
        self._closer = self._limiter.clock.callLater(LINGER_SECONDS, self.transport.abortConnection)
        self.transport.write(self._answer)
        self.transport.loseWriteConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See IProtocol."""
        self._limiter.lingering -= 1
        if self._closer.active():
            self._closer.cancel()
