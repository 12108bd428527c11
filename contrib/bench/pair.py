"""This checkout beside another commit of it, by turns: CPU as a share of that commit's, and instructions.

Two processes of one tree are up to 13 % apart on a machine that does something else too; by turns their median share
moves by 2 to 3 %. Instructions do not depend on what else runs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from contrib.bench.contestants import ROOT, Certificate, Contestant, Setup, Tree, gateway, nginx
from contrib.bench.instructions import Counts
from contrib.bench.report import table, unit
from contrib.bench.scenes import Figures, Results, Scene, measure, median, ratio

SOURCE = ("aigw", "twisted", "contrib/systemd")  # what a gateway needs, and the unit that names its options
HEAD = ["scene", "share of base", "lowest", "highest", "base, CPU us", "now, CPU us", "base x nginx", "now x nginx"]
TIMES = ["scene", "base p50 ms", "now p50 ms", "nginx p50 ms", "base p99 ms", "now p99 ms", "nginx p99 ms", "errors"]
NOTE = (
    "CPU of a gateway's own process per request (per chunk where it streams). The shares are now / base in one round:"
    " median and range. Each round measures both, one right after the other, and who is first alternates."
)


def trees(base: str, folder: Path) -> tuple[Tree, Tree]:
    """The source of a commit, taken out of git into the folder, and that of this checkout as it is."""
    source = folder / "base"
    source.mkdir()
    commit = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}"], cwd=ROOT, capture_output=True, check=False
    )
    if commit.returncode:
        sys.exit(f"--base: {base} is not a commit of this repository; write a hash, a branch or a tag")
    packed = subprocess.run(["git", "archive", base, *SOURCE], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(source)], input=packed, check=True)
    return Tree("base", source), Tree("now", ROOT)


def description(base: str) -> str:
    """Which two are compared."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = " with changes that are not committed" if git("status", "--porcelain", "--", *SOURCE) else ""
    names = [git("log", "-1", "--format=%h (%s)", each) for each in (base, "HEAD")]
    return f"Base: {names[0]}. Now: {names[1]}{changed}."


def start(setup: Setup, both: Sequence[Tree], certificate: Certificate | None, stack: ExitStack) -> list[Contestant]:
    """Base, now and nginx; once more with TLS where a scene has it."""
    found = []
    for used in (setup, *([replace(setup, tls=certificate)] if certificate else [])):
        for tree in (*both, None):
            found.append(nginx(used) if tree is None else gateway(used, tree=tree))
            stack.enter_context(found[-1].process)
    return found


def by_turns(scenes: Sequence[Scene], contestants: Sequence[Contestant], seconds: float, rounds: int) -> Results:
    """All rounds of a scene, then the next scene."""
    results: Results = {}
    for scene in scenes:
        base, now, relay = (who for who in contestants if bool(who.tls) == scene.tls)
        seen = results[scene.name] = {who.name: [] for who in (base, now, relay)}
        for turn in range(rounds):
            for who in (*((now, base) if turn % 2 else (base, now)), relay):
                seen[who.name].append(measure(scene, who, seconds, warm=turn > 0))
            shares = shares_of(seen)
            print(f"round {turn + 1}: {scene.name}: {shares[-1]:.3f} of base", file=sys.stderr)
    return results


def shares_of(seen: dict[str, list[Figures]]) -> list[float]:
    """Of each round; 0 where base did nothing."""
    pairs = zip(seen["now"], seen["base"], strict=True)
    return [now.cpu_us / base.cpu_us if base.cpu_us else 0.0 for now, base in pairs]


def markdown(results: Results, heading: str, rounds: int, seconds: float, counts: Sequence[Counts]) -> str:
    """The whole report; ``counts`` are base's and now's instructions, or none."""
    rows: list[Sequence[object]] = []
    times: list[Sequence[object]] = []
    for scene, seen in results.items():
        shares, medians = shares_of(seen), [median(seen[name]) for name in ("base", "now", "nginx")]
        costs = [each.cpu_us for each in medians[:2]]
        beside = [ratio(results, scene, name) for name in ("base", "now")]
        name = f"{scene}, per {unit(scene)}"
        rows.append(
            [name, f"{statistics.median(shares):.3f}", f"{min(shares):.3f}", f"{max(shares):.3f}", *costs, *beside]
        )
        errors = sum(each.errors for each in medians)
        times.append([scene, *[each.p50_ms for each in medians], *[each.p99_ms for each in medians], errors])
    parts = [heading, f"{rounds} rounds of {seconds:g} s.", NOTE, table(HEAD, rows), table(TIMES, times)]
    if counts:
        base, now = counts
        lines = [[name, f"{base[name]:,.0f}", f"{now[name]:,.0f}", f"{now[name] / base[name]:.3f}"] for name in base]
        parts.append(table(["machine instructions of the gateway in user mode", "base", "now", "share"], lines))
    return "\n\n".join(parts) + "\n"
