"""The counters of each route, step and model as lines of Prometheus' text format; there may be many lines.

The lines are made in a thread, from counters that may change meanwhile: a list or dict is copied in one operation just
before it is read. A route or step that was never used has no series except those that alerts need.
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from aigw.telemetry.counters import OUTCOMES, Histogram
from aigw.telemetry.series_names import NamedModel, NamedRoute

_NONE = dict.fromkeys(OUTCOMES, 0)
# These series of a route exist as soon as it is used: an alert then sees the first of each as an increase.
_INCOMPLETE = [outcome for outcome in OUTCOMES if outcome.startswith(("stream_", "answer_"))]
_ENDS = ((499, "client_gone"), (504, "error"))
_NO_REQUESTS = {(200, outcome.startswith("stream_"), outcome): 0 for outcome in _INCOMPLETE}
_NO_REQUESTS |= {(status, stream, outcome): 0 for status, outcome in _ENDS for stream in (False, True)}
_STREAM = (b',stream="false"', b',stream="true"')
_LABELS = b"\0"  # stands for a series' labels in the form of its lines, which all series of a metric have in common


class Family(NamedTuple):
    """A metric."""

    name: str
    kind: str
    text: str

    def head(self, openmetrics: bool) -> bytes:
        """The lines before those with values."""
        # In OpenMetrics the name of a counter's family has no _total; the names of its samples have it.
        name = f"{self.name}_total" if self.kind == "counter" and not openmetrics else self.name
        return f"# HELP {name} {self.text}\n# TYPE {name} {self.kind}\n".encode()


def _requests(route: NamedRoute) -> bytes:
    requests = route.counted.requests.copy()
    if route.counted.used and route.counted.steps:
        requests = {**_NO_REQUESTS, **requests}
    form = _form_of_requests(tuple(requests))
    return _filled(form, requests.values(), route.label)


@lru_cache(maxsize=1024)
def _form_of_requests(keys: tuple[tuple[int, bool, str], ...]) -> bytes:
    return b"".join(
        [
            f'aigw_requests_total{{\0,status="{status}",stream="{_bool(stream)}",outcome="{outcome}"}} %d.0\n'.encode()
            for status, stream, outcome in keys
        ]
    )


def _durations(route: NamedRoute) -> bytes:
    return b"".join(
        [
            _histogram("aigw_request_duration_seconds", route.label + label, histogram, route.is_other)
            for label, histogram in zip(_STREAM, map(route.counted.duration.__getitem__, (False, True)), strict=True)
        ]
    )


def _first_token(route: NamedRoute) -> bytes:
    return _histogram("aigw_time_to_first_token_seconds", route.label, route.counted.first_token)


def _overhead(route: NamedRoute) -> bytes:
    return _histogram("aigw_overhead_seconds", route.label, route.counted.overhead)


def _held(route: NamedRoute) -> bytes:
    return _histogram("aigw_held_seconds", route.label, route.counted.held)


def _fallbacks(route: NamedRoute) -> bytes:
    return b"aigw_fallbacks_total{%s} %d.0\n" % (route.label, route.counted.fallbacks) if route.counted.used else b""


def _keepalives(route: NamedRoute) -> bytes:
    return b"aigw_keepalives_total{%s} %d.0\n" % (route.label, route.counted.keepalives) if route.counted.used else b""


def _not_in_flight(route: NamedRoute) -> bytes:
    return in_flight(route, 0) if route.counted.used else b""


def in_flight(route: NamedRoute, requests: int) -> bytes:
    """The line of a route with running requests."""
    return b"aigw_requests_in_flight{%s} %d.0\n" % (route.label, requests)


def _hedges(route: NamedRoute) -> bytes:
    """Of a route with ``hedge``, and of one that had it."""
    hedges = route.counted.hedges.copy()
    if not route.may_hedge and not any(hedges.values()):
        return b""
    return _counters("aigw_hedges_total", "result", hedges, route.label)


def _attempts(route: NamedRoute) -> bytes:
    """All outcomes; only ``ok`` of a step that was never tried: an alert then sees its first answer as an increase."""
    texts = []
    for labels, step in route.steps:
        attempts = step.attempts.copy()
        if len(attempts) > 1 or attempts["ok"]:
            attempts = {**_NONE, **attempts}
        texts.append(_counters("aigw_attempts_total", "outcome", attempts, labels))
    return b"".join(texts)


def _tokens(route: NamedRoute) -> bytes:
    texts = []
    for labels, step in route.steps:
        if len(step.attempts) == 1 and not step.attempts["ok"]:
            continue
        texts.append(_counters("aigw_tokens_total", "type", step.tokens.copy(), labels))
    return b"".join(texts)


def _duration_of_model(model: NamedModel) -> bytes:
    return _histogram("aigw_provider_duration_seconds", model[0], model[1].duration)


def _first_token_of_model(model: NamedModel) -> bytes:
    return _histogram("aigw_provider_time_to_first_token_seconds", model[0], model[1].first_token)


def _histogram(name: str, labels: bytes, histogram: Histogram, even_if_unused: bool = False) -> bytes:
    counts = histogram.counts[:]
    if not any(counts) and not even_if_unused:
        return b""
    totals = [*accumulate(counts)]
    form = _form_of_histogram(name, tuple(histogram.bounds))
    return _filled(form, (*totals, totals[-1], histogram.sum), labels)


@lru_cache(maxsize=64)
def _form_of_histogram(name: str, bounds: tuple[float, ...]) -> bytes:
    buckets = [f'{name}_bucket{{\0,le="{bound}"}} %d.0\n' for bound in (*bounds, "+Inf")]
    return "".join([*buckets, f"{name}_count{{\0}} %d.0\n{name}_sum{{\0}} %r\n"]).encode()


def _counters(name: str, label: str, counts: Mapping[str, int], labels: bytes) -> bytes:
    return _filled(_form_of_counters(name, label, tuple(counts)), counts.values(), labels)


def _filled(form: bytes, values: Iterable[float], labels: bytes) -> bytes:
    return (form % (*values,)).replace(_LABELS, labels)


@lru_cache(maxsize=256)
def _form_of_counters(name: str, label: str, values: tuple[str, ...]) -> bytes:
    return "".join([f'{name}{{\0,{label}="{value}"}} %d.0\n' for value in values]).encode()


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _of_routes(lines: Callable[[NamedRoute], bytes]) -> Callable[[NamedRoute], bytes]:
    """Without the requests that name no route."""
    return lambda route: lines(route) if route.is_configured else b""


OF_ROUTES: tuple[tuple[Family, Callable[[NamedRoute], bytes]], ...] = (
    (
        Family(
            "aigw_requests",
            "counter",
            "Requests that have ended, by the status that the client got and by the outcome.",
        ),
        _requests,
    ),
    (
        Family("aigw_request_duration_seconds", "histogram", "From a request's head to the end of its answer."),
        _durations,
    ),
    (
        Family(
            "aigw_time_to_first_token_seconds", "histogram", "From a request's head to the first output of its stream."
        ),
        _of_routes(_first_token),
    ),
    (
        Family(
            "aigw_overhead_seconds",
            "histogram",
            "The duration of requests without the time to read their bodies and without the time of providers.",
        ),
        _of_routes(_overhead),
    ),
    (
        Family("aigw_fallbacks", "counter", "How often another step of the route was tried after a failed attempt."),
        _of_routes(_fallbacks),
    ),
    (
        Family(
            "aigw_hedges", "counter", "Second attempts beside slow ones, by the result; over_share: none was allowed."
        ),
        _of_routes(_hedges),
    ),
    (
        Family(
            "aigw_held_seconds",
            "histogram",
            "How long answers were held after their first output, on routes that hold them until they are whole.",
        ),
        _of_routes(_held),
    ),
    (Family("aigw_keepalives", "counter", "Keep-alives that were written into streams."), _of_routes(_keepalives)),
    (Family("aigw_attempts", "counter", "Attempts of a step, by outcome."), _attempts),
    (
        Family(
            "aigw_tokens",
            "counter",
            "Tokens that providers reported. As OpenAI counts, cached is part of prompt, and reasoning of completion.",
        ),
        _tokens,
    ),
    (Family("aigw_requests_in_flight", "gauge", "Requests that are running."), _of_routes(_not_in_flight)),
)
OF_MODELS: tuple[tuple[Family, Callable[[NamedModel], bytes]], ...] = (
    (
        Family(
            "aigw_provider_duration_seconds",
            "histogram",
            "From an attempt to the end of its answer, by provider and model.",
        ),
        _duration_of_model,
    ),
    (
        Family(
            "aigw_provider_time_to_first_token_seconds",
            "histogram",
            "From an attempt to the first output of its stream, by provider and model.",
        ),
        _first_token_of_model,
    ),
)
