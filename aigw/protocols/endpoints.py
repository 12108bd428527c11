"""The endpoints of the API: one row for each.

References: https://platform.openai.com/docs/api-reference and, for messages, https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from aigw.protocols.answers import check_answer, check_choices, check_count, check_message, check_response, check_stored
from aigw.protocols.chat import ChatScanner
from aigw.protocols.endpoint import FORM, JSON, Endpoint
from aigw.protocols.error_bodies import error_body, message_error_body
from aigw.protocols.forms import read_images_or_upload, read_upload, rewrite_upload
from aigw.protocols.hidden_usage import ChatScannerWithoutUsage
from aigw.protocols.media import check_audio, check_transcript, is_audio
from aigw.protocols.messages import MessagesScanner
from aigw.protocols.requests import (
    previous_response,
    read_chat,
    read_images,
    read_json,
    read_messages_unstreamed,
    read_speech,
    read_unstreamed,
    rewrite,
    rewrite_nothing,
    rewrite_response,
)
from aigw.protocols.responses import ResponsesScanner, id_in
from aigw.protocols.typed_events import ImageEditScanner, ImageScanner, SpeechScanner, TranscriptScanner

_data = partial(check_answer, "data")
_results = partial(check_answer, "results")
_chat = (rewrite, check_choices, ChatScanner, error_body, ChatScannerWithoutUsage)
_no_stream = (read_unstreamed, rewrite_response)
_plain = (read_unstreamed, rewrite)
_transcript = (read_upload, rewrite_upload, check_transcript, TranscriptScanner, error_body)
_edited = (rewrite_upload, _data, ImageEditScanner, error_body)
_for_agents: dict[str, Any] = {"acts_on_refusals": True}
_of_responses: dict[str, Any] = {"state_in": previous_response, **_for_agents}
_stored = Endpoint(
    "responses",
    *(read_json, rewrite_nothing, check_stored, ResponsesScanner, error_body),
    state_in=lambda call: call.response_id,
    spends="requests",
    **_for_agents,
)
_messages = (MessagesScanner, message_error_body)
_of_messages: dict[str, Any] = {
    "keepalive": b'event: ping\ndata: {"type": "ping"}\n\n',
    "client_headers": b"anthropic-",
    "passes_query": True,
    **_for_agents,
}

ENDPOINTS: dict[str, Endpoint] = {
    endpoint.path: endpoint
    for endpoint in [
        Endpoint("chat/completions", read_chat, *_chat),
        Endpoint("completions", read_json, *_chat),
        Endpoint("embeddings", *_plain, _data, ChatScanner, error_body),
        Endpoint(
            "responses",
            *(read_json, rewrite_response, check_response, ResponsesScanner, error_body),
            **_of_responses,
            id_in=id_in,
            stored=_stored,
        ),
        Endpoint("responses/compact", *_no_stream, check_response, ResponsesScanner, error_body, **_of_responses),
        Endpoint(
            "responses/input_tokens",
            *(*_no_stream, check_count, ResponsesScanner, error_body),
            **_of_responses,
            spends="nothing",
        ),
        Endpoint("messages", read_chat, rewrite, check_message, *_messages, **_of_messages),
        Endpoint(
            "messages/count_tokens",
            read_messages_unstreamed,
            rewrite,
            check_count,
            *_messages,
            **_of_messages,
            spends="nothing",
            stop_on=frozenset(["404"]),  # the client then counts by itself; another model counts in another way
        ),
        Endpoint("moderations", *_plain, _results, ChatScanner, error_body, may_lack_model=True),
        Endpoint("rerank", *_plain, _results, ChatScanner, error_body, aliases=("/v2/rerank", "/rerank")),
        Endpoint("images/generations", read_images, rewrite, _data, ImageScanner, error_body, may_lack_model=True),
        Endpoint("images/edits", read_images_or_upload, *_edited, takes=(JSON, FORM), may_lack_model=True),
        Endpoint("images/variations", read_upload, *_edited, takes=(FORM,), may_lack_model=True),
        Endpoint("audio/transcriptions", *_transcript, takes=(FORM,)),
        Endpoint("audio/translations", *_transcript, takes=(FORM,)),
        Endpoint("audio/speech", read_speech, rewrite, check_audio, SpeechScanner, error_body, flows=is_audio),
    ]
}


def model(name: str, created: int) -> Mapping[str, object]:
    """A route as ``GET /v1/models/{id}`` shows it; ``created`` in Unix seconds."""
    return {"id": name, "object": "model", "created": created, "owned_by": "ai-gateway"}
