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
    """The common part of all resources: the checks of a request, and the headers of an answer."""

    isLeaf = True
    known: Mapping[bytes, TwistedResource] = {}  # resources below this one, by whole path; searched first
    methods: tuple[bytes, ...] = (b"GET", b"HEAD")
    error_body: Callable[[GatewayError], bytes] = staticmethod(error_body)
    max_body = 0  # bytes; 0: the body is not read, and the connection closes after the answer

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def getChild(self, path: bytes, request: Any) -> TwistedResource:
        """Every other path below this resource is unknown."""
        return NotFound(self.config)

    def admit(self, request: Request) -> None:
        """Check the request by its head: the key first, so that a client without a key gets no other error."""
        try:
            request.caller = authenticate(
                self.config.callers, request.header(b"x-api-key"), request.header(b"authorization")
            )
        except Unauthorized as error:
            if request.header(b"api-key") and not isinstance(error, WrongKey):
                error.message = f"This gateway does not read the header 'api-key'. {error.message}"
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
        """The error for a method that the path does not support."""
        allowed = b", ".join(self.methods).decode()
        method = request.method[:20].decode("latin-1")
        return MethodNotAllowed(
            f"This path does not support the method {method}; use {allowed}.", headers={"Allow": allowed}
        )

    def headers(self, request: Request) -> list[headers.Header]:
        """The headers of every answer."""
        return [(b"x-request-id", request.request_id.encode())]

    def answered(self, request: Request, status: int) -> None:
        """Nothing to record."""


class NotFound(ApiResource):
    """Every unknown path; the key is checked first."""

    def check_path(self, request: Request) -> None:
        """Always refuses."""
        raise unknown_path(request.path)


class PathPrefix(NotFound):
    """A path that is only the prefix of others."""

    isLeaf = False


class HealthResource(ApiResource):
    """``GET /health``: the process runs. It needs no key and asks no provider."""

    def admit(self, request: Request) -> None:
        """No key is needed."""
        self.check_path(request)
        self.check_method(request)

    def render(self, request: Any) -> bytes:
        """The same bytes as the original program."""
        return b'{"status": "healthy"}'
