"""The server's HTTP connection: what is judged before a body is read, and how an error ends a connection.

Stock ``twisted.web`` reads a whole body, into temporary files, before anybody may refuse it, answers errors in HTML,
and over TLS goes on executing what follows an error. Here a request is judged when its headers are complete, and behind
an answer that closes nothing is read as a request.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel

from aigw import headers, wire
from aigw.errors import BadRequest, Draining, GatewayError, HeadersTooLarge, RequestTimeout
from aigw.grammar import is_host, is_target, is_trailer
from aigw.openai import error_body
from aigw.request import Request

HEAD_SECONDS = 15.0  # from connecting, TLS handshake included, or from a request's first line
BODY_SECONDS = 30.0
BODY_RATE = 50_000.0  # bytes a second
KEEP_ALIVE_SECONDS = 75.0
READ_SECONDS = 60.0
MAX_BEHIND = 256 * 1024
SEND_BUFFER = 128 * 1024  # the kernel would let it grow to megabytes
LINGER_SECONDS = 2.0
LAST_REQUEST_SECONDS = 2.0  # while the gateway drains; a client may be sending its next request just now
FLUSH_SECONDS = 30.0
MAX_LINE = 16 * 1024
MAX_HEAD = 32 * 1024
MAX_HEADERS = 100
MAX_DIGITS = 18
_REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


class Channel(HTTPChannel):
    """One connection of a client."""

    MAX_LENGTH = MAX_LINE
    totalHeadersSize = MAX_HEAD
    maxHeaders = MAX_HEADERS
    transport: Any
    site: Any
    requests: list[Request]
    _closing = False
    _closer: IDelayedCall | None = None
    _watch: IDelayedCall | None = None
    _due = math.inf
    _body_began = math.inf
    _optimisticEagerReadSize = 2**62  # a connection that is not read hears no hang-up; dataReceived has the limit
    _behind = 0
    _idle = False  # between two requests
    _unsent = 0

    def connectionMade(self) -> None:
        """A client, its TLS handshake still to come."""
        super().connectionMade()
        self.site.entered(self)
        socket = getattr(self.transport, "socket", None)
        if socket is not None:
            socket.setsockopt(SOL_SOCKET, SO_SNDBUF, SEND_BUFFER)
        self._cut_after(HEAD_SECONDS)

    def getPeer(self) -> None:
        """Twisted asks for every request, and nobody reads it."""

    def getHost(self) -> None:
        """See getPeer; it is a call of the kernel."""

    def write(self, data: bytes) -> None:
        """Some of an answer."""
        wire.write(self.transport, data)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """The same in pieces."""
        wire.write(self.transport, b"".join(iovec))

    # Time: one timer a connection, which looks only when it fires whether its end has moved.

    def _cut_after(self, seconds: float) -> None:
        """Cut the connection then, unless another word on its time comes before."""
        self._due = self.site.reactor.seconds() + seconds
        if seconds < math.inf and (self._watch is None or self._watch.getTime() > self._due):
            if self._watch is not None:
                self._watch.cancel()
            self._watch = self.callLater(seconds, self._look)

    def _look(self) -> None:
        self._watch = None
        if self._closing:  # it has a closer
            return
        now = self.site.reactor.seconds()
        if self._body_began < math.inf:  # as long as what has come by now buys at the lowest rate, and a start
            self._due = self._body_began + BODY_SECONDS + self.requests[-1].bytes_in / BODY_RATE
        if now >= self._due and self._waitingForTransport and (unsent := _unsent(self.transport)) < self._unsent:
            self._unsent, self._due = unsent, now + READ_SECONDS  # slow, but it reads
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
        return bool(self._receivedHeaderSize) or self._body_began < math.inf

    def pauseProducing(self) -> None:
        """The client does not read: it has READ_SECONDS to catch up."""
        super().pauseProducing()
        self._unsent = _unsent(self.transport)
        self._cut_after(READ_SECONDS)

    def resumeProducing(self) -> None:
        """The client has read all that was sent."""
        super().resumeProducing()
        self._cut_after(math.inf if self._handlingRequest else KEEP_ALIVE_SECONDS)

    def requestDone(self, request: Request) -> None:
        """An answer is written; the next request may come, or be there already."""
        if self.site.draining:
            self.persistent = False
        self._behind = 0
        self._idle = True
        if not self._waitingForTransport:
            self._cut_after(KEEP_ALIVE_SECONDS)
        super().requestDone(request)

    # Reading a head: what RFC 9112 leaves open is refused, so that no proxy before us can read it otherwise.

    def lineReceived(self, line: bytes) -> None:
        """A line of the head."""
        if self._idle:  # the first line of another request; the first request of all has its time since connecting
            self._idle = False
            self._cut_after(HEAD_SECONDS)
        if line[:1] in (b" ", b"\t"):  # obs-fold
            self._respondToBadRequestAndDisconnect()
        if self._closing:
            return
        if line and "_version" in self.__dict__:  # behind the request line, until the content is there
            # Twisted keeps each header back, for a fold that was refused above.
            self._receivedHeaderSize += len(line)
            if self._receivedHeaderSize > self.totalHeadersSize:
                self._respondToBadRequestAndDisconnect()
            else:
                self.headerReceived(line)
        else:
            super().lineReceived(line)

    def headerReceived(self, line: bytes) -> bool:
        """One header."""
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if (name == b"content-length" and len(value) > MAX_DIGITS) or (
            name == b"transfer-encoding" and (value.lower() != b"chunked" or self._version != b"HTTP/1.1")
        ):
            self._respondToBadRequestAndDisconnect()
        return not self._closing and bool(super().headerReceived(line))

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        """Whether another request may follow: in HTTP/1.1, unless one of the Connection options is close."""
        options = b",".join(request.requestHeaders.getRawHeaders(b"connection") or ()).lower()
        again = version == b"HTTP/1.1" and not self.site.draining
        if again and not (options and b"close" in [each.strip() for each in options.split(b",")]):
            return True
        request.responseHeaders.setRawHeaders(b"connection", [b"close"])
        return False

    def allHeadersReceived(self) -> None:
        """Judge the request before a byte of its body is read and before ``100 Continue``."""
        if self._closing:
            return
        request = self.requests[-1]
        hosts = request.requestHeaders.getRawHeaders(b"host") or [b""] * (self._version != b"HTTP/1.1")
        if len(hosts) != 1 or not is_host(hosts[0]) or not is_target(self._path):
            self._respondToBadRequestAndDisconnect()
            return
        self.persistent = self.checkPersistence(request, self._version)
        request.head_received(self._command, self._path, self._version, self.length)
        if request.refusal is None:
            if (request.header(b"expect") or b"").lower() == b"100-continue" and self._version == b"HTTP/1.1":
                self._send100Continue()
        elif self.length != 0:
            self.refuse(request)
        if self.length != 0 and not self._closing:
            self._body_began = self.site.reactor.seconds()
            self._cut_after(BODY_SECONDS)

    def refuse(self, request: Request) -> None:
        """Answer with the request's refusal although its body is not read, and close."""
        if request.refusal is not None and not self._closing:
            self._closing = True
            self.persistent = False
            request.responseHeaders.setRawHeaders(b"connection", [b"close"])
            request.fail(request.refusal)

    # The end of the gateway

    def drain(self) -> None:
        """The gateway is stopping: without a request under way, wait only a moment for a last one."""
        if not (self._handlingRequest or self._is_receiving() or self._closing):
            self._cut_after(min(LAST_REQUEST_SECONDS, max(0.0, self._due - self.site.reactor.seconds())))

    def end(self) -> None:
        """The gateway has no more time: whoever is still sending a request hears so, and what was written is sent."""
        if self._body_began < math.inf:
            self._reject(Draining("The gateway is stopping."))
        elif not self._closing:
            self.close_soon()

    def close_soon(self, seconds: float = FLUSH_SECONDS) -> None:
        """Close when all is sent that was written, and after ``seconds`` at last; no further request is read."""
        self._closing = True
        if self._closer is not None:
            self._closer.cancel()
        self._closer = self.callLater(seconds, self.transport.abortConnection)
        super().loseConnection()

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

    # Nothing that follows is read as a request once the connection is closing.

    def dataReceived(self, data: bytes) -> None:
        """See IProtocol."""
        if self._handlingRequest:
            self._behind += len(data)
            if self._behind > MAX_BEHIND:  # nobody pipelines so much behind a request that is being answered
                self.transport.abortConnection()
                return
        if not self._closing:
            super().dataReceived(data)

    def rawDataReceived(self, data: bytes) -> None:
        """See LineReceiver."""
        if not self._closing:
            super().rawDataReceived(data)

    def allContentReceived(self) -> None:
        """See HTTPChannel."""
        trailers = getattr(self._transferDecoder, "_trailerHeaders", ())  # Twisted drops them as they are
        if trailers and not all(is_trailer(each) for each in trailers):
            self._respondToBadRequestAndDisconnect()
        if not self._closing:
            self._body_began = math.inf
            self._cut_after(math.inf)
            super().allContentReceived()

    # Errors of the parser

    def lineLengthExceeded(self, line: bytes) -> None:
        """A line is over MAX_LINE."""
        self._reject(HeadersTooLarge(f"A line of the request is over {MAX_LINE} bytes."))

    def _respondToBadRequestAndDisconnect(self) -> None:
        if self._receivedHeaderSize > MAX_HEAD or self._receivedHeaderCount > MAX_HEADERS:
            self._reject(HeadersTooLarge(f"The headers are over {MAX_HEAD} bytes or {MAX_HEADERS} in number."))
        else:
            self._reject(BadRequest("The request is not valid HTTP/1.1."))

    def _reject(self, error: GatewayError) -> None:
        """Answer what never became a request."""
        if self._closing:
            return
        self._closing = True
        request_id, method = "", b""
        if self.requests:  # its body is malformed, if it was admitted at all
            request_id, method = self.requests[-1].request_id, self.requests[-1].method
            self.requests[-1].error = error
            self.requests[-1].answered(error.status)
        body = error_body(error)
        self.transport.write(
            b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
            b"X-Request-Id: %s\r\nConnection: close\r\n\r\n"
            % (error.status, _REASONS[error.status], len(body), (request_id or headers.request_id(None)).encode())
        )
        if method != b"HEAD":  # whose answer has no body (RFC 9110, 9.3.2)
            self.transport.write(body)
        self.loseConnection()


def _unsent(transport: Any) -> int:
    """The bytes that Twisted still holds for a connection, TLS or not; it has no public word for that."""
    plain = getattr(transport, "transport", transport)
    return len(getattr(plain, "dataBuffer", b"")) - getattr(plain, "offset", 0) + getattr(plain, "_tempDataLen", 0)
