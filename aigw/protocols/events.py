"""One event of a stream: its data, the JSON in it, and whether it is a ping or reports a failure."""

from __future__ import annotations

import json
import re

import msgspec

from aigw.protocols import sse
from aigw.protocols.envelope import MOST_OF_AN_ERROR

_decode = msgspec.json.Decoder().decode
_ERROR_FIELD = re.compile(rb"(?:^|[\r\n])error:([^\r\n]*)")
# Tuples, not sets: the ``type`` of an event may be unhashable.
_PINGS = ("ping", "keepalive", "keep-alive", "keep_alive", "heartbeat")
_FAILURES = ("error", "response.failed")


def read(event: bytes) -> tuple[str, bytes | None, object, object]:
    """An event's name (empty if it has none), its data, the JSON value of the data, and the error in it.

    Each of the last three is None where there is none. Data that is too long for an error is not read as JSON.
    """
    one_end = event.endswith(b"\n\n") and event.find(b"\n") == len(event) - 2 and event.find(b"\r") < 0
    is_one_line = one_end and event.startswith(b"data: ")  # the usual case; a pattern would be slow
    name, data = ("", event[len(b"data: ") : -2]) if is_one_line else sse.fields(event)
    if data is None or not data.strip():
        error = error_field(event)
        return name, None, None, error or name if name == "error" else error
    value: object = None
    if len(data) <= 2 * MOST_OF_AN_ERROR:
        try:
            value = _decode(data)
        except (ValueError, RecursionError):
            value = _as_python_reads(data)
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, dict):
        return name, data, value, (value or name) if name == "error" else None
    if name == "error" or first.get("error") or first.get("object") == "error" or first.get("type") in _FAILURES:
        response = first.get("response")
        inner = response.get("error") if isinstance(response, dict) else None
        return name, data, value, first.get("error") or inner or first
    return name, data, value, None


def _as_python_reads(data: bytes) -> object:
    """The JSON value, None if there is none. Python takes some of what msgspec rejects, like NaN, but is slower."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


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
