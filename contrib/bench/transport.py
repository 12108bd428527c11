"""TLS: what a handshake costs, and a relayed megabyte, beside nginx with the same certificate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

from contrib.bench import wrk
from contrib.bench.contestants import KEY, PATH, Certificate, Contestant, Setup, chat, gateway, nginx
from contrib.bench.report import table

HEAD = ["what", "TLS", "aigw", "nginx", "ratio"]


class Bulk(NamedTuple):
    """Megabytes in one direction."""

    name: str
    model: str
    prompt: int
    megabytes: float


BULK = (Bulk("prompts of 256 KB", "mock", 256_000, 0.256), Bulk("answers of 1 MB", "answer-1000000", 200, 1.0))


def measure(setup: Setup, certificate: Certificate, provider_core: int, seconds: float) -> str:
    """All rows, as Markdown."""
    sides = {"none": (False, False), "client": (True, False), "provider": (False, True), "both": (True, True)}
    rows: list[Sequence[object]] = []
    with ExitStack() as stack:
        front = nginx(replace(setup, core=provider_core, tls=certificate), "provider-tls")
        stack.enter_context(front.process)
        for name, (listener, provider) in sides.items():
            used = replace(
                setup,
                tls=certificate if listener else None,
                provider_tls=certificate if provider else None,
                provider=front.port if provider else setup.provider,
            )
            with ExitStack() as running:
                pair = (gateway(used), nginx(used))
                for who in pair:
                    running.enter_context(who.process)
                if not provider:
                    rows += _connections(pair, name, seconds)
                for bulk in BULK:
                    cost = [_per_megabyte(who, bulk, seconds) for who in pair]
                    rows.append([f"{bulk.name}, CPU ms per MB", name, *cost, cost[0] / max(cost[1], 1e-9)])
    return table(HEAD, rows)


def _connections(pair: Sequence[Contestant], tls: str, seconds: float) -> Iterator[Sequence[object]]:
    """A new connection for each request, which the gateway itself answers."""
    rates, costs = [], []
    for who in pair:
        who.process.settle()
        before = who.process.cpu_seconds()
        seen = wrk.run(who.url("/health"), b"", KEY, 16, seconds, ["Connection: close"])
        costs.append((who.process.cpu_seconds() - before) / max(1, seen.requests) * 1e6)
        rates.append(seen.requests / seen.seconds)
    yield ["new connections, each with one request, per s", tls, *rates, rates[0] / max(rates[1], 1e-9)]
    yield ["the same, CPU us each", tls, *costs, costs[0] / max(costs[1], 1e-9)]


def _per_megabyte(who: Contestant, bulk: Bulk, seconds: float) -> float:
    """In CPU milliseconds."""
    body = chat(bulk.model, bulk.prompt)
    wrk.run(who.url(PATH), body, KEY, 8, 1)
    who.process.settle()
    before = who.process.cpu_seconds()
    seen = wrk.run(who.url(PATH), body, KEY, 8, seconds)
    if seen.errors:
        raise RuntimeError(f"{who.name}: {seen.errors} errors")
    return (who.process.cpu_seconds() - before) / max(1, seen.requests) / bulk.megabytes * 1e3
