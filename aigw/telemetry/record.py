"""The record of one request, from which every log line is made. It holds no content, only sizes.

A ``RecordBuilder`` is written while the request runs; its ``record`` makes the frozen Record that a sink gets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec


class AttemptRecord(msgspec.Struct, frozen=True):
    """One step that was tried: what came of it, and after how many milliseconds. ``message`` is the gateway's words.

    ``rests_s`` is for how many seconds the step rests because of it.
    """

    step: int
    provider: str
    model: str
    outcome: str
    status: int | None
    duration_ms: int
    message: str
    rests_s: int | None = None


class Record(msgspec.Struct, frozen=True):
    """What became of one request.

    ``status`` is what the client got, 499 where it left; then ``outcome`` is ``client_gone``. ``outcome`` is
    ``draining`` where the gateway stopped in the middle of an answer. ``error`` is the code of the gateway's own error,
    or its type, and the member of the request that it names. ``ttft_ms`` is the time to the first byte of the answer.
    ``usage`` is what the provider reported, never an estimate. ``started`` and ``ended`` are on the gateway's clock, in
    seconds; ``ttft`` is that of ``ttft_ms``, and ``overhead`` what the request took that was neither waiting for a
    provider nor for its own body, both in seconds. ``dropped`` names the members that the answering step did not get.
    """

    request_id: str
    caller: str
    method: str
    path: str
    route: str | None
    provider: str | None
    model: str | None
    stream: bool
    attempts: tuple[AttemptRecord, ...]
    status: int
    outcome: str
    error: str | None
    ttft_ms: int | None
    duration_ms: int
    bytes_in: int
    bytes_out: int
    usage: dict[str, int]
    started: float = 0.0
    ended: float = 0.0
    ttft: float | None = None
    overhead: float = 0.0
    trace: Any = None
    dropped: tuple[str, ...] = ()


Sink = Callable[[Record], None]
AttemptSink = Callable[[str, str, AttemptRecord], None]


class RecordBuilder:
    """What is known so far of a request; ``seconds`` is the clock."""

    def __init__(self, seconds: Callable[[], float], request_id: str, method: str, path: str) -> None:
        self.seconds = seconds
        self.started = seconds()
        self.request_id = request_id
        self.method = method
        self.path = path
        self.caller = ""
        self.route: str | None = None
        self.stream = False
        self.provider: str | None = None
        self.model: str | None = None
        self.tried = 0
        self.attempts: list[AttemptRecord] = []
        self.outcome = "ok"
        self.error: str | None = None
        self.first_byte: float | None = None
        self.bytes_in = 0
        self.bytes_out = 0
        self.usage: dict[str, int] = {}
        self.received = self.started  # when its body was complete
        self.waited = 0.0  # for providers
        self.trace: Any = None  # a Trace, where traces are wanted
        self.dropped: tuple[str, ...] = ()

    def answered_by(self, provider: str, model: str, dropped: tuple[str, ...] = ()) -> None:
        """The client gets what this provider sends, who did not get what was ``dropped`` of the request."""
        self.provider, self.model, self.dropped = provider, model, dropped

    def record(self, status: int) -> Record:
        """Close the trail."""
        ended, ttft = self.seconds(), None if self.first_byte is None else self.first_byte - self.started
        return Record(
            request_id=self.request_id,
            caller=self.caller,
            method=self.method,
            path=self.path,
            route=self.route,
            provider=self.provider,
            model=self.model,
            stream=self.stream,
            attempts=tuple(self.attempts),
            status=status,
            outcome=self.outcome,
            error=self.error,
            ttft_ms=None if ttft is None else milliseconds(ttft),
            duration_ms=milliseconds(ended - self.started),
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            usage=self.usage,
            started=self.started,
            ended=ended,
            ttft=ttft,
            overhead=ended - self.received - self.waited,
            trace=self.trace,
            dropped=self.dropped,
        )


def milliseconds(seconds: float) -> int:
    """Seconds, as whole milliseconds."""
    return round(seconds * 1000)
