"""What the gateway uses of Twisted's reactor and of connections, as types."""

from __future__ import annotations

from twisted.internet.interfaces import (
    IConsumer,
    IPushProducer,
    IReactorCore,
    IReactorTCP,
    IReactorThreads,
    IReactorTime,
    ITCPTransport,
    ITransport,
)


class Reactor(IReactorCore, IReactorTCP, IReactorThreads, IReactorTime):
    """The reactor of the process."""


class ClientTransport(ITransport, IConsumer, IPushProducer):
    """A client's connection: TCP, TLS over TCP, or a Unix socket."""

    def loseWriteConnection() -> None:
        """Send what was written, and then the end of the stream; the client can still send."""

    def abortConnection() -> None:
        """Close at once; what was not sent is lost."""


class ProviderTransport(ITCPTransport, IPushProducer, IConsumer):
    """A connection to a provider: TCP, or TLS over TCP."""
