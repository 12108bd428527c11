"""The server's HTTP connection: what is judged before a body is read, and how an error ends a connection.

Stock ``twisted.web`` reads a whole body, into temporary files, before anybody may refuse it, answers errors in HTML,
and over TLS goes on executing what follows an error. Here a request is judged when its headers are complete, and behind
an answer that closes nothing is read as a request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from aigw.errors import BadRequest, GatewayError, HeadersTooLarge
from aigw.net import headers
from aigw.net import write as wire
from aigw.protocols.error_bodies import error_body
from aigw.server.bodies import without_frames
from aigw.server.chunks import BodyTooLong, ChunkedBody, MalformedChunks
from aigw.server.request import Request
from aigw.server.request_head import MAX_HEAD, MAX_HEADERS, MAX_LINE, HeadReader, is_host, is_target
from aigw.server.timeouts import BODY_SECONDS, HEAD_SECONDS, LINGER_SECONDS, MortalChannel

MAX_BEHIND = 256 * 1024
_REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


class Channel(HeadReader, MortalChannel):
    """One connection of a client."""

    _optimisticEagerReadSize = 2**62  # a connection that is not read hears no hang-up; dataReceived has the limit
    client_address: str | None = None  # for the record of each request; None on a Unix socket
    _behind = 0  # how much is kept of what was sent ahead of its time
    _next_turn: IDelayedCall | None = None
    _idle = False  # between two requests
    _transferDecoder: Any
    _decoding = False  # waits for a turn to read more of a body
    _deaf = False  # nothing more is read: what comes is a body for which nobody asked

    def __init__(self) -> None:
        super().__init__()
        self._ahead = bytearray()  # what was sent behind a request, to be read in its time or when the client reads

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

    def requestDone(self, request: Request) -> None:
        """An answer is written. What was sent behind its request is read in a turn of its own, when the client reads.

        Twisted would go on at once: a client could have any number of requests served in one turn of the reactor, and
        any number of answers kept for it that it does not read.
        """
        self._idle = True
        self._closing |= self._deaf
        ahead, self._ahead = self._ahead, bytearray()
        ahead += self.clearLineBuffer()
        self.site.idle[self] = None  # over TLS one that closes too waits for the client, and may give way
        super().requestDone(request)
        if self.persistent and not self._closing:
            self._ahead = ahead
        self._behind = len(self._ahead)
        if self._waitingForTransport:
            self._networkProducer.pauseProducing()
        elif self._ahead:
            self._next_turn = self.callLater(0, self._go_on)

    def resumeProducing(self) -> None:
        """See MortalChannel."""
        super().resumeProducing()
        if self._ahead and self._next_turn is None:
            self._next_turn = self.callLater(0, self._go_on)

    def _go_on(self) -> None:
        self._next_turn = None
        if not self._waitingForTransport:
            ahead, self._ahead, self._behind = self._ahead, bytearray(), 0
            self.dataReceived(bytes(ahead))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See IProtocol."""
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        super().connectionLost(reason)
        self._let_go()

    def _let_go(self) -> None:
        """Of what was received and is of no use any more: the decoder makes a cycle with the request and its body."""
        self._transferDecoder = None
        self._ahead = bytearray()
        self._buffer = b""

    # Judging a head

    def begin_head(self) -> None:
        """See HeadReader."""
        if self._idle:  # the first line of another request; the first request of all has its time since connecting
            self._idle = False
            self._cut_after(HEAD_SECONDS)

    def judge(self, request: Request, given: dict[bytes, bytes], host: bytes, options: bytes) -> None:
        """Judge the request before a byte of its body is read and before ``100 Continue``."""
        if not is_host(host) or not is_target(self._path):
            self._respondToBadRequestAndDisconnect()
            return
        self.persistent = self._may_go_on(options)
        request.head_received(self._command, self._path, self._version, self.length, given)
        if request.refusal is None:
            if self.length != 0 and not self._expects_body(request):
                return
            if self._version == b"HTTP/1.1" and given.get(b"expect", b"").lower() == b"100-continue":
                self._send100Continue()
        elif self.length != 0:
            self.refuse(request, request.refusal)

    def _expects_body(self, request: Request) -> bool:
        """Whether the body is read. One that nobody asked for is not: the request is answered, and the last."""
        if request.max_body > 0:
            if isinstance(self._transferDecoder, ChunkedBody):
                self._transferDecoder.limit = request.max_body
            return True
        self._deaf = True
        self.persistent = False
        self.length = 0
        self._transferDecoder = None
        return False

    def _may_go_on(self, options: bytes) -> bool:
        """Whether another request may follow: in HTTP/1.1, unless one of the Connection options is close."""
        if self._version != b"HTTP/1.1" or self.site.draining:
            return False
        return not options or b"close" not in [each.strip() for each in options.lower().split(b",")]

    def await_body(self) -> None:
        """See HeadReader."""
        self._body_began = self.site.reactor.seconds()
        self._cut_after(BODY_SECONDS)
        if self.requests[-1].caller:  # whoever has no key may have to give way
            self.site.idle.pop(self, None)

    def refuse(self, request: Request, refusal: GatewayError) -> None:
        """Answer with an error although the request's body is not read, or not to its end, and close."""
        if not self._closing:
            self.read_no_more()
            request.refusal = without_frames(refusal)
            request.fail(refusal)

    def read_no_more(self) -> None:
        """The answer that comes next, now or after a while, is the last of this connection."""
        self._closing = True
        self.persistent = False
        self._transferDecoder = None
        self._ahead, self._behind = bytearray(), 0

    # Nothing that follows is read as a request once the connection is closing.

    def dataReceived(self, data: bytes) -> None:
        """See IProtocol."""
        if self._deaf:
            return
        if self._closing:
            self._drop(data)
            return
        if not (self._ahead or (self._waitingForTransport and not self._handlingRequest)):
            super().dataReceived(data)
        elif self._keeps(data):
            self._ahead += data

    def rawDataReceived(self, data: bytes) -> None:
        """Some of a body, or what is sent behind a request that is being answered."""
        if self._closing or self._deaf:
            return
        if not self._handlingRequest:
            self._decode(self._transferDecoder.dataReceived, data)
        elif self._keeps(data):
            self._ahead += data

    def _decode(self, read: Callable[..., None], *data: bytes) -> None:
        """Read some of a body; what is left of a read that holds many chunks is for another turn of the reactor."""
        try:
            read(*data)
        except MalformedChunks:
            self._respondToBadRequestAndDisconnect()
        except BodyTooLong:
            self.refuse(self.requests[-1], self.requests[-1].too_large())
        if self._has_unread() and not self._decoding:
            self._decoding = True
            self._networkProducer.pauseProducing()
            self.site.turns.add(self._decode_more)

    def _decode_more(self) -> bool:
        """Whether there is more still."""
        if self._has_unread():
            self._decode(self._transferDecoder.go_on)
        if self._has_unread():
            return True
        self._decoding = False
        if self._next_turn is None and (self._handlingRequest or not self._waitingForTransport):
            self._networkProducer.resumeProducing()
        return False

    def _has_unread(self) -> bool:
        return isinstance(self._transferDecoder, ChunkedBody) and self._transferDecoder.unread

    def _finishRequestBody(self, data: bytes) -> None:
        self._behind = 0
        if self._deaf:
            self.allContentReceived()
        elif self._keeps(data):
            self._ahead += data
            self.allContentReceived()

    def _drop(self, data: bytes) -> None:
        """Whoever is to wait for the last answer has a bound too on what is read from it meanwhile, for nothing.

        A little is read, so that it is seen when a client leaves that has sent all of a small body.
        """
        self._behind += len(data)
        if self._behind > MAX_BEHIND and self.requests and self._closer is None:
            self._networkProducer.pauseProducing()

    def _keeps(self, data: bytes) -> bool:
        """Whether so much more can be kept for later; nobody pipelines more."""
        self._behind += len(data)
        if self._behind > MAX_BEHIND:
            self.transport.abortConnection()
        return self._behind <= MAX_BEHIND

    def allContentReceived(self) -> None:
        """See HTTPChannel."""
        if not self._closing:
            self._body_began = math.inf
            self._cut_after(math.inf)
            self.site.idle.pop(self, None)
            super().allContentReceived()

    # Errors of the parser

    def misread(self) -> None:
        """See HeadReader: a client that was given an https:// address would wait for an answer that it can read."""
        self.site.mismatches.note(self.transport.getPeer(), secure=False)
        self.close_soon(LINGER_SECONDS)

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
        self._let_go()
        body = error_body(error)
        self.transport.write(
            b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
            b"X-Request-Id: %s\r\nConnection: close\r\n\r\n"
            % (error.status, _REASONS[error.status], len(body), (request_id or headers.request_id(None)).encode())
        )
        if method != b"HEAD":  # whose answer has no body (RFC 9110, 9.3.2)
            self.transport.write(body)
        self.loseConnection()
