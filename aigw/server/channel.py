"""One connection of a client, all of it: what is judged before a body is read, and how an error ends a connection.

Stock ``twisted.web`` reads a whole body, into temporary files, before anybody may refuse it, answers errors in HTML,
and over TLS goes on executing what follows an error. Here a request is judged when its headers are complete, and behind
an answer that closes nothing is read as a request.
"""

from __future__ import annotations

import math
from socket import SO_SNDBUF, SOL_SOCKET
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IDelayedCall, IPushProducer, ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from aigw.errors import Draining, GatewayError, RequestTimeout
from aigw.net import headers
from aigw.net import write as wire
from aigw.server import timeouts
from aigw.server.bodies import without_frames
from aigw.server.body_reader import BodyReader
from aigw.server.request import Request
from aigw.server.request_head import MAX_LINE, TLS_HANDSHAKE, PartialHead, RequestHead, answer_to_no_request

if TYPE_CHECKING:
    from aigw.server.site import GatewaySite

MAX_BEHIND = 256 * 1024
SEND_BUFFER = 128 * 1024  # the kernel would let it grow to megabytes


@implementer(IPushProducer)
class Channel(Protocol):
    """One connection of a client. To its transport it is the producer of the answers."""

    transport: Any
    site: GatewaySite  # set by Site.buildProtocol
    _timeouts: timeouts.ConnectionTimeouts

    # The connection
    gives_way = False  # to another, as there are too many
    persistent = True  # another request may follow
    _closing = False  # the answer that comes next, or came, is the last
    _deaf = False  # nothing more is read: what comes is a body for which nobody asked
    _waiting = False  # the client does not read what was written
    _behind = 0  # how much is kept of what was sent ahead of its time, or dropped since the last request
    _next_turn: IDelayedCall | None = None

    # The request
    request: Request | None = None
    _idle = False  # between two requests
    _head: PartialHead | None = None
    _body: BodyReader | None = None  # while it is coming
    _answering = False  # the request is complete
    _producer: IPushProducer | None = None

    def __init__(self) -> None:
        self._ahead = bytearray()  # what was sent behind a request, to be read in its time or when the client reads

    # The connection

    def connectionMade(self) -> None:
        """A client, its TLS handshake still to come."""
        self._timeouts = timeouts.ConnectionTimeouts(self.site.reactor, self.transport, self._too_late)
        self.transport.registerProducer(self, True)
        self.site.entered(self)
        socket = getattr(self.transport, "socket", None)
        if socket is not None:
            socket.setsockopt(SOL_SOCKET, SO_SNDBUF, SEND_BUFFER)
        if hasattr(self.transport, "setTcpNoDelay"):  # not a Unix socket's
            self.transport.setTcpNoDelay(True)
        self._timeouts.cut_after(timeouts.HEAD_SECONDS)

    def isSecure(self) -> bool:
        """Whether it is TLS."""
        return ISSLTransport(self.transport, None) is not None

    def _too_late(self) -> None:
        """The client was too slow: it is told so in the middle of a request, else the connection ends."""
        if self._closing:
            return
        if self._waiting:
            self.transport.abortConnection()
        elif not self._is_receiving():
            self.close_soon(timeouts.LINGER_SECONDS)
        else:
            self.reject(RequestTimeout("The request did not arrive in time."))

    def _is_receiving(self) -> bool:
        """Whether a request has arrived in part."""
        return self._head is not None or self._timeouts.in_body

    def _idle_seconds(self) -> float:
        return timeouts.LAST_REQUEST_SECONDS if self.site.draining else timeouts.KEEP_ALIVE_SECONDS

    def drain(self) -> None:
        """The gateway is stopping: without a request under way, wait only a moment for a last one."""
        if not (self._answering or self._is_receiving() or self._closing):
            self._timeouts.cut_sooner(timeouts.LAST_REQUEST_SECONDS)

    def end(self) -> None:
        """The gateway has no more time: tell whoever is still sending a request, and send what was written."""
        error = Draining("The gateway is stopping.")
        if self._timeouts.in_body:
            self.reject(error)
        elif not (self._closing or (self.request is not None and self.request.interrupt(error))):
            self.close_soon()

    def close_soon(self, seconds: float = timeouts.FLUSH_SECONDS) -> None:
        """Close when all is sent that was written, and after ``seconds`` at last; no further request is read."""
        self._closing = True
        if self._timeouts.close_after(seconds, self.transport.abortConnection):
            self._close()

    def give_way(self) -> None:
        """Close at once: over TLS too, where the client's word on it would be waited for."""
        self.gives_way = True
        self.close_soon(timeouts.LINGER_SECONDS)
        plain = getattr(self.transport, "transport", None)
        if plain is not None:
            plain.loseConnection()

    def answer_in_plain(self, answer: bytes) -> None:
        """Tell a client that speaks HTTP without TLS, where the gateway speaks it over TLS, and close."""
        self.site.mismatches.note(self.transport.getPeer(), secure=True)
        self._closing = True
        self._timeouts.close_after(timeouts.LINGER_SECONDS, self.transport.abortConnection)
        plain = self.transport.transport
        plain.write(answer)
        plain.loseWriteConnection()

    def loseConnection(self) -> None:
        """Close; behind a refusal only after a while in which the client can read it.

        Closing with input unread resets the connection, and the client may never see the answer (RFC 9112, 9.6).
        """
        if not self._closing:
            self._close()
        elif not self._timeouts.closing:
            self._timeouts.close_after(timeouts.LINGER_SECONDS, self.transport.abortConnection)
            if not self.isSecure():
                self.transport.loseWriteConnection()

    def _close(self) -> None:
        self.transport.unregisterProducer()  # what is written is sent all the same
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See IProtocol."""
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        self._timeouts.stop()
        self.site.left(self)
        request, self.request = self.request, None
        if request is not None:
            request.connectionLost(reason)
        self._let_go()

    def _let_go(self) -> None:
        """Of what was received and is of no use any more."""
        if self._body is not None:
            self._body.stop()
        self._body = self._head = None
        self._ahead, self._behind = bytearray(), 0

    # The answer, and a client that does not read it

    def write(self, data: bytes) -> None:
        """Some of an answer."""
        wire.write(self.transport, data)

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """See IConsumer."""
        self._producer = producer

    def unregisterProducer(self) -> None:
        """See IConsumer."""
        self._producer = None

    def pauseProducing(self) -> None:
        """The client does not read; it may hang up all the same, so while it is answered it is listened to."""
        self._waiting = True
        if self._producer is not None:
            self._producer.pauseProducing()
        if not self._answering:
            self.transport.pauseProducing()
        self._timeouts.client_stalled()

    def resumeProducing(self) -> None:
        """The client has read all that was sent."""
        self._waiting = False
        if self._producer is not None:
            self._producer.resumeProducing()
        if not self._answering:
            self.transport.resumeProducing()
        self._timeouts.client_read(math.inf if self._answering else self._idle_seconds())
        if self._ahead and self._next_turn is None:
            self._next_turn = self.site.reactor.callLater(0, self._go_on)

    def stopProducing(self) -> None:
        """See IPushProducer."""
        if self._producer is not None:
            self._producer.stopProducing()

    def request_done(self) -> None:
        """An answer is written. What was sent behind its request is read in a turn of its own, when the client reads.

        A client could else have any number of requests served in one turn of the reactor, and any number of answers
        kept for it that it does not read.
        """
        self.request = self._producer = None
        self._answering = False
        self._idle = True
        self._closing |= self._deaf
        self.site.idle[self] = None  # over TLS one that closes too waits for the client, and may give way
        if not self._waiting:
            self._timeouts.cut_after(self._idle_seconds())
            self.transport.resumeProducing()
        if not self.persistent or self.site.draining:
            self.persistent = False
            self.loseConnection()
        if not self.persistent or self._closing:
            self._ahead = bytearray()
        self._behind = len(self._ahead)
        if self._waiting:
            self.transport.pauseProducing()
        elif self._ahead:
            self._next_turn = self.site.reactor.callLater(0, self._go_on)

    def _go_on(self) -> None:
        self._next_turn = None
        if not self._waiting:
            ahead, self._ahead, self._behind = self._ahead, bytearray(), 0
            self.dataReceived(bytes(ahead))

    # What comes: a head, a body, what is sent ahead of its time. Once the connection closes nothing is a request.

    def dataReceived(self, data: bytes) -> None:
        """See IProtocol."""
        if self._deaf:
            return
        if self._closing:
            self._drop(data)
        elif self._body is not None:
            self._body.feed(data)
        elif self._answering or self._ahead or self._waiting or not self.persistent:
            if self._keeps(data) and self.persistent:
                self._ahead += data
        else:
            self._read_head(data)

    def read_on(self) -> None:
        """Some of a body was read in turns, and nothing of it is left."""
        if self._next_turn is None and (self._answering or not self._waiting):
            self.transport.resumeProducing()

    def _drop(self, data: bytes) -> None:
        """Whoever is to wait for the last answer has a bound too on what is read from it meanwhile, for nothing.

        A little is read, so that it is seen when a client leaves that has sent all of a small body.
        """
        self._behind += len(data)
        if self._behind > MAX_BEHIND and self.request is not None and not self._timeouts.closing:
            self.transport.pauseProducing()

    def _keeps(self, data: bytes) -> bool:
        """Whether so much more can be kept for later; nobody pipelines more."""
        self._behind += len(data)
        if self._behind > MAX_BEHIND:
            self.transport.abortConnection()
        return self._behind <= MAX_BEHIND

    def _read_head(self, data: bytes) -> None:
        if self._head is None:
            if data[:1] == TLS_HANDSHAKE and not self.isSecure():
                self.site.mismatches.note(self.transport.getPeer(), secure=False)
                self.close_soon(timeouts.LINGER_SECONDS)
                return
            if self._idle:  # another request begins; the first of all has its time since connecting
                self._idle = False
                self._timeouts.cut_after(timeouts.HEAD_SECONDS)
        try:
            end = data.find(b"\r\n\r\n", 0, MAX_LINE) + 4 if self._head is None else 0
            if end < 4:
                if self._head is None:
                    self._head = PartialHead()
                end = self._head.feed(data)
                if not end:
                    return
                data, self._head = bytes(self._head.data), None
            head = RequestHead(data[:end])
        except GatewayError as error:
            self.reject(error)
        else:
            self._judge(head, data[end:])

    def _judge(self, head: RequestHead, rest: bytes) -> None:
        """Judge the request before a byte of its body is read and before ``100 Continue``."""
        options = head.headers.get(b"connection")
        self.persistent = (
            head.version == b"HTTP/1.1"
            and not self.site.draining
            and (options is None or b"close" not in [each.strip() for each in options.lower().split(b",")])
        )
        self.request = request = Request(self)
        request.head_received(head)
        if request.refusal is not None:
            if head.length != 0:
                self.refuse(request, request.refusal)
                return
        elif head.length != 0 and request.max_body == 0:
            self._deaf = True  # the request is answered, and the last
            self.persistent = False
            rest = b""
        else:
            if head.version == b"HTTP/1.1" and head.headers.get(b"expect", b"").lower() == b"100-continue":
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if head.length is None or len(rest) < head.length:
                self._timeouts.body_began(request)
                if request.caller:  # whoever has no key may have to give way
                    self.site.idle.pop(self, None)
                self._body = BodyReader(self, request, head.length, self._complete)
                if rest:
                    self._body.feed(rest)
                return
            if head.length:
                request.take_body(rest[: head.length])
                rest = rest[head.length :]
        self._complete(rest)

    def _complete(self, rest: bytes) -> None:
        """The whole request is there; ``rest`` is what was sent behind it."""
        request, self._body, self._behind = self.request, None, 0
        if rest and not self._keeps(rest):
            return
        self._ahead += rest
        self._answering = True
        self._timeouts.body_ended()
        self.site.idle.pop(self, None)
        if request is not None:
            request.body_received()

    # Errors

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
        self._let_go()
        self._timeouts.body_ended()

    def reject(self, error: GatewayError) -> None:
        """Answer what never became a request."""
        if self._closing:
            return
        self._closing = True
        request_id, with_body = "", True
        if self.request is not None:  # its body is malformed, if it was admitted at all
            request_id, with_body = self.request.request_id, self.request.method != b"HEAD"  # RFC 9110, 9.3.2
            self.request.error = error
            self.request.answered(error.status)
        self._let_go()
        self.transport.write(answer_to_no_request(error, request_id or headers.request_id(None), with_body))
        self.loseConnection()
