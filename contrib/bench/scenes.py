"""The scenes of the table: CPU of a contestant per request, or per chunk of a stream, with times and memory."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from contrib.bench import wrk
from contrib.bench.client import Clients, percentile
from contrib.bench.contestants import KEY, Contestant, chat

WARM_UP = 0.25  # of the measured time, before it


class Scene(NamedTuple):
    """So many connections, always busy with one request; ``apart`` sends its head and its body in two segments."""

    name: str
    connections: int
    model: str
    prompt: int = 200
    apart: bool = False
    tls: bool = False

    @property
    def streams(self) -> bool:
        """Whether it is counted per chunk."""
        return self.model.startswith("stream")


SCENES = (
    Scene("small", 32, "mock"),
    Scene("small_apart", 4, "mock", apart=True),  # as the official Python client of OpenAI sends it
    Scene("small_alone", 1, "mock"),  # nothing else to do: its times are those of one request
    Scene("prompt_64k", 16, "mock", 64_000),
    Scene("prompt_256k", 8, "mock", 256_000),
    Scene("stream_burst", 16, "stream-100-0"),  # chunks as fast as they go
    Scene("stream_paced", 200, "stream-100-20"),  # one each 20 ms: 10,000 a second, if that many go
    Scene("tls_small", 32, "mock", tls=True),  # on connections that are kept
    Scene("tls_paced", 200, "stream-100-20", tls=True),
)


@dataclass(frozen=True)
class Figures:
    """Of one contestant in one scene. A stream's times are a chunk's, from the provider's sending to its arrival."""

    cpu_us: float
    rate: float  # requests or chunks a second
    p50_ms: float
    p99_ms: float
    first_ms: float  # p50 of the time to first output; 0 for plain answers
    peak_mb: float
    errors: int


def measure(scene: Scene, who: Contestant, seconds: float, warm: bool = False) -> Figures:
    """Once; one that is ``warm`` has done the same before."""
    who.process.settle()
    return (_by_clients if scene.streams or scene.apart else _plain)(scene, who, seconds, warm)


def _plain(scene: Scene, who: Contestant, seconds: float, warm: bool) -> Figures:
    body = chat(scene.model, scene.prompt)
    if not warm:
        wrk.run(who.url(), body, KEY, scene.connections, seconds * WARM_UP, who.headers)
    who.process.forget_peak()
    before = who.process.cpu_seconds()
    seen = wrk.run(who.url(), body, KEY, scene.connections, seconds, who.headers)
    cpu = who.process.cpu_seconds() - before
    peak = who.process.rss_mb(peak=True)
    return Figures(
        _each(cpu, seen.requests), seen.requests / seen.seconds, seen.p50_ms, seen.p99_ms, 0.0, peak, seen.errors
    )


def _by_clients(scene: Scene, who: Contestant, seconds: float, warm: bool) -> Figures:
    """What wrk cannot send, or cannot time; streams begin one after the other, so each run needs time before it."""
    target = who.target(chat(scene.model, scene.prompt), apart=scene.apart)
    with Clients([target]) as clients:
        clients.keep_busy(target, scene.connections, max(0.5, seconds * WARM_UP), spread=0.4)
        clients.forget()
        who.process.forget_peak()
        before = who.process.cpu_seconds()
        clients.keep_busy(target, scene.connections, seconds, spread=0.4)
        cpu = who.process.cpu_seconds() - before
        peak = who.process.rss_mb(peak=True)
        seen = clients.times[target]
    for error in sorted(set(seen.errors))[:3]:
        print(f"{who.name}, {scene.name}: {error}", file=sys.stderr)
    times = seen.chunks if scene.streams else seen.whole
    p50, p99 = (percentile(times, each) for each in (50, 99))
    first, done = percentile(seen.first, 50) if scene.streams else 0.0, len(times)
    return Figures(_each(cpu, done), done / seconds, p50, p99, first, peak, len(seen.errors))


def _each(cpu: float, done: int) -> float:
    """In microseconds; 0 of nothing, for what failures cost is no measure."""
    return cpu / done * 1e6 if done else 0.0


def median(runs: Sequence[Figures]) -> Figures:
    """Each figure's own median; errors add up."""

    def of(name: str) -> float:
        return float(statistics.median(getattr(run, name) for run in runs))

    times = (of("p50_ms"), of("p99_ms"), of("first_ms"))
    return Figures(of("cpu_us"), of("rate"), *times, of("peak_mb"), sum(run.errors for run in runs))


Results = dict[str, dict[str, list[Figures]]]  # by scene, by contestant: one of each run


def measure_all(scenes: Sequence[Scene], contestants: Sequence[Contestant], seconds: float, runs: int) -> Results:
    """Each scene, one contestant right after the other, so that they meet the same machine; and all of that again."""
    taking_part = {scene: [who for who in contestants if bool(who.tls) == scene.tls] for scene in scenes}
    results: Results = {scene.name: {who.name: [] for who in taking_part[scene]} for scene in scenes}
    for run in range(runs):
        for scene in scenes:
            for who in taking_part[scene]:
                figures = measure(scene, who, seconds)
                results[scene.name][who.name].append(figures)
                print(f"run {run + 1}: {scene.name}, {who.name}: {figures.cpu_us:.1f} us", file=sys.stderr)
    return results


def ratio(results: Results, scene: str, name: str) -> float:
    """CPU beside nginx in the same run, the median of the runs; 0 where either did nothing, or took no part."""
    if name not in results[scene]:
        return 0.0
    pairs = zip(results[scene][name], results[scene]["nginx"], strict=True)
    return float(statistics.median(one.cpu_us / nginx.cpu_us if nginx.cpu_us else 0.0 for one, nginx in pairs))
