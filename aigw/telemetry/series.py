"""The counters of each route, step and model as lines of Prometheus' text format; there may be many lines.

The lines are made in a thread, piece by piece, from counters that may change meanwhile: a list or dict is copied in one
operation just before it is read. A route or step that was never used has no series except those that alerts need.
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import accumulate, islice

from aigw.telemetry import caller_series
from aigw.telemetry.caller_series import MetricFamily
from aigw.telemetry.counters import OUTCOMES, Counters, Histogram, RouteCounters, StepCounters
from aigw.telemetry.series_names import SeriesNames
from aigw.telemetry.snapshot import Snapshot

PIECE = 64  # routes, steps or models
PAUSE_SECONDS = 0.0001  # a pause after each piece, in which the event loop can run
_NONE = dict.fromkeys(OUTCOMES, 0)
# These series of a route exist as soon as it is used: an alert then sees the first of each as an increase.
_INCOMPLETE = [outcome for outcome in OUTCOMES if outcome.startswith(("stream_", "answer_"))]
_ENDS = ((499, "client_gone"), (504, "error"))
_NO_REQUESTS = {(200, outcome.startswith("stream_"), outcome): 0 for outcome in _INCOMPLETE}
_NO_REQUESTS |= {(status, stream, outcome): 0 for status, outcome in _ENDS for stream in (False, True)}
LABELS = "\0"  # stands for a series' labels in the form of its lines, which all series of a metric have in common


def pieces(counters: Counters, live: Snapshot, names: SeriesNames, openmetrics: bool) -> Iterator[str]:
    """All lines, in pieces of whole lines. ``names`` keeps the labels from one scrape to the next."""
    for _ in names.refresh(counters, live):
        yield ""
        time.sleep(PAUSE_SECONDS)
    named, routes, steps, models, configured = (
        names.routes,
        names.with_other,
        names.steps,
        names.models,
        names.configured,
    )
    caller_labels, model_labels = names.caller_label, names.model_labels
    families = (
        MetricFamily(
            "aigw_requests",
            "counter",
            "Requests that have ended, by the status that the client got and by the outcome.",
            (_requests(labels, route) for labels, route in routes),
        ),
        MetricFamily(
            "aigw_request_duration_seconds",
            "histogram",
            "From a request's head to the end of its answer.",
            (_durations(labels, route, route is counters.other) for labels, route in routes),
        ),
        MetricFamily(
            "aigw_time_to_first_token_seconds",
            "histogram",
            "From a request's head to the first output of its stream.",
            (_histogram("aigw_time_to_first_token_seconds", labels, route.first_token) for labels, _, route in named),
        ),
        MetricFamily(
            "aigw_overhead_seconds",
            "histogram",
            "The duration of requests without the time to read their bodies and without the time of providers.",
            (_histogram("aigw_overhead_seconds", labels, route.overhead) for labels, _, route in named),
        ),
        MetricFamily(
            "aigw_fallbacks",
            "counter",
            "How often another step of the route was tried after a failed attempt.",
            (f"aigw_fallbacks_total{{{labels}}} {route.fallbacks}.0\n" for labels, _, route in named if route.used),
        ),
        MetricFamily(
            "aigw_hedges",
            "counter",
            "Second attempts beside slow ones, by the result; over_share: none was allowed.",
            (_hedges(labels, name, route, live) for labels, name, route in named),
        ),
        MetricFamily(
            "aigw_held_seconds",
            "histogram",
            "How long answers were held after their first output, on routes that hold them until they are whole.",
            (_histogram("aigw_held_seconds", labels, route.held) for labels, _, route in named),
        ),
        MetricFamily(
            "aigw_keepalives",
            "counter",
            "Keep-alives that were written into streams.",
            (f"aigw_keepalives_total{{{labels}}} {route.keepalives}.0\n" for labels, _, route in named if route.used),
        ),
        MetricFamily(
            "aigw_attempts",
            "counter",
            "Attempts of a step, by outcome.",
            (_attempts(labels, step) for labels, step in steps),
        ),
        MetricFamily(
            "aigw_tokens",
            "counter",
            "Tokens that providers reported. As OpenAI counts, cached is part of prompt, and reasoning of completion.",
            (_tokens(labels, step) for labels, step in steps),
        ),
        MetricFamily(
            "aigw_provider_duration_seconds",
            "histogram",
            "From an attempt to the end of its answer, by provider and model.",
            (_histogram("aigw_provider_duration_seconds", labels, model.duration) for labels, model in models),
        ),
        MetricFamily(
            "aigw_provider_time_to_first_token_seconds",
            "histogram",
            "From an attempt to the first output of its stream, by provider and model.",
            (
                _histogram("aigw_provider_time_to_first_token_seconds", labels, model.first_token)
                for labels, model in models
            ),
        ),
        MetricFamily(
            "aigw_step_cooling_down",
            "gauge",
            "1 from the failure that began a step's cooldown until its next answer, else 0.",
            (f"aigw_step_cooling_down{{{labels}}} {live.cools_down(step):d}.0\n" for labels, step in configured),
        ),
        MetricFamily(
            "aigw_step_resting",
            "gauge",
            "The old name of aigw_step_cooling_down.",
            (f"aigw_step_resting{{{labels}}} {live.cools_down(step):d}.0\n" for labels, step in configured),
        ),
        MetricFamily(
            "aigw_step_rest_end_timestamp_seconds",
            "gauge",
            "When the cooldown of a step ends, in Unix time.",
            (
                f"aigw_step_rest_end_timestamp_seconds{{{labels}}} {time.time() + left!r}\n"
                for labels, step in configured
                if (left := live.cooldown_left(step)) is not None
            ),
        ),
        MetricFamily(
            "aigw_requests_in_flight",
            "gauge",
            "Requests that are running.",
            (
                f"aigw_requests_in_flight{{{labels}}} {live.in_flight.get(name, 0)}.0\n"
                for labels, name, route in named
                if route.used or name in live.in_flight
            ),
        ),
    )
    accounts = caller_series.families(counters, live, caller_labels, model_labels) if counters.callers else ()
    for family in (*families, *accounts):
        # In OpenMetrics the name of a counter's family has no _total; the names of its samples have it.
        name = f"{family.name}_total" if family.kind == "counter" and not openmetrics else family.name
        yield f"# HELP {name} {family.text}\n# TYPE {name} {family.kind}\n"
        yield from _together(family.lines)


def _together(lines: Iterable[str]) -> Iterator[str]:
    lines = iter(lines)
    while batch := [*islice(lines, PIECE)]:
        yield "".join(batch)
        time.sleep(PAUSE_SECONDS)


def _requests(labels: str, route: RouteCounters) -> str:
    begin, requests = f"aigw_requests_total{{{labels},", route.requests.copy()
    if route.used and route.steps:
        requests = {**_NO_REQUESTS, **requests}
    return "".join([f"{begin}{_result(*key)}{count}.0\n" for key, count in requests.items()])


@lru_cache(maxsize=1024)
def _result(status: int, stream: bool, outcome: str) -> str:
    return f'status="{status}",stream="{_bool(stream)}",outcome="{outcome}"}} '


def _durations(labels: str, route: RouteCounters, even_if_unused: bool) -> str:
    return "".join(
        [
            _histogram("aigw_request_duration_seconds", f'{labels},stream="{_bool(stream)}"', histogram, even_if_unused)
            for stream, histogram in route.duration.items()
        ]
    )


def _histogram(name: str, labels: str, histogram: Histogram, even_if_unused: bool = False) -> str:
    counts = histogram.counts[:]
    if not any(counts) and not even_if_unused:
        return ""
    totals = [*accumulate(counts)]
    form = _form_of_histogram(name, tuple(histogram.bounds))
    return (form % (*totals, totals[-1], histogram.sum)).replace(LABELS, labels)


@lru_cache(maxsize=64)
def _form_of_histogram(name: str, bounds: tuple[float, ...]) -> str:
    buckets = [f'{name}_bucket{{{LABELS},le="{bound}"}} %d.0\n' for bound in (*bounds, "+Inf")]
    return "".join([*buckets, f"{name}_count{{{LABELS}}} %d.0\n{name}_sum{{{LABELS}}} %r\n"])


def _hedges(labels: str, name: str, route: RouteCounters, live: Snapshot) -> str:
    """Of a route with ``hedge``, and of one that had it."""
    hedges, configured = route.hedges.copy(), live.config.routes.get(name)
    if not any(hedges.values()) and (configured is None or configured.hedge is None):
        return ""
    return "".join([f'aigw_hedges_total{{{labels},result="{result}"}} {n}.0\n' for result, n in hedges.items()])


def _attempts(labels: str, step: StepCounters) -> str:
    """All outcomes; only ``ok`` of a step that was never tried: an alert then sees its first answer as an increase."""
    attempts = step.attempts.copy()
    if len(attempts) > 1 or attempts["ok"]:
        attempts = {**_NONE, **attempts}
    form = _form_of_counters("aigw_attempts_total", "outcome", tuple(attempts))
    return (form % (*attempts.values(),)).replace(LABELS, labels)


def _tokens(labels: str, step: StepCounters) -> str:
    if len(step.attempts) == 1 and not step.attempts["ok"]:
        return ""
    tokens = step.tokens.copy()
    form = _form_of_counters("aigw_tokens_total", "type", tuple(tokens))
    return (form % (*tokens.values(),)).replace(LABELS, labels)


@lru_cache(maxsize=256)
def _form_of_counters(name: str, label: str, values: tuple[str, ...]) -> str:
    return "".join([f'{name}{{{LABELS},{label}="{value}"}} %d.0\n' for value in values])


def _bool(value: bool) -> str:
    return "true" if value else "false"
