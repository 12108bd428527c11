"""How the gateway's own errors look, whole and inside a stream."""

from __future__ import annotations

import msgspec

from aigw.errors import GatewayError, StreamBroken


def error_body(error: GatewayError) -> bytes:
    """The OpenAI error shape."""
    shape = {"message": error.message, "type": error.type, "param": error.param, "code": error.code, **error.details}
    return msgspec.json.encode({"error": shape})


def error_event(broken: StreamBroken) -> bytes:
    """The one event that ends a stream which broke behind the commit point; it makes the OpenAI clients raise."""
    message = f"{broken.message.removesuffix('.')}: {broken.detail}" if broken.detail else broken.message
    shape = {"message": message, "type": "upstream_error", "param": None, "code": broken.code}
    return b"data: %s\n\n" % msgspec.json.encode({"error": shape})
