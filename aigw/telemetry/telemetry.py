"""What everybody who looks at the gateway sees, made of each request's one Record: log line, counts, metrics."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.threads import deferToThreadPool

from aigw.config.model import Config
from aigw.errors import KEY_REFUSED
from aigw.secret import Secret
from aigw.telemetry import logs
from aigw.telemetry.counters import Counters
from aigw.telemetry.prometheus import Exposition
from aigw.telemetry.record import AttemptRecord, Record
from aigw.telemetry.snapshot import TakeSnapshot
from aigw.telemetry.status import status
from aigw.telemetry.trace_context import Trace
from aigw.telemetry.tracing import Tracing, wanted

NO_FIELDS_OF_THE_LOG = ("started", "ended", "ttft", "overhead", "trace")
OLD_SECRETS = 200  # of configurations before a reload

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"(:?)')  # with a colon behind it it is a name

Hide = Callable[[str], str]


class Telemetry:
    """Hears of each request once; outlives every reload. ``look`` says how the daemon is right now."""

    def __init__(self, look: TakeSnapshot, reactor: Any, environ: Mapping[str, str] | None = None) -> None:
        """``environ`` may ask for traces."""
        self.tracing = Tracing(reactor, environ, self.without_keys) if environ and wanted(environ) else None
        self.tally = Counters()
        self.metrics = Exposition(self.tally, look, self.tracing.families if self.tracing else None)
        self._look = look
        self._reactor = reactor
        self._secrets: list[Secret] = []
        self._hides: list[Hide] = []

    @property
    def begin_trace(self) -> Callable[[bytes | None], Trace] | None:
        """From a client's ``traceparent`` to a Trace, where traces are wanted."""
        return self.tracing.begin if self.tracing else None

    def start(self) -> None:
        """Start what runs in threads."""
        if self.tracing is not None:
            self.tracing.start()

    def stop(self) -> Deferred[None]:
        """Fires when what was seen is told, within a bound."""
        return self.tracing.stop() if self.tracing is not None else succeed(None)

    def use(self, config: Config) -> None:
        """What is counted from now on is what this configuration names."""
        self.tally.keep(config.routes.values())

    def hide(self, secrets: Sequence[Secret]) -> None:
        """Keys that stand in no log line and on no page from now on, wherever they should come from.

        So do all keys of before: requests that began with them may still be under way.
        """
        older = [secret for secret in self._secrets if secret not in secrets]
        self._secrets = [*older[-OLD_SECRETS:], *secrets]
        self._hides = [secret.hide_in for secret in sorted(self._secrets, key=len, reverse=True)]
        logs.hide(self._hides)

    def hidden(self, text: bytes) -> bytes:
        """``text``, JSON or metrics, without a key in its values; a key may be a word that the form of it needs."""
        before = text.decode()
        if self.without_keys(before) is before:
            return text
        return _QUOTED.sub(lambda each: each[0] if each[1] else self.without_keys(each[0]), before).encode()

    def without_keys(self, text: str) -> str:
        """``text`` without a key in it; the very same object where there is none."""
        for hiding in self._hides:
            text = hiding(text)
        return text

    def scrape(self, accept: str) -> Deferred[tuple[bytes, bytes]]:
        """The metrics in the format that ``accept`` asks for, and their content type; made in a thread."""
        encode, kind = self.metrics.scrape(accept)

        def make() -> tuple[bytes, bytes]:
            return self.hidden(encode()), kind

        made: Deferred[tuple[bytes, bytes]] = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), make)
        return made

    def status(self) -> bytes:
        """The status as JSON."""
        return self.hidden(msgspec.json.encode(status(self._look(), self.tally)))

    def record(self, record: Record) -> None:
        """One request is over."""
        self.tally.count(record)
        if self.tracing is not None:
            self.tracing.end(record)
        fields = msgspec.structs.asdict(record)
        for name in NO_FIELDS_OF_THE_LOG:
            del fields[name]
        logs.info("Request", fields.pop("request_id"), **fields)


def log_attempt(request_id: str, route: str, attempt: AttemptRecord) -> None:
    """One line for an attempt that failed."""
    fields = msgspec.structs.asdict(attempt)
    say = logs.error if attempt.status in KEY_REFUSED else logs.warn  # a refused key is for somebody to mend
    say(f"Step failed: {fields.pop('message')}", request_id, route=route, **fields)
