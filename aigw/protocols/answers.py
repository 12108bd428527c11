"""What a provider's whole answer is worth, and the error in it."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from aigw.protocols import envelope


def check_answer(member: str, body: bytes) -> tuple[str, Any] | None:
    """Why a whole 2xx body is no answer, with the error object in it if there is one; None where it is an answer.

    An answer carries ``member``.
    """
    if not body.strip():
        return "answered 2xx with an empty body", None
    try:
        error = envelope.error_without(member, body.removeprefix(b"\xef\xbb\xbf"))
    except ValueError:
        return "answered 2xx with a body that is not a JSON object", None
    return None if error is None else ("answered 2xx with an error", _decoded(error))


def _decoded(data: bytes | msgspec.Raw) -> Any:
    """The value of some JSON; None where it is none, or too long for an error."""
    try:
        return json.loads(bytes(data)) if len(data) <= 2 * envelope.MOST_OF_AN_ERROR else None
    except (ValueError, RecursionError):
        return None


def message_in(error: Any) -> str | None:
    """The message of an error object, or of one that is a mere string, as text that can be encoded."""
    message = error.get("message") if isinstance(error, dict) else error
    return message.encode(errors="replace").decode() if isinstance(message, str) else None
