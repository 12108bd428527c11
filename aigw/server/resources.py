"""The resources: from a request to a Call, from an answer or an error to the client."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.web.resource import Resource as TwistedResource
from twisted.web.server import NOT_DONE_YET, Site

from aigw.access.keys import authenticate
from aigw.access.refused_keys import RefusedKeys
from aigw.config.loader import Config
from aigw.errors import MethodNotAllowed, PathNotFound, RouteNotFound
from aigw.net import headers
from aigw.net.slices import Slices
from aigw.protocols.endpoints import ENDPOINTS, Call, Endpoint, begin_to_read, model
from aigw.proxy.exchange import Gateway
from aigw.server.bodies import Bodies
from aigw.server.channel import Channel
from aigw.server.connection_limits import Admission
from aigw.server.mismatch import Mismatches
from aigw.server.request import Request
from aigw.server.turns import Turns
from aigw.telemetry.record import Sink, Trail

BeginTrace = Callable[["bytes | None"], Any]


class Front(Site):
    """The site that every listener serves; assigning ``resource`` replaces the whole tree for the next requests."""

    protocol = Channel  # type: ignore[assignment]  # not twisted.web's wrapper, which exists for HTTP/2
    noisy = False
    displayTracebacks = False
    draining = False

    def __init__(self, tree: TwistedResource, reactor: Any) -> None:
        super().__init__(tree, requestFactory=Request, timeout=None, parsePOSTFormSubmission=False, reactor=reactor)
        self.admission = Admission(reactor, self._make_way)
        self.refused_keys = RefusedKeys(reactor)
        self.bodies = Bodies()
        self.mismatches = Mismatches(reactor)
        self.turns = Turns(reactor)
        self.idle: OrderedDict[Channel, None] = OrderedDict()  # without a request, the longest so at first
        self._open: set[Channel] = set()
        self._emptied: Deferred[None] | None = None

    def entered(self, channel: Channel) -> None:
        """A client has connected."""
        self._open.add(channel)
        self.idle[channel] = None
        self.admission.entered(channel.transport.getPeer())

    def left(self, channel: Channel) -> None:
        """A client's connection is gone."""
        self._open.discard(channel)
        self.idle.pop(channel, None)
        self.admission.left(channel.transport.getPeer(), channel.gives_way)
        if self._emptied is not None and not self._open:
            emptied, self._emptied = self._emptied, None
            self.refused_keys.close()
            emptied.callback(None)

    def _make_way(self) -> bool:
        """Close the connection that has been without a request for the longest, if there is one, as nginx does."""
        if not self.idle:
            return False
        channel, _ = self.idle.popitem(last=False)
        channel.give_way()
        return True

    def drain(self) -> Deferred[None]:
        """Take one more request of each client at most; fires when all connections are gone."""
        self.draining = True
        self.refused_keys.stop()
        if not self._open:
            self.refused_keys.close()
            return succeed(None)
        self._emptied = Deferred()
        for channel in list(self._open):
            channel.drain()
        return self._emptied

    def end(self) -> None:
        """Close every connection as soon as what was written is sent."""
        for channel in list(self._open):
            channel.end()

    def abort(self) -> None:
        """Close every connection now."""
        for channel in list(self._open):
            channel.transport.abortConnection()

    def getResourceFor(self, request: Any) -> Any:
        """The leaf that serves a path: at once where the whole path is known, else by a walk down the tree."""
        known = self.resource.known.get(request.path)
        if known is not None:
            request.postpath = []
            return known
        request.prepath = []
        request.postpath = [unquote_to_bytes(part) for part in request.path[1:].split(b"/")]
        return super().getResourceFor(request)

    def acceptableProtocols(self) -> list[bytes]:
        """What ALPN offers, whatever else is installed."""
        return [b"http/1.1"]

    def startFactory(self) -> None:
        """Twisted would start a timer for its access log here."""

    def stopFactory(self) -> None:
        """No listener is left."""
        self.admission.close()
        self.mismatches.close()

    def log(self, request: Any) -> None:
        """Twisted would write its access log here, whole URIs included."""


