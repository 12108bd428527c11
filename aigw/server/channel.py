"""One connection of a client: the checks before a body is read, the answers, and how an error ends it. ``twisted.web``
reads bodies into files before it refuses one, and over TLS serves the requests behind an error."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IPushProducer, ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from aigw.connections import closing, timeouts
from aigw.connections.ahead import Ahead
from aigw.connections.bodies import without_frames
from aigw.connections.request_head import TLS_HANDSHAKE, HeadReader, RequestHead
from aigw.errors import Draining, GatewayError, RequestTimeout
from aigw.net.interfaces import ClientTransport
from aigw.net.write import prepare
from aigw.server import rejections
from aigw.server.body_reader import BodyReader
from aigw.server.plain_requests import PlainRequests
from aigw.server.request import Request

if TYPE_CHECKING:
    from aigw.access.keys import Recognized
    from aigw.server.site import GatewaySite


@implementer(IPushProducer)
class Channel(Protocol):
    """One connection of a client. To its transport it is the producer of the answers."""

    transport: ClientTransport
    site: GatewaySite  # set by Site.buildProtocol
    client_address: str | None = None  # for the record of each request; None on a Unix socket

    _timeouts: timeouts.ConnectionTimeouts
    closing: closing.Closing
    persistent = True  # another request may follow
    recognized: Recognized | None = None  # by its last Authorization, until the keys change
    _drops_input = False  # all further data is dropped: it is a body that no resource reads
    _waiting = False  # the client does not read what was written
    _ahead: Ahead  # data after a request, to be read later, or when the client reads its answer

    request: Request | PlainRequests | None = None
    _idle = False  # between two requests
    reader: BodyReader | None = None  # of its body, while that is coming
    _answering = False  # the request is complete
    _producer: IPushProducer | None = None

    def connectionMade(self) -> None:
        """A client has connected; with TLS the handshake follows."""
        self._timeouts = timeouts.ConnectionTimeouts(self.site.reactor, self.transport, self._too_late)
        self._head = HeadReader()
        self.plain = PlainRequests(self, self._timeouts)
        self._ahead = Ahead(self.site.reactor, self.transport, self._read_ahead)
        self.closing = closing.Closing(self.site.reactor, self.transport)
        self.transport.registerProducer(self, True)
        self.site.entered(self)
        prepare(self.transport)
        self._timeouts.expire_after(timeouts.HEAD_SECONDS)

    def isSecure(self) -> bool:
        """See Request.isSecure."""
        return ISSLTransport(self.transport, None) is not None

    def _too_late(self) -> None:
        """The client was too slow: within a request it gets an error, else the connection closes."""
        if self._waiting and not self.closing.last:
            self.transport.abortConnection()
        elif self._answering:
            self.plain.too_late()  # else the limit was that of the head, or of the wait for it
        elif self._is_receiving():
            self.reject(RequestTimeout("The request did not arrive within the time limit."))
        elif not self.closing.last:
            self.closing.soon(closing.LINGER_SECONDS)

    def _on_long_way(self) -> Request | None:
        """The present request, which goes the long way from now on."""
        return self.request.as_request() if isinstance(self.request, PlainRequests) else self.request

    def _is_receiving(self) -> bool:
        """Whether a request has arrived in part."""
        return bool(self._head.data) or self._timeouts.in_body

    def drain(self) -> None:
        """The gateway is stopping: a connection without a request waits only a short time for a last one."""
        self.plain.drain()
        if not (self._answering or self._is_receiving() or self.closing.last):
            self._timeouts.expire_sooner(timeouts.LAST_REQUEST_SECONDS)

    def end(self) -> None:
        """The time for the drain is over: answer an incomplete request with an error, and send what was written."""
        error = Draining("The gateway is stopping.")
        if self._timeouts.in_body:
            self.reject(error)
        elif not (self.closing.last or (self.request is not None and self.request.interrupt(error))):
            self.closing.soon()

    def answer_without_tls(self, answer: bytes) -> None:
        """Answer a client that uses plain HTTP on a TLS port, and close."""
        self.site.mismatches.note(self.transport.getPeer(), secure=True)
        self.closing.answer_without_tls(answer)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See IProtocol."""
        for each in (self._ahead, self._timeouts, self.closing):
            each.stop()
        self.site.left(self)
        if self.request is not None:
            self.request.connectionLost(reason)
            self.request = None
        self._release()

    def _release(self) -> None:
        """Drop the received data that is not needed any more."""
        if self.reader is not None:
            self.reader.stop()
        self.reader = None
        self._head.stop()
        self._ahead.forget()

    # The answer, and a client that does not read it

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """See IConsumer."""
        self._producer = producer

    def unregisterProducer(self) -> None:
        """See IConsumer."""
        self._producer = None

    def pauseProducing(self) -> None:
        """The client does not read. During an answer its socket is still read, to notice a disconnect."""
        self._waiting = True
        self.plain.leave()
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
        self._timeouts.client_read(math.inf if self._answering else self.site.keep_alive)
        self._ahead.read_soon()

    def stopProducing(self) -> None:
        """See IPushProducer."""
        if self._producer is not None:
            self._producer.stopProducing()

    def request_done(self, may_be_paused: bool = True) -> None:
        """An answer is written. Data after its request is read when the client has read the answer."""
        self.request = self._producer = None
        self._answering = False
        self._idle = True
        self.closing.last |= self._drops_input
        # A closing one too: over TLS it waits for the client, and may be closed for another.
        self.site.idle[self] = None
        if not self._waiting:
            self._timeouts.expire_after(self.site.keep_alive)
        if may_be_paused and not self._waiting:
            self.transport.resumeProducing()
        if not self.persistent or self.site.draining:
            self.persistent = False
            self.closing.close()
        if not self.persistent or self.closing.last:
            self._ahead.forget()
        if self._waiting:
            self.transport.pauseProducing()
        else:
            self._ahead.read_soon()

    def _read_ahead(self, data: bytes) -> None:
        if self._waiting:
            self._ahead.keep(data)
        else:
            self.dataReceived(data)

    # Incoming data: a head, a body, or data after a request. When the connection is closing, nothing is a request.

    def dataReceived(self, data: bytes) -> None:
        """See IProtocol."""
        if self._drops_input:
            return
        if self.closing.last:
            # A client that waits for the last answer can send only a limited amount, which is dropped.
            # Some is read, to notice the disconnect of a client that has sent all of a small body.
            if self._ahead.drop(data) and self.request is not None and not self.closing.has_limit:
                self.transport.pauseProducing()
        elif self.reader is not None:
            self.reader.feed(data)
        elif not self.persistent:
            if self._ahead.drop(data):
                self.transport.abortConnection()
        elif self._answering or self._ahead.data or self._waiting:
            self._ahead.keep(data)
        else:
            self._read_head(data)

    def read_on(self) -> None:
        """All data of a body that was read in several turns is decoded; read on."""
        if not self._ahead.waits_for_turn and (self._answering or not self._waiting):
            self.transport.resumeProducing()

    def _read_head(self, data: bytes) -> None:
        plain = None if self._head.data else self.plain
        if plain is not None and plain.before and data.startswith(plain.before) and plain.takes(data):
            return
        if data[:1] == TLS_HANDSHAKE and not self._head.data and not self.isSecure():
            self.site.mismatches.note(self.transport.getPeer(), secure=False)
            self.closing.soon(closing.LINGER_SECONDS)
            return
        try:
            found = self._head.feed(data)
        except GatewayError as error:
            self.reject(error)
            return
        if found is not None:
            if plain is None or not plain.begins(data, *found):
                self._check_head(*found)
        elif self._idle:  # another request begins; the first of all has its time since connecting
            self._idle = False
            self._timeouts.expire_after(timeouts.HEAD_SECONDS)

    def _check_head(self, head: RequestHead, rest: bytes) -> None:
        """Check the request before a byte of its body is read and before ``100 Continue``."""
        self.persistent = head.persistent and not self.site.draining
        self.request = request = Request(self)
        request.head_received(head)
        body = b""
        if request.refusal is not None:
            if head.length != 0:
                self.refuse(request, request.refusal)
                return
        elif head.length != 0 and request.max_body == 0:
            self._drops_input = True  # the request is answered, and is the last one
            self.persistent = False
            rest = b""
        else:
            if head.expects_continue:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if head.length is None or len(rest) < head.length:
                self._timeouts.body_began(request)
                if request.caller:  # without a key it may still be closed for another connection
                    self.site.idle.pop(self, None)
                self.reader = BodyReader(self, request, head.length, self.complete)
                if rest:
                    self.reader.feed(rest)
                return
            body, rest = rest[: head.length], rest[head.length :]
        self.complete(rest, body)

    def complete(self, rest: bytes, body: bytes = b"") -> None:
        """The whole request is there: ``body`` is what it has not got of its body, ``rest`` was sent behind it."""
        request = self.request
        if self.reader is not None:
            self.reader = None
            self._timeouts.body_ended()
        if rest and not self._ahead.keep(rest):
            return
        self._answering = True
        self.site.idle.pop(self, None)
        if request is not None:
            request.body_received(body)

    # Errors

    def refuse(self, request: Request, refusal: GatewayError) -> None:
        """Answer with an error before the body of the request is read to its end, and close."""
        if not self.closing.last:
            self.read_no_more()
            request.refusal = without_frames(refusal)
            request.fail(refusal)

    def read_no_more(self) -> None:
        """Read no further request: the next answer is the last one of this connection."""
        self.closing.last = True
        self.persistent = False
        self._release()
        self._timeouts.body_ended()

    def reject(self, error: GatewayError) -> None:
        """Answer data that is not a valid request, and close."""
        if self.closing.last:
            return
        self.closing.last = True
        resource = self.site.resource.known.get(self._head.path, self.site.resource)
        answer = rejections.answer(error, self._on_long_way(), resource)
        self._release()
        self.transport.write(answer)
        self.closing.close()
