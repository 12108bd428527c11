"""Who may connect: limits on open connections, judged as one is accepted, before TLS costs anything.

A refused client that speaks plain HTTP is told 503; over TLS that would take the handshake that is to be saved, so its
connection just ends. Either way what the client has sent is read and dropped for a while: closing with input unread
resets the connection, and the client may never see the answer (RFC 9112, 9.6).
"""

from __future__ import annotations

from collections import Counter
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

from aigw import logs
from aigw.addresses import counts_for
from aigw.errors import TooManyConnections
from aigw.openai import error_body
from aigw.openfiles import make_room, needed

LINGER_SECONDS = 1.0
MAX_LINGERING = 50  # refused beyond these, a connection is closed at once
LOG_SECONDS = 10.0
MAX_ADDRESSES = 10  # named in one line of the log

_BODY = error_body(TooManyConnections("The gateway has as many connections as it may have. Try again soon."))
_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    b"Retry-After: 1\r\nConnection: close\r\n\r\n%s" % (len(_BODY), _BODY)
)


class Admission:
    """The connections that are open, and how many there may be; both limits may be assigned at any time.

    ``per_address`` counts an IPv6 client by its network of 64 bits, for that is what one subscriber gets, and is None
    for no limit. ``refused`` counts since the start.
    """

    connections = 2000
    per_address: int | None = None

    def __init__(self, clock: IReactorTime) -> None:
        self.clock = clock
        self.open = 0
        self.refused = 0
        self.lingering = 0
        self._by_address: Counter[str] = Counter()
        self._unsaid = 0
        self._unsaid_by_address: Counter[str] = Counter()
        self._said: IDelayedCall | None = None

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
        address = None
        if self.open < self.connections:
            address = counts_for(peer)
            if not self.per_address or address is None or self._by_address[address] < self.per_address:
                return True
        self._refuse(address)
        return False

    def entered(self, peer: Any) -> None:
        """A connection from ``peer`` is open."""
        self.open += 1
        if (address := counts_for(peer)) is not None:
            self._by_address[address] += 1

    def left(self, peer: Any) -> None:
        """A connection from ``peer`` is gone."""
        self.open -= 1
        if (address := counts_for(peer)) is not None:
            self._by_address[address] -= 1
            if self._by_address[address] <= 0:
                del self._by_address[address]

    def _refuse(self, address: str | None) -> None:
        self.refused += 1
        self._unsaid += 1
        if address is not None and (address in self._unsaid_by_address or len(self._unsaid_by_address) < MAX_ADDRESSES):
            self._unsaid_by_address[address] += 1
        if self._said is None:
            self._say()

    def _say(self) -> None:
        """One line for all that were refused since the last, which was LOG_SECONDS ago or more."""
        self._said = None
        if not self._unsaid:
            return
        logs.warn(
            "Connections refused: there are as many as limits.connections or limits.connections_per_address allow",
            refused=self._unsaid,
            connections=self.open,
            addresses=dict(self._unsaid_by_address),
        )
        self._unsaid = 0
        self._unsaid_by_address.clear()
        self._said = self.clock.callLater(LOG_SECONDS, self._say)

    def close(self) -> None:
        """Nothing listens any more: say what is unsaid."""
        if self._said is not None:
            self._said.cancel()
        self._say()
        if self._said is not None:
            self._said.cancel()
            self._said = None


@implementer(IStreamServerEndpoint)
class Guarded:
    """An endpoint under an Admission, to be wrapped in TLS if ``secure``."""

    def __init__(self, admission: Admission, endpoint: IStreamServerEndpoint, secure: bool) -> None:
        self._admission = admission
        self._endpoint = endpoint
        self._secure = secure

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """See IStreamServerEndpoint."""
        return self._endpoint.listen(Guard(self._admission, protocolFactory, self._secure))


@implementer(IProtocolFactory)
class Guard:
    """Builds what ``factory`` builds for whom the Admission admits."""

    def __init__(self, admission: Admission, factory: IProtocolFactory, secure: bool) -> None:
        self._admission = admission
        self._factory = factory
        self._answer = b"" if secure else _ANSWER
        self.doStart = factory.doStart
        self.doStop = factory.doStop

    def buildProtocol(self, addr: IAddress) -> Any:
        """See IProtocolFactory."""
        if self._admission.admits(addr):
            return self._factory.buildProtocol(addr)
        if self._admission.lingering < MAX_LINGERING:
            return _Refused(self._admission, self._answer)
        return None


class _Refused(Protocol):
    """A connection that was one too many: says so, and waits a while for the client to close."""

    transport: Any
    _closer: IDelayedCall

    def __init__(self, admission: Admission, answer: bytes) -> None:
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
