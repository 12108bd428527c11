"""What a provider's answer says: whole, or one event of a stream."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from aigw.protocols import envelope, sse
from aigw.protocols.endpoints import Endpoint
from aigw.protocols.sse import Meaning


def mistake_in_answer(endpoint: Endpoint, body: bytes) -> tuple[str, Any] | None:
    """Why a whole 2xx body is no answer, with the error object that it holds if any; None where it is one."""
    if not body.strip():
        return "answered 2xx with an empty body", None
    try:
        error = envelope.error_without(endpoint.answer, body.removeprefix(b"\xef\xbb\xbf"))
    except ValueError:
        return "answered 2xx with a body that is not a JSON object", None
    return None if error is None else ("answered 2xx with an error", _object(error))


def meaning_of(endpoint: Endpoint, event: bytes) -> tuple[Meaning, Any]:
    """What one whole event says, and the error object that it holds if any. When in doubt it is output."""
    name, data = sse.fields(event)
    if data is None or not data.strip():
        return (Meaning.ERROR if name == "error" else Meaning.NOTHING), None
    if data.strip() == b"[DONE]":
        return Meaning.DONE, None
    said = _object(data)
    if name == "error":
        return Meaning.ERROR, said.get("error", said) if isinstance(said, dict) else said
    if not isinstance(said, dict):
        return Meaning.OUTPUT, None
    if name in _PINGS or said.get("type") in _PINGS:
        return Meaning.NOTHING, None
    if said.get("error") or said.get("type") in ("error", "response.failed"):
        response = said.get("response")
        return Meaning.ERROR, said.get("error") or (response.get("error") if isinstance(response, dict) else said)
    return endpoint.meaning(said), None


def _object(data: bytes | msgspec.Raw) -> Any:
    try:
        return json.loads(bytes(data)) if len(data) <= 2 * envelope.MOST_OF_AN_ERROR else None
    except (ValueError, RecursionError):
        return None


# Tuples: what stands in an event's ``type`` may be unhashable.
_PINGS = ("ping", "keepalive")


# An unescaped quote cannot stand inside a JSON string, nor a line end: neither pattern is met by what a model writes.
# Each begins with what is found fast: as alternatives of one pattern they cost 25 times as much.
_DONE = re.compile(rb"data:[ \t]*\[DONE\][ \t]*(?:[\r\n]|\Z)")


def is_complete(endpoint: Endpoint, data: bytes) -> bool:
    """Whether whole events say that the stream came to its end: in the endpoint's words, or by ``[DONE]``."""
    if b"[DONE]" in data:
        starts = [match.start() for match in _DONE.finditer(data)]
        if any(start == 0 or data[start - 1] in b"\r\n" for start in starts):
            return True
    return endpoint.complete(data)


def message_in(said: Any) -> str | None:
    """The message of an error object, or of one that is a mere string, as text that can be encoded."""
    message = said.get("message") if isinstance(said, dict) else said
    return message.encode(errors="replace").decode() if isinstance(message, str) else None
