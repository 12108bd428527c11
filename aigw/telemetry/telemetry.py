"""Makes the log line, the counts and the spans of each request from its Record; gives metrics and status."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Protocol

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.logger import LogLevel

from aigw.config.model import Config
from aigw.errors import UpstreamRefused
from aigw.protocols.refusals import KEY_REFUSED
from aigw.telemetry import logs
from aigw.telemetry.counters import Counters
from aigw.telemetry.pricing import Pricing
from aigw.telemetry.prometheus import Exposition
from aigw.telemetry.record import AttemptRecord, Record, Sink, attempt_for_log
from aigw.telemetry.redaction import Redaction
from aigw.telemetry.snapshot import TakeSnapshot
from aigw.telemetry.status import status
from aigw.telemetry.status_changes import StatusChanges
from aigw.telemetry.trace_context import Trace
from aigw.telemetry.tracing import TelemetryReactor, Tracing, is_enabled

# Outcomes with a complete answer, or without a failure of a provider; their log line is no warning.
_NOT_BROKEN = frozenset(["ok", "error", "client_gone", "draining"])


class KeptAccounts(Pricing, Protocol):
    """What requests cost, and a file of them."""

    @property
    def lost(self) -> int:
        """How many lines could not be written since the start."""

    def use(self, config: Config) -> None:
        """Keep accounts by this configuration from now on."""

    def start(self) -> None:
        """The process has forked."""

    def finish(self) -> None:
        """The process ends."""

    def write(self, record: Record) -> None:
        """Write the line of a request."""


class Telemetry:
    """Gets the record of each request once. It stays the same over every reload."""

    def __init__(
        self,
        take_snapshot: TakeSnapshot,
        reactor: TelemetryReactor,
        redaction: Redaction,
        environ: Mapping[str, str] | None = None,
        accounts: KeptAccounts | None = None,
    ) -> None:
        """``take_snapshot`` gives the state of the daemon. ``environ`` may enable traces by ``OTEL_*`` variables."""
        self._accounts = accounts
        self._write_line: Sink | None = None  # if each request has a line in a file
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

    def pricing(self, config: Config) -> Pricing | None:
        """What makes the charges of requests with this configuration; None if it keeps no accounts."""
        return self._accounts if config.keeps_accounts else None

    def start(self) -> None:
        """Start the threads that export traces and write accounts."""
        if self._accounts is not None:
            self._accounts.start()
        if self.tracing is not None:
            self.tracing.start()

    def stop(self) -> Deferred[None]:
        """Write the accounts, and export the queued spans; fires after STOP_SECONDS of ``tracing`` at the latest."""
        if self._accounts is not None:
            self._accounts.finish()
        return self.tracing.stop() if self.tracing is not None else succeed(None)

    def use(self, config: Config) -> None:
        """Count for the routes of this configuration from now on."""
        self.counters.keep(config.routes.values())
        callers = config.callers if config.counts_callers else ()
        self.counters.keep_accounts(callers, config.prices is not None, config.keeps_accounts)
        if self._accounts is not None:
            self._accounts.use(config)
            self._write_line = None if config.usage is None else self._account

    def scrape(self, accept: str) -> Deferred[tuple[list[bytes], bytes]]:
        """The metrics in the format that ``accept`` asks for, in pieces, and their content type; made in a thread."""
        if self._accounts is not None:
            self.counters.lines_lost = self._accounts.lost
        pieces, kind = self.metrics.scrape(accept)

        def make() -> tuple[list[bytes], bytes]:
            return [*filter(None, pieces)], kind

        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), make)

    def status(self) -> Generator[None, None, bytes]:
        """The status as JSON, in short steps."""
        return status(self._take_snapshot(), self.counters, self._redaction.hide_in_values)

    def status_changes(self) -> StatusChanges:
        """What changes in it, for pages that stay open."""
        return StatusChanges(self._take_snapshot, self.counters, self._redaction.hide_in_values)

    def record(self, record: Record) -> None:
        """Log and count one request that has ended."""
        self.counters.count(record)
        if self._write_line is not None:
            self._write_line(record)
        if self.tracing is not None:
            self.tracing.end(record)
        failed = record.outcome not in _NOT_BROKEN or (record.status >= 500 and record.error != "draining")
        level = LogLevel.warn if failed else LogLevel.info
        logs.request(record, level)

    def _account(self, record: Record) -> None:
        """Write the line of a request. The name of the session is text of the client, who may take a key for it."""
        assert self._accounts is not None
        if record.session is not None:
            record = msgspec.structs.replace(record, session=self._redaction.hide(record.session))
        self._accounts.write(record)


def log_attempt(request_id: str, route: str, attempt: AttemptRecord) -> None:
    """Log one line for a failed attempt."""
    fields = attempt_for_log(attempt)
    key_refused = attempt.outcome == UpstreamRefused.outcome and attempt.status in KEY_REFUSED
    write = logs.error if key_refused else logs.warn  # an operator must replace a refused key
    write(f"Step failed: {fields.pop('message')}", request_id, route=route, **fields)
