"""The endpoints of the API: one row for each. Reference: https://platform.openai.com/docs/api-reference"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from aigw.protocols.answers import check_answer, check_choices, check_count, check_response
from aigw.protocols.chat import ChatScanner
from aigw.protocols.endpoint import Endpoint
from aigw.protocols.error_bodies import error_body
from aigw.protocols.requests import read_chat, read_json, read_unstreamed, rewrite, rewrite_response
from aigw.protocols.responses import ResponsesScanner

_embeddings = partial(check_answer, "data")
_no_stream = (read_unstreamed, rewrite_response)

ENDPOINTS: dict[str, Endpoint] = {
    endpoint.path: endpoint
    for endpoint in [
        Endpoint("chat/completions", read_chat, rewrite, check_choices, ChatScanner, error_body),
        Endpoint("completions", read_json, rewrite, check_choices, ChatScanner, error_body),
        Endpoint("embeddings", read_unstreamed, rewrite, _embeddings, ChatScanner, error_body),
        Endpoint("responses", read_json, rewrite_response, check_response, ResponsesScanner, error_body),
        Endpoint("responses/compact", *_no_stream, check_response, ResponsesScanner, error_body),
        Endpoint("responses/input_tokens", *_no_stream, check_count, ResponsesScanner, error_body),
    ]
}


def model(name: str, created: int) -> Mapping[str, object]:
    """A route as ``GET /v1/models/{id}`` shows it; ``created`` in Unix seconds."""
    return {"id": name, "object": "model", "created": created, "owned_by": "ai-gateway"}
