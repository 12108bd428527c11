"""The resources: from a request to a Call, from an answer or an error to the client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.web.resource import Resource as TwistedResource

from aigw.access.keys import authenticate
from aigw.config.model import Config
from aigw.errors import GatewayError, MethodNotAllowed, Unauthorized, WrongKey
from aigw.net import headers
from aigw.protocols.error_bodies import error_body
from aigw.server.request import Request
from aigw.server.unknown_paths import unknown_path


class ApiResource(TwistedResource):
    """What all resources share: how they are admitted, and what their answers carry."""

    isLeaf = True
    known: Mapping[bytes, TwistedResource] = {}  # below this one, by whole paths; where to look first
    methods: tuple[bytes, ...] = (b"GET", b"HEAD")
    error_body: Callable[[GatewayError], bytes] = staticmethod(error_body)
    max_body = 0  # bytes; a body that is not read costs nothing, and ends the connection

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def getChild(self, path: bytes, request: Any) -> TwistedResource:
        """Anything below that is not a resource of its own is unknown."""
        return NotFound(self.config)

    def admit(self, request: Request) -> None:
        """Judge the request by its head: the key first, so that who has none learns nothing."""
        try:
            request.caller = authenticate(
                self.config.callers, request.header(b"x-api-key"), request.header(b"authorization")
            )
        except Unauthorized as error:
            if request.header(b"api-key") and not isinstance(error, WrongKey):
                error.message = f"The header 'api-key' is not read. {error.message}"
            raise
        self.check_path(request)
        self.check_method(request)

    def check_path(self, request: Request) -> None:
        """Raises PathNotFound unless the path ends here."""
        if any(request.postpath or ()):
            raise unknown_path(request.path)

    def check_method(self, request: Request) -> None:
        """Raises MethodNotAllowed, with ``Allow``."""
        if request.method not in self.methods:
            raise self.wrong_method(request)

    def wrong_method(self, request: Request) -> GatewayError:
        """The error for a method that the path does not take."""
        allowed = b", ".join(self.methods).decode()
        method = request.method[:20].decode("latin-1")
        return MethodNotAllowed(f"This path answers {allowed}, not {method}.", headers={"Allow": allowed})

    def headers(self, request: Request) -> list[headers.Header]:
        """What every answer carries."""
        return [(b"x-request-id", request.request_id.encode())]

    def answered(self, request: Request, status: int) -> None:
        """Nothing to record."""


class NotFound(ApiResource):
    """Every path that is not the gateway's, after the key was checked."""

    def check_path(self, request: Request) -> None:
        """Always refuses."""
        raise unknown_path(request.path)


class PathPrefix(NotFound):
    """A path that only leads to others."""

    isLeaf = False


class HealthResource(ApiResource):
    """``GET /health``: alive, without a key and without asking anybody."""

    def admit(self, request: Request) -> None:
        """Everybody may ask."""
        self.check_path(request)
        self.check_method(request)

    def render(self, request: Any) -> bytes:
        """As the original program writes it."""
        return b'{"status": "healthy"}'
