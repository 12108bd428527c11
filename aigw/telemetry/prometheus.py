"""``/metrics``: the counters and the state of the daemon in Prometheus' words.

https://prometheus.io/docs/practices/naming/; labels hold nothing but what the configuration names, and codes of ours.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from aigw import __version__
from aigw.telemetry import series
from aigw.telemetry.counters import Counters
from aigw.telemetry.redaction import Redaction
from aigw.telemetry.snapshot import Snapshot, TakeSnapshot

Families = Iterator[Any]


class Exposition:
    """Answers scrapes. ``more`` adds families of others."""

    def __init__(
        self,
        counters: Counters,
        look: TakeSnapshot,
        redaction: Redaction,
        more: Callable[[], Families] | None = None,
    ) -> None:
        self._counters = counters
        self._look = look
        self._redaction = redaction
        self._more = more
        self._process = ProcessCollector(registry=None)

    def scrape(self, accept: str) -> tuple[Iterator[bytes], bytes]:
        """The pieces of the body, in the format that ``accept`` asks for, each of whole lines; and its content type.

        The pieces are made as they are asked for. Where there are many routes that takes a while: ask in a thread.
        """
        try:
            encode, kind = choose_encoder(accept)
        except Exception:  # it takes a version to be a number
            encode, kind = choose_encoder("")
        live = self._look()
        families = [*_of_the_daemon(live), *(self._more() if self._more is not None else ())]
        rest = CollectorRegistry(auto_describe=False)
        rest.register(_Families(families, self._process))

        def pieces() -> Iterator[bytes]:
            for piece in series.pieces(self._counters, live, self._redaction.hide, "openmetrics" in kind):
                yield piece.encode()
            yield self._redaction.hide_in_values(encode(rest))  # the last, for OpenMetrics has a mark at the end

        return pieces(), kind.encode()


class _Families(Collector):
    def __init__(self, families: list[Any], process: ProcessCollector) -> None:
        self._families = families
        self._process = process

    def collect(self) -> list[Any]:
        return [*self._families, *self._process.collect()]


def _of_the_daemon(live: Snapshot) -> Families:
    yield GaugeMetricFamily("aigw_connections", "Connections of clients that are open.", live.connections)
    yield CounterMetricFamily(
        "aigw_connections_refused", "Connections that were one too many, in all or of one address.", live.refused
    )
    yield CounterMetricFamily("aigw_refused_keys", "Keys of clients that were not the gateway's.", live.refused_keys)
    yield GaugeMetricFamily("aigw_event_loop_lag_seconds", "By how much the last beat of the loop was late.", live.lag)
    yield CounterMetricFamily(
        "aigw_log_lines_dropped", "Lines of the log that could not be written in time.", live.log_lines_dropped
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
