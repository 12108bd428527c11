"""One event of a stream: its data, the JSON in it, and whether it is a ping or reports a failure."""

from __future__ import annotations

import json
import re

from aigw.protocols import sse
from aigw.protocols.envelope import MOST_OF_AN_ERROR

_PLAIN = re.compile(rb"data: ?([^\r\n]*)\n\n").fullmatch
_ERROR_FIELD = re.compile(rb"(?:^|[\r\n])error:([^\r\n]*)")
# Tuples, not sets: the ``type`` of an event may be unhashable.
_PINGS = ("ping", "keepalive", "keep-alive", "keep_alive", "heartbeat")
_FAILURES = ("error", "response.failed")


def read(event: bytes) -> tuple[str, bytes | None, object, object]:
    """An event's name (empty if it has none), its data, the JSON value of the data, and the error in it.

    Each of the last three is None where there is none. Data that is too long for an error is not read as JSON.
    """
    plain = _PLAIN(event)  # the usual case
    name, data = ("", plain[1]) if plain else sse.fields(event)
    if data is None or not data.strip():
        error = error_field(event)
        return name, None, None, error or name if name == "error" else error
    try:
        value = json.loads(data) if len(data) <= 2 * MOST_OF_AN_ERROR else None
    except (ValueError, RecursionError):
        value = None
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, dict):
        return name, data, value, (value or name) if name == "error" else None
    if name == "error" or first.get("error") or first.get("object") == "error" or first.get("type") in _FAILURES:
        response = first.get("response")
        inner = response.get("error") if isinstance(response, dict) else None
        return name, data, value, first.get("error") or inner or first
    return name, data, value, None


def malformed(data: bytes) -> str | None:
    """What is wrong with the data of a first event that seems to be JSON and is none: no client can read it.

    Bytes that are not UTF-8 are no mistake here, and what is very long is not examined.
    """
    if data.lstrip()[:1] != b"{" or len(data) > 2 * MOST_OF_AN_ERROR:
        return None
    try:
        json.loads(data.decode(errors="replace"))
    except RecursionError:
        return None
    except ValueError:
        return "the data of an event is malformed JSON"
    return None


def error_field(event: bytes) -> object:
    """The value of the field ``error``, which llama.cpp sends instead of ``data``; None if there is no such field."""
    found = _ERROR_FIELD.search(event)
    if found is None:
        return None
    try:
        return json.loads(found[1]) or "error"
    except (ValueError, RecursionError):
        return found[1].decode(errors="replace").strip() or "error"


def is_ping(name: str, value: dict[str, object]) -> bool:
    """Whether an event only shows that the provider is alive."""
    return name in _PINGS or value.get("type") in _PINGS
