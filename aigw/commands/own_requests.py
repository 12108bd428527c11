"""The requests that the demo sends to itself, so that its status page shows data."""

from __future__ import annotations

from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IProtocol, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import Certificate, optionsForClientTLS
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from aigw.net.interfaces import Reactor

EVERY_SECONDS = 1.0
MOST = 3600  # limits the log of a forgotten demo
SECONDS = 10.0  # the limit of one request


class OwnRequests:
    """The same request again and again: one at a time, at most one a second, each on a connection of its own."""

    def __init__(self, reactor: Reactor, port: int, ca: bytes, request: bytes) -> None:
        """To ``port`` on loopback, which has the certificate ``ca`` (PEM) and closes after the answer."""
        self._factory = Factory.forProtocol(lambda: _Asking(request))
        self._factory.noisy = False
        options = optionsForClientTLS("127.0.0.1", trustRoot=Certificate.loadPEM(ca))
        self._endpoint = wrapClientTLS(options, TCP4ClientEndpoint(reactor, "127.0.0.1", port))
        self._reactor = reactor
        self._running: Deferred[None] | None = None
        self._left = MOST
        self._ticking = LoopingCall(self._send)
        self._ticking.clock = reactor

    def start(self) -> None:
        """Send the first one in a second."""
        self._ticking.start(EVERY_SECONDS, now=False)

    def stop(self) -> None:
        """Send no more, and cancel the running one."""
        if self._ticking.running:
            self._ticking.stop()
        if self._running is not None:
            self._running.cancel()

    def _send(self) -> Deferred[None]:
        self._left -= 1
        if self._left <= 0:
            self._ticking.stop()

        def ended(asking: IProtocol) -> Deferred[None]:
            return cast(_Asking, asking).ended

        connected = self._endpoint.connect(self._factory)
        self._running = connected.addCallback(ended).addTimeout(SECONDS, self._reactor)
        return self._running.addBoth(self._over)

    def _over(self, _: object) -> None:
        """The result is in the log and on the page."""
        self._running = None


class _Asking(Protocol):
    """Sends a request; ``ended`` fires when the connection is closed."""

    transport: ITCPTransport

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.ended: Deferred[None] = Deferred(lambda _: self.transport.abortConnection())

    def connectionMade(self) -> None:
        self.transport.write(self._request)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.ended.called:
            self.ended.callback(None)
