"""The trace of one request in W3C's words (https://www.w3.org/TR/trace-context/): whose child it is, and who its own
children are, one an attempt. Who exports it is none of its business.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, TypeVar

import msgspec

if TYPE_CHECKING:
    from aigw.telemetry.record import AttemptRecord  # which has a Trace

# A version above 00 may have more fields behind those that version 00 has (section 4.3, "Versioning of traceparent").
_PARENT = re.compile(
    rb"(?!ff)(?=00.{53}\Z|(?!00))[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)


A = TypeVar("A", bound=msgspec.Struct)
Lines = dict[bytes, bytes]


class Span:
    """One attempt; ``ended`` and ``record`` are None until it has."""

    __slots__ = ("ended", "record", "span_id", "started")

    def __init__(self, started: float) -> None:
        self.span_id = _new_id(8)
        self.started = started
        self.ended: float | None = None
        self.record: AttemptRecord | None = None


class Trace:
    """``parent`` is the span of the client that asked, if it said so; ids are in hexadecimal."""

    __slots__ = ("parent", "sampled", "spans", "trace_id", "span_id")  # noqa: RUF023

    def __init__(self, traceparent: bytes | None) -> None:
        """Malformed is as good as none: then this is a trace of its own."""
        match = _PARENT.fullmatch(traceparent or b"")
        self.trace_id = match[1].decode() if match else _new_id(16)
        self.parent = match[2].decode() if match else None
        self.sampled = not match or bool(int(match[3], 16) & 1)
        self.span_id = _new_id(8)
        self.spans: list[Span] = []

    def sent(self, attempt: A, started: float) -> A:
        """The attempt as it goes out: the provider is to see the span of this attempt as its parent."""
        span = Span(started)
        self.spans.append(span)
        parent = f"00-{self.trace_id}-{span.span_id}-{int(self.sampled):02x}".encode()
        headers: Lines = attempt.headers.copy()  # type: ignore[attr-defined]  # a room on the right has the type
        headers.pop(b"traceparent", None)
        headers[b"traceparent"] = b"Traceparent: %s\r\n" % parent
        return msgspec.structs.replace(attempt, headers=headers)

    def attempted(self, record: AttemptRecord, ended: float, span: Span | None = None) -> None:
        """What became of an attempt: of the last one, or of that with this ``span``."""
        span = span or self.spans[-1]
        span.record, span.ended = record, ended


def _new_id(size: int) -> str:
    while not any(made := os.urandom(size)):
        pass
    return made.hex()
