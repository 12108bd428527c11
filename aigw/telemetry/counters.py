"""The counts since the start. Each Record is counted once, by a few additions to plain numbers.

Names and labels are made only when metrics or pages are read.

A reload keeps the counts of the routes and steps that stay, and drops those of the others.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise

from aigw.config.model import Route, Step
from aigw.protocols.usage import KINDS, by_kind
from aigw.settings.callers import Caller
from aigw.telemetry.caller_counters import CallerCounters
from aigw.telemetry.last_hour import Failed, Failures, Hour, failures
from aigw.telemetry.pricing import Charge
from aigw.telemetry.record import HEDGES, AttemptRecord, Record

OTHER = "other"  # the route of requests that name no configured route
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
OVERHEAD_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
NOT_FAILURES = frozenset(["client_gone", "draining", "lost_race"])  # outcomes of attempts that are no success either

StepKey = tuple[int, str, str] | tuple[int, str, str, int]  # the position of the key only if there are several
# These series exist from the start: an alert then sees the first such request as an increase.
_REQUESTS = ((200, "ok"), (502, "error"))
_REQUESTS_WITHOUT_ROUTE = ((400, "error"), (401, "error"), (404, "error"))
# These series of a step exist from its first attempt.
OUTCOMES = (
    *("ok", "unreachable", "timeout", "refused", "broken"),
    *("stream_truncated", "stream_reset", "stream_idle_timeout", "answer_truncated", "answer_timeout"),
)


class Histogram:
    """Counts of values. Each of ``bounds`` counts the values up to it and above the one before it.

    The last count is of the values above all bounds.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count ``value``. ``Counters.count`` does the same without a call where it runs for every request."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class ModelCounters:
    """One model of one provider, over all its steps: the seconds to the end of its answers and to the first token."""

    def __init__(self) -> None:
        self.duration = Histogram(SECONDS)
        self.first_token = Histogram(SECONDS)


class StepCounters:
    """One step of one route.

    ``why`` is the message of the failure that began its last cooldown. ``answers`` is whether the last attempt
    succeeded, None before the first attempt.
    """

    def __init__(self, model: ModelCounters) -> None:
        self.model = model
        self.attempts = {"ok": 0}
        self.tokens = dict.fromkeys(KINDS, 0)
        self.hour = Hour()
        self.why = ""
        self.answers: bool | None = None


class RouteCounters:
    """One route, or all requests that name no configured route."""

    def __init__(self, requests: Iterable[tuple[int, str]] = _REQUESTS) -> None:
        self.used = False
        self.requests = {(status, stream, outcome): 0 for status, outcome in requests for stream in (False, True)}
        self.duration = {stream: Histogram(SECONDS) for stream in (False, True)}
        self.first_token = Histogram(SECONDS)
        self.overhead = Histogram(OVERHEAD_SECONDS)
        self.held = Histogram(SECONDS)
        self.fallbacks = 0
        self.keepalives = 0
        self.hedges = dict.fromkeys(HEDGES, 0)
        self.steps: dict[StepKey, StepCounters] = {}


def step_key(step: Step) -> StepKey:
    """The key of a step's counters."""
    key: StepKey = step.number, step.provider.name, step.model
    return key if step.key_number is None else (*key, step.key_number)


