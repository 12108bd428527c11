"""The endpoints of the API: one row for each. Reference: https://platform.openai.com/docs/api-reference"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from aigw.protocols.answers import check_answer, check_choices, check_count, check_response
from aigw.protocols.chat import ChatScanner
from aigw.protocols.endpoint import FORM, JSON, Endpoint
from aigw.protocols.error_bodies import error_body
from aigw.protocols.forms import read_images_or_upload, read_upload, rewrite_upload
from aigw.protocols.media import check_audio, check_transcript, is_audio
from aigw.protocols.requests import (
    read_chat,
    read_images,
    read_json,
    read_speech,
    read_unstreamed,
    rewrite,
    rewrite_response,
)
from aigw.protocols.responses import ResponsesScanner
from aigw.protocols.typed_events import ImageEditScanner, ImageScanner, SpeechScanner, TranscriptScanner

_data = partial(check_answer, "data")
_results = partial(check_answer, "results")
_no_stream = (read_unstreamed, rewrite_response)
_plain = (read_unstreamed, rewrite)
_transcript = (read_upload, rewrite_upload, check_transcript, TranscriptScanner, error_body)
_edited = (rewrite_upload, _data, ImageEditScanner, error_body)

ENDPOINTS: dict[str, Endpoint] = {
    endpoint.path: endpoint
    for endpoint in [
        Endpoint("chat/completions", read_chat, rewrite, check_choices, ChatScanner, error_body),
        Endpoint("completions", read_json, rewrite, check_choices, ChatScanner, error_body),
        Endpoint("embeddings", *_plain, _data, ChatScanner, error_body),
        Endpoint("responses", read_json, rewrite_response, check_response, ResponsesScanner, error_body),
        Endpoint("responses/compact", *_no_stream, check_response, ResponsesScanner, error_body),
        Endpoint("responses/input_tokens", *_no_stream, check_count, ResponsesScanner, error_body),
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
