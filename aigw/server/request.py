"""One request of a client: checked by its head, its body kept in memory, its answer cancelled if the client leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import NO_BODY_CODES
from twisted.web.http_headers import Headers
from twisted.web.server import NOT_DONE_YET
from twisted.web.server import Request as TwistedRequest

from aigw.connections.bodies import without_frames
from aigw.connections.request_head import ORIGIN, REASONS, RequestHead
from aigw.errors import GatewayError, TooLarge, WrongKey
from aigw.net import headers
from aigw.net.interfaces import ClientTransport
from aigw.net.write import write
from aigw.settings.callers import Caller
from aigw.telemetry.record import RecordBuilder

if TYPE_CHECKING:
    from aigw.server.channel import Channel
    from aigw.server.limited import LimitedClaim
    from aigw.server.resources import ApiResource
    from aigw.server.site import GatewaySite

log = Logger()


class Request(TwistedRequest):
    """A request whose body is kept in memory."""

    defaultContentType = b"application/json"
    channel: Channel  # type: ignore[assignment]  # which is not Twisted's
    site: GatewaySite
    resource: ApiResource  # from the head on
    record: RecordBuilder  # set by a resource that records its requests
    refusal: GatewayError | None = None
    error: GatewayError | None = None
    serving: Deferred[None] | None = None
    request_id = ""
    max_body = 0  # bytes of the body that its resource reads, 0 for none
    caller: Caller | None = None
    limited: LimitedClaim | None = None  # of a caller with limits
    coding: str | None = None  # of a compressed body
    client_left = False
    _over = False  # answered, or left
    _gone = False  # the connection is lost
    _interrupted_by: GatewayError | None = None

    def __init__(self, channel: Channel) -> None:
        """Twisted's __init__ would make two unused tables of headers and more for each request."""
        self.channel = channel
        self.site = channel.site
        self.transport: ClientTransport = channel.transport
        self.body: bytes | bytearray = b""  # which is not to be changed
        self._head = b""
        self.given: Mapping[bytes, bytes] = {}  # the headers by lower-case name, from the head on
        self.bytes_in = 0
        self.postpath: list[bytes] = []
        self._bodies = channel.site.bodies
        self._taken = 0  # bytes counted in the limit for all bodies

    @cached_property
    def responseHeaders(self) -> Headers:  # type: ignore[override]
        """Headers that were set before ``begin``."""
        return Headers()

    # Reading

    def header(self, name: bytes) -> bytes | None:
        """The value of a header, by its lower-case name."""
        return self.given.get(name)

    def head_received(self, head: RequestHead) -> None:
        """The headers are complete: find the resource and let it check the request."""
        self.method, self.uri, self.clientproto = head.method, head.target, head.version
        self.given = head.headers
        self.path = (self.uri if self.uri[:1] == b"/" else ORIGIN.sub(b"", self.uri)).partition(b"?")[0]
        self.request_id = self.site.shown_id(head.request_id) if b"x-request-id" in head.headers else head.request_id
        self.resource = self.site.resource.known.get(self.path) or self.site.getResourceFor(self)
        self.max_body = self.resource.max_body
        try:
            self.resource.admit(self)
            if head.length and self.max_body:
                self._make_room(head.length)
        except GatewayError as error:
            self.refusal = without_frames(error)

    def _make_room(self, size: int) -> None:
        """For a body of so many bytes in all."""
        if size > self.max_body:
            raise self.too_large()
        self.take(size - self._taken)

    def too_large(self) -> TooLarge:
        """The error for a body over the limit."""
        return TooLarge(f"The body is larger than the limit of {self.max_body} bytes.")

    def take(self, size: int) -> None:
        """Count ``size`` bytes more in the limit for all bodies, until the answer begins. Raises Overloaded."""
        self._bodies.take(size)
        self._taken += size

    def release_body(self) -> None:
        """The body is of no use any more."""
        self.body = b""
        if self._taken:
            self._bodies.give_back(self._taken)
            self._taken = 0

    def take_body(self, data: bytes) -> None:
        """Keep a piece of the body, within the limit."""
        if self.refusal is not None:
            return
        self.bytes_in += len(data)
        try:
            if self.bytes_in > self._taken:  # chunked
                self._make_room(self.bytes_in)
        except GatewayError as error:
            self.channel.refuse(self, error)
            return
        if not self.body:
            self.body = data
        else:
            if isinstance(self.body, bytes):
                self.body = bytearray(self.body)
            self.body += data

    def body_received(self, data: bytes, render: Callable[[Request], Any] | None = None) -> None:
        """The body is complete with this piece. ``render`` is that of its resource, if it has been read already."""
        if data:
            self.take_body(data)
        if self.refusal is not None:
            self.fail(self.refusal)
            return
        try:
            answer = (render or self.resource.render)(self)
        except GatewayError as error:
            self.fail(error)
        except Exception:
            log.failure("A resource failed with an unexpected error")
            self.fail(GatewayError("The gateway failed with an unexpected error. Its log has the details."))
        else:
            self.body = b""
            if isinstance(answer, Deferred):
                self.serving = answer
                answer.addErrback(self._failed)
            elif answer is not NOT_DONE_YET:
                self.answer(200, answer)

    def serve(self, serving: Deferred[None]) -> None:
        """Tie the request to what answers it: a client that leaves cancels it, a failure is rendered."""
        self.serving = serving
        serving.addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        try:
            self._answer_failure(failure)
        except Exception:
            log.failure("The gateway could not send an error to a client: unexpected error")
        finally:
            if failure.value is not None:  # as in without_frames, for exceptions that are not kept
                failure.value.__traceback__ = None

    def _answer_failure(self, failure: Failure) -> None:
        self.serving = None
        if self._gone and failure.check(CancelledError):
            return
        error = (failure.check(CancelledError) and self._interrupted_by) or failure.value
        if not isinstance(error, GatewayError):
            log.failure("The gateway failed to serve a request: unexpected error", failure=failure)
            error = GatewayError("The gateway failed with an unexpected error. Its log has the details.")
        if self._gone:
            return
        if self.startedWriting:
            self.code = error.status  # for the record; the client got another status
            self.cut(flush=False)
        else:
            self.fail(error)

    def interrupt(self, error: GatewayError) -> bool:
        """The drain is over: answer with ``error``, unless an answer has begun; gives whether it did so."""
        if self.serving is None or self.startedWriting or self._gone:
            return False
        self._interrupted_by = error
        self.serving.cancel()
        return True

    # Answering

    def fail(self, error: GatewayError) -> None:
        """Answer with an error."""
        self.error = without_frames(error)
        if isinstance(error, WrongKey):
            self.site.refused_keys.delay(self, error, partial(self._fail, error))
        else:
            self._fail(error)

    def _fail(self, error: GatewayError) -> None:
        for name, value in error.headers.items():
            self.setHeader(name, value)
        body = self.resource.error_body(error, self.request_id)
        self.answer(error.status, self.site.redaction.hide_in_values(body))

    def answer(self, status: int, body: bytes) -> None:
        """Answer with the gateway's own JSON, in one piece; nosniff keeps browsers from guessing another type."""
        own = [(b"content-type", b"application/json"), (b"x-content-type-options", b"nosniff")]
        self.begin(status, own, len(body))
        if body:
            self.write(body)
        self.end()

    def begin(self, status: int, sent: list[headers.Header], length: int | None, is_early: bool = False) -> None:
        """Prepare the head of the answer; it leaves with the first bytes of the body."""
        self.chunked = 0
        if not is_early:  # else the next step needs the body of the request
            self.release_body()
        self.code, self.code_message = status, REASONS.get(status, b"Unknown Status")
        if not self.channel.persistent or self.site.draining:
            sent.append((b"connection", b"close"))
        if "responseHeaders" in self.__dict__:
            for name, values in self.responseHeaders.getAllRawHeaders():
                sent += [(name, value) for value in values]
        if length is not None:
            sent.append((b"content-length", b"%d" % length))
        elif self.clientproto == b"HTTP/1.1" and self.method != b"HEAD" and status not in NO_BODY_CODES:
            sent.append((b"transfer-encoding", b"chunked"))
            self.chunked = 1
        self._head = b"%s %d %s\r\n%s\r\n" % (
            self.clientproto,
            status,
            self.code_message,
            self.resource.lines(self, sent),
        )

    def write(self, data: bytes, chunk: bytes = b"") -> None:
        """See Responder. The first part is sent together with the head: one write, where Twisted makes six."""
        if self._gone:
            return
        if self.method == b"HEAD" or self.code in NO_BODY_CODES:
            data = b""
        self.sentLength += len(data)
        if self.chunked and data:
            data = chunk or b"%x\r\n%s\r\n" % (len(data), data)
        if not self.startedWriting:
            self.startedWriting = 1
            data = self._head + data
        write(self.transport, data)

    def end(self) -> None:
        """The answer is complete."""
        self.serving = None
        status = self.code
        if not (self._gone or self.finished):
            self.finished = 1
            if self.chunked:
                write(self.transport, b"0\r\n\r\n")
            self.channel.request_done()
        self.answered(status)

    def cut(self, flush: bool | None) -> None:
        """See Responder: in HTTP/1.0 a close may be a proper end."""
        self.serving = None
        self.answered(self.code)
        if not self._gone:
            if flush or (flush is None and self.clientproto == b"HTTP/1.1"):
                self.channel.closing.soon()
            else:
                self.channel.transport.abortConnection()

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """See IConsumer."""
        self.channel.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """See IConsumer."""
        self.channel.unregisterProducer()

    def connectionLost(self, reason: Failure) -> None:
        """The client disconnected: cancel the work for it."""
        self._gone = True
        serving, self.serving = self.serving, None
        if serving is not None:
            serving.cancel()
        self.client_left = not self._over
        self.answered(499)

    def answered(self, status: int) -> None:
        """The request is over: notify its resource, once."""
        self.release_body()
        if not self._over:
            self._over = True
            self.resource.answered(self, status)
