"""Scale: thousands of idle streams on one process, and several processes on one port."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from contrib.bench import wrk
from contrib.bench.client import Clients, Target, percentile
from contrib.bench.contestants import KEY, Contestant, Setup, chat, gateway
from contrib.bench.report import shown, table
from contrib.bench.scenes import SCENES

PER_ADDRESS = 8000  # of ours: a source address has some 28,000 ports
AT_ONCE = 50
PROBES = 200
PROBERS = 10  # connections beside the idle ones
SPARE_FILES = 200  # what the gateway has open beside two sockets a stream, and the probes' own


def idle_streams(setup: Setup, wanted: int, file_limit: int) -> str:
    """So many streams that have begun and say nothing; how a new request fares among them."""
    count = min(wanted, (file_limit - SPARE_FILES) // 2)
    with ExitStack() as stack:
        who = gateway(replace(setup, connections=count + PROBERS))
        stack.enter_context(who.process)
        idle, probe, health = who.target(chat("idle")), who.target(chat("stream-1-0")), who.target(b"", "/health")
        clients = stack.enter_context(Clients([idle, probe, health]))
        _probe(clients, probe, 20)
        alone = _probe(clients, probe, PROBES)
        _open(clients, idle, 20, 0)
        who.process.settle()
        before = who.process.rss_mb()
        began, cpu = time.monotonic(), who.process.cpu_seconds()
        _open(clients, idle, count - 20, 20)
        took, cpu = time.monotonic() - began, who.process.cpu_seconds() - cpu
        who.process.settle(3)
        after = who.process.rss_mb()
        cpu_idle = _share(who)
        among = _probe(clients, probe, PROBES)
        lag = _probe(clients, health, PROBES * 5)
        errors = [each for times in clients.times.values() for each in times.errors]
        held_up = held_up_ms(who.log.read_text().splitlines() if who.log else ())
        if errors:
            raise RuntimeError(f"{len(errors)} of {count} streams failed: {errors[0]}")
    return table(
        ["idle streams on one process", ""],
        [
            [
                "streams" + (f" ({wanted} asked; {file_limit} open files allow no more)" if count < wanted else ""),
                count,
            ],
            ["TLS to the client", "yes" if setup.tls else "no"],
            ["opened in s", took],
            ["CPU ms to open one", cpu / count * 1e3],
            ["memory before, MB", before],
            ["memory with them, MB", after],
            ["KiB per stream", (after - before) * 1024 / (count - 20)],
            ["CPU while idle, %", cpu_idle * 100],
            ["first output of a new stream, alone, p50 / p99 ms", _both(alone)],
            ["first output of a new stream, among them, p50 / p99 ms", _both(among)],
            ["a turn of the event loop (/health), among them, p50 / p99 ms", _both(lag)],
            [
                "longest hold-up of the loop that it logged (over 200 ms), while they were opened, ms",
                max([0.0, *held_up]),
            ],
        ],
    )


def _open(clients: Clients, target: Target, count: int, already: int) -> None:
    """Streams, a few at a time; returns when each has begun."""
    times = clients.times[target]
    there = len(times.first)
    asked = 0
    until = time.monotonic() + 30 + count / 50
    while (begun := len(times.first) - there) < count and not times.errors and time.monotonic() < until:
        while asked < count and asked - begun < AT_ONCE:
            clients.connect(target, f"127.0.0.{2 + (already + asked) // PER_ADDRESS}").ask()
            asked += 1
        for _ in clients.wait(1):
            raise RuntimeError("an idle stream ended")


def _probe(clients: Clients, target: Target, count: int) -> list[float]:
    """One request after the other; their times to first output, in milliseconds."""
    clients.times[target].first.clear()
    connection = clients.connect(target)
    for _ in range(count):
        connection.ask()
        until = time.monotonic() + 10
        while connection not in clients.wait(1):
            if time.monotonic() > until or clients.times[target].errors:
                raise RuntimeError(f"no answer: {clients.times[target].errors}")
    clients.drop(connection)
    return list(clients.times[target].first)


def _both(values: list[float]) -> str:
    return f"{shown(percentile(values, 50))} / {shown(percentile(values, 99))}"


def _share(who: Contestant, seconds: float = 2.0) -> float:
    before = who.process.cpu_seconds()
    time.sleep(seconds)
    return (who.process.cpu_seconds() - before) / seconds


def held_up_ms(lines: Iterable[str]) -> list[float]:
    """What the gateway logged of its event loop."""
    return [float(json.loads(line)["fields"]["lag_ms"]) for line in lines if "The event loop was blocked" in line]


def processes(setup: Setup, cores: Sequence[int], seconds: float) -> str:
    """Throughput of one process, and of one on each core: all on one listening socket, or each on one of its own."""
    rows: list[Sequence[object]] = []
    first = 0.0
    for count, apart in ((1, False), *[(len(cores), apart) for apart in (False, True) if len(cores) > 1]):
        row, rate = _together(setup, cores[:count], apart, seconds)
        first = first or rate
        rows.append([count, "one each" if apart else "one", rate, rate / first if first else 0.0, *row])
    return table(
        ["processes", "sockets", "requests per s", "times one", "connections", "CPU", "CPU us each", "errors"], rows
    )


def _together(setup: Setup, cores: Sequence[int], apart: bool, seconds: float) -> tuple[list[object], float]:
    """Of processes that serve one port together: what each had of it, and all requests a second."""
    scene = SCENES[0]
    connections = scene.connections * len(cores)
    with ExitStack() as stack:
        listening = [_listening(0, apart)]
        port = listening[0].getsockname()[1]
        listening += [_listening(port, True) for _ in cores[1:] if apart]
        for each in listening:
            stack.callback(each.close)
        running = []
        for number, core in enumerate(cores):
            running.append(gateway(replace(setup, core=core), listening[number if apart else 0], number))
            stack.enter_context(running[-1].process)
        wrk.run(running[0].url(), chat(scene.model), KEY, connections, 1)
        before = [who.process.cpu_seconds() for who in running]
        shares: list[int] = []
        counting = threading.Timer(seconds / 2, lambda: shares.extend(who.process.clients(port) for who in running))
        counting.start()
        seen = wrk.run(running[0].url(), chat(scene.model), KEY, connections, seconds)
        counting.join()
        used = [who.process.cpu_seconds() - was for who, was in zip(running, before, strict=True)]
    busy = " + ".join(f"{each / seen.seconds * 100:.0f} %" for each in used)
    had = " : ".join(map(str, shares))
    return [had, busy, sum(used) / max(1, seen.requests) * 1e6, seen.errors], seen.requests / seen.seconds


def _listening(port: int, apart: bool) -> socket.socket:
    return socket.create_server(("127.0.0.1", port), backlog=1024, reuse_port=apart)
