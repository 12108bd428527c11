"""The trace of one request, by W3C Trace Context (https://www.w3.org/TR/trace-context/).

Its parent is the span of the client, if the request has a ``traceparent``. Its children are the spans of the attempts.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, TypeVar

import msgspec

if TYPE_CHECKING:
    from aigw.telemetry.record import AttemptRecord  # that file imports Trace

# A version above 00 may have more fields after those of version 00 (section 4.3, "Versioning of traceparent").
_PARENT = re.compile(
    rb"(?!ff)(?=00.{53}\Z|(?!00))[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)


A = TypeVar("A", bound=msgspec.Struct)
Lines = dict[bytes, bytes]


class Span:
    """The span of one attempt. ``ended`` and ``record`` are None until the attempt has ended."""

    __slots__ = ("ended", "record", "span_id", "started")

    def __init__(self, started: float) -> None:
        self.span_id = _new_id(8)
        self.started = started
        self.ended: float | None = None
        self.record: AttemptRecord | None = None


class Trace:
    """The trace of one request. ``parent`` is the id of the client's span, or None. Ids are in hexadecimal."""

    __slots__ = ("parent", "sampled", "spans", "trace_id", "span_id")  # noqa: RUF023

    def __init__(self, traceparent: bytes | None) -> None:
        """Without a valid ``traceparent`` a new trace begins."""
        match = _PARENT.fullmatch(traceparent or b"")
        self.trace_id = match[1].decode() if match else _new_id(16)
        self.parent = match[2].decode() if match else None
        self.sampled = not match or bool(int(match[3], 16) & 1)
        self.span_id = _new_id(8)
        self.spans: list[Span] = []

    def sent(self, attempt: A, started: float) -> A:
        """Begin the span of an attempt. Returns the attempt with a ``traceparent`` that names this span."""
        span = Span(started)
        self.spans.append(span)
        parent = f"00-{self.trace_id}-{span.span_id}-{int(self.sampled):02x}".encode()
        headers: Lines = attempt.headers.copy()  # type: ignore[attr-defined]  # aigw.upstream has the type, and telemetry must not import it
        headers.pop(b"traceparent", None)
        headers[b"traceparent"] = b"Traceparent: %s\r\n" % parent
        return msgspec.structs.replace(attempt, headers=headers)

    def attempted(self, record: AttemptRecord, ended: float, span: Span | None = None) -> None:
        """End ``span``, or the span of the last attempt, with its record."""
        span = span or self.spans[-1]
        span.record, span.ended = record, ended


def _new_id(size: int) -> str:
    while not any(made := os.urandom(size)):
        pass
    return made.hex()
