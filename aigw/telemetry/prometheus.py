"""``/metrics``: the tally and the state of the daemon in Prometheus' words.

https://prometheus.io/docs/practices/naming/; labels hold nothing but what the configuration names, and codes of ours.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from aigw import __version__
from aigw.telemetry.counters import OTHER, Counters, Histogram, RouteCounters
from aigw.telemetry.snapshot import Snapshot, TakeSnapshot

STEP = ["route", "step", "provider", "model"]
Families = Iterator[Any]


class Exposition:
    """Answers scrapes. ``more`` adds families of others."""

    def __init__(self, tally: Counters, look: TakeSnapshot, more: Callable[[], Families] | None = None) -> None:
        self._tally = tally
        self._look = look
        self._more = more
        self._process = ProcessCollector(registry=None)

    def scrape(self, accept: str) -> tuple[Callable[[], bytes], bytes]:
        """What makes the body, in the format that ``accept`` asks for, and its content type.

        What it says is of now; making it takes a while where there are many routes, and may be done in a thread.
        """
        try:
            encode, kind = choose_encoder(accept)
        except Exception:  # it takes a version to be a number
            encode, kind = choose_encoder("")
        seen = CollectorRegistry(auto_describe=False)
        seen.register(_Seen([*self._families(), *self._process.collect()]))
        return lambda: encode(seen), kind.encode()

    def _families(self) -> Families:
        live = self._look()
        yield from _of_routes({OTHER: self._tally.other, **self._tally.routes})
        yield from _of_steps(self._tally.routes)
        yield from _of_rests(live)
        yield from _of_the_daemon(live)
        if self._more is not None:
            yield from self._more()


class _Seen(Collector):
    def __init__(self, families: list[Any]) -> None:
        self._families = families

    def collect(self) -> list[Any]:
        return self._families


def _of_routes(routes: dict[str, RouteCounters]) -> Families:
    requests = CounterMetricFamily(
        "aigw_requests",
        "Requests that were answered or given up, by what the client got.",
        None,
        ["route", "status", "stream"],
    )
    duration = HistogramMetricFamily(
        "aigw_request_duration_seconds", "From a request's head to the end of its answer.", labels=["route", "stream"]
    )
    first = HistogramMetricFamily(
        "aigw_time_to_first_token_seconds", "From a request's head to the first output of its stream.", labels=["route"]
    )
    overhead = HistogramMetricFamily(
        "aigw_overhead_seconds", "What requests took that was no waiting for a provider.", labels=["route"]
    )
    fallbacks = CounterMetricFamily("aigw_fallbacks", "How often a request went on to another step.", labels=["route"])
    for name, route in routes.items():
        for (status, stream), count in route.requests.items():
            requests.add_metric([name, str(status), _bool(stream)], count)
        for stream, histogram in route.duration.items():
            duration.add_metric([name, _bool(stream)], *_buckets(histogram))
        if name != OTHER or route.steps:
            first.add_metric([name], *_buckets(route.first_token))
            overhead.add_metric([name], *_buckets(route.overhead))
            fallbacks.add_metric([name], route.fallbacks)
    yield from (requests, duration, first, overhead, fallbacks)


def _of_steps(routes: dict[str, RouteCounters]) -> Families:
    attempts = CounterMetricFamily(
        "aigw_attempts", "Attempts at a step, by what came of them.", labels=[*STEP, "outcome"]
    )
    tokens = CounterMetricFamily(
        "aigw_tokens",
        "Tokens that providers reported. cached is part of prompt, reasoning part of completion, as OpenAI counts.",
        labels=[*STEP, "type"],
    )
    for name, route in routes.items():
        for (number, provider, model), step in route.steps.items():
            labels = [name, str(number), provider, model]
            for outcome, count in step.attempts.items():
                attempts.add_metric([*labels, outcome], count)
            for kind, count in step.tokens.items():
                tokens.add_metric([*labels, kind], count)
    yield from (attempts, tokens)


def _of_rests(live: Snapshot) -> Families:
    resting = GaugeMetricFamily("aigw_step_resting", "1 while a step rests, which is then tried last.", labels=STEP)
    until = GaugeMetricFamily(
        "aigw_step_rest_end_timestamp_seconds", "When a resting step is tried again, in Unix time.", labels=STEP
    )
    for route in live.config.routes.values():
        for step in route.steps:
            labels, left = [route.name, str(step.number), step.provider.name, step.model], live.rests_for(step)
            resting.add_metric(labels, left is not None)
            if left is not None:
                until.add_metric(labels, time.time() + left)
    yield from (resting, until)


def _of_the_daemon(live: Snapshot) -> Families:
    in_flight = GaugeMetricFamily("aigw_requests_in_flight", "Requests that are being answered.", labels=["route"])
    for name in live.config.routes:
        in_flight.add_metric([name], live.in_flight.get(name, 0))
    yield in_flight
    yield GaugeMetricFamily("aigw_connections", "Connections of clients that are open.", live.connections)
    yield CounterMetricFamily(
        "aigw_connections_refused", "Connections that were one too many, in all or of one address.", live.refused
    )
    yield CounterMetricFamily("aigw_refused_keys", "Keys of clients that were not the gateway's.", live.refused_keys)
    yield GaugeMetricFamily("aigw_event_loop_lag_seconds", "By how much the last beat of the loop was late.", live.lag)
    yield CounterMetricFamily(
        "aigw_log_lines_dropped", "Lines of the log that could not be written in time.", live.log_lines_dropped
    )
    reloads = CounterMetricFamily("aigw_config_reloads", "Reloads of the configuration.", labels=["result"])
    reloads.add_metric(["success"], live.reloads.taken)
    reloads.add_metric(["failure"], live.reloads.refused)
    yield reloads
    yield GaugeMetricFamily(
        "aigw_config_last_reload_successful",
        "Whether what is in the files is what runs: 1 from the start until a reload fails.",
        live.reloads.refused_at is None,
    )
    yield GaugeMetricFamily(
        "aigw_config_last_reload_success_timestamp_seconds",
        "When the configuration was last taken.",
        live.reloads.taken_at,
    )
    if live.certificate_expires is not None:
        yield GaugeMetricFamily(
            "aigw_certificate_expiry_timestamp_seconds",
            "When the first of the listeners' certificates expires, in Unix time.",
            live.certificate_expires,
        )
    build = GaugeMetricFamily("aigw_build_info", "Always 1.", labels=["version", "python_version"])
    build.add_metric([__version__, platform.python_version()], 1)
    yield build


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip([*map(str, histogram.bounds), "+Inf"], histogram.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets, histogram.sum
