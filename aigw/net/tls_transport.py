"""TLS over a connection: what OpenSSL has encrypted goes to the kernel at once, as ``write`` sends plain bytes.

Twisted collects what is written until the reactor's next turn, encrypts it, and leaves it to the turn after that: a
timed call, two calls of epoll_ctl and an event for each chunk of a stream.

One private name of Twisted is needed, ``_flushSendBIO``, the place where all encrypted bytes leave OpenSSL.
"""

from __future__ import annotations

from typing import cast

from OpenSSL.SSL import WantReadError
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
    ITransport,
)
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from zope.interface import implementer

from aigw.net.write import write

MOST = 2**15  # bytes of one read of OpenSSL, as in Twisted: more than one record


class TlsTransport(TLSMemoryBIOProtocol):
    """One connection with TLS."""

    def _flushSendBIO(self) -> None:
        try:
            data = self.getHandle().bio_read(MOST)  # type: ignore[no-untyped-call]
        except WantReadError:
            return  # there is nothing to send
        write(cast(ITransport, self.transport), data)


class _Factory(TLSMemoryBIOFactory):
    protocol = TlsTransport


@implementer(IStreamServerEndpoint)
class TlsServer:
    """An endpoint that listens with TLS."""

    def __init__(
        self, creator: IOpenSSLServerConnectionCreator, endpoint: IStreamServerEndpoint, clock: IReactorTime
    ) -> None:
        self._creator, self._endpoint, self._clock = creator, endpoint, clock

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """See IStreamServerEndpoint."""
        return self._endpoint.listen(_Factory(self._creator, False, protocolFactory, self._clock))


@implementer(IStreamClientEndpoint)
class TlsClient:
    """An endpoint that connects with TLS; ``protocol`` is the class of its transports."""

    def __init__(
        self,
        creator: IOpenSSLClientConnectionCreator,
        endpoint: IStreamClientEndpoint,
        clock: IReactorTime,
        protocol: type[TlsTransport] = TlsTransport,
    ) -> None:
        self._creator, self._endpoint, self._clock, self._protocol = creator, endpoint, clock, protocol

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See IStreamClientEndpoint. The handshake follows."""
        factory = _Factory(self._creator, True, protocolFactory, self._clock)
        factory.protocol = self._protocol
        return self._endpoint.connect(factory).addCallback(lambda made: cast(ProtocolWrapper, made).wrappedProtocol)
