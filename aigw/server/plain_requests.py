"""The requests of one connection that may go the straight path: plain ones, each with a head like the one before it.

A client repeats its head, but for the digits of Content-Length. So the head is parsed and judged once: while the same
bytes come and the configuration is the same, the key, the path, the method and the headers for a provider are known.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure

from aigw.connections.request_head import RequestHead, id_of
from aigw.connections.timeouts import ConnectionTimeouts
from aigw.errors import GatewayError
from aigw.net.lateness import GRACE_SECONDS
from aigw.net.write import write
from aigw.protocols.endpoint import Call, RawRequest
from aigw.protocols.envelope import SMALL
from aigw.server.body_reader import BodyReader
from aigw.server.repeated_head import DIGITS, RepeatedHead, learned
from aigw.server.request import Request
from aigw.settings.callers import Caller
from aigw.straight.call import StraightCall

if TYPE_CHECKING:
    from aigw.server.channel import Channel
    from aigw.server.limited import Admit, LimitedClaim

log = Logger()


class PlainRequests:
    """The plain requests of the connection ``channel``, one after the other. It stands for a Request until one of them
    takes the long way: then a Request takes its place.

    ``before`` is the known head up to the digits of its Content-Length; empty if none is known.
    """

    def __init__(self, channel: Channel, limits: ConnectionTimeouts) -> None:
        self._channel = channel
        self._timeouts = limits
        self.before = b""
        self._known: RepeatedHead | None = None
        self._sent: StraightCall | None = None
        self._admit: Admit | None = None  # if the caller of the known head has limits
        self._claim: LimitedClaim | None = None  # of the present request
        self._last_claim: LimitedClaim | None = None  # which may be used once more
        self._request_id = ""
        self._began = 0.0
        self._length = 0  # of the body
        self._taken = 0  # of these, in the limit for all bodies
        self._head = b""  # of a streamed answer of which nothing was written
        self._pieces: list[bytes] = []  # of a body that is not whole
        self.bytes_in = 0

    # The head

    def takes(self, data: bytes, request_id: str | None = None) -> bool:
        """Serve the request that begins with ``before``; False if it is not one like the last one."""
        known, start, channel = self._known, len(self.before), self._channel
        end = data.find(b"\r\n", start, start + DIGITS + 2)
        if known is None or not data.startswith(known.after, end) or not data[start:end].isdigit():
            return False
        length, body, site = int(data[start:end]), data[end + len(known.after) :], channel.site
        most = min(SMALL, known.resource.max_body, site.bodies.limit - site.bodies.under_way)
        if not max(1, len(body)) <= length <= most or known.tree is not site.resource or site.draining:
            return False
        site.bodies.under_way += length  # there is room
        self._length = self._taken = length
        self._began = known.path.seconds()
        made = request_id or id_of(known.offered_id)
        self._request_id = made if known.offered_id is None else site.shown_id(made)
        self.bytes_in = 0
        channel.request = self
        if len(body) == length:
            channel.complete(b"", body)
        else:
            self._timeouts.body_began(self)
            site.idle.pop(channel, None)
            channel.reader = BodyReader(channel, cast(Request, self), length, channel.complete)  # of known length
            if body:
                channel.reader.feed(body)
        return True

    def begins(self, data: bytes, head: RequestHead, rest: bytes) -> bool:
        """The same for ``data`` that is a new ``head``, which is known from now on, and the ``rest`` behind it."""
        self.before = b""
        try:
            known = learned(self._channel, head, data, len(data) - len(rest))
            if known is None:
                return False
            self._admit, self._last_claim = known.resource.admits(known.caller), None
        except Exception:
            log.failure("A request takes the long way: unexpected error")
            return False
        self._known, self.before = known, known.before
        return self.takes(data, head.request_id)

    def forget(self) -> None:
        """No head is known, unless a request with it has begun: it refers to a whole configuration."""
        if self._channel.request is not self:
            self.before, self._known, self._admit, self._last_claim = b"", None, None, None

    # In place of a Request

    @property
    def caller(self) -> Caller | None:
        """See Request."""
        return self._known.caller if self._known is not None else None

    def take_body(self, data: bytes) -> None:
        """See Request."""
        self.bytes_in += len(data)
        self._pieces.append(data)

    def body_received(self, data: bytes) -> None:
        """See Request."""
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            data = b"".join([*pieces, data])
        try:
            render = self._send(data)
        except Exception:  # a fault of the gateway
            render = partial(_failed, Failure())
        if self._sent is None:
            self._as_request(0).body_received(data, render)

    def _send(self, data: bytes) -> Callable[[Request], Any] | None:
        """Send the request with this body. Where it is not sent: how to serve it, if its body was read."""
        known = self._known
        assert known is not None
        call = self._read(known, data)
        if call is None:
            return None
        plan = known.path.plan_for(call)
        if plan is None:
            return partial(known.resource.serve, call)
        admit, claim = self._admit, None
        if admit is not None:
            self._claim = self._last_claim = claim = admit(call, known.caller, self._last_claim)
        if claim is None or claim.reached is None:
            if known.plan is not plan:
                known.plan, known.lines = plan, known.path.lines(plan, call)
            self._sent = known.path.send(call, plan, known.lines, self, self._began, known.address, claim)
            if self._sent is not None:
                self._timeouts.expire_after(plan.step.timeout)
                return None
        return partial(known.resource.serve, call, claim=claim)

    def too_late(self) -> None:
        """The time for the answer, or for more of it, is over, if it is awaited on the straight path."""
        sent = self._sent
        if sent is None:
            return
        left = sent.time_left()
        if left > 0:
            self._timeouts.expire_after(left)
        else:
            sent.seconds_left = 0.0
            sent.leave()

    def leave(self) -> None:
        """Await no answer on the straight path any more."""
        if self._sent is not None:
            self._sent.leave()

    def drain(self) -> None:
        """The gateway is stopping: an answer that has not begun is to have ``Connection: close``."""
        if self._sent is not None and self._sent.response is None:
            self._sent.leave()

    def interrupt(self, error: GatewayError) -> bool:
        """See Request."""
        return self.as_request().interrupt(error)

    def connectionLost(self, reason: Failure) -> None:
        """See Request."""
        self.as_request().connectionLost(reason)
        self.forget()

    def as_request(self) -> Request:
        """The Request that takes its place, on the long way."""
        if self._sent is None:
            return self._as_request(self.bytes_in)
        self._sent.leave()
        assert isinstance(self._channel.request, Request)
        return self._channel.request

    def _as_request(self, bytes_in: int) -> Request:
        known, channel = self._known, self._channel
        assert known is not None
        request = Request(channel)
        request.method, request.uri, request.path, request.clientproto = known.facts
        request.given = {**known.given, b"content-length": b"%d" % self._length}
        request.request_id = self._request_id
        request.resource, request.max_body = known.resource, known.resource.max_body
        request.caller = known.caller  # also if a reload has removed the key meanwhile
        request.limited, self._claim, self._last_claim = self._claim, None, None
        known.resource.begin_record(request)
        request.record.started = request.record.received = self._began
        request._taken, request.bytes_in = self._taken, bytes_in
        self._pieces = []
        channel.request = request
        if known.tree is not channel.site.resource:
            self.forget()
        return request

    def _read(self, known: RepeatedHead, body: bytes) -> Call | None:
        endpoint = known.path.endpoint
        raw = RawRequest(endpoint, body, known.headers, self._request_id, known.caller, known.kind)
        try:
            found = endpoint.read(raw)
        except GatewayError:  # which the client gets on the long way
            return None
        return found if isinstance(found, Call) else None

    # For the StraightCall

    def finish(self, answer: bytes) -> None:
        """See Client."""
        self._sent = self._claim = None
        channel = self._channel
        channel.site.bodies.give_back(self._length)
        write(channel.transport, answer)
        self._done(may_be_paused=False)

    def _done(self, may_be_paused: bool) -> None:
        channel = self._channel
        channel.request_done(may_be_paused)
        if self._known is not None and self._known.tree is not channel.site.resource:
            self.forget()

    def begin(self, head: bytes, seconds: float) -> None:
        """See Client."""
        self._head = head
        self._channel.site.bodies.give_back(self._taken)
        self._taken = 0
        self._timeouts.expire_after(seconds)

    def write(self, data: bytes, chunk: bytes = b"") -> None:
        """See Client."""
        if self._claim is not None:
            self._claim.events += data.count(b"data:")
        data = chunk or b"%x\r\n%s\r\n" % (len(data), data)
        if self._head:
            data, self._head = self._head + data, b""
        write(self._channel.transport, data)

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """See Client."""
        self._channel.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """See Client."""
        self._channel.unregisterProducer()

    def end(self, last: bytes) -> None:
        """See Client."""
        self._sent = self._claim = None
        self.write(last, b"%x\r\n%s\r\n0\r\n\r\n" % (len(last), last) if last else b"0\r\n\r\n")
        self._done(may_be_paused=True)

    def abort(self, why: str) -> None:
        """See Client."""
        log.failure(why)
        self._channel.request = None
        self._channel.transport.abortConnection()

    def take_long_way(self, call: StraightCall) -> None:
        """See Client."""
        if call.seconds_left:  # a limit that has passed unnoticed, in a freeze, is checked once more
            left = self._timeouts.seconds_left
            call.seconds_left = left if left > 0 else GRACE_SECONDS
        self._sent, known = None, self._known
        assert known is not None
        request = self._as_request(call.call.size)
        if call.response is not None:  # which has begun
            request._head, self._head = self._head, b""
            request.startedWriting, request.chunked = not request._head, 1
            request.code = call.response.code
        try:
            serving = known.resource.resume(call, request)
        except Exception:  # a fault of the gateway
            call.abandon()
            serving = fail()
        request.serve(serving)


def _failed(failure: Failure, _: Request) -> Deferred[None]:
    """Serve a request that the gateway has failed to send."""
    return fail(failure)
