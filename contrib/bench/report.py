"""The table as Markdown, and as a chart where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from contrib.bench.scenes import SCENES, Results, median, ratio

CAVEAT = (
    "CPU of a gateway's own processes per request (per chunk where it streams), beside nginx's for the same relay in"
    " the same run, at full load of one core. Only the ratios travel from machine to machine, within some 15 %."
    " A dash: it answered with errors only, or took no part."
)
TIMES = (
    "`per s` and the times are those of a saturated core: who is faster is given more to do. In streams they are a"
    " chunk's way from the provider's `send` to the client's `recv`; where there are two cores, those two share one."
)
HEAD = ["scene", "who", "CPU us", "x nginx", "per s", "p50 ms", "p99 ms", "first output ms", "peak MB", "errors"]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """In Markdown; figures are given three digits that mean something."""
    lines = [head, ["---"] * len(head), *[[shown(each) for each in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown(value: object) -> str:
    """One cell."""
    if not isinstance(value, float):
        return str(value)
    if value == 0:
        return "-"
    size = abs(value)
    return f"{value:,.0f}" if size >= 99.5 else f"{value:.1f}" if size >= 9.95 else f"{value:.2f}"


def unit(scene: str) -> str:
    """What it is counted by."""
    return "chunk" if any(each.name == scene and each.streams for each in SCENES) else "request"


def _names(results: Results) -> list[str]:
    """All who took part in a scene, in their order."""
    return list(dict.fromkeys(name for by_name in results.values() for name in by_name))


def markdown(results: Results, machine: str, date: str, seconds: float, runs: int) -> str:
    """The whole report."""
    others = [name for name in _names(results) if name != "nginx"]
    short = [[f"{scene}, per {unit(scene)}", *[ratio(results, scene, each) for each in others]] for scene in results]
    rows: list[list[object]] = []
    for scene, by_name in results.items():
        for name in by_name:
            one, times = median(by_name[name]), ratio(results, scene, name)
            seen: list[object] = [one.cpu_us, times, one.rate, one.p50_ms, one.p99_ms, one.first_ms, one.peak_mb]
            rows.append([scene, name, *seen, one.errors])
    parts = [
        "# Measured",
        f"{date}. {machine} Medians of {runs} runs of {seconds:g} s each.",
        CAVEAT,
        table(["CPU, nginx is 1", *others], short),
        TIMES,
        table(HEAD, rows),
    ]
    return "\n\n".join(parts) + "\n"


def chart(results: Results, machine: str, date: str, file: Path) -> bool:
    """As a PNG; False where matplotlib is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return False
    names = [name for name in _names(results) if name != "nginx"]
    figure, axes = pyplot.subplots(figsize=(9, 4.8), layout="constrained")
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        places = [at + (index - (len(names) - 1) / 2) * width for at in range(len(results))]
        bars = axes.bar(places, [ratio(results, scene, name) for scene in results], width, label=name)
        axes.bar_label(bars, fmt=lambda value: shown(float(value)), fontsize=8)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.annotate("nginx", (0.995, 1), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.set_yscale("log")
    axes.set_xticks(range(len(results)), [f"{scene}\nper {unit(scene)}" for scene in results])
    axes.set_ylabel("CPU, times nginx (log)")
    axes.set_title(f"CPU beside nginx doing the same relay; less is better\n{date}, {machine}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    return True
