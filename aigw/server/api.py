"""The API's resources: the list of models, and the endpoints that serve calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.web.server import NOT_DONE_YET

from aigw.config.model import Config
from aigw.errors import GatewayError, RouteNotFound, UpgradeRequired
from aigw.net import headers
from aigw.net.codings import coding_in, decode
from aigw.net.slices import Slices
from aigw.protocols.endpoints import ENDPOINTS, Endpoint, model
from aigw.protocols.requests import Call, begin_to_read
from aigw.protocols.skip import Steps
from aigw.proxy.exchange import Gateway
from aigw.server.request import Request
from aigw.server.resources import ApiResource, HealthResource, PathPrefix
from aigw.telemetry.record import RecordBuilder, Sink

BeginTrace = Callable[["bytes | None"], Any]


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
        request.trail = RecordBuilder(self._seconds, request.request_id, request.method[:20].decode("latin-1"), path)
        if self._begin_trace is not None:
            request.trail.trace = self._begin_trace(request.header(b"traceparent"))
        super().admit(request)
        if given := request.header(b"content-encoding"):
            request.coding = coding_in(given)

    def wrong_method(self, request: Request) -> GatewayError:
        """A client that asks for a WebSocket is told to use HTTP: Codex then does so at once."""
        if b"websocket" in (request.header(b"upgrade") or b"").lower():
            message = "WebSockets are not served here; send a POST over HTTP."
            return UpgradeRequired(message, headers={"Upgrade": "HTTP/1.1"})
        return super().wrong_method(request)

    def render(self, request: Any) -> int:
        """Start serving. Raises GatewayError."""
        trail = request.trail
        trail.received = self._seconds()
        if request.coding is None:
            given = headers.for_provider(request.header)
            found = begin_to_read(self._endpoint, request.body(), given, request.request_id, request.caller)
        else:
            found = self._read_compressed(request, request.body(), request.coding)

        def serve(call: Call) -> Deferred[None]:
            trail.stream = call.stream
            return self._gateway.serve(call, request, trail)

        request.serve(serve(found) if isinstance(found, Call) else self._slices.run(found).addCallback(serve))
        return NOT_DONE_YET

    def _read_compressed(self, request: Request, body: bytes | bytearray, coding: str) -> Steps[Call]:
        plain = yield from decode(body, coding, self.max_body, request.take)
        del body
        given = headers.for_provider(request.header)
        found = begin_to_read(self._endpoint, plain, given, request.request_id, request.caller)
        del plain
        return found if isinstance(found, Call) else (yield from found)

    def headers(self, request: Request) -> list[headers.Header]:
        """Which route, provider and model answered, after how many attempts."""
        sent = super().headers(request)
        trail: RecordBuilder = request.trail
        if trail.route is not None:
            sent += [(b"x-aigw-route", headers.value(trail.route)), (b"x-aigw-attempts", b"%d" % trail.tried)]
        if trail.provider is not None and trail.model is not None:
            sent += [(b"x-aigw-provider", headers.value(trail.provider)), (b"x-aigw-model", headers.value(trail.model))]
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
