"""The resources: from a request to a Call, from an answer or an error to the client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hmac import compare_digest

from twisted.web.resource import Resource as TwistedResource
from twisted.web.server import NOT_DONE_YET

from aigw.access.keys import Keys
from aigw.config.model import Config
from aigw.errors import GatewayError, MethodNotAllowed
from aigw.key_forms import shortened
from aigw.net import headers
from aigw.protocols.error_bodies import error_body
from aigw.server.cors import CrossOrigin
from aigw.server.request import Request
from aigw.server.unknown_paths import unknown_path


class ApiResource(TwistedResource):
    """The common part of all resources: the checks of a request, and the headers of an answer."""

    isLeaf = True
    keys = Keys(())  # of the root, which all resources below it use
    known: Mapping[bytes, ApiResource] = {}  # below this one, by whole paths; where to look first
    methods: tuple[bytes, ...] = (b"GET", b"HEAD")  # none where there is nothing
    error_body: Callable[[GatewayError, str], bytes] = staticmethod(error_body)
    max_body = 0  # bytes; a body that is not read costs nothing, and ends the connection
    leads_on = False  # what follows its path is for it to read

    def __init__(self, config: Config, cross_origin: CrossOrigin | None = None) -> None:
        """``cross_origin``: pages of other origins may call it."""
        super().__init__()
        self.config = config
        self.cross_origin = cross_origin

    def getChild(self, path: bytes, request: Request) -> ApiResource:
        """Every other path below this resource is unknown."""
        return NotFound(self.config, self.cross_origin)

    def admit(self, request: Request) -> None:
        """Judge the request by its head: its caller first, so that a client without a key gets no other error.

        A preflight has no key, and is answered by another resource. Raises PathNotFound unless the path ends here,
        MethodNotAllowed, and what ``identify`` does.
        """
        if self.cross_origin is not None and self.cross_origin.is_preflight(request):
            request.resource, request.max_body = Preflight(self.config, self.cross_origin), 0
            return
        self.identify(request)
        if not self.methods or (request.postpath and any(request.postpath) and not self.leads_on):
            raise self.wrong_path(request)
        if request.method not in self.methods:
            raise self.wrong_method(request)

    def identify(self, request: Request) -> None:
        """Find out who asks, by the key. Raises Unauthorized, NotAllowed."""
        given, keys, channel = request.given, request.site.resource.keys, request.channel
        api_key, authorization = given.get(b"x-api-key"), given.get(b"authorization")
        azure = given.get(b"api-key")  # as clients of Azure send it
        last = channel.recognized
        if last is None:
            request.caller = caller = keys.authenticate(api_key, authorization, azure)
            if caller.key is None and authorization and api_key is None and azure is None and caller.expires is None:
                channel.recognized = keys, authorization, caller
        elif last[0] is keys and authorization and api_key is azure is None and compare_digest(last[1], authorization):
            request.caller = last[2]  # the same header again: it needs no hash
        else:
            channel.recognized = None
            self.identify(request)

    def wrong_path(self, request: Request) -> GatewayError:
        """The error for a path that leads nowhere."""
        return unknown_path(request.path)

    def wrong_method(self, request: Request) -> GatewayError:
        """The error for a method that the path does not support."""
        allowed = b", ".join(self.methods).decode()
        method = shortened(request.method.decode("latin-1"), 20)
        return MethodNotAllowed(
            f"This path does not support the method {method}; use {allowed}.", headers={"Allow": allowed}
        )

    def lines(self, request: Request, sent: list[headers.Header]) -> bytes:
        """All header lines of an answer."""
        return headers.lines([*sent, (b"x-request-id", request.request_id.encode()), *self.headers(request)])

    def headers(self, request: Request) -> list[headers.Header]:
        """What its answers carry beside the request id."""
        return [] if self.cross_origin is None else self.cross_origin.of_an_answer(request)

    def answered(self, request: Request, status: int) -> None:
        """Nothing to record."""


class NotFound(ApiResource):
    """Every unknown path; the key is checked first."""

    methods = ()


class Preflight(NotFound):
    """The answer to the browser of a page that asks whether it may call."""

    def headers(self, request: Request) -> list[headers.Header]:
        """Whether it may, and how."""
        assert self.cross_origin is not None
        return self.cross_origin.of_a_preflight(request)

    def render(self, request: Request) -> int:
        """Nothing but the headers."""
        request.begin(204, [], None)
        request.write(b"")
        request.end()
        return NOT_DONE_YET


class PathPrefix(NotFound):
    """A path that is only the prefix of others."""

    isLeaf = False


class RootResource(NotFound):
    """``/``: clients send ``HEAD /`` without a key to learn whether the gateway can be reached."""

    def admit(self, request: Request) -> None:
        """See ApiResource."""
        if request.method != b"HEAD":
            super().admit(request)

    def render(self, request: Request) -> bytes:
        """Something, for it to have a length."""
        return b"{}"


class HealthResource(ApiResource):
    """``GET /health``: the process runs. It needs no key and asks no provider."""

    def identify(self, request: Request) -> None:
        """No key is needed."""

    def render(self, request: Request) -> bytes:
        """The same bytes as the original program."""
        return b'{"status": "healthy"}'
