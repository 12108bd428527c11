"""The API's resources: the list of models, and the endpoints that serve calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.web.server import NOT_DONE_YET

from aigw.config.model import Config
from aigw.errors import RouteNotFound
from aigw.net import headers
from aigw.net.slices import Slices
from aigw.protocols.endpoints import ENDPOINTS, Endpoint, model
from aigw.protocols.requests import Call, begin_to_read
from aigw.proxy.exchange import Gateway
from aigw.server.request import Request
from aigw.server.resources import ApiResource, HealthResource, PathPrefix
from aigw.telemetry.record import RecordBuilder, Sink, requested
from aigw.telemetry.trace_context import Trace

BeginTrace = Callable[["bytes | None"], Trace]


class ModelsResource(ApiResource):
    """``GET /v1/models`` and ``/v1/models/{id}``, where an id may contain slashes."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._created = int(time.time())

    def check_path(self, request: Request) -> None:
        """An id follows, or nothing."""

    def render(self, request: Any) -> bytes:
        """The list, or one. Raises RouteNotFound."""
        name = b"/".join(request.postpath).decode(errors="replace")
        if not name:
            data = [model(route, self._created) for route in self.config.routes]
            return msgspec.json.encode({"object": "list", "data": data})
        if name not in self.config.routes:
            raise RouteNotFound(f"The model {name[:200]!r} is not a route of this gateway.", param="model")
        return msgspec.json.encode(model(name, self._created))


class EndpointResource(ApiResource):
    """One endpoint of the API: reads a Call, has the gateway serve it, and records what became of it."""

    methods = (b"POST",)

    def __init__(
        self,
        config: Config,
        endpoint: Endpoint,
        gateway: Gateway,
        sink: Sink,
        begin_trace: BeginTrace | None,
        slices: Slices,
    ) -> None:
        super().__init__(config)
        self.max_body = config.max_body
        self._endpoint = endpoint
        self._gateway = gateway
        self._sink = sink
        self._begin_trace = begin_trace
        self._slices = slices
        self._seconds: Callable[[], float] = gateway.clock.seconds

    def admit(self, request: Request) -> None:
        """Everything about the request is recorded, its refusal too."""
        path = f"/v1/{self._endpoint.path}"
        now, method = self._seconds(), request.method[:20].decode("latin-1")
        request.trail = RecordBuilder(request.request_id, method, path, now, seconds=self._seconds, received=now)
        if self.config.log_client_address:
            request.trail.client_address = request.channel.client_address
        if self._begin_trace is not None:
            request.trail.trace = self._begin_trace(request.header(b"traceparent"))
        super().admit(request)

    def render(self, request: Any) -> int:
        """Start serving. Raises GatewayError."""
        trail = request.trail
        trail.received = self._seconds()
        found = begin_to_read(
            self._endpoint, request.body(), headers.for_provider(request.header), request.request_id, request.caller
        )

        def serve(call: Call) -> Deferred[None]:
            trail.stream = call.stream
            trail.requested_model = requested(call.model)
            return self._gateway.serve(call, request, trail)

        request.serve(serve(found) if isinstance(found, Call) else self._slices.run(found).addCallback(serve))
        return NOT_DONE_YET

    def headers(self, request: Request) -> list[headers.Header]:
        """Which route, step, provider and model answered, after how many attempts, and which steps were passed over."""
        sent = super().headers(request)
        trail: RecordBuilder = request.trail
        if trail.route is not None:
            sent += [(b"x-aigw-route", headers.value(trail.route)), (b"x-aigw-attempts", b"%d" % trail.tried)]
        if trail.provider is not None and trail.model is not None:
            sent.append((b"x-aigw-step", b"%d" % (trail.step or 0)))
            sent += [(b"x-aigw-provider", headers.value(trail.provider)), (b"x-aigw-model", headers.value(trail.model))]
        if trail.skipped:
            reasons = ", ".join(f"{each.step}={each.reason}" for each in trail.skipped)
            sent.append((b"x-aigw-skipped", reasons.encode()))
        return sent

    def answered(self, request: Request, status: int) -> None:
        """The one record of the request."""
        trail: RecordBuilder = request.trail
        trail.caller = request.caller
        trail.bytes_in = request.bytes_in
        trail.bytes_out = trail.bytes_out or request.sentLength
        if request.client_left:  # not by its status: a provider's 499 may be passed on
            trail.outcome = "client_gone"
        elif status >= 400:
            trail.outcome = "error"
        if request.error is not None:
            named = f" ({request.error.param})" if request.error.param else ""
            trail.error = f"{request.error.code or request.error.type}{named}"
        self._sink(trail.record(status))


def tree(config: Config, gateway: Gateway, sink: Sink, begin_trace: BeginTrace | None = None) -> ApiResource:
    """The resources of the API, by path; ``begin_trace`` takes a client's ``traceparent`` and gives a Trace."""
    slices = Slices(gateway.clock)
    root, v1, chat = PathPrefix(config), PathPrefix(config), PathPrefix(config)
    root.putChild(b"health", HealthResource(config))
    root.putChild(b"v1", v1)
    v1.putChild(b"models", ModelsResource(config))
    v1.putChild(b"chat", chat)
    for endpoint in ENDPOINTS.values():
        parent, name = (chat, "completions") if endpoint.path == "chat/completions" else (v1, endpoint.path)
        calls = EndpointResource(config, endpoint, gateway, sink, begin_trace, slices)
        parent.putChild(name.encode(), calls)
        root.known = {**root.known, f"/v1/{endpoint.path}".encode(): calls}
    return root
