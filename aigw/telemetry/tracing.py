"""Traces by OpenTelemetry over OTLP/HTTP. They are off unless the standard ``OTEL_*`` variables set an endpoint.

The reactor only puts the record of a request into a bounded queue. The thread of the SDK's BatchSpanProcessor makes and
exports the spans, so a collector that is down, slow or refusing delays no request. Spans that do not fit into the queue
or cannot be exported are dropped and counted.

Names of attributes: https://github.com/open-telemetry/semantic-conventions and its GenAI part, in the version SEMCONV.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec
from prometheus_client.core import CounterMetricFamily, Metric
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorThreads, IReactorTime

from aigw import __version__
from aigw.telemetry import logs
from aigw.telemetry.record import Record
from aigw.telemetry.redaction import Redaction
from aigw.telemetry.spans import SEMCONV, SpanData, spans_of
from aigw.telemetry.trace_context import Trace

if TYPE_CHECKING:
    from aigw.telemetry.otlp import SendSpans  # OpenTelemetry may not be installed

STOP_SECONDS = 2.0
WARN_SECONDS = 60.0
QUEUE = 2048
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def is_enabled(environ: Mapping[str, str]) -> bool:
    """Whether the environment enables traces."""
    off = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    other = environ.get("OTEL_TRACES_EXPORTER", "").strip() not in ("", "otlp")
    return not off and not other and any(environ.get(name, "").strip() for name in _ENDPOINTS)


class TelemetryReactor(IReactorThreads, IReactorTime):
    """The parts of the reactor that telemetry needs."""


class RequestProcessor(Protocol):
    """The methods of BatchSpanProcessor that are called. It queues Finished requests instead of spans."""

    def on_end(self, span: Finished, /) -> object:
        """Queue a request."""

    def shutdown(self) -> object:
        """Export what is queued. Blocks."""


class Tracing:
    """The traces of all requests. ``queued`` counts requests; the other counts are of spans."""

    def __init__(self, reactor: TelemetryReactor, environ: Mapping[str, str], redaction: Redaction) -> None:
        """Starts nothing; see ``start``."""
        self._reactor = reactor
        self._redaction = redaction
        self._most = _positive(environ.get("OTEL_BSP_MAX_QUEUE_SIZE"), QUEUE)
        self._named = "OTEL_SERVICE_NAME" in environ or "service.name" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        self._processor: RequestProcessor | None = None
        self._sampler: Callable[[Trace], bool] | None = None
        self.queued = self.exported = self.dropped_queue = self.dropped_export = 0
        self._warned = -WARN_SECONDS

    def start(self) -> None:
        """Start the thread. A process that forks must fork before."""
        try:
            from aigw.telemetry.otlp import exporter, processor, resource, sampler
        except ImportError:
            logs.warn("No traces are exported: OpenTelemetry is not installed; run: pip install 'aigw[otel]'")
            return
        logger = logging.getLogger("opentelemetry")
        logger.addHandler(logging.NullHandler())
        logger.propagate = False  # the SDK would write many lines a minute to standard error
        try:
            self._resource = resource({} if self._named else {"service.name": "aigw"}, __version__)
            choose = sampler()
            self._processor = processor(exporter(self._export), self._most)
        except Exception as error:  # the SDK reads many variables, and some wrong values raise other errors
            logs.warn(f"No traces are exported: OpenTelemetry refuses the OTEL_* variables: {error}"[:500])
            return
        self._sampler = choose

    def begin(self, traceparent: bytes | None) -> Trace:
        """Make the trace of a request that begins now."""
        trace = Trace(traceparent)
        if self._sampler is not None:
            trace.sampled = self._sampler(trace)
        return trace

    def end(self, record: Record) -> None:
        """Queue the spans of a request that has ended."""
        trace = record.trace
        if self._processor is None or trace is None or not trace.sampled:
            return
        if self.queued >= self._most:
            self.dropped_queue += 1 + len(trace.spans)
            return
        self.queued += 1
        self._processor.on_end(Finished(record, time.time() - record.ended))

    def stop(self) -> Deferred[None]:
        """Export the queued spans, for at most STOP_SECONDS."""
        processor, self._processor = self._processor, None
        if processor is None:
            return succeed(None)
        done: Deferred[None] = Deferred()

        def stopped() -> None:
            if not done.called:
                done.callback(None)

        def cancel_timer(_: None) -> None:
            if timer.active():
                timer.cancel()

        def run() -> None:
            processor.shutdown()
            self._reactor.callFromThread(stopped)

        # A daemon thread: for a collector that hangs the SDK waits longer than STOP_SECONDS.
        threading.Thread(target=run, name="otel shutdown", daemon=True).start()
        timer = self._reactor.callLater(STOP_SECONDS, stopped)
        return done.addCallback(cancel_timer)

    def families(self) -> Iterator[Metric]:
        """The metric families of tracing, for ``/metrics``."""
        yield CounterMetricFamily("aigw_spans_exported", "Spans that the collector accepted.", self.exported)
        dropped = CounterMetricFamily("aigw_spans_dropped", "Spans that were dropped, by reason.", labels=["reason"])
        dropped.add_metric(["queue_full"], self.dropped_queue)
        dropped.add_metric(["export_failed"], self.dropped_export)
        yield dropped

    # In the processor's thread

    def _export(self, finished: Sequence[Finished], send: SendSpans) -> None:
        """``send`` sends spans, and returns whether the collector accepted them."""
        spans: list[SpanData] = []
        try:
            spans = [self._safe(span) for each in finished for span in spans_of(each.record, each.offset)]
            accepted = send(spans, self._resource, SEMCONV)
        except Exception:
            accepted = False
        self._reactor.callFromThread(self._count_export, len(finished), len(spans), accepted)

    def _safe(self, span: SpanData) -> SpanData:
        """The span without keys: a client may have put a key into its request id."""
        hide = self._redaction.hide
        attributes = {name: hide(value) if isinstance(value, str) else value for name, value in span.attributes.items()}
        failed = span.failed and hide(span.failed)
        return msgspec.structs.replace(span, name=hide(span.name), attributes=attributes, failed=failed)

    def _count_export(self, requests: int, spans: int, accepted: bool) -> None:
        self.queued -= requests
        if accepted:
            self.exported += spans
            return
        self.dropped_export += spans
        if self._reactor.seconds() - self._warned >= WARN_SECONDS:
            self._warned = self._reactor.seconds()
            logs.warn("Traces cannot be exported and are dropped: the collector is down, slow or refuses them")


class Finished:
    """A request in the queue: its record, and Unix time minus the record's clock in seconds.

    The SDK's processor takes it for a sampled span.
    """

    __slots__ = ("context", "offset", "record")

    def __init__(self, record: Record, offset: float) -> None:
        self.record = record
        self.offset = offset
        self.context = _SAMPLED


class _Sampled:
    """The part of a span's context that the processor reads."""

    class trace_flags:
        sampled = True


_SAMPLED = _Sampled()


def _positive(written: str | None, default: int) -> int:
    try:
        return max(1, int(written or default))
    except ValueError:
        return default
