"""One connection of a client, all of it: what is judged before a body is read, and how an error ends a connection.

Stock ``twisted.web`` reads a whole body, into temporary files, before anybody may refuse it, answers errors in HTML,
and over TLS goes on executing what follows an error. Here a request is judged when its headers are complete, and behind
an answer that closes nothing is read as a request.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IPushProducer, ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from aigw.errors import Draining, GatewayError, RequestTimeout
from aigw.net import headers
from aigw.net import write as wire
from aigw.server import closing, timeouts
from aigw.server.ahead import Ahead
from aigw.server.bodies import without_frames
from aigw.server.body_reader import BodyReader
from aigw.server.request import Request
from aigw.server.request_head import TLS_HANDSHAKE, HeadReader, RequestHead, answer_to_no_request

if TYPE_CHECKING:
    from aigw.server.site import GatewaySite


@implementer(IPushProducer)
class Channel(Protocol):
    """One connection of a client. To its transport it is the producer of the answers."""

    transport: Any
    site: GatewaySite  # set by Site.buildProtocol
    client_address: str | None = None  # for the record of each request; None on a Unix socket

    # The connection
    _timeouts: timeouts.ConnectionTimeouts
    closing: closing.Closing
    persistent = True  # another request may follow
    _deaf = False  # nothing more is read: what comes is a body for which nobody asked
    _waiting = False  # the client does not read what was written
    _ahead: Ahead  # what was sent behind a request, to be read in its time or when the client reads

    # The request
    request: Request | None = None
    _idle = False  # between two requests
    _body: BodyReader | None = None  # while it is coming
    _answering = False  # the request is complete
    _producer: IPushProducer | None = None

    def connectionMade(self) -> None:
        """A client, its TLS handshake still to come."""
        self._timeouts = timeouts.ConnectionTimeouts(self.site.reactor, self.transport, self._too_late)
        self._head = HeadReader()
        self._ahead = Ahead(self.site.reactor, self.transport, self._read_ahead)
        self.closing = closing.Closing(self.site.reactor, self.transport)
        self.transport.registerProducer(self, True)
        self.site.entered(self)
        wire.prepare(self.transport)
        self._timeouts.cut_after(timeouts.HEAD_SECONDS)

    def isSecure(self) -> bool:
        """See Request.isSecure."""
        return ISSLTransport(self.transport, None) is not None

    def _too_late(self) -> None:
        """The client was too slow: it is told so in the middle of a request, else the connection ends."""
        if self._waiting and not self.closing.last:
            self.transport.abortConnection()
        elif self._is_receiving():
            self.reject(RequestTimeout("The request did not arrive in time."))
        elif not self.closing.last:
            self.closing.soon(closing.LINGER_SECONDS)

    def _is_receiving(self) -> bool:
        """Whether a request has arrived in part."""
        return self._head.begun or self._timeouts.in_body

    def _idle_seconds(self) -> float:
        return timeouts.LAST_REQUEST_SECONDS if self.site.draining else timeouts.KEEP_ALIVE_SECONDS

    def drain(self) -> None:
        """The gateway is stopping: without a request under way, wait only a moment for a last one."""
        if not (self._answering or self._is_receiving() or self.closing.last):
            self._timeouts.cut_sooner(timeouts.LAST_REQUEST_SECONDS)

    def end(self) -> None:
        """The gateway has no more time: tell whoever is still sending a request, and send what was written."""
        error = Draining("The gateway is stopping.")
        if self._timeouts.in_body:
            self.reject(error)
        elif not (self.closing.last or (self.request is not None and self.request.interrupt(error))):
            self.closing.soon()

    def answer_in_plain(self, answer: bytes) -> None:
        """Tell a client that speaks HTTP without TLS, where the gateway speaks it over TLS, and close."""
        self.site.mismatches.note(self.transport.getPeer(), secure=True)
        self.closing.answer_in_plain(answer)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See IProtocol."""
        for each in (self._ahead, self._timeouts, self.closing):
            each.stop()
        self.site.left(self)
        request, self.request = self.request, None
        if request is not None:
            request.connectionLost(reason)
        self._let_go()

    def _let_go(self) -> None:
        """Of what was received and is of no use any more."""
        if self._body is not None:
            self._body.stop()
        self._body = None
        self._head.stop()
        self._ahead.forget()

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
        self._ahead.read_soon()

    def stopProducing(self) -> None:
        """See IPushProducer."""
        if self._producer is not None:
            self._producer.stopProducing()

    def request_done(self) -> None:
        """An answer is written. What was sent behind its request is read when the client has read the answer."""
        self.request = self._producer = None
        self._answering = False
        self._idle = True
        self.closing.last |= self._deaf
        self.site.idle[self] = None  # over TLS one that closes too waits for the client, and may give way
        if not self._waiting:
            self._timeouts.cut_after(self._idle_seconds())
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

    # What comes: a head, a body, what is sent ahead of its time. Once the connection closes nothing is a request.

    def dataReceived(self, data: bytes) -> None:
        """See IProtocol."""
        if self._deaf:
            return
        if self.closing.last:
            # Whoever is to wait for the last answer has a bound too on what is read from it meanwhile, for nothing.
            # A little is read, so that it is seen when a client leaves that has sent all of a small body.
            if self._ahead.drop(data) and self.request is not None and not self.closing.has_limit:
                self.transport.pauseProducing()
        elif self._body is not None:
            self._body.feed(data)
        elif not self.persistent:
            if self._ahead.drop(data):
                self.transport.abortConnection()
        elif self._answering or self._ahead or self._waiting:
            self._ahead.keep(data)
        else:
            self._read_head(data)

    def read_on(self) -> None:
        """Some of a body was read in turns, and nothing of it is left."""
        if not self._ahead.waits_for_turn and (self._answering or not self._waiting):
            self.transport.resumeProducing()

    def _read_head(self, data: bytes) -> None:
        if not self._head.begun:
            if data[:1] == TLS_HANDSHAKE and not self.isSecure():
                self.site.mismatches.note(self.transport.getPeer(), secure=False)
                self.closing.soon(closing.LINGER_SECONDS)
                return
            if self._idle:  # another request begins; the first of all has its time since connecting
                self._idle = False
                self._timeouts.cut_after(timeouts.HEAD_SECONDS)
        try:
            found = self._head.feed(data)
        except GatewayError as error:
            self.reject(error)
        else:
            if found is not None:
                self._judge(*found)

    def _judge(self, head: RequestHead, rest: bytes) -> None:
        """Judge the request before a byte of its body is read and before ``100 Continue``."""
        self.persistent = head.persistent and not self.site.draining
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
            if head.expects_continue:
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
        request, self._body = self.request, None
        self._ahead.begin()
        if rest and not self._ahead.keep(rest):
            return
        self._answering = True
        self._timeouts.body_ended()
        self.site.idle.pop(self, None)
        if request is not None:
            request.body_received()

    # Errors

    def refuse(self, request: Request, refusal: GatewayError) -> None:
        """Answer with an error although the request's body is not read, or not to its end, and close."""
        if not self.closing.last:
            self.read_no_more()
            request.refusal = without_frames(refusal)
            request.fail(refusal)

    def read_no_more(self) -> None:
        """The answer that comes next, now or after a while, is the last of this connection."""
        self.closing.last = True
        self.persistent = False
        self._let_go()
        self._timeouts.body_ended()

    def reject(self, error: GatewayError) -> None:
        """Answer what never became a request."""
        if self.closing.last:
            return
        self.closing.last = True
        request_id, with_body = "", True
        if self.request is not None:  # its body is malformed, if it was admitted at all
            request_id, with_body = self.request.request_id, self.request.method != b"HEAD"  # RFC 9110, 9.3.2
            self.request.error = error
            self.request.answered(error.status)
        self._let_go()
        self.transport.write(answer_to_no_request(error, request_id or headers.request_id(None), with_body))
        self.closing.close()
