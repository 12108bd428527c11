"""Makes the spans of a request from its record: one server span, and one client span for each attempt. No content.

Attributes have the names of OpenTelemetry's semantic conventions and their GenAI part, in the version SEMCONV. Other
attributes begin with ``aigw.``. https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

import msgspec

from aigw.protocols.usage import by_kind
from aigw.telemetry.record import Record
from aigw.telemetry.trace_context import Span, Trace

SEMCONV = "https://opentelemetry.io/schemas/1.44.0"
_METHODS = frozenset("GET HEAD POST PUT DELETE CONNECT OPTIONS TRACE PATCH".split())
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "chat",
}
_TOKENS = {
    "prompt": "gen_ai.usage.input_tokens",
    "completion": "gen_ai.usage.output_tokens",
    "cached": "gen_ai.usage.cache_read.input_tokens",
    "reasoning": "gen_ai.usage.reasoning.output_tokens",
}

Attributes = dict[str, str | bool | int | float]


class SpanData(msgspec.Struct, frozen=True):
    """A finished span. Ids are in hexadecimal, ``start`` and ``end`` in nanoseconds of Unix time.

    ``parent`` is a span's id; ``remote`` is whether that span is the client's. ``failed`` is the reason of a failure.
    """

    name: str
    server: bool
    trace_id: str
    span_id: str
    parent: str | None
    remote: bool
    start: int
    end: int
    attributes: Attributes
    failed: str | None


def spans_of(record: Record, offset: float) -> list[SpanData]:
    """The spans of a request, the server's first. ``offset`` is Unix time minus the record's clock, in seconds."""
    trace = record.trace
    if trace is None:
        return []
    return [_server(record, trace, offset), *(_client(record, trace, span, offset) for span in trace.spans)]


def _server(record: Record, trace: Trace, offset: float) -> SpanData:
    method = record.method if record.method in _METHODS else "_OTHER"
    failed = record.error or record.outcome if record.status >= 500 or record.outcome not in _FINE else None
    attributes: Attributes = {
        "http.request.method": method,
        "http.route": record.path,
        "url.path": record.path,
        "http.response.status_code": record.status,
        "gen_ai.operation.name": _OPERATIONS.get(record.path, "chat"),
        "aigw.request_id": record.request_id,
        "aigw.outcome": record.outcome,
    }
    if record.route is not None:
        attributes |= {"aigw.route": record.route, "gen_ai.request.model": record.route}
        attributes["gen_ai.request.stream"] = record.stream
    if record.provider is not None:
        attributes |= {"aigw.provider": record.provider, "aigw.attempts": len(record.attempts)}
    if failed is not None:
        attributes["error.type"] = failed
    times = _nanoseconds(record.started + offset), _nanoseconds(record.ended + offset)
    name = f"{method} {record.path}"
    return SpanData(
        name, True, trace.trace_id, trace.span_id, trace.parent, trace.parent is not None, *times, attributes, failed
    )


_FINE = ("ok", "error", "client_gone")  # an "error" is a failure only with a status of 500 or more
_NO_FAULT_OF_THE_STEP = ("ok", "client_gone", "draining", "lost_race")


def _client(record: Record, trace: Trace, span: Span, offset: float) -> SpanData:
    operation, attempt = _OPERATIONS.get(record.path, "chat"), span.record
    ended = record.ended if span.ended is None else span.ended
    attributes: Attributes = {"gen_ai.operation.name": operation, "http.request.method": "POST"}
    attributes["gen_ai.request.stream"] = record.stream
    failed, name = "failed", operation
    if attempt is not None:
        name = f"{operation} {attempt.model}"
        attributes |= {
            "gen_ai.provider.name": attempt.provider,
            "gen_ai.request.model": attempt.model,
            "aigw.step": attempt.step,
            "aigw.outcome": attempt.outcome,
            "url.path": attempt.path,
        }
        if attempt.key_number is not None:
            attributes["aigw.key"] = attempt.key_number
        if attempt.status is not None:
            attributes["http.response.status_code"] = attempt.status
        failed = attempt.outcome
    if failed not in _NO_FAULT_OF_THE_STEP:
        attributes["error.type"] = str(attempt.status) if attempt and failed == "refused" else failed
    if span is _answering(record, trace.spans):
        attributes |= {_TOKENS[kind]: count for kind, count in by_kind(record.usage).items()}
        if record.stream and record.ttft is not None:
            first = record.started + record.ttft - (record.held or 0.0)
            attributes["gen_ai.response.time_to_first_chunk"] = first - span.started
    times = _nanoseconds(span.started + offset), _nanoseconds(ended + offset)
    reason = None if failed in _NO_FAULT_OF_THE_STEP else attempt.message if attempt else "failed unexpectedly"
    return SpanData(name, False, trace.trace_id, span.span_id, trace.span_id, False, *times, attributes, reason)


def _answering(record: Record, spans: list[Span]) -> Span:
    """That of the attempt that answered, which may have begun before another one."""
    found = record.step, record.provider, record.model, record.key_number
    of_step = [
        span for span in spans if (it := span.record) and (it.step, it.provider, it.model, it.key_number) == found
    ]
    return (of_step or spans)[-1]


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
