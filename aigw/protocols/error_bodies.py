"""The formats of the gateway's own errors: as a body, and as an event in a stream."""

from __future__ import annotations

import msgspec

from aigw.errors import GatewayError, StreamBroken

# Of the gateway's own errors on Anthropic's endpoints, by status. Any other 4xx has that of 400, any other 5xx of 500.
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    500: "api_error",
}
_TYPES_BY_CODE = {"insufficient_quota": "billing_error"}


def error_body(error: GatewayError, request_id: str = "") -> bytes:
    """The body of an error in the format of OpenAI, which has no member for the id of the request."""
    shape = {"message": error.message, "type": error.type, "param": error.param, "code": error.code, **error.details}
    return msgspec.json.encode({"error": shape})


def error_event(broken: StreamBroken) -> bytes:
    """The event that ends a stream which broke after the commit point. It makes the OpenAI clients raise."""
    shape = {"message": _with_detail(broken), "type": "upstream_error", "param": None, "code": broken.code}
    return b"data: %s\n\n" % msgspec.json.encode({"error": shape})


def message_error_body(error: GatewayError, request_id: str = "") -> bytes:
    """Anthropic's error shape: https://docs.anthropic.com/en/api/errors; ``code`` is the gateway's own addition."""
    kind = (
        _TYPES_BY_CODE.get(error.code or "") or _TYPES.get(error.status) or _TYPES[400 if error.status < 500 else 500]
    )
    inner = {"type": kind, "message": error.message, **({"code": error.code} if error.code else {}), **error.details}
    return msgspec.json.encode({"type": "error", "error": inner, "request_id": request_id})


def message_error_event(broken: StreamBroken) -> bytes:
    """The event that ends a stream of messages which broke; Anthropic's clients see no error without its first line."""
    error = {"type": "api_error", "message": _with_detail(broken)}
    return b"event: error\ndata: %s\n\n" % msgspec.json.encode({"type": "error", "error": error})


def response_failed(broken: StreamBroken, response_id: str, sequence_number: int) -> bytes:
    """The event ``response.failed``, which ends a broken stream of the responses API.

    Codex reads the error in ``response``. The OpenAI clients raise because of ``error`` at the top level.
    """
    error = {"code": broken.code, "message": _with_detail(broken)}
    event = {
        "type": "response.failed",
        "sequence_number": sequence_number,
        "response": {"id": response_id, "object": "response", "status": "failed", "error": error, "output": []},
        "error": {"message": error["message"], "type": "upstream_error", "param": None, "code": broken.code},
    }
    return b"event: response.failed\ndata: %s\n\n" % msgspec.json.encode(event)


def _with_detail(broken: StreamBroken) -> str:
    return f"{broken.message.removesuffix('.')}: {broken.detail}" if broken.detail else broken.message
