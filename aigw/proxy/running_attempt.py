"""One attempt while it runs: what was sent and when, the answer that it waits for, and how its end is recorded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from aigw.config.model import Step
from aigw.proxy.relay import Relay
from aigw.routing.balance import Pending
from aigw.routing.cooldown import Cooldowns
from aigw.telemetry.record import AttemptRecord, KeyAttemptRecord, RecordBuilder, called, host_and_path, short_word
from aigw.telemetry.trace_context import Span
from aigw.upstream.attempt import Attempt
from aigw.upstream.response import Response


class RunningAttempt(msgspec.Struct, eq=False):
    """An attempt at ``step``, sent at ``started``. It has so many ``seconds``; ``step_ends`` is the limit of its step,
    with all repetitions. ``attempt`` is None from the commit point on: it has the request's body.

    ``tries`` counts those of the step; ``probe``: it finds out whether the step's cooldown is over. ``held`` fires with
    an Answer at the commit point, or fails; ``response`` is there once its head is, and ``relay`` takes its body.
    ``has_output``: its first output is held, where that is not the commit point; ``lost``: another one has won.
    ``pending`` counts it while it runs.
    """

    record: RecordBuilder
    step: Step
    attempt: Attempt | None
    started: float
    seconds: float
    step_ends: float
    tries: int
    probe: bool
    span: Span | None
    held: Deferred[Any] | None = None
    response: Response | None = None
    relay: Relay | None = None
    has_output: bool = False
    lost: bool = False
    pending: Pending | None = None

    @property
    def status(self) -> int | None:
        """The status of its answer, if there is one."""
        return None if self.response is None else self.response.code

    def note_output(self, relay: Relay) -> Relay:
        """The first output is there, and it is held."""
        self.has_output = True
        return relay

    def cancel(self) -> None:
        """End it; its connection is closed at once."""
        if self.held is not None:
            self.held.cancel()

    def count(self, pending: Pending) -> None:
        """Count it among those that run, until it has ended."""
        pending.begin(self.step)
        self.pending = pending

    def leave(self) -> None:
        """It does not run any more."""
        if self.pending is not None:
            self.pending.end(self.step)
            self.pending = None

    def abandon(self, cooldowns: Cooldowns) -> None:
        """A fault of the gateway ended it, which shows nothing about its step."""
        self.leave()
        cooldowns.abandoned(self.step, self.probe)

    def cancelled(self, interrupted: bool) -> None:
        """Record why it was cancelled; ``interrupted``: the gateway is stopping."""
        if self.lost:
            self.ended("lost_race", self.status, "another step was faster")
        elif interrupted:
            self.ended("draining", self.status, "the gateway is stopping")
        else:
            self.ended("client_gone", self.status, "the client left")

    def paused(self, result: Failure | None, since: float) -> Failure | None:
        """Add the real length of a pause after it, which is shorter if the client left."""
        self.record.waited += self.record.seconds() - since
        return result

    def ended(
        self, outcome: str, status: int | None, message: str, rests: float | None = None, words: Sequence[str] = ()
    ) -> AttemptRecord:
        """Record what became of it."""
        if self.pending is not None:
            self.leave()
        step, record, now = self.step, self.record, self.record.seconds()
        record.waited += now - record.waiting_since
        record.waiting_since = now
        took = round((now - self.started) * 1000)
        rests_s = None if rests is None else math.ceil(rests)
        path, provider = record.path[len("/v1/") :], step.provider
        where = called(step, path) if provider.paths else host_and_path(provider.base_url, path)
        what = (outcome, status, took, message, rests_s, *where, short_word(words) if words else None)
        whole = (step.number, step.provider.name, step.model, *what)
        made = AttemptRecord(*whole) if step.key_number is None else KeyAttemptRecord(*whole, step.key_number)
        record.attempts.append(made)
        relay, self.relay = self.relay, None
        if record.pricing is not None and relay is not None:
            record.add(record.pricing.charge(step.provider.name, step.model, relay.reported.charges()))
        if record.trace is not None:
            record.trace.attempted(made, now, self.span)
        return made
