"""The straight path: the commonest call in two plain functions, one at its request and one at its answer.

It assumes that the answer of the first step comes whole, as a good 200 of at most 1 MiB, on a connection that is kept;
a stream is in ``stream``. On anything else the call goes the long way from its very start, its attempt already sent
(``Exchange.resume``): only that way decides what follows. Without this room every call goes the long way, and nothing
else changes.
"""

from __future__ import annotations

import os

from twisted.logger import Logger

from aigw.access.admission import Admission
from aigw.access.claim import Claim
from aigw.protocols.charges import CommonCounts, charged_tokens, common_counts
from aigw.protocols.endpoint import JSON, Call, Endpoint
from aigw.protocols.usage import usage_in
from aigw.proxy.answers import Stream
from aigw.proxy.gateway import Gateway
from aigw.proxy.plain import HOLD_PLAIN
from aigw.straight.call import Client, StraightCall
from aigw.straight.head import AnswerHead, AnswerHeads
from aigw.straight.plan import Plan, Plans
from aigw.straight.stream import StraightStream
from aigw.telemetry.record import AttemptRecord, Record, Sink, milliseconds, requested
from aigw.upstream.response_parser import ResponseParser

IS_ON = os.environ.get("AIGW_STRAIGHT_PATH") != "off"

log = Logger()

_ANSWER = b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\nX-Request-Id: %s\r\n%s%s\r\n%s"
_HEAD = b"HTTP/1.1 200 OK\r\n%sX-Request-Id: %s\r\n%s%s\r\n"
_Answer = tuple[bytes, dict[str, int] | None, CommonCounts | None, int]


def straight_path(gateway: Gateway, endpoint: Endpoint, sink: Sink, admission: Admission) -> StraightPath | None:
    """The straight path of an endpoint; None if it has none."""
    has_none = endpoint.state_in or endpoint.id_in or endpoint.flows or JSON not in endpoint.takes
    return StraightPath(gateway, endpoint, sink, admission) if IS_ON and not has_none else None


