"""The calls of OpenTelemetry's SDK (the extra ``otel``). This file is imported only if traces are enabled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

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
from aigw.telemetry.spans import SpanData
from aigw.telemetry.trace_context import Trace

if TYPE_CHECKING:
    from aigw.telemetry.tracing import Finished, RequestProcessor  # that file imports this one

SendSpans = Callable[[Sequence[SpanData], Resource, str], bool]  # the last is the schema's URL

SAMPLED = TraceFlags(TraceFlags.SAMPLED)


def resource(attributes: Mapping[str, str], version: str) -> Resource:
    """The description of this gateway, with the values of ``OTEL_RESOURCE_ATTRIBUTES`` and ``OTEL_SERVICE_NAME``."""
    return Resource.create({**attributes, "service.version": version})


def sampler() -> Callable[[Trace], bool]:
    """A function that decides by ``OTEL_TRACES_SAMPLER`` whether a trace is exported. By default its parent decides."""
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


def processor(exporter: SpanExporter, most: int) -> RequestProcessor:
    """A queue of at most ``most`` requests, and a thread that passes them to ``exporter``."""
    batches = BatchSpanProcessor(exporter, max_queue_size=most, max_export_batch_size=min(512, most))
    return cast("RequestProcessor", batches)  # it passes on what it gets, a span or not


def exporter(export: Callable[[Sequence[Finished], SendSpans], None]) -> SpanExporter:
    """Calls ``export`` with the queued requests and with a function that sends spans.

    That function returns whether the collector accepted the spans.
    """
    otlp: Any = OTLPSpanExporter()  # its shutdown has no types

    def send(spans: Sequence[SpanData], resource: Resource, schema: str) -> bool:
        scope = InstrumentationScope("aigw", __version__, schema)
        return otlp.export([_readable(span, resource, scope) for span in spans]) is SpanExportResult.SUCCESS

    class Exporter(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            export(cast("Sequence[Finished]", spans), send)
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            otlp.shutdown()

    return Exporter()


def _readable(span: SpanData, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    trace_id = int(span.trace_id, 16)
    parent = None
    if span.parent is not None:
        parent = SpanContext(trace_id, int(span.parent, 16), is_remote=span.remote, trace_flags=SAMPLED)
    return ReadableSpan(
        name=span.name,
        context=SpanContext(trace_id, int(span.span_id, 16), is_remote=False, trace_flags=SAMPLED),
        parent=parent,
        resource=resource,
        attributes=span.attributes,
        kind=SpanKind.SERVER if span.server else SpanKind.CLIENT,
        status=Status(StatusCode.UNSET) if span.failed is None else Status(StatusCode.ERROR, span.failed),
        start_time=span.start,
        end_time=span.end,
        instrumentation_scope=scope,
    )
