"""How long a client's connection lives: limits on its pace, one timer for all of them, and how it ends."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel

from aigw.errors import Draining, GatewayError, RequestTimeout
from aigw.net.lateness import GRACE_SECONDS, lateness
from aigw.server.request import Request

HEAD_SECONDS = 15.0  # from connecting, TLS handshake included, or from a request's first line
BODY_SECONDS = 30.0
BODY_RATE = 50_000.0  # bytes a second
KEEP_ALIVE_SECONDS = 75.0
READ_SECONDS = 60.0
SETTLES = 0.05  # of READ_SECONDS, until the kernel's buffers are full
SEND_BUFFER = 128 * 1024  # the kernel would let it grow to megabytes
LINGER_SECONDS = 2.0
LAST_REQUEST_SECONDS = 2.0  # while the gateway drains; a client may be sending its next request just now
FLUSH_SECONDS = 30.0


class MortalChannel(HTTPChannel, ABC):
    """A connection of which each phase has its end. What is read from it is for a subclass to judge."""

    transport: Any
    site: Any
    requests: list[Request]
    _closing = False
    _closer: IDelayedCall | None = None
    _watch: IDelayedCall | None = None
    _due = math.inf
    _body_began = math.inf
    _unsent = 0.0
    gives_way = False  # to another, as there are too many

    def connectionMade(self) -> None:
        """A client, its TLS handshake still to come."""
        super().connectionMade()
        self.site.entered(self)
        socket = getattr(self.transport, "socket", None)
        if socket is not None:
            socket.setsockopt(SOL_SOCKET, SO_SNDBUF, SEND_BUFFER)
        self._cut_after(HEAD_SECONDS)

    # Time: one timer a connection, which looks only when it fires whether its end has moved.

    def _cut_after(self, seconds: float) -> None:
        """Cut the connection then, unless another word on its time comes before."""
        self._due = self.site.reactor.seconds() + seconds
        if seconds < math.inf and (self._watch is None or self._watch.getTime() > self._due):
            if self._watch is not None:
                self._watch.cancel()
            self._watch = self.callLater(seconds, self._look)

    def _look(self) -> None:
        watch, self._watch = self._watch, None
        if self._closing or watch is None:  # it has a closer
            return
        now = self.site.reactor.seconds()
        if late := lateness(watch, self.site.reactor):
            self._body_began += late
            self._due = max(self._due, now + GRACE_SECONDS)
        if self._body_began < math.inf:  # as long as what has come by now buys at the lowest rate, and a start
            self._due = self._body_began + BODY_SECONDS + self.requests[-1].bytes_in / BODY_RATE
        if now >= self._due and self._waitingForTransport and (unsent := _unsent(self.transport)) < self._unsent:
            settled = self._due + READ_SECONDS * (1 - SETTLES)
            self._due = settled if self._unsent == math.inf else now + READ_SECONDS  # slow, but it reads
            self._unsent = unsent
        if now >= self._due:
            self._too_late()
        elif self._due < math.inf:
            self._watch = self.callLater(self._due - now, self._look)

    def _too_late(self) -> None:
        """The client was too slow: it hears so where it is in the middle of a request, else the connection ends."""
        if self._waitingForTransport:
            self.transport.abortConnection()
        elif not self._is_receiving():
            self.close_soon(LINGER_SECONDS)
        else:
            self._reject(RequestTimeout("The request did not arrive in time."))

    def _is_receiving(self) -> bool:
        """Whether a request has arrived in part."""
        return bool(self._receivedHeaderSize or self._buffer) or self._body_began < math.inf

    def pauseProducing(self) -> None:
        """The client does not read: it has READ_SECONDS to catch up."""
        super().pauseProducing()
        self._unsent = math.inf  # the kernel has yet to take what it has room for, which is no reading of the client's
        self._cut_after(READ_SECONDS * SETTLES)

    def resumeProducing(self) -> None:
        """The client has read all that was sent."""
        super().resumeProducing()
        self._cut_after(math.inf if self._handlingRequest else self._idle_seconds())

    def requestDone(self, request: Request) -> None:
        """An answer is written; the next request may come, or be there already."""
        if self.site.draining:
            self.persistent = False
        if not self._waitingForTransport:
            self._cut_after(self._idle_seconds())
        super().requestDone(request)

    def _idle_seconds(self) -> float:
        return LAST_REQUEST_SECONDS if self.site.draining else KEEP_ALIVE_SECONDS

    @abstractmethod
    def _reject(self, error: GatewayError) -> None:
        """Answer what never became a request, and close."""

    # The end of the gateway

    def drain(self) -> None:
        """The gateway is stopping: without a request under way, wait only a moment for a last one."""
        if not (self._handlingRequest or self._is_receiving() or self._closing):
            self._cut_after(min(LAST_REQUEST_SECONDS, max(0.0, self._due - self.site.reactor.seconds())))

    def end(self) -> None:
        """The gateway has no more time: whoever is still sending a request hears so, and what was written is sent."""
        if self._body_began < math.inf:
            self._reject(Draining("The gateway is stopping."))
        elif not (self._closing or any(each.interrupt(Draining("The gateway is stopping.")) for each in self.requests)):
            self.close_soon()

    def close_soon(self, seconds: float = FLUSH_SECONDS) -> None:
        """Close when all is sent that was written, and after ``seconds`` at last; no further request is read."""
        self._closing = True
        if self._closer is not None:
            if not self._closer.active():
                return  # it was aborted in this very turn of the reactor, and is gone in the next
            self._closer.cancel()
        self._closer = self.callLater(seconds, self.transport.abortConnection)
        super().loseConnection()

    def give_way(self) -> None:
        """Close at once: over TLS too, where the client's word on it would be waited for."""
        self.gives_way = True
        self.close_soon(LINGER_SECONDS)
        plain = getattr(self.transport, "transport", None)
        if plain is not None:
            plain.loseConnection()

    def answer_in_plain(self, answer: bytes) -> None:
        """Tell a client that speaks HTTP without TLS, where the gateway speaks it over TLS, and close."""
        self.site.mismatches.note(self.transport.getPeer(), secure=True)
        self._closing = True
        self._closer = self.callLater(LINGER_SECONDS, self.transport.abortConnection)
        plain = self.transport.transport
        plain.write(answer)
        plain.loseWriteConnection()

    def loseConnection(self) -> None:
        """Close; behind a refusal only after a while in which the client can read it.

        Closing with input unread resets the connection, and the client may never see the answer (RFC 9112, 9.6).
        """
        if self._closing and self._closer is None:
            self._closer = self.callLater(LINGER_SECONDS, self.transport.abortConnection)
            if not self.isSecure():
                self.transport.loseWriteConnection()
        elif not self._closing:
            super().loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See IProtocol."""
        for timer in (self._closer, self._watch):
            if timer is not None and timer.active():
                timer.cancel()
        self._closer = self._watch = None
        self.site.left(self)
        super().connectionLost(reason)


def _unsent(transport: Any) -> int:
    """The bytes that Twisted still holds for a connection, TLS or not; it has no public word for that."""
    plain = getattr(transport, "transport", transport)
    return len(getattr(plain, "dataBuffer", b"")) - getattr(plain, "offset", 0) + getattr(plain, "_tempDataLen", 0)