class Leaf(TwistedResource):
    """What all resources share: how they are admitted, and what their answers carry."""

    isLeaf = True
    known: Mapping[bytes, TwistedResource] = {}  # below this one, by whole paths; where to look first
    methods: tuple[bytes, ...] = (b"GET", b"HEAD")
    max_body = 0  # bytes; a body that is not read costs nothing, and ends the connection

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def getChild(self, path: bytes, request: Any) -> TwistedResource:
        """Anything below that is not a resource of its own is unknown."""
        return Unknown(self.config)

    def admit(self, request: Request) -> None:
        """Judge the request by its head: the key first, so that who has none learns nothing."""
        request.caller = authenticate(
            self.config.callers, request.header(b"x-api-key"), request.header(b"authorization")
        ).name
        self.check_path(request)
        self.check_method(request)

    def check_path(self, request: Request) -> None:
        """Raises PathNotFound unless the path ends here."""
        if any(request.postpath or ()):
            raise unknown(request)

    def check_method(self, request: Request) -> None:
        """Raises MethodNotAllowed, with ``Allow``."""
        if request.method not in self.methods:
            allowed = b", ".join(self.methods).decode()
            raise MethodNotAllowed(
                f"This path answers {allowed}, not {request.method[:20].decode('latin-1')}.", headers={"Allow": allowed}
            )

    def headers(self, request: Request) -> list[headers.Header]:
        """What every answer carries."""
        return [(b"x-request-id", request.request_id.encode())]

    def answered(self, request: Request, status: int) -> None:
        """Nothing to record."""


def unknown(request: Request) -> PathNotFound:
    """The error for a path that is none of ours."""
    path = request.path[:200].decode("latin-1")
    return PathNotFound(f"Unknown path {path!r}; the API is below /v1, for example POST /v1/chat/completions.")


class Unknown(Leaf):
    """Every path that is not the gateway's, after the key was checked."""

    def check_path(self, request: Request) -> None:
        """Always refuses."""
        raise unknown(request)


class Branch(Unknown):
    """A path that only leads to others."""

    isLeaf = False


class Health(Leaf):
    """``GET /health``: alive, without a key and without asking anybody."""

    def admit(self, request: Request) -> None:
        """Everybody may ask."""
        self.check_path(request)
        self.check_method(request)

    def render(self, request: Any) -> bytes:
        """As the original program writes it."""
        return b'{"status": "healthy"}'


class Models(Leaf):
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


class Calls(Leaf):
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
        request.trail = Trail(self._seconds, request.request_id, request.method[:20].decode("latin-1"), path)
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
            return self._gateway.serve(call, request, trail)

        request.serve(serve(found) if isinstance(found, Call) else self._slices.run(found).addCallback(serve))
        return NOT_DONE_YET

    def headers(self, request: Request) -> list[headers.Header]:
        """Which route, provider and model answered, after how many attempts."""
        sent = super().headers(request)
        trail: Trail = request.trail
        if trail.route is not None:
            sent += [(b"x-aigw-route", headers.value(trail.route)), (b"x-aigw-attempts", b"%d" % trail.tried)]
        if trail.provider is not None and trail.model is not None:
            sent += [(b"x-aigw-provider", headers.value(trail.provider)), (b"x-aigw-model", headers.value(trail.model))]
        return sent

    def answered(self, request: Request, status: int) -> None:
        """The one record of the request."""
        trail: Trail = request.trail
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


def tree(config: Config, gateway: Gateway, sink: Sink, begin_trace: BeginTrace | None = None) -> Leaf:
    """The resources of the API, by path; ``begin_trace`` takes a client's ``traceparent`` and gives a Trace."""
    slices = Slices(gateway.clock)
    root, v1, chat = Branch(config), Branch(config), Branch(config)
    root.putChild(b"health", Health(config))
    root.putChild(b"v1", v1)
    v1.putChild(b"models", Models(config))
    v1.putChild(b"chat", chat)
    for endpoint in ENDPOINTS.values():
        parent, name = (chat, "completions") if endpoint.path == "chat/completions" else (v1, endpoint.path)
        calls = Calls(config, endpoint, gateway, sink, begin_trace, slices)
        parent.putChild(name.encode(), calls)
        root.known = {**root.known, f"/v1/{endpoint.path}".encode(): calls}
    return root
