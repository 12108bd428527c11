"""What is used of OpenTelemetry's SDK (the extra ``otel``); imported only where traces are wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from aigw import __version__
from aigw.telemetry.spans import Made
from aigw.telemetry.trace_context import Trace

SAMPLED = TraceFlags(TraceFlags.SAMPLED)


def resource(attributes: Mapping[str, str], version: str) -> Resource:
    """Who we are; what ``OTEL_RESOURCE_ATTRIBUTES`` and ``OTEL_SERVICE_NAME`` say comes with it."""
    return Resource.create({**attributes, "service.version": version})


def sampler() -> Callable[[Trace], bool]:
    """Whether a trace is kept, by ``OTEL_TRACES_SAMPLER``; its parent's word counts by default."""
    chosen = TracerProvider(shutdown_on_exit=False).sampler

    def is_sampled(trace: Trace) -> bool:
        parent = None
        if trace.parent is not None:
            flags = SAMPLED if trace.sampled else TraceFlags(0)
            span = SpanContext(int(trace.trace_id, 16), int(trace.parent, 16), is_remote=True, trace_flags=flags)
            parent = set_span_in_context(NonRecordingSpan(span))
        decision: Any = chosen.should_sample(parent, int(trace.trace_id, 16), "request").decision
        return bool(decision.is_sampled())

    return is_sampled


def processor(exporter: SpanExporter, most: int) -> BatchSpanProcessor:
    """Its own thread, which takes from a queue of ``most`` and gives to ``exporter``."""
    return BatchSpanProcessor(exporter, max_queue_size=most, max_export_batch_size=min(512, most))


def exporter(export: Callable[[Sequence[Any], Callable[..., bool]], None]) -> SpanExporter:
    """Hands what was queued to ``export``, with what sends the spans that it makes of them."""
    otlp: Any = OTLPSpanExporter()

    def send(spans: Sequence[Made], resource: Resource, schema: str) -> bool:
        scope = InstrumentationScope("aigw", __version__, schema)
        return otlp.export([_readable(span, resource, scope) for span in spans]) is SpanExportResult.SUCCESS

    class Exporter(SpanExporter):
        def export(self, spans: Sequence[Any]) -> SpanExportResult:
            export(spans, send)
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            otlp.shutdown()

    return Exporter()


def _readable(made: Made, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    trace_id = int(made.trace_id, 16)
    parent = None
    if made.parent is not None:
        parent = SpanContext(trace_id, int(made.parent, 16), is_remote=made.remote, trace_flags=SAMPLED)
    return ReadableSpan(
        name=made.name,
        context=SpanContext(trace_id, int(made.span_id, 16), is_remote=False, trace_flags=SAMPLED),
        parent=parent,
        resource=resource,
        attributes=made.attributes,
        kind=SpanKind.SERVER if made.server else SpanKind.CLIENT,
        status=Status(StatusCode.UNSET) if made.failed is None else Status(StatusCode.ERROR, made.failed),
        start_time=made.start,
        end_time=made.end,
        instrumentation_scope=scope,
    )
