"""The OpenAI wire: read a call, rewrite it for a step, say what an answer or an event means, and how errors look.

``ENDPOINTS`` is the one place that says what differs between endpoints. Reference: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from aigw.protocols.chat import chat_meaning, is_finished
from aigw.protocols.responses import is_response_end, responses_meaning
from aigw.protocols.sse import Meaning


class Endpoint(msgspec.Struct, frozen=True, eq=False):
    """What differs between endpoints.

    ``path`` is behind ``/v1/``; ``answer`` is the member that a plain answer carries; ``meaning`` judges one streamed
    object; ``complete`` finds what says, beside ``[DONE]``, that a stream came to its end.
    """

    path: str
    answer: str
    meaning: Callable[[dict[str, Any]], Meaning]
    complete: Callable[[bytes], bool]


ENDPOINTS: dict[str, Endpoint] = {
    endpoint.path: endpoint
    for endpoint in [
        Endpoint("chat/completions", "choices", chat_meaning, is_finished),
        Endpoint("completions", "choices", chat_meaning, is_finished),
        Endpoint("embeddings", "data", chat_meaning, is_finished),
        Endpoint("responses", "output", responses_meaning, is_response_end),
    ]
}


def model(name: str, created: int) -> Mapping[str, Any]:
    """A route as ``GET /v1/models/{id}`` shows it; ``created`` in Unix seconds."""
    return {"id": name, "object": "model", "created": created, "owned_by": "ai-gateway"}
