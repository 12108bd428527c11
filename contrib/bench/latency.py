"""Latency at a calm load: what a gateway adds to an answer, to the time to first output, and to each chunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from contrib.bench.client import Clients, Target, Times, added, percentile, request
from contrib.bench.contestants import KEY, PATH, Contestant, chat
from contrib.bench.report import table

MODELS = {"plain": "mock", "stream": "stream-20-20"}


class Row(NamedTuple):
    """One kind of time: seen directly, and through each contestant."""

    what: str
    direct: list[float]
    through: dict[str, list[float]]


def measure(port: int, contestants: Sequence[Contestant], rate: float, seconds: float) -> list[Row]:
    """Requests go in turn to the provider itself and through each contestant, each ``rate`` times a second."""
    rows = []
    for kind, model in MODELS.items():
        body = chat(model)
        direct = Target("direct", port, request(PATH, body, KEY))
        targets = [direct, *[who.target(body) for who in contestants]]
        with Clients(targets) as clients:
            clients.pace(rate, 1)
            clients.forget()
            clients.pace(rate, seconds)
            seen = {target.name: clients.times[target] for target in targets}
        for name, times in seen.items():
            if times.errors:
                raise RuntimeError(f"{name}: {times.errors[:3]}")
        if kind == "plain":
            rows.append(_row("plain answer", seen, "first"))
        else:
            rows += [_row("time to first output", seen, "first"), _row("a chunk", seen, "chunks")]
    return rows


def _row(what: str, seen: dict[str, Times], kind: str) -> Row:
    lists: dict[str, list[float]] = {name: getattr(times, kind) for name, times in seen.items()}
    return Row(what, lists.pop("direct"), lists)


def markdown(rows: Sequence[Row], rate: float) -> str:
    """In milliseconds."""
    names = list(rows[0].through)
    head = [f"ms, at {rate:g} requests a second", "direct p50", "direct p99"]
    head += [f"{name} adds to {which}" for name in names for which in ("p50", "p99")]
    lines = []
    for row in rows:
        line: list[object] = [row.what, *[percentile(row.direct, each) for each in (50, 99)]]
        line += [added(row.through[name], row.direct, each) for name in names for each in (50, 99)]
        lines.append(line)
    return table(head, lines)
