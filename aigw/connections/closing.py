"""Closing a client's connection: first what was written is sent, within a time limit."""

from __future__ import annotations

from twisted.internet.interfaces import IDelayedCall, IReactorTime, ISSLTransport

from aigw.net.interfaces import ClientTransport

LINGER_SECONDS = 2.0
FLUSH_SECONDS = 30.0


class Closing:
    """The end of the connection of ``transport``."""

    last = False  # the present or next answer is the last one
    makes_room = False  # it is closed for another connection, because there are too many

    def __init__(self, clock: IReactorTime, transport: ClientTransport) -> None:
        self._clock = clock
        self._transport = transport
        self._timer: IDelayedCall | None = None

    @property
    def has_limit(self) -> bool:
        """Whether the connection will be aborted after a time limit."""
        return self._timer is not None

    @property
    def _plain(self) -> ClientTransport:
        """The connection under TLS, or the connection itself."""
        plain: ClientTransport = getattr(self._transport, "transport", self._transport)
        return plain

    def soon(self, seconds: float = FLUSH_SECONDS) -> None:
        """Close when everything is sent, at the latest after ``seconds``; no further request is read."""
        self.last = True
        if self._timer is not None:
            if not self._timer.active():
                return  # it was aborted in this turn of the reactor, and is lost in the next one
            self._timer.cancel()
        self._abort_after(seconds)
        self._flush()

    def close(self) -> None:
        """Close when everything is sent; after the last answer the client has LINGER_SECONDS to read it.

        Closing with input unread resets the connection, and the client may never see the answer (RFC 9112, 9.6).
        """
        if not self.last:
            self._flush()
        elif self._timer is None:
            self._abort_after(LINGER_SECONDS)
            if ISSLTransport(self._transport, None) is None:
                self._transport.loseWriteConnection()

    def make_room(self) -> None:
        """Close at once for another connection; over TLS too, without waiting for the client's close."""
        self.makes_room = True
        self.soon(LINGER_SECONDS)
        self._plain.loseConnection()

    def answer_without_tls(self, answer: bytes) -> None:
        """Write plain text to a client that does not use TLS, and close."""
        self.last = True
        self._abort_after(LINGER_SECONDS)
        self._plain.write(answer)
        self._plain.loseWriteConnection()

    def stop(self) -> None:
        """The connection is lost."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _flush(self) -> None:
        self._transport.unregisterProducer()
        self._transport.loseConnection()

    def _abort_after(self, seconds: float) -> None:
        self._timer = self._clock.callLater(seconds, self._transport.abortConnection)