class Counters:
    """All routes by name, all models by provider and name, all callers by name, and the latest failures.

    ``unpriced`` counts the charges without a known cost, by provider and model, if there are prices. Callers are
    counted if there are named keys or accounts; without accounts by the tokens that were reported at the end.
    """

    def __init__(self) -> None:
        self.callers: dict[str, CallerCounters] = {}
        self.groups: dict[str, CallerCounters] = {}
        self.unpriced: dict[tuple[str, str], int] = {}
        self.lines_lost = 0  # of the file of usage
        self._has_prices = self._has_charges = False
        self.routes: dict[str, RouteCounters] = {}
        self.models: dict[tuple[str, str], ModelCounters] = {}
        self.other = RouteCounters(_REQUESTS_WITHOUT_ROUTE)
        self.failures: Failures = failures()

    def keep(self, routes: Iterable[Route]) -> None:
        """Count for these routes from now on, and drop the counts of all other routes."""
        kept: dict[str, RouteCounters] = {}  # new dicts, because a thread may be reading the old ones
        models: dict[tuple[str, str], ModelCounters] = {}
        for route in routes:
            counters = kept[route.name] = self.routes.get(route.name) or RouteCounters()
            steps: dict[StepKey, StepCounters] = {}
            for step in route.steps:
                model_key = step.provider.name, step.model
                key = step_key(step)
                if model_key not in models:
                    models[model_key] = self.models.get(model_key) or ModelCounters()
                steps[key] = counters.steps.get(key) or StepCounters(models[model_key])
            counters.steps = steps
        self.routes, self.models = kept, models
        self.other = self.routes.get(OTHER) or self.other  # a route may be named OTHER: both have one series

    def keep_accounts(self, callers: Iterable[Caller], has_prices: bool, has_charges: bool) -> None:
        """Count for these callers from now on, and drop the counts of all others; after ``keep``."""
        self._has_prices, self._has_charges = has_prices, has_charges
        kept: dict[str, CallerCounters] = {}
        groups: dict[str, CallerCounters] = {}
        for caller in callers:
            counted = kept[caller.name] = self.callers.get(caller.name) or CallerCounters()
            name = caller.group
            if name and name not in groups:
                groups[name] = self.groups.get(name) or CallerCounters()
            counted.group = groups[name] if name else None
        self.callers, self.groups = kept, groups
        self.unpriced = {key: count for key, count in self.unpriced.items() if key in self.models}

    def count(self, record: Record) -> None:
        """Count one request. If a reload has dropped its route meanwhile, it is counted under OTHER."""
        # This runs for every request, so the additions are written out instead of called.
        route = self.routes.get(record.route or "", self.other)
        route.used = True
        key = record.status, record.stream, record.outcome
        if key in route.requests:
            route.requests[key] += 1
        else:
            route.requests[key] = 1
        took, common, given, made = record.ended - record.started, record.common, 0, 0
        if common is not None:
            given, made, _ = common
        duration = route.duration[record.stream]
        duration.counts[bisect_left(SECONDS, took)] += 1
        duration.sum += took
        if self.callers:
            caller: CallerCounters | None
            try:
                caller = self.callers[record.caller]
            except KeyError:  # no caller, or one that a reload has taken away
                caller = None
            while caller is not None:
                if common is None:
                    caller.count(record, self._has_charges)
                else:  # nearly every one
                    caller.requests += 1
                    caller.input += given
                    caller.output += made
                caller = caller.group
            if self._has_prices:
                self._note_unpriced(record.charges)
        attempts = record.attempts
        if not attempts:
            return
        overhead = route.overhead
        overhead.counts[bisect_left(OVERHEAD_SECONDS, record.overhead)] += 1
        overhead.sum += record.overhead
        if record.stream and record.ttft is not None:
            route.first_token.observe(record.ttft)
        if record.held is not None:
            route.held.observe(record.held)
        route.keepalives += record.keepalives
        if record.hedge is not None:
            route.hedges[record.hedge] += 1
        minute = None
        for attempt in attempts:
            at: StepKey = attempt.step, attempt.provider, attempt.model
            if attempt.key_number is not None:
                at = (*at, attempt.key_number)
            if at not in route.steps:
                step = None
                continue
            step = route.steps[at]
            outcome = attempt.outcome
            if outcome == "ok":
                step.attempts["ok"] += 1
                step.answers = True
                minute = step.hour.at(record.ended)
                minute.ok += 1
                seconds = attempt.duration_ms / 1000
                duration = step.model.duration
                duration.counts[bisect_left(SECONDS, seconds)] += 1
                duration.sum += seconds
                if not record.stream:
                    minute.answers += 1
                    minute.whole += seconds
                elif record.ttft is not None:
                    # Without the time that the earlier attempts took, and without the time in which it was held.
                    first = max(0.0, seconds - (took - record.ttft) - (record.held or 0.0))
                    minute.streams += 1
                    minute.first += first
                    step.model.first_token.observe(first)
                continue
            step.attempts[outcome] = step.attempts.get(outcome, 0) + 1
            if outcome not in NOT_FAILURES:
                step.hour.at(record.ended).failed += 1
                self._failed(step, record, attempt)
        if attempts[0] is not attempts[-1]:
            in_turn = [each for each in attempts if each.outcome != "lost_race"]
            route.fallbacks += sum(a.step != b.step for a, b in pairwise(in_turn))
        if record.usage and step is not None:  # the last attempt's: those before it failed and reported none
            minute = minute or step.hour.at(record.ended)
            if common is not None:
                step.tokens["prompt"] += given
                step.tokens["completion"] += made
                minute.prompt += given
                minute.completion += made
            else:
                kinds = by_kind(record.usage)
                for kind, count in kinds.items():
                    step.tokens[kind] += count
                minute.prompt += kinds.get("prompt", 0)
                minute.completion += kinds.get("completion", 0)
        if record.status >= 500 or (record.error is not None and record.keepalives):  # which began it with 200
            self._gave_up(record)

    def _note_unpriced(self, charges: Sequence[Charge]) -> None:
        for charge in charges:
            key = charge.provider, charge.model
            if not charge.is_priced and key in self.models:
                self.unpriced[key] = self.unpriced.get(key, 0) + 1

    def _failed(self, step: StepCounters, record: Record, attempt: AttemptRecord) -> None:
        step.answers = False
        if attempt.rests_s is not None:
            step.why = attempt.message
        self._note(record, attempt, attempt.outcome, attempt.status, attempt.message)

    def _gave_up(self, record: Record) -> None:
        self._note(record, None, record.error or record.outcome, record.status, "the client got an error")

    def _note(
        self, record: Record, attempt: AttemptRecord | None, outcome: str, status: int | None, message: str
    ) -> None:
        route = record.route or OTHER
        self.failures.append(Failed(time.time(), record.request_id, route, attempt, outcome, status, message))
