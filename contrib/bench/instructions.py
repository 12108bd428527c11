"""Machine instructions of a gateway per request or chunk, in user mode, by callgrind: other load does not move them.

Two runs of one tree are up to 2 % apart, by where objects lie in memory: the mean over several hash seeds is nearer.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from contrib.bench.client import Clients
from contrib.bench.contestants import Certificate, Setup, Tree, chat, gateway
from contrib.bench.report import unit
from contrib.bench.scenes import Scene

CONNECTIONS = 8
REQUESTS = 240  # of a scene with plain answers
STREAMS = 16
APART_SECONDS = 0.05  # a gateway under valgrind is slow to read the first segment
Counts = dict[str, float]  # by scene, with its unit


def count(setup: Setup, tree: Tree, scenes: Sequence[Scene], certificate: Certificate | None, seeds: int) -> Counts:
    """The mean over so many hash seeds."""
    runs: dict[str, list[float]] = {}
    for seed in range(seeds):
        for tls in (False, True):
            chosen = [scene for scene in scenes if scene.tls == tls]
            if chosen:
                used = replace(setup, tls=certificate if tls else None)
                for name, each in _of_one_process(used, tree, chosen, seed):
                    runs.setdefault(name, []).append(each)
    return {name: statistics.mean(each) for name, each in runs.items()}


def _of_one_process(setup: Setup, tree: Tree, scenes: Sequence[Scene], seed: int) -> Iterable[tuple[str, float]]:
    out = setup.folder / f"callgrind-{tree.name}-{seed}-{'tls' if setup.tls else 'plain'}"
    command = ("valgrind", "-q", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}")
    used = replace(tree, under=command, environ={"PYTHONHASHSEED": str(seed)}, patience=60.0)
    who = gateway(setup, tree=used)
    with who.process:
        (pid,) = who.process.pids
        for scene in scenes:
            target = replace(who.target(chat(scene.model, scene.prompt), apart=scene.apart), pause=APART_SECONDS)
            amount = STREAMS if scene.streams else REQUESTS
            connections = 1 if scene.apart else min(CONNECTIONS, scene.connections)
            with Clients([target]) as clients:
                clients.exactly(target, connections, amount // 2)
                clients.forget()
                _control("-i", "on", pid)
                clients.exactly(target, connections, amount)
                time.sleep(0.5)  # for what comes after the last byte
                _control("-i", "off", pid)
                times = clients.times[target]
            before = set(_dumps(out))
            _control("-d", scene.name, pid)
            (dump,) = set(_dumps(out)) - before
            each = total(dump.read_text()) / len(times.chunks if scene.streams else times.whole)
            print(f"{tree.name}, {scene.name}: {each:,.0f} instructions", file=sys.stderr)
            yield f"{scene.name}, per {unit(scene.name)}", each


def _control(*words: object) -> None:
    subprocess.run(["callgrind_control", *map(str, words)], check=True, capture_output=True, timeout=60)


def _dumps(out: Path) -> list[Path]:
    return list(out.parent.glob(f"{out.name}.*"))


def total(dump: str) -> int:
    """Of a file of callgrind: all instructions in it."""
    found = re.search(r"^totals: (\d+)", dump, re.M)
    return int(found[1]) if found else 0
