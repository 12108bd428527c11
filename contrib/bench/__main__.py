"""Measure this gateway on this machine, beside nginx.

    python -m contrib.bench            CPU in eight scenes, beside LiteLLM and Portkey where they are installed
    python -m contrib.bench pair       this checkout beside another commit of it (--base), by turns
    python -m contrib.bench latency    what it adds to an answer, a first output and a chunk at a calm load
    python -m contrib.bench tls        handshakes, and CPU per relayed megabyte
    python -m contrib.bench scale      thousands of idle streams on one process; several processes on one port

In a checkout, with the Python of an environment in which the gateway is installed. Needs Debian's nginx and wrk, and
two cores that do nothing else. Prints Markdown; the table's chart needs matplotlib.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from contrib.bench import instructions, latency, pair, report, scale, scenes, transport
from contrib.bench.contestants import Certificate, Setup, gateway, nginx, provider, rivals
from contrib.bench.machine import Cores, description, free_port, load, raise_file_limit


def main() -> None:
    """Set all up, run what was asked for, print it."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that whom we started is ended too
    for tool in ("nginx", "wrk", "taskset", "openssl", *(["valgrind"] if options.instructions else [])):
        if not shutil.which(tool) and not Path("/usr/sbin", tool).exists():
            sys.exit(f"{tool} is missing: apt-get install nginx-light wrk util-linux openssl valgrind")
    file_limit = raise_file_limit(2 * options.streams + scale.SPARE_FILES)
    cores = Cores.of(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores.client})  # wrk inherits it
    with tempfile.TemporaryDirectory(prefix="aigw-bench-") as name, ExitStack() as stack:
        folder, port = Path(name), free_port()
        stack.enter_context(provider(folder, cores.provider, port))
        setup = Setup(folder, cores.subject, port)
        text = _run(options, setup, cores, file_limit, stack)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m contrib.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=["table", "pair", "latency", "tls", "scale"])
    parser.add_argument(
        "--seconds", type=float, help="of each measurement (5; pair: 1; latency takes three times that)"
    )
    parser.add_argument("--base", help="the commit beside which this checkout is measured (HEAD)")
    parser.add_argument("--rounds", type=int, default=9, help="of a pair (9)")
    parser.add_argument(
        "--instructions",
        type=int,
        nargs="?",
        const=1,
        default=0,
        metavar="SEEDS",
        help="of a pair: count them too, by valgrind's callgrind, with so many hash seeds (1)",
    )
    parser.add_argument("--runs", type=int, default=3, help="of the table, of which the medians are shown (3)")
    parser.add_argument("--only", default="", help="scenes of the table or the pair, separated by commas")
    parser.add_argument("--litellm", default="litellm", help="its command, if it is not on PATH")
    parser.add_argument("--portkey", default="gateway", help="its command, if it is not on PATH")
    parser.add_argument("--output", type=Path, help="the Markdown goes here too")
    parser.add_argument("--chart", type=Path, help="the table's chart goes here, a PNG")
    parser.add_argument("--rate", type=float, default=50, help="requests a second at a calm load (50)")
    parser.add_argument("--streams", type=int, default=10_000, help="how many idle ones (10000)")
    parser.add_argument("--tls-streams", action="store_true", help="the idle ones are over TLS")
    options = parser.parse_args()
    options.what = options.what or ("pair" if options.base else "table")
    options.base = options.base or "HEAD"
    options.seconds = options.seconds or (1 if options.what == "pair" else 5)
    known = [scene.name for scene in scenes.SCENES]
    if unknown := [name for name in options.only.split(",") if name and name not in known]:
        parser.error(f"--only: {', '.join(unknown)} is no scene; the scenes are {', '.join(known)}")
    return options


def _run(options: argparse.Namespace, setup: Setup, cores: Cores, file_limit: int, stack: ExitStack) -> str:
    machine, date = description(), datetime.date.today().isoformat()
    busy = load()
    heading = f"{date}. {machine}. {busy}"
    if options.what == "tls":
        return f"{heading}\n\n" + transport.measure(setup, _certificate(setup.folder), cores.provider, options.seconds)
    if options.what == "scale":
        tls = _certificate(setup.folder) if options.tls_streams else None
        idle = scale.idle_streams(replace(setup, tls=tls), options.streams, file_limit)
        apart = [cores.subject, *sorted(os.sched_getaffinity(os.getppid()) - {cores.subject})][:2]
        return f"{heading}\n\n{idle}\n\n" + scale.processes(setup, apart, options.seconds)
    chosen = [scene for scene in scenes.SCENES if not options.only or scene.name in options.only.split(",")]
    certificate = _certificate(setup.folder) if any(scene.tls for scene in chosen) else None
    if options.what == "pair":
        return _pair(options, setup, f"{heading} {pair.description(options.base)}", chosen, certificate, stack)
    contestants = [gateway(setup), nginx(setup)]
    if options.what == "table" and certificate:
        contestants += [gateway(replace(setup, tls=certificate)), nginx(replace(setup, tls=certificate))]
    for who in contestants:
        stack.enter_context(who.process)
    if options.what == "latency":
        rows = latency.measure(setup.provider, contestants, options.rate, options.seconds * 3)
        return f"{heading}\n\n" + latency.markdown(rows, options.rate)
    for who in rivals(setup, (("litellm", options.litellm), ("portkey", options.portkey))):
        stack.enter_context(who.process)
        contestants.append(who)
    results = scenes.measure_all(chosen, contestants, options.seconds, options.runs)
    if options.chart and not report.chart(results, machine, date, options.chart):
        print("no chart: matplotlib is not installed", file=sys.stderr)
    return report.markdown(results, f"{machine}. {busy}", date, options.seconds, options.runs)


def _pair(
    options: argparse.Namespace,
    setup: Setup,
    heading: str,
    chosen: list[scenes.Scene],
    certificate: Certificate | None,
    stack: ExitStack,
) -> str:
    both = pair.trees(options.base, setup.folder)
    with ExitStack() as running:
        contestants = pair.start(setup, both, certificate, running)
        results = pair.by_turns(chosen, contestants, options.seconds, options.rounds)
    counts = []
    if options.instructions:
        counts = [instructions.count(setup, tree, chosen, certificate, options.instructions) for tree in both]
    return pair.markdown(results, heading, options.rounds, options.seconds, counts)


def _certificate(folder: Path) -> Certificate:
    """For localhost, of the kind that is the cheapest and most common: ECDSA on P-256."""
    made = Certificate(folder / "cert.pem", folder / "key.pem")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    more = "basicConstraints=critical,CA:FALSE extendedKeyUsage=serverAuth subjectAltName=DNS:localhost,IP:127.0.0.1"
    extensions = [word for each in more.split() for word in ("-addext", each)]
    files = ["-keyout", str(made.key), "-out", str(made.cert)]
    subprocess.run(["openssl", *words.split(), *extensions, *files], check=True, capture_output=True)
    made.key.chmod(0o600)
    return made


if __name__ == "__main__":
    main()
