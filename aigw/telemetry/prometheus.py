"""``/metrics``: the counters and the state of the daemon for Prometheus.

The values of labels are names from the configuration and the gateway's own codes, nothing that clients send.
Names follow https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from aigw import __version__
from aigw.telemetry.counters import Counters
from aigw.telemetry.redaction import Redaction
from aigw.telemetry.scrape import Scrapes
from aigw.telemetry.series_names import SeriesNames
from aigw.telemetry.snapshot import Snapshot, TakeSnapshot

Families = Iterator[Metric]


class Exposition:
    """Answers scrapes. ``more`` gives further metric families."""

    def __init__(
        self,
        counters: Counters,
        take_snapshot: TakeSnapshot,
        redaction: Redaction,
        more: Callable[[], Families] | None = None,
    ) -> None:
        self._take_snapshot = take_snapshot
        self._redaction = redaction
        self._more = more
        self._process = ProcessCollector(registry=None)
        self._scrapes = Scrapes(counters, SeriesNames(lambda: redaction.hide))

    def scrape(self, accept: str) -> tuple[Iterator[bytes], bytes]:
        """The pieces of the body, each of whole lines, and its content type; in the format that ``accept`` asks for.

        It is to be called on the event loop. A piece is made when the iterator reaches it. With many routes that takes
        long: iterate in a thread.
        """
        try:
            encode, kind = choose_encoder(accept)
        except Exception:  # choose_encoder expects each version in Accept to be a number
            encode, kind = choose_encoder("")
        live = self._take_snapshot()
        texts = self._scrapes.begin(live, "openmetrics" in kind)
        families = [*_of_the_daemon(live), *(self._more() if self._more is not None else ())]
        rest = CollectorRegistry(auto_describe=False)
        rest.register(_Families(families, self._process))

        def pieces() -> Iterator[bytes]:
            yield from texts
            yield self._redaction.hide_in_values(encode(rest))  # last, because it ends with OpenMetrics' end mark

        return pieces(), kind.encode()


class _Families(Collector):
    def __init__(self, families: list[Metric], process: ProcessCollector) -> None:
        self._families = families
        self._process = process

    def collect(self) -> list[Metric]:
        return [*self._families, *self._process.collect()]


def _of_the_daemon(live: Snapshot) -> Families:
    yield GaugeMetricFamily("aigw_connections", "Open connections of clients.", live.connections)
    yield CounterMetricFamily(
        "aigw_connections_refused",
        "Connections that were refused because of a limit, in all or for one address.",
        live.refused,
    )
    yield CounterMetricFamily("aigw_refused_keys", "Wrong keys and forged cookies of clients.", live.refused_keys)
    yield GaugeMetricFamily("aigw_event_loop_lag_seconds", "How late the last check of the event loop ran.", live.lag)
    yield CounterMetricFamily(
        "aigw_log_lines_dropped",
        "Lines of the log that were dropped, not written.",
        live.log_lines_dropped,
    )
    if live.config.store is not None:
        yield CounterMetricFamily(
            "aigw_store_failures",
            "Calls of the store of limits that failed or took too long.",
            live.store_failures,
        )
    if live.held is not None:
        yield GaugeMetricFamily(
            "aigw_held_bytes", "Bytes of answers that are held until they are whole.", live.held.now
        )
        yield CounterMetricFamily(
            "aigw_held_exhausted",
            "Answers that were passed on before they were whole, because there was no room to hold more of them.",
            live.held.exhausted,
        )
    reloads = CounterMetricFamily("aigw_config_reloads", "Reloads of the configuration.", labels=["result"])
    reloads.add_metric(["success"], live.reloads.taken)
    reloads.add_metric(["failure"], live.reloads.refused)
    yield reloads
    yield GaugeMetricFamily(
        "aigw_config_last_reload_successful",
        "1 if the configuration in the files is the one that runs, 0 if the last reload failed.",
        live.reloads.refused_at is None,
    )
    yield GaugeMetricFamily(
        "aigw_config_last_reload_success_timestamp_seconds",
        "When the configuration was last loaded, in Unix time.",
        live.reloads.taken_at,
    )
    if live.certificate_expires is not None:
        yield GaugeMetricFamily(
            "aigw_certificate_expiry_timestamp_seconds",
            "When the first of the listeners' certificates expires, in Unix time.",
            live.certificate_expires,
        )
    build = GaugeMetricFamily(
        "aigw_build_info", "Always 1; the labels have versions.", labels=["version", "python_version"]
    )
    build.add_metric([__version__, platform.python_version()], 1)
    yield build
