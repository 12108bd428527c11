"""How a client's connection is closed: what was written is sent before, and there is an end to the wait for it."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime, ISSLTransport

LINGER_SECONDS = 2.0
FLUSH_SECONDS = 30.0


class Closing:
    """The end of the connection whose ``transport`` this is."""

    last = False  # the answer that comes next, or came, is the last
    gives_way = False  # to another connection, as there are too many

    def __init__(self, clock: IReactorTime, transport: Any) -> None:
        self._clock = clock
        self._transport = transport
        self._timer: IDelayedCall | None = None

    @property
    def has_limit(self) -> bool:
        """Whether the connection is aborted after a while."""
        return self._timer is not None

    def soon(self, seconds: float = FLUSH_SECONDS) -> None:
        """Close when all is sent that was written, and after ``seconds`` at last; no further request is read."""
        self.last = True
        if self._timer is not None:
            if not self._timer.active():
                return  # it was aborted in this very turn of the reactor, and is gone in the next
            self._timer.cancel()
        self._abort_after(seconds)
        self._flush()

    def close(self) -> None:
        """Close when all is sent; behind the last answer after a while in which the client can read it.

        Closing with input unread resets the connection, and the client may never see the answer (RFC 9112, 9.6).
        """
        if not self.last:
            self._flush()
        elif self._timer is None:
            self._abort_after(LINGER_SECONDS)
            if ISSLTransport(self._transport, None) is None:
                self._transport.loseWriteConnection()

    def give_way(self) -> None:
        """Close at once: over TLS too, where the client's word on it would be waited for."""
        self.gives_way = True
        self.soon(LINGER_SECONDS)
        plain = getattr(self._transport, "transport", None)
        if plain is not None:
            plain.loseConnection()

    def answer_in_plain(self, answer: bytes) -> None:
        """Write below TLS, to a client that speaks none, and close."""
        self.last = True
        self._abort_after(LINGER_SECONDS)
        plain = self._transport.transport
        plain.write(answer)
        plain.loseWriteConnection()

    def stop(self) -> None:
        """The connection is gone."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _flush(self) -> None:
        self._transport.unregisterProducer()
        self._transport.loseConnection()

    def _abort_after(self, seconds: float) -> None:
        self._timer = self._clock.callLater(seconds, self._transport.abortConnection)
