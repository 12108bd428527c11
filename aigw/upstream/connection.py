"""One HTTP/1.1 connection to a provider, which can be aborted in every state.

- Cancelling a request, or ``stopProducing`` on its body, aborts the connection.
- One network read is one ``dataReceived``; a paused receiver pauses the socket.
- A connection with unread, unsent or unrequested bytes is never used again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener, IProtocol, IPushProducer, ITransport
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from zope.interface import implementer

from aigw.errors import UpstreamBroken
from aigw.net import tcp
from aigw.net.interfaces import ProviderTransport
from aigw.net.write import has_unsent, quicken, write, write_both
from aigw.protocols.envelope import Parts
from aigw.upstream import reasons
from aigw.upstream.reasons import NoAnswer, Stale
from aigw.upstream.response import Response
from aigw.upstream.response_parser import IDLE_SECONDS, AnswerTaker, ResponseParser
from aigw.upstream.whole_chunks import LARGEST, LINES, TakeChunk

MOST_TO_COPY = 16 * 1024  # a larger body is not copied behind the head
_COMPLETE = Failure(ResponseDone())
_UNFRAMED = Failure(PotentialDataLoss())


@implementer(IHandshakeListener, IPushProducer)
class Connection(Protocol):
    """One connection to a provider: it has one request at a time, and between requests it is idle in its pool."""

    transport: ProviderTransport

    def __init__(self, secure: bool, free: Callable[[Connection], None], lost: Callable[[Connection], None]) -> None:
        """``free`` is called when another request can be sent, ``lost`` when the connection is lost."""
        self._secure, self._free, self._on_lost = secure, free, lost
        self._alive = True
        self.ready: Deferred[Connection] | None = Deferred(lambda _: self.abort())
        self._parser = ResponseParser()
        self._unsent = False
        self.idle_seconds = IDLE_SECONDS  # how long it may be idle after its last answer
        self._start()

    def _start(self) -> None:
        """Reset the state for the next exchange."""
        self._answer: Deferred[Response] | None = None
        self._straight: AnswerTaker | None = None
        self._busy = self._reused = self._received = False
        self._on_chunk: TakeChunk | None = None
        self._pieces: Iterator[bytes] | None = None
        self._in_parts = False  # the kernel may not have taken the whole request at once
        self._lost: Failure | None = None
        self._receiver: IProtocol | None = None
        self._delivering: Response | None = None

    @property
    def answered(self) -> bool:
        """Whether an HTTP answer has begun since the last complete one."""
        return self._parser.head_done

    # Connecting

    def connectionMade(self) -> None:
        """TCP is connected; with TLS the handshake follows."""
        self.transport.setTcpNoDelay(True)
        quicken(self.transport)
        tcp.find_lost_peer(self.transport, tcp.PROVIDER_SECONDS)
        self.transport.registerProducer(self, True)
        if not self._secure:
            self.handshakeCompleted()

    def handshakeCompleted(self) -> None:
        """The connection can be used."""
        ready, self.ready = self.ready, None
        if ready is not None:
            ready.callback(self)

    # One exchange

    def send(self, head: bytes, body: bytes | Parts, reused: bool = False) -> Deferred[Response]:
        """Write a request. A large body is written in pieces, as fast as the transport sends. Cancelling aborts.

        Fails with UpstreamBroken, or with Stale if the connection was ``reused`` and the request must be sent again.
        """
        self._busy, self._reused = True, reused
        answer: Deferred[Response] = Deferred(lambda _: self.abort())
        self._answer = answer
        self._write(head, body)
        return answer

    def _write(self, head: bytes, body: bytes | Parts) -> None:
        if isinstance(body, Parts):
            write(self.transport, head)
            self._pieces, self._in_parts = iter(body), True
            self.resumeProducing()
        elif len(body) <= MOST_TO_COPY:
            write(self.transport, head + body)
        else:
            self._in_parts = not write_both(self.transport, head, body)

    def send_straight(self, call: AnswerTaker, head: bytes, body: bytes) -> None:
        """Write a request on this reused connection. ``call`` gets the answer."""
        self._busy, self._reused, self._straight = True, True, call
        self._write(head, body)

    def resume(self) -> Deferred[Response]:
        """The answer to ``send_straight``, in the form of ``send``; unless ``on_data`` calls it, ``go_on`` follows."""
        self._straight = None
        answer: Deferred[Response] = Deferred(lambda _: self.abort())
        self._answer = answer
        return answer

    def go_on(self) -> None:
        """Deliver what has been parsed, as if it came now."""
        if self._received:
            self.dataReceived(b"")

    def pauseProducing(self) -> None:
        """The transport's send buffer is full: part of the request is unsent."""
        self._unsent = True

    def resumeProducing(self) -> None:
        """The transport has sent all that it was given."""
        self._unsent = False
        while self._pieces is not None and not self._unsent:
            piece = next(self._pieces, None)
            if piece is None:
                self._pieces = None
            else:
                write(self.transport, piece)

    def stopProducing(self) -> None:
        """The transport is closing; connectionLost follows."""

    def dataReceived(self, data: bytes) -> None:
        """Parse one network read and deliver its part of the body as one piece."""
        on_chunk, size = self._on_chunk, len(data)
        if (
            on_chunk is not None
            and (size <= LARGEST and data.startswith(line := LINES[size]))  # of a size that no chunk has it is ()
            and data[-2:] == b"\r\n"
        ):
            on_chunk(data[len(line) : -2], data)
            return
        if not self._busy:
            self.abort()
            return
        self._received = True
        parser = self._parser
        parser.feed(data)
        if self._straight is not None and self._straight.on_data(parser):
            return
        delivering = self._delivering
        if parser.head_done and self._answer is not None:
            if parser.status == 408 and self._reused and not parser.keep_alive:
                self._fail(Stale())  # RFC 9110, section 15.5.9: the provider had closed the idle connection
                return
            answer, self._answer = self._answer, None
            answer.callback(Response(self, parser))
        if self._delivering is delivering:  # else deliver_to has delivered all data so far
            self._hand_on()
        self._on_chunk = getattr(self._receiver, "chunkReceived", None) if parser.may_skip else None

    def deliver_to(self, protocol: IProtocol, response: Response) -> None:
        """See Response.deliverBody."""
        self._receiver, self._delivering, self._on_chunk = protocol, response, None
        protocol.makeConnection(cast(ITransport, response))
        if self._alive:
            self.transport.resumeProducing()
        self._hand_on()

    def deliver_straight(self, protocol: IProtocol, response: Response) -> None:
        """The same for an answer of ``send_straight``, from the bytes on that ``on_data`` has not taken."""
        self._straight, self._receiver, self._delivering = None, protocol, response
        protocol.makeConnection(cast(ITransport, response))

    def delivers(self, response: Response) -> bool:
        """Whether the body of this response is being delivered."""
        return self._receiver is not None and self._delivering is response

    def end(self, response: Response) -> bool:
        """See Response."""
        is_whole = self._parser.complete and self._delivering is response and self._receiver is not None
        if is_whole:
            self._release()
        return is_whole

    def _hand_on(self) -> None:
        receiver, parser = self._receiver, self._parser
        if receiver is None:
            if parser.broken and self._answer is not None:
                self._fail(UpstreamBroken(f"the answer is malformed HTTP: {parser.broken}"))
            elif self._busy and parser.head_done and self._alive:
                self.transport.pauseProducing()  # until deliverBody
            return
        if data := parser.take():
            receiver.dataReceived(data)
        if self._receiver is None:  # the receiver has stopped the delivery
            return
        if parser.complete:
            self._release()
            receiver.connectionLost(_COMPLETE)
        elif parser.broken:
            self.abort()
            receiver.connectionLost(Failure(UpstreamBroken(f"malformed HTTP: {parser.broken}")))
        elif self._lost is not None:
            self._receiver = None
            clean = self._lost.check(error.ConnectionDone) is not None
            receiver.connectionLost(_UNFRAMED if clean and not parser.framed else self._lost)

    def _release(self) -> None:
        """The answer is complete: keep the connection for another request, or close it."""
        self._receiver, is_free = None, False
        try:
            is_free = self.free()
        finally:  # also after a fault of the gateway
            if not is_free:
                self.abort()

    def free(self, may_be_paused: bool = True) -> bool:
        """Keep the connection for another request, if none of the last one and its answer is left; else False."""
        parser = self._parser
        unsent = self._unsent or self._pieces is not None or (self._in_parts and has_unsent(self.transport))
        if not parser.keep_alive or parser.has_unrequested or parser.broken or unsent or not self._alive:
            return False
        if may_be_paused:  # the last receiver may have paused it; a paused socket reports no close
            self.transport.resumeProducing()
        self.idle_seconds = parser.idle_seconds
        parser.start()
        self._start()
        self._free(self)
        return True

    def _fail(self, reason: Exception) -> None:
        answer, self._answer = self._answer, None
        self.abort()
        if answer is not None:
            answer.errback(Failure(reason))

    # The end

    def abort(self) -> None:
        """Close now, in every state; no Deferred fires."""
        self.ready = self._answer = self._receiver = self._pieces = self._straight = self._on_chunk = None
        self._on_lost(self)  # at once: connectionLost comes a turn later, and the pool must not use it until then
        self._busy = False
        if self._alive and self.transport is not None:
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = _COMPLETE) -> None:
        """Fail the Deferred or the body that waits: for the connection, an answer, or the rest of a body."""
        self._alive, self._pieces = False, None
        self._on_lost(self)
        self._lost = reason
        if self._straight is not None:
            self._straight.leave()
        ready, self.ready = self.ready, None
        answer, self._answer = self._answer, None
        if ready is not None:
            ready.errback(reason)
        elif answer is not None:
            if self._reused and not self._received:
                answer.errback(Failure(Stale()))
            else:
                broken = UpstreamBroken("the provider closed the connection in the head of its answer")
                silent = reasons.refused_late(reason) or NoAnswer("the provider closed the connection before an answer")
                answer.errback(Failure(broken if self._received else silent))
        else:
            self._hand_on()
