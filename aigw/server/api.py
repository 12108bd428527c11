"""The API's resources: the endpoints that serve calls, and the tree of all."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import copy
from typing import Any
from urllib.parse import parse_qs

from twisted.internet.defer import Deferred

from aigw.access.admission import Admission
from aigw.access.keys import Keys
from aigw.access.ledger import Ledger
from aigw.access.limit_lines import renamed
from aigw.config.model import Config
from aigw.errors import GatewayError, UpgradeRequired
from aigw.key_forms import shortened
from aigw.net import headers
from aigw.net.codings import coding_in, decode
from aigw.protocols.endpoint import Call, Endpoint, RawRequest
from aigw.protocols.endpoints import ENDPOINTS
from aigw.protocols.skip import Steps
from aigw.proxy.gateway import Gateway
from aigw.routing.response_ids import is_id
from aigw.server.cors import CrossOrigin
from aigw.server.limited import Admit, CountedStream, Limited, LimitedClaim, UsageResource
from aigw.server.models import ModelsResource
from aigw.server.request import Request
from aigw.server.resources import ApiResource, HealthResource, PathPrefix, RootResource
from aigw.settings.callers import Caller
from aigw.straight.call import StraightCall
from aigw.straight.path import StraightPath, straight_path
from aigw.telemetry.counters import Counters
from aigw.telemetry.pricing import Pricing
from aigw.telemetry.record import RecordBuilder, Sink
from aigw.telemetry.trace_context import Trace

BeginTrace = Callable[["bytes | None"], Trace]


class EndpointResource(ApiResource):
    """One endpoint of the API: reads a Call, lets the gateway serve it, and records the result."""

    methods: tuple[bytes, ...] = (b"POST",)
    straight: StraightPath | None = None

    def __init__(
        self,
        config: Config,
        endpoint: Endpoint,
        gateway: Gateway,
        limited: Limited,
        sink: Sink,
        begin_trace: BeginTrace | None,
        cross_origin: CrossOrigin | None = None,
        pricing: Pricing | None = None,
    ) -> None:
        super().__init__(config, cross_origin)
        self.max_body = config.max_body
        self._pricing = pricing if endpoint.spends == "tokens" else None
        self._endpoint = endpoint
        self._path = f"/v1/{endpoint.path}"  # as records show it
        self._stored: StoredResource | None = None
        if endpoint.stored is not None:
            self._stored = StoredResource(config, endpoint.stored, gateway, limited, sink, begin_trace, cross_origin)
        self.error_body = endpoint.error_body
        self._gateway = gateway
        self._counts = endpoint.spends != "nothing"
        self._serve_limited = limited.serve if self._counts else gateway.serve
        self._limited = limited
        self._sink = sink
        self._begin_trace = begin_trace
        self._seconds: Callable[[], float] = gateway.clock.seconds
        if begin_trace is None and self._pricing is None and cross_origin is None:
            self.straight = straight_path(gateway, endpoint, sink, limited.admission)

    def admit(self, request: Request) -> None:
        """Begin the record of the request, so that a refusal is recorded too; a preflight is none."""
        if self.cross_origin is not None and self.cross_origin.is_preflight(request):
            super().admit(request)
            return
        self.begin_record(request)
        super().admit(request)
        if coding := request.given.get(b"content-encoding"):
            request.coding = coding_in(coding)

    def begin_record(self, request: Request) -> None:
        """The record of a request whose head is complete."""
        now, method = self._seconds(), request.method.decode("latin-1")
        if len(method) > 20:
            method = shortened(method, 20)
        request.record = RecordBuilder(request.request_id, method, self._path, now, seconds=self._seconds, received=now)
        if self.config.log_client_address:
            request.record.client_address = request.channel.client_address
        request.record.pricing = self._pricing
        if self._begin_trace is not None:
            request.record.trace = self._begin_trace(request.given.get(b"traceparent"))

    def getChild(self, path: bytes, request: Request) -> ApiResource:
        """What is below and no endpoint itself: stored there, or refused, and recorded, as a request to this one."""
        request.postpath.insert(0, path)
        leaf = copy((self._stored if any(request.postpath) else None) or self)
        leaf.isLeaf = True
        return leaf

    def wrong_method(self, request: Request) -> GatewayError:
        """A client that asks for a WebSocket gets 426: Codex then uses HTTP at once."""
        if b"websocket" in (request.header(b"upgrade") or b"").lower():
            message = "This gateway does not support WebSockets; send a POST request over HTTP."
            return UpgradeRequired(message, headers={"Upgrade": "HTTP/1.1"})
        return super().wrong_method(request)

    def render(self, request: Request) -> Deferred[None]:
        """Start serving. Raises GatewayError."""
        record = request.record
        record.received = self._seconds()
        if request.coding is None:
            given, endpoint = request.given, self._endpoint
            sent = headers.for_provider(given, endpoint.takes, endpoint.client_headers)
            kind = given.get(b"content-type", b"")
            tail = _query_of(request) if endpoint.passes_query else b""
            raw = RawRequest(endpoint, request.body, sent, request.request_id, request.caller, kind, tail)
            found = endpoint.read(raw)
        else:
            found = self._read_compressed(request, request.body, request.coding)
        serve = self._serve_limited if request.caller is not None and request.caller.accounts else self._gateway.serve
        if isinstance(found, Call):
            return serve(found, request, record)
        return request.site.slices.run(found).addCallback(serve, request, record)

    def admits(self, caller: Caller) -> Admit | None:
        """What admits the calls of this caller, see Limited; None for one without limits."""
        return self._limited.admits(self._endpoint) if caller.accounts and self._counts else None

    def serve(self, call: Call, request: Request, claim: LimitedClaim | None = None) -> Deferred[None]:
        """Serve a call. ``claim`` is what the store was asked for, if it was asked. Raises GatewayError."""
        record = request.record
        record.received = self._seconds()
        if request.caller is not None and request.caller.accounts and self._counts:
            return self._limited.serve(call, request, record, claim)
        return self._gateway.serve(call, request, record)

    def resume(self, sent: StraightCall, request: Request) -> Deferred[None]:
        """The same for a call that was admitted and sent."""
        request.record.received = sent.received
        claim = request.limited
        client = CountedStream(claim, request) if sent.call.stream and claim is not None else request
        return self._gateway.resume(sent, client, request.record)

    def _read_compressed(self, request: Request, body: bytes | bytearray, coding: str) -> Steps[Call]:
        plain = yield from decode(body, coding, self.max_body, request.take)
        del body
        given, endpoint = request.given, self._endpoint
        sent = headers.for_provider(given, endpoint.takes, endpoint.client_headers)
        kind, tail = given.get(b"content-type", b""), _query_of(request) if endpoint.passes_query else b""
        raw = RawRequest(endpoint, plain, sent, request.request_id, request.caller, kind, tail)
        found = endpoint.read(raw)
        del plain, raw
        return found if isinstance(found, Call) else (yield from found)

    def lines(self, request: Request, sent: list[headers.Header]) -> bytes:
        """See ApiResource; a caller with limits sees what is left of them."""
        about = self._about(request)
        all_of = [*sent, (b"x-request-id", request.request_id.encode())]
        if self.cross_origin is not None:
            all_of += self.cross_origin.of_an_answer(request)
        lines = headers.lines(all_of) + about
        return lines if request.limited is None else renamed(lines) + request.limited.lines

    def _about(self, request: Request) -> bytes:
        """Which route, step, provider and model answered, after how many attempts, and which steps were passed over."""
        record = request.record
        model = record.sent_model or record.model
        if model is not None and model != record.model:  # a client chose it
            model = request.site.redaction.hide(model)
        lines = headers.about(record.route, record.tried, record.step, record.provider, model)
        more = []
        if record.key_number is not None:
            more.append((b"x-aigw-key", b"%d" % record.key_number))
        if record.skipped:
            reasons = ", ".join([f"{each.step}={each.reason}" for each in record.skipped])
            more.append((b"x-aigw-skipped", reasons.encode()))
        if record.dropped:
            more.append((b"x-aigw-dropped", ", ".join(record.dropped).encode()))
        return lines + headers.lines(more) if more else lines

    def answered(self, request: Request, status: int) -> None:
        """The one record of the request."""
        record = request.record
        record.caller = request.caller.name if request.caller is not None else ""
        record.bytes_in = request.bytes_in
        record.bytes_out = record.bytes_out or request.sentLength
        if request.client_left:  # the status is not enough: a provider's 499 may be forwarded
            record.outcome = "client_gone"
        elif status >= 400:
            record.outcome = "error"
        if request.error is not None:
            named = f" ({request.error.param})" if request.error.param else ""
            record.error = f"{request.error.code or request.error.type}{named}"
        if request.limited is not None:
            self._limited.end(request.limited, record)
        elif request.caller is not None and request.caller.accounts and self._counts and status < 500:
            self._limited.count(request)
        self._sink(record.record(status))


class StoredResource(EndpointResource):
    """What a provider keeps, below an endpoint by its id. There is one for each request, see ``getChild``."""

    leads_on = True

    def __init__(self, config: Config, *more: Any) -> None:
        super().__init__(config, *more)
        self._path += "/{id}"

    def admit(self, request: Request) -> None:
        """See EndpointResource."""
        name, *below = request.postpath or [b""]
        self.methods = _STORED.get(b"/".join(below).rstrip(b"/"), ()) if is_id(name.decode("latin-1")) else ()
        super().admit(request)

    def render(self, request: Request) -> Deferred[None]:
        """See EndpointResource; a body has no meaning here."""
        record = request.record
        record.received = self._seconds()
        response_id, *below = [each.decode("latin-1") for each in request.postpath or () if each]
        query = _query_of(request)
        call = Call(
            self._endpoint,
            model="",
            stream=parse_qs(query[1:].decode()).get("stream") == ["true"],
            members={},
            headers=headers.for_provider(request.given),
            request_id=request.request_id,
            caller=request.caller,
            tail="/".join(["", response_id, *below]).encode() + query,
            method=request.method.decode("latin-1"),
            response_id=response_id,
        )
        has_limits = request.caller is not None and request.caller.accounts
        return (self._serve_limited if has_limits else self._gateway.serve)(call, request, record)


_STORED: dict[bytes, tuple[bytes, ...]] = {
    b"": (b"GET", b"DELETE"),
    b"cancel": (b"POST",),
    b"input_items": (b"GET",),
}  # by the path behind the id


def _query_of(request: Request) -> bytes:
    """The query with its question mark; empty where there is none."""
    return b"".join(request.uri.partition(b"?")[1:])


def tree(
    config: Config,
    gateway: Gateway,
    sink: Sink,
    begin_trace: BeginTrace | None = None,
    admission: Admission | None = None,
    pricing: Pricing | None = None,
    counters: Counters | None = None,
) -> ApiResource:
    """The resources of the API, by path; ``begin_trace`` takes a client's ``traceparent`` and gives a Trace.

    ``admission`` has what callers have left of their limits, and ``counters`` what they used since the start;
    ``pricing`` is there if accounts are kept.
    """
    admission = admission or Admission(Ledger(gateway.clock.seconds, time.time), gateway.clock)
    limited = Limited(gateway, admission, pricing)
    cross_origin = CrossOrigin(config.cors_origins) if config.cors_origins else None
    root, v1 = PathPrefix(config, cross_origin), PathPrefix(config, cross_origin)
    at: dict[str, ApiResource] = {"": root, "v1": v1}
    root.keys = Keys(config.callers, config.admins)
    root.putChild(b"", RootResource(config, cross_origin))
    root.putChild(b"health", HealthResource(config, cross_origin))
    root.putChild(b"v1", v1)
    v1.putChild(b"models", ModelsResource(config, gateway.router, cross_origin))
    v1.putChild(b"usage", UsageResource(config, admission.store, cross_origin, counters))
    for path, endpoint in sorted(ENDPOINTS.items()):  # an endpoint stands before those below it
        calls = EndpointResource(config, endpoint, gateway, limited, sink, begin_trace, cross_origin, pricing)
        for whole in (f"/v1/{path}", *endpoint.aliases):
            _put(whole, calls, at)
            root.known = {**root.known, whole.encode(): calls}
    return root


def _put(path: str, resource: ApiResource, at: dict[str, ApiResource]) -> None:
    """Put a resource where it belongs; ``at`` has those that are there, by their paths, and gets what leads to it."""
    above, _, name = path.lstrip("/").rpartition("/")
    if above not in at:
        _put(above, PathPrefix(resource.config, resource.cross_origin), at)
    at[above].isLeaf = False
    at[above].putChild(name.encode(), resource)
    at[path.lstrip("/")] = resource
