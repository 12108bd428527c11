"""Makes the log line, the counts and the spans of each request from its Record; gives metrics and status."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping

from twisted.internet.defer import Deferred, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.logger import LogLevel

from aigw.config.model import Config
from aigw.errors import UpstreamRefused
from aigw.protocols.refusals import KEY_REFUSED
from aigw.telemetry import logs
from aigw.telemetry.counters import Counters
from aigw.telemetry.prometheus import Exposition
from aigw.telemetry.record import AttemptRecord, Record, attempt_for_log, for_log
from aigw.telemetry.redaction import Redaction
from aigw.telemetry.snapshot import TakeSnapshot
from aigw.telemetry.status import status
from aigw.telemetry.trace_context import Trace
from aigw.telemetry.tracing import TelemetryReactor, Tracing, is_enabled

# Outcomes with a complete answer, or without a failure of a provider; their log line is no warning.
_NOT_BROKEN = frozenset(["ok", "error", "client_gone", "draining"])


class Telemetry:
    """Gets the record of each request once. It stays the same over every reload."""

    def __init__(
        self,
        take_snapshot: TakeSnapshot,
        reactor: TelemetryReactor,
        redaction: Redaction,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """``take_snapshot`` gives the state of the daemon. ``environ`` may enable traces by ``OTEL_*`` variables."""
        self.tracing = Tracing(reactor, environ, redaction) if environ and is_enabled(environ) else None
        self.counters = Counters()
        self.metrics = Exposition(
            self.counters, take_snapshot, redaction, self.tracing.families if self.tracing else None
        )
        self._take_snapshot = take_snapshot
        self._reactor = reactor
        self._redaction = redaction

    @property
    def begin_trace(self) -> Callable[[bytes | None], Trace] | None:
        """Makes a Trace from a client's ``traceparent``; None if traces are not enabled."""
        return self.tracing.begin if self.tracing else None

    def start(self) -> None:
        """Start the thread that exports traces."""
        if self.tracing is not None:
            self.tracing.start()

    def stop(self) -> Deferred[None]:
        """Export the queued spans. Fires when that is done, after STOP_SECONDS of ``tracing`` at the latest."""
        return self.tracing.stop() if self.tracing is not None else succeed(None)

    def use(self, config: Config) -> None:
        """Count for the routes of this configuration from now on."""
        self.counters.keep(config.routes.values())

    def scrape(self, accept: str) -> Deferred[tuple[bytes, bytes]]:
        """The metrics in the format that ``accept`` asks for, and their content type; made in a thread."""
        pieces, kind = self.metrics.scrape(accept)

        def make() -> tuple[bytes, bytes]:
            return b"".join(pieces), kind

        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), make)

    def status(self) -> Generator[None, None, bytes]:
        """The status as JSON, in short steps."""
        return status(self._take_snapshot(), self.counters, self._redaction.hide_in_values)

    def record(self, record: Record) -> None:
        """Log and count one request that has ended."""
        self.counters.count(record)
        if self.tracing is not None:
            self.tracing.end(record)
        failed = record.outcome not in _NOT_BROKEN or (record.status >= 500 and record.error != "draining")
        level = LogLevel.warn if failed else LogLevel.info
        logs.write(level, "Request", record.request_id, for_log(record), are_known=True)


def log_attempt(request_id: str, route: str, attempt: AttemptRecord) -> None:
    """Log one line for a failed attempt."""
    fields = attempt_for_log(attempt)
    key_refused = attempt.outcome == UpstreamRefused.outcome and attempt.status in KEY_REFUSED
    write = logs.error if key_refused else logs.warn  # an operator must replace a refused key
    write(f"Step failed: {fields.pop('message')}", request_id, route=route, **fields)
