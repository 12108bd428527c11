"""Every exception of the gateway, and who receives it.

    GatewayError              the answer to the client: HTTP status, OpenAI type and code, message
      RequestError            4xx, the request is at fault
      BadRequest              400
      Unauthorized            401
        WrongKey              401, for a key that the gateway does not have: counted, and answered after a pause
      CrossSite               403
      RouteNotFound           404
      PathNotFound            404
      MethodNotAllowed        405
      RequestTimeout          408
      StateElsewhere          409
      TooLarge                413
      NotAForm                415
      UnsupportedCoding       415, with ``Accept-Encoding``
      Misdirected             421
      UpgradeRequired         426, for a WebSocket
      HeadersTooLarge         431
      AllStepsFailed          502
      Draining                503, the gateway is stopping
      NotReady                503, the answer of /ready
      DeadlineExceeded        504
      Overloaded              503
    UpstreamFailure           one attempt failed, the next may work
      UpstreamUnreachable     DNS, refused, TLS: nothing was sent
      UpstreamTimeout         names its limit: connect, first output, answer, idle, deadline
      UpstreamRefused         answered with a status other than 2xx
      UpstreamBroken          lost, malformed, or an error with status 200, before the commit point
    StreamBroken              the same after the commit point: reported in-band, never retried
    ConfigError               a list of mistakes, each with its path

A client that disconnects causes Twisted's ``CancelledError``, and the request is recorded as 499.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar


class GatewayError(Exception):
    """The error that the client gets instead of an answer.

    ``param`` names the offending member of the request; ``headers`` are sent with the error; ``details`` are further
    members of the ``error`` object. Shape: https://platform.openai.com/docs/guides/error-codes
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code or self.code
        self.headers = dict(headers or {})
        self.details = dict(details or {})


class RequestError(GatewayError):
    """The request is at fault, and the same one would fail again: a 4xx."""

    type = "invalid_request_error"


class BadRequest(RequestError):
    """The request cannot be understood: 400."""

    status = 400
    code = None


class Unauthorized(RequestError):
    """No key, or a wrong one: 401."""

    status = 401
    code = "invalid_api_key"


class WrongKey(Unauthorized):
    """The gateway does not have the key that was sent; ``tried`` is the number of such keys in the request."""

    tried = 1


class CrossSite(RequestError):
    """A page of another site sent the form: 403."""

    status = 403
    code = "cross_site_request"


class RouteNotFound(RequestError):
    """``model`` names no route: 404."""

    status = 404
    code = "model_not_found"


class PathNotFound(RequestError):
    """The gateway has no such path: 404."""

    status = 404
    code = "unknown_url"


class MethodNotAllowed(RequestError):
    """The path exists, but not for this method: 405, with ``Allow``."""

    status = 405
    code = "method_not_allowed"


class Misdirected(RequestError):
    """The Host header names another host than the one that this listener serves: 421."""

    status = 421
    code = "misdirected_request"


class RequestTimeout(RequestError):
    """The request came too slowly: 408."""

    status = 408
    code = "request_timeout"


class StateElsewhere(RequestError):
    """Only one provider has what the request names by its id, and cannot be asked: 409."""

    status = 409
    code = "state_elsewhere"


class TooLarge(RequestError):
    """The body is over the limit: 413."""

    status = 413
    code = "request_too_large"


class UnsupportedCoding(RequestError):
    """The body is compressed in a way that the gateway cannot read: 415, with ``Accept-Encoding``."""

    status = 415
    code = "unsupported_content_encoding"


class NotAForm(RequestError):
    """The body has another type than a form: 415."""

    status = 415
    code = "unsupported_media_type"


class Overloaded(GatewayError):
    """A limit of the gateway is reached: 503; ``code`` names the limit."""

    status = 503
    code = "too_many_connections"


class UpgradeRequired(RequestError):
    """The client asks for a WebSocket: 426."""

    status = 426
    code = "websocket_not_supported"


class HeadersTooLarge(RequestError):
    """The request line or the headers are over the limit: 431."""

    status = 431
    code = "headers_too_large"


class AllStepsFailed(GatewayError):
    """No step of the route gave an answer: 502."""

    status = 502
    type = "upstream_error"
    code = "all_steps_failed"


class Draining(GatewayError):
    """The gateway is stopping, and the request has no answer yet: 503."""

    status = 503
    code = "draining"


class NotReady(GatewayError):
    """New requests should go elsewhere: 503. ``code`` is the reason, or ``not_ready`` where it is hidden."""

    status = 503
    code = "not_ready"


class DeadlineExceeded(GatewayError):
    """The route's deadline passed before a step gave an answer: 504."""

    status = 504
    type = "upstream_error"
    code = "deadline_exceeded"


class UpstreamFailure(Exception):
    """One attempt failed before the client saw a byte of it.

    ``message`` is written by the gateway and safe to log. ``detail`` quotes the provider, so it may repeat what the
    client sent: only the client gets it. ``words`` are the ``code`` and ``type`` of the provider's error.
    """

    outcome: ClassVar[str] = "failed"
    words: Sequence[str] = ()

    def __init__(self, message: str, *, status: int | None = None, detail: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.detail = detail


class UpstreamUnreachable(UpstreamFailure):
    """No connection: DNS, TCP or TLS failed, and nothing was sent."""

    outcome = "unreachable"


class UpstreamTimeout(UpstreamFailure):
    """A time limit passed; ``limit`` names it: ``connect``, ``first output``, ``answer``, ``idle`` or ``deadline``."""

    outcome = "timeout"

    def __init__(self, limit: str, seconds: float) -> None:
        super().__init__(f"{limit} limit of {round(max(seconds, 0.0), 3):g} s passed")
        self.limit = limit


class UpstreamRefused(UpstreamFailure):
    """The provider answered with a status other than 2xx.

    ``retry_after`` in seconds, if the answer has it; ``headers`` and ``body`` are the answer, ``body`` None if it was
    too large or incomplete.
    """

    outcome = "refused"

    def __init__(
        self,
        status: int,
        *,
        detail: str | None = None,
        retry_after: float | None = None,
        words: Sequence[str] = (),
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes | None = None,
    ) -> None:
        super().__init__(f"answered {status}", status=status, detail=detail)
        self.retry_after = retry_after
        self.words = words
        self.headers = headers
        self.body = body


class UpstreamBroken(UpstreamFailure):
    """The answer was lost, malformed, or an error with status 200."""

    outcome = "broken"


class StreamBroken(Exception):
    """An answer broke after the client had seen part of it.

    ``code`` is ``stream_truncated``, ``stream_reset``, ``stream_idle_timeout``, ``provider_error``,
    ``answer_truncated`` or ``answer_timeout``. ``detail`` quotes the provider. ``reported``: it ends by words of the
    protocol's own that make the client raise, so the answer ends properly.
    """

    def __init__(self, code: str, message: str, *, detail: str | None = None, reported: bool = False) -> None:
        super().__init__(message)
        self.code, self.message, self.reported = code, message, reported
        self.detail = detail[:1000] if detail else None


class ConfigError(Exception):
    """The configuration cannot be used; ``mistakes`` has one line for each reason, with its path."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = list(mistakes)
