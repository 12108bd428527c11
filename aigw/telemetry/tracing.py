"""Traces by OpenTelemetry over OTLP/HTTP: off unless an endpoint is set in the standard ``OTEL_*`` variables.

The reactor only puts the record of a request into a bounded queue. All else, what spans are made of included, is done
in the thread of the SDK's BatchSpanProcessor, so a collector that is down, slow or refusing costs no request anything;
what does not fit into the queue or cannot be exported is dropped and counted.

Names of attributes: https://github.com/open-telemetry/semantic-conventions and its GenAI part, in the version SEMCONV.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from prometheus_client.core import CounterMetricFamily
from twisted.internet.defer import Deferred, succeed

from aigw import __version__
from aigw.telemetry import logs
from aigw.telemetry.record import Record
from aigw.telemetry.redaction import Redaction
from aigw.telemetry.spans import SEMCONV, Made, made_of
from aigw.telemetry.trace_context import Trace

STOP_SECONDS = 2.0
WARN_SECONDS = 60.0
QUEUE = 2048
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether the environment asks for traces."""
    off = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    other = environ.get("OTEL_TRACES_EXPORTER", "").strip() not in ("", "otlp")
    return not off and not other and any(environ.get(name, "").strip() for name in _ENDPOINTS)


class Tracing:
    """The traces of all requests. Counts are of spans."""

    def __init__(self, reactor: Any, environ: Mapping[str, str], redaction: Redaction) -> None:
        """Starts nothing."""
        self._reactor = reactor
        self._redaction = redaction
        self._most = _positive(environ.get("OTEL_BSP_MAX_QUEUE_SIZE"), QUEUE)
        self._named = "OTEL_SERVICE_NAME" in environ or "service.name" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        self._processor: Any = None
        self._exporter: Any = None
        self._sampler: Any = None
        self.queued = self.exported = self.dropped_queue = self.dropped_export = 0
        self._warned = -WARN_SECONDS

    def start(self) -> None:
        """Start the thread; only once the process is the one that stays."""
        try:
            from aigw.telemetry.otlp import exporter, processor, resource, sampler
        except ImportError:
            logs.warn("No traces: an endpoint is set, but OpenTelemetry is not installed (pip install 'aigw[otel]')")
            return
        logger = logging.getLogger("opentelemetry")
        logger.addHandler(logging.NullHandler())
        logger.propagate = False  # it would write to standard error, many lines a minute
        try:
            self._resource = resource({} if self._named else {"service.name": "aigw"}, __version__)
            choose = sampler()
            self._exporter = exporter(self._export)
            self._processor = processor(self._exporter, self._most)
        except Exception as error:  # the SDK reads more variables than we know, and not all of them patiently
            logs.warn(f"No traces: OpenTelemetry refuses what the OTEL_* variables say: {error}"[:500])
            return
        self._sampler = choose

    def begin(self, traceparent: bytes | None) -> Trace:
        """The trace of a request that begins now."""
        trace = Trace(traceparent)
        if self._sampler is not None:
            trace.sampled = self._sampler(trace)
        return trace

    def end(self, record: Record) -> None:
        """A request is over; its spans are queued."""
        trace = record.trace
        if self._processor is None or trace is None or not trace.sampled:
            return
        if self.queued >= self._most:
            self.dropped_queue += 1 + len(trace.spans)
            return
        self.queued += 1
        self._processor.on_end(Finished(record, time.time() - record.ended))

    def stop(self) -> Deferred[None]:
        """Export what is queued, for at most STOP_SECONDS."""
        processor, self._processor = self._processor, None
        if processor is None:
            return succeed(None)
        done: Deferred[None] = Deferred()

        def stopped() -> None:
            if not done.called:
                done.callback(None)

        def run() -> None:
            processor.shutdown()
            self._reactor.callFromThread(stopped)

        # A daemon: the SDK waits for a collector that hangs longer than we do.
        threading.Thread(target=run, name="otel shutdown", daemon=True).start()
        timer = self._reactor.callLater(STOP_SECONDS, stopped)
        return done.addCallback(lambda _: timer.active() and timer.cancel())

    def families(self) -> Iterator[Any]:
        """For ``/metrics``."""
        yield CounterMetricFamily("aigw_spans_exported", "Spans that the collector took.", self.exported)
        dropped = CounterMetricFamily("aigw_spans_dropped", "Spans that nobody will see.", labels=["reason"])
        dropped.add_metric(["queue_full"], self.dropped_queue)
        dropped.add_metric(["export_failed"], self.dropped_export)
        yield dropped

    # In the processor's thread

    def _export(self, finished: Sequence[Finished], send: Any) -> None:
        """``send`` takes Made spans, and says whether the collector took them."""
        spans: list[Made] = []
        try:
            spans = [self._safe(span) for each in finished for span in made_of(each.record, each.offset)]
            took = send(spans, self._resource, SEMCONV)
        except Exception:
            took = False
        self._reactor.callFromThread(self._count_export, len(finished), len(spans), took)

    def _safe(self, span: Made) -> Made:
        """Without a key: a client may have put its own into its request id."""
        hide = self._redaction.hide
        attributes = {name: hide(value) if isinstance(value, str) else value for name, value in span.attributes.items()}
        failed = span.failed and hide(span.failed)
        return msgspec.structs.replace(span, name=hide(span.name), attributes=attributes, failed=failed)

    def _count_export(self, requests: int, spans: int, took: bool) -> None:
        self.queued -= requests
        if took:
            self.exported += spans
            return
        self.dropped_export += spans
        if self._reactor.seconds() - self._warned >= WARN_SECONDS:
            self._warned = self._reactor.seconds()
            logs.warn("Traces cannot be exported: the collector is down, slow or refuses them; they are dropped")


class Finished:
    """What is queued: a record, and what its clock is behind Unix time. To the processor it is a sampled span."""

    __slots__ = ("context", "offset", "record")

    def __init__(self, record: Record, offset: float) -> None:
        self.record = record
        self.offset = offset
        self.context = _SAMPLED


class _Sampled:
    """As much of a span's context as the processor looks at."""

    class trace_flags:
        sampled = True


_SAMPLED = _Sampled()


def _positive(written: str | None, otherwise: int) -> int:
    try:
        return max(1, int(written or otherwise))
    except ValueError:
        return otherwise
