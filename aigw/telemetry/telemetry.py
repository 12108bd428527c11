"""What everybody who looks at the gateway sees, made of each request's one Record: log line, counts, metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.threads import deferToThreadPool

from aigw.config.model import Config
from aigw.protocols.refusals import KEY_REFUSED
from aigw.telemetry import logs
from aigw.telemetry.counters import Counters
from aigw.telemetry.prometheus import Exposition
from aigw.telemetry.record import AttemptRecord, Record, attempt_for_log, for_log
from aigw.telemetry.redaction import Redaction
from aigw.telemetry.snapshot import TakeSnapshot
from aigw.telemetry.status import status
from aigw.telemetry.trace_context import Trace
from aigw.telemetry.tracing import Tracing, wanted

# Of a request whose answer was whole, or of which the answer or the client is no fault of anybody here.
_NOTHING_BROKE = frozenset(["ok", "error", "client_gone", "draining"])


class Telemetry:
    """Gets the record of each request once; outlives every reload. ``look`` gives the state of the daemon right now."""

    def __init__(
        self, look: TakeSnapshot, reactor: Any, redaction: Redaction, environ: Mapping[str, str] | None = None
    ) -> None:
        """``environ`` may ask for traces."""
        self.tracing = Tracing(reactor, environ, redaction) if environ and wanted(environ) else None
        self.counters = Counters()
        self.metrics = Exposition(self.counters, look, redaction, self.tracing.families if self.tracing else None)
        self._look = look
        self._reactor = reactor
        self._redaction = redaction

    @property
    def begin_trace(self) -> Callable[[bytes | None], Trace] | None:
        """From a client's ``traceparent`` to a Trace, where traces are wanted."""
        return self.tracing.begin if self.tracing else None

    def start(self) -> None:
        """Start what runs in threads."""
        if self.tracing is not None:
            self.tracing.start()

    def stop(self) -> Deferred[None]:
        """Fires when what was seen is exported, within a bound."""
        return self.tracing.stop() if self.tracing is not None else succeed(None)

    def use(self, config: Config) -> None:
        """What is counted from now on is what this configuration names."""
        self.counters.keep(config.routes.values())

    def scrape(self, accept: str) -> Deferred[tuple[bytes, bytes]]:
        """The metrics in the format that ``accept`` asks for, and their content type; made in a thread."""
        pieces, kind = self.metrics.scrape(accept)

        def make() -> tuple[bytes, bytes]:
            return b"".join(pieces), kind

        made: Deferred[tuple[bytes, bytes]] = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), make)
        return made

    def status(self) -> bytes:
        """The status as JSON."""
        return self._redaction.hide_in_values(msgspec.json.encode(status(self._look(), self.counters)))

    def record(self, record: Record) -> None:
        """One request is over."""
        self.counters.count(record)
        if self.tracing is not None:
            self.tracing.end(record)
        failed = record.outcome not in _NOTHING_BROKE or (record.status >= 500 and record.error != "draining")
        write = logs.warn if failed else logs.info
        write("Request", record.request_id, **for_log(record))


def log_attempt(request_id: str, route: str, attempt: AttemptRecord) -> None:
    """One line for an attempt that failed."""
    fields = attempt_for_log(attempt)
    write = logs.error if attempt.status in KEY_REFUSED else logs.warn  # a refused key is for somebody to mend
    write(f"Step failed: {fields.pop('message')}", request_id, route=route, **fields)