class StraightPath:
    """The straight path of one endpoint."""

    def __init__(self, gateway: Gateway, endpoint: Endpoint, sink: Sink, admission: Admission) -> None:
        self.gateway = gateway
        self.endpoint = endpoint
        self._path = f"/v1/{endpoint.path}"  # as records show it
        self._sink = sink
        self._admission = admission
        self._store = admission.store
        self._spends_tokens = endpoint.spends == "tokens"
        self.seconds = gateway.clock.seconds
        self._router = gateway.router
        self._cooldowns = gateway.cooldowns[endpoint.path]
        self.plan_for = Plans(gateway, endpoint.path).plan_for
        self._heads = AnswerHeads(gateway.router)
        self.stream_heads = AnswerHeads(gateway.router, of_streams=True)

    def lines(self, plan: Plan, call: Call) -> bytes:
        """The headers of the request, but that of its id. A header of the client does not replace the provider's."""
        return b"".join({**plan.own, **call.headers, **plan.own}.values())

    def send(
        self,
        call: Call,
        plan: Plan,
        lines: bytes,
        client: Client,
        began: float,
        address: str | None,
        claim: Claim | None,
    ) -> StraightCall | None:
        """Send the request of ``plan``, for which there is an idle connection; None if the call cannot go this way.

        ``lines`` are the headers for the provider, but that of the request id. ``began`` is when its head was there.
        ``claim`` is what was admitted, if its caller has limits.
        """
        body, difference = self.endpoint.rewrite(call, plan.model, plan.step.changes)
        if difference.dropped or not isinstance(body, bytes):
            return None
        connection = plan.client.pool.take_idle()
        if connection is None:
            return None
        try:
            what = self, call, plan, client, began, address, connection, claim
            sent = StraightStream(*what, difference) if call.stream else StraightCall(*what)
            head = b"%s%d\r\n%sX-Request-Id: %s\r\n\r\n" % (plan.start, len(body), lines, call.request_id.encode())
            connection.send_straight(sent, head, body)
        except Exception:  # a fault of the gateway
            connection.abort()
            raise
        self.gateway.running.add(sent)
        sent.waiting_since = self.seconds()
        return sent

    def finish(self, sent: StraightCall, parser: ResponseParser) -> bool:
        """Send the whole answer to the client, and record it; False if it is not as this path needs it."""
        now, body = self.seconds(), sent.body_with(parser)
        try:
            found = self._answer(sent, parser, body)
        except Exception:
            log.failure("An answer takes the long way: unexpected error")
            found = None
        if found is None or not sent.connection.free(may_be_paused=False):
            parser.give_back(body)
            return False
        answer, usage, common, tokens = found
        self.gateway.running.discard(sent)
        self._cooldowns.succeeded(sent.plan.step)
        try:
            sent.client.finish(answer)
        except Exception:
            sent.client.abort("The gateway could not answer a client: unexpected error")
        if usage is None:
            try:
                usage = usage_in(body)
            except Exception:
                log.failure("The gateway could not read the usage of an answer: unexpected error")
                usage = {}
            common = common_counts(usage)
        self._settle(sent, tokens, now, now, len(body), usage, common)
        return True

    def head(self, sent: StraightStream, head: AnswerHead) -> bytes:
        """The head of a streamed answer."""
        claim, about = sent.claim, sent.plan.about
        lines, limits = (head.lines, b"") if claim is None else (head.limited, claim.lines)
        return _HEAD % (lines, sent.call.request_id.encode(), about, limits)

    def end(self, sent: StraightStream, relay: Stream) -> None:
        """The whole streamed answer was written: end it for the client, and record it."""
        usage, tokens = relay.usage, 0
        common = common_counts(usage) if usage else None
        if sent.claim is not None and self._spends_tokens:
            tokens = common[2] if common is not None else sum(charged_tokens(usage).values())
            if not tokens:  # it is estimated on the long way
                sent.take_over().callback(None)
                return
        last, step = self.seconds(), sent.plan.step
        self.gateway.running.discard(sent)
        self._cooldowns.succeeded(step)
        if relay.finished:
            self.gateway.finishing.note(step, self.endpoint.path)
        try:
            unwritten, relay.last = relay.last, b""
            sent.client.end(unwritten)
        except Exception:
            sent.client.abort("The gateway could not end an answer: unexpected error")
        self._settle(sent, tokens, sent.first_byte, last, relay.bytes_out, usage, common)

    def _settle(
        self,
        sent: StraightCall,
        tokens: int,
        first: float,
        last: float,
        size: int,
        usage: dict[str, int],
        common: CommonCounts | None,
    ) -> None:
        """Settle and record a call that is over; see _record."""
        try:
            if sent.claim is not None:
                settle = self._store.settle
                settled = settle(sent.claim, tokens)
                if self._admission.queues:
                    self._admission.settled(settled, sent.claim)
            self._sink(self._record(sent, first, last, size, usage, common))
        except Exception:
            log.failure("The gateway could not record a request: unexpected error")

    def _answer(self, sent: StraightCall, parser: ResponseParser, body: bytes) -> _Answer | None:
        """The whole answer for the client; None if it is not as this path needs it.

        And what it used, if that is needed before the client has it.
        """
        claim, plan = sent.claim, sent.plan
        head = self._heads.head_of(parser)
        if (
            head is None
            or len(body) > HOLD_PLAIN
            or self.endpoint.check_answer(body, head.kind) is not None
            or any([change(body) is not body for change in self._router.without_keys[plan.step.provider.name]])
        ):
            return None
        usage, common, tokens, lines, limits = None, None, 0, head.lines, b""
        if claim is not None:
            lines, limits = head.limited, claim.lines
            if self._spends_tokens:
                usage = usage_in(body)
                common = common_counts(usage)
                tokens = common[2] if common is not None else sum(charged_tokens(usage).values())
                if not tokens:  # it is estimated on the long way
                    return None
        answer = _ANSWER % (lines, len(body), sent.call.request_id.encode(), plan.about, limits, body)
        return answer, usage, common, tokens

    def _record(
        self,
        sent: StraightCall,
        first: float,
        last: float,
        size: int,
        usage: dict[str, int],
        common: CommonCounts | None,
    ) -> Record:
        """The record of a call that is over: ``first`` is when its answer began for the client, ``last`` its end."""
        call, plan, step, began, ended = sent.call, sent.plan, sent.plan.step, sent.began, self.seconds()
        number, provider, model = step.number, step.provider.name, step.model
        took = round((last - sent.received) * 1000)
        attempt = AttemptRecord(number, provider, model, "ok", 200, took, "", None, plan.host, plan.path)
        return Record(
            request_id=call.request_id,
            method="POST",
            path=self._path,
            started=began,
            caller="" if call.caller is None else call.caller.name,
            client_address=sent.address,
            requested_model=requested(call.model),
            route=plan.route.name,
            step=number,
            provider=provider,
            model=model,
            stream=call.stream,
            bytes_in=call.size,
            bytes_out=size,
            usage=usage,
            attempts=(attempt,),
            status=200,
            duration_ms=milliseconds(ended - began),
            ttft_ms=milliseconds(first - began),
            ended=ended,
            ttft=first - began,
            overhead=ended - sent.received - (last - sent.waiting_since),
            common=common,
        )
