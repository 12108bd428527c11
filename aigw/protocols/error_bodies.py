"""The formats of the gateway's own errors: as a body, and as an event in a stream."""

from __future__ import annotations

import msgspec

from aigw.errors import GatewayError, StreamBroken


def error_body(error: GatewayError) -> bytes:
    """The body of an error in the format of OpenAI."""
    shape = {"message": error.message, "type": error.type, "param": error.param, "code": error.code, **error.details}
    return msgspec.json.encode({"error": shape})


def error_event(broken: StreamBroken) -> bytes:
    """The event that ends a stream which broke after the commit point. It makes the OpenAI clients raise."""
    message = f"{broken.message.removesuffix('.')}: {broken.detail}" if broken.detail else broken.message
    shape = {"message": message, "type": "upstream_error", "param": None, "code": broken.code}
    return b"data: %s\n\n" % msgspec.json.encode({"error": shape})


def response_failed(broken: StreamBroken, response_id: str, sequence_number: int) -> bytes:
    """The event ``response.failed``, which ends a broken stream of the responses API.

    Codex reads the error in ``response``. The OpenAI clients raise because of ``error`` at the top level.
    """
    error = {"code": broken.code, "message": broken.message}
    event = {
        "type": "response.failed",
        "sequence_number": sequence_number,
        "response": {"id": response_id, "object": "response", "status": "failed", "error": error, "output": []},
        "error": {"message": broken.message, "type": "upstream_error", "param": None, "code": broken.code},
    }
    return b"event: response.failed\ndata: %s\n\n" % msgspec.json.encode(event)
