"""contrib/bench: its arithmetic, its provider and clients; a smoke run of all of it behind the marker ``bench``."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from contrib.bench import latency, report, scale, scenes, wrk
from contrib.bench.client import Clients, Target, added, percentile, request
from contrib.bench.contestants import KEY, PATH, chat, provider
from contrib.bench.machine import TICK, Cores, cpu_of, free_port, status_kb
from contrib.bench.scenes import Figures

# Arithmetic


def test_cpu_is_user_and_kernel_time_whatever_the_process_is_called():
    fields = ["S", *["0"] * 10, "150", "50", *["9"] * 30]
    assert cpu_of(f"123 (a) (b) c) {' '.join(fields)}") == 200 / TICK
    assert cpu_of("") == 0.0


def test_memory_is_found_by_its_name():
    assert status_kb("Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t 1024 kB\n", "VmRSS") == 1024
    assert status_kb("", "VmRSS") == 0


@pytest.mark.parametrize(
    ("allowed", "cores"), [({0}, (0, 0, 0)), ({0, 1}, (0, 1, 1)), ({2, 5, 7}, (2, 5, 7)), (range(8), (0, 1, 2))]
)
def test_who_is_measured_has_a_core_of_its_own(allowed, cores):
    assert Cores.of(allowed) == cores


def test_percentiles():
    values = [float(value) for value in range(100, 0, -1)]
    assert (percentile(values, 50), percentile(values, 99), percentile(values, 100)) == (51, 100, 100)
    assert percentile([], 50) == 0
    assert added([3.0, 4.0, 5.0], [1.0, 1.5, 2.0], 50) == 2.5


def figures(cpu: float, **more: float) -> Figures:
    return Figures(
        **{**dict.fromkeys(("rate", "p50_ms", "p99_ms", "first_ms", "peak_mb"), 1.0), "errors": 0, **more}, cpu_us=cpu
    )


def test_a_ratio_is_the_median_of_the_runs_own_ratios():
    """One run on a busy machine moves neither figure."""
    results = {
        "small": {"nginx": [figures(10), figures(100), figures(10)], "aigw": [figures(50), figures(600), figures(70)]}
    }
    assert scenes.ratio(results, "small", "aigw") == 6
    assert scenes.median(results["small"]["aigw"]).cpu_us == 70
    assert scenes.median([figures(1, errors=2), figures(1, errors=3)]).errors == 5


def test_a_scene_of_errors_only_has_no_ratio():
    results = {"small": {"nginx": [figures(10)], "aigw": [figures(0)]}}
    assert "| small, per request | - |" in report.markdown(results, "machine", "date", 1, 1)


def test_the_report_in_markdown():
    results = {
        "small": {"aigw": [figures(123.4)], "nginx": [figures(20)]},
        "stream_burst": {"aigw": [figures(4)], "nginx": [figures(2.5)]},
    }
    text = report.markdown(results, "a machine.", "2026-01-01", 5, 3)
    assert "2026-01-01. a machine. Medians of 3 runs of 5 s each." in text
    assert "| small, per request | 6.17 |" in text
    assert "| stream_burst, per chunk | 1.60 |" in text
    assert "| small | aigw | 123 | 6.17 |" in text


def test_the_chart(tmp_path):
    pytest.importorskip("matplotlib")
    results = {"small": {"aigw": [figures(123.4)], "LiteLLM": [figures(0)], "nginx": [figures(20)]}}
    assert report.chart(results, "machine", "date", tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_what_wrk_says_is_read():
    said = 'Running 1s test\n{"requests":10,"bytes":2,"seconds":1.5,"errors":0,"p50_ms":0.1,"p99_ms":2}\n'
    assert wrk.parse(said) == wrk.Counted(10, 2, 1.5, 0, 0.1, 2)


def test_latency_is_what_is_added_to_the_direct_way():
    row = latency.Row("plain answer", [1.0, 1.0], {"aigw": [1.5, 1.5], "nginx": [1.25, 1.25]})
    assert "| plain answer | 1.00 | 1.00 | 0.50 | 0.50 | 0.25 | 0.25 |" in latency.markdown([row], 50)


def test_hold_ups_are_found_in_the_log():
    lines = ['{"message":"The event loop was blocked","fields":{"lag_ms":312}}', '{"message":"Request","fields":{}}']
    assert scale.held_up_ms(lines) == [312.0]


# The provider and the clients


@pytest.fixture
def port(tmp_path):
    number = free_port()
    with provider(tmp_path, min(os.sched_getaffinity(0)), number):
        yield number


def target(port: int, model: str) -> Target:
    return Target(model, port, request(PATH, chat(model), KEY))


def test_plain_answers_and_streams_at_a_pace(port):
    targets = [target(port, model) for model in ("mock", "answer-1000000", "stream-5-2", "stream-3-0")]
    with Clients(targets) as clients:
        clients.pace(50, 0.2)
        plain, large, paced, burst = clients.times.values()
    assert not [error for times in clients.times.values() for error in times.errors]
    assert [len(times.whole) for times in (plain, large, paced, burst)] == [10] * 4
    assert [len(times.chunks) for times in (plain, large, paced, burst)] == [0, 0, 50, 30]
    assert min(paced.whole) >= 8  # four gaps of 2 ms


def test_connections_are_kept_busy(port):
    kept = target(port, "stream-10-0")
    with Clients([kept]) as clients:
        clients.keep_busy(kept, 3, 0.2, spread=0.0)
        assert len(clients) == 3
        times = clients.times[kept]
    assert not times.errors
    assert len(times.chunks) >= 10 * len(times.whole) > 30


def test_an_answer_that_is_no_success_is_an_error():
    """Whoever closes in the middle, too."""
    with (
        subprocess.Popen([sys.executable, "-c", REFUSING], stdout=subprocess.PIPE, text=True) as server,
        Clients([refused := target(int(server.stdout.readline()), "mock")]) as clients,
    ):
        clients.keep_busy(refused, 1, 0.2, spread=0.0)
        server.kill()
        errors = clients.times[refused].errors
    assert "HTTP/1.1 500 No" in errors
    assert not clients.times[refused].whole


REFUSING = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    while True:
        with server.accept()[0] as peer:
            peer.recv(65536)
            peer.sendall(b"HTTP/1.1 500 No\\r\\nContent-Length: 0\\r\\n\\r\\n")
"""


# All of it


@pytest.mark.bench
@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["table", "--runs=1"], "| stream_paced, per chunk |"),
        (["latency"], "| time to first output |"),
        (["tls"], "| answers of 1 MB, CPU ms per MB | both |"),
        (["scale", "--streams=200"], "| streams | 200 |"),
    ],
)
def test_the_command(options, shown):
    command = [sys.executable, "-m", "contrib.bench", *options, "--seconds=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| small", "| stream"))]
    assert all(row.split("|")[3].strip() != "-" for row in rows if row.count("|") > 9)
