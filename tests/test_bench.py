"""contrib/bench: its arithmetic, its provider and clients; a smoke run of all of it behind the marker ``bench``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from contrib.bench import __main__ as command
from contrib.bench import instructions, latency, pair, report, scale, scenes, wrk
from contrib.bench.client import Clients, Target, added, percentile, request
from contrib.bench.contestants import KEY, PATH, ROOT, Contestant, Tree, chat, provider
from contrib.bench.machine import Cores, cpu_of, free_port, interpreter, status_kb
from contrib.bench.scenes import Figures

# Arithmetic


def test_cpu_is_that_of_another_process_with_all_its_threads_and_0_of_one_that_has_ended():
    """Exact: 10 ms of a tick would be 1 % of a window of a second."""
    busy = (
        "import threading, time; t = threading.Thread(target=lambda: [None for _ in range(10**6)]); t.start(); t.join()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", f"{busy}; print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        first = cpu_of(process.pid)
        stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        counted = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
        process.communicate(b"\n")
    assert first == pytest.approx(counted, abs=0.03)
    assert first * 1e6 % 1e4 != 0
    assert cpu_of(process.pid) == 0.0


def test_the_report_names_the_interpreter_and_how_it_was_built():
    assert f"CPython {sys.version.split()[0]} ({os.path.realpath(sys.executable)}: " in interpreter()


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


def test_a_share_is_that_of_one_round_and_the_report_has_its_median_and_range():
    seen = {
        "base": [figures(100), figures(400), figures(100)],
        "now": [figures(90), figures(400), figures(80)],
        "nginx": [figures(10, p50_ms=0.3), figures(20, p50_ms=0.2), figures(10, p50_ms=0.2, errors=1)],
    }
    assert pair.shares_of(seen) == [0.9, 1.0, 0.8]
    counts = [{"small, per request": 734_000.0}, {"small, per request": 353_000.0}]
    text = pair.markdown({"small": seen}, "Base: 1. Now: 2.", 3, 1, counts)
    assert "| small, per request | 0.900 | 0.800 | 1.000 | 100 | 90.0 | 10.0 | 9.00 |" in text
    assert "| small | 1.00 | 1.00 | 0.20 | 1.00 | 1.00 | 1.00 | 1 |" in text
    assert "| small, per request | 734,000 | 353,000 | 0.481 |" in text
    assert "Base: 1. Now: 2.\n\n3 rounds of 1 s." in text


def test_a_base_that_did_nothing_has_no_share():
    assert pair.shares_of({"base": [figures(0)], "now": [figures(9)]}) == [0.0]


def test_who_is_first_alternates_and_nginx_is_in_each_round(monkeypatch):
    order = []

    def measure(scene, who, seconds, warm):
        order.append((scene.name, who.name, bool(who.tls), warm))
        return figures(1)

    monkeypatch.setattr(pair, "measure", measure)
    contestants = [Contestant(name, None, 1, tls=tls) for tls in (None, "pair") for name in ("base", "now", "nginx")]
    small, tls = scenes.SCENES[0], next(scene for scene in scenes.SCENES if scene.tls)
    pair.by_turns([small, tls], contestants, 1, 2)
    assert [each[1] for each in order[:6]] == ["base", "now", "nginx", "now", "base", "nginx"]
    assert {each[0]: each[2] for each in order} == {small.name: False, tls.name: True}
    assert [each[3] for each in order] == [False] * 3 + [True] * 3 + [False] * 3 + [True] * 3


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone")
def test_the_base_is_what_git_has_and_each_tree_is_started_as_its_own_unit_starts_it(tmp_path):
    base, now = pair.trees("HEAD", tmp_path)
    assert (base.root / "aigw" / "tap.py").exists()
    assert now == Tree("now", ROOT)
    unit = base.root / "contrib" / "systemd" / "ai-gateway.service"
    unit.write_text(unit.read_text().replace("twistd -n", "twistd -n --reactor=poll"))
    assert base.twistd() == ["-n", "--reactor=poll", *now.twistd()[1:]]
    (tmp_path / "b").mkdir()
    with pytest.raises(SystemExit, match="--base: nothing is not a commit"):
        pair.trees("nothing", tmp_path / "b")


def test_a_base_is_a_pair_and_an_unknown_scene_is_a_mistake(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--base", "v1"])
    options = command._options()
    assert (options.what, options.base, options.seconds, options.instructions) == ("pair", "v1", 1, 0)
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "smal"])
    with pytest.raises(SystemExit):
        command._options()
    assert "--only: smal is no scene; the scenes are small, " in capsys.readouterr().err


def test_all_instructions_of_a_dump_are_counted():
    assert instructions.total("# callgrind format\nevents: Ir\ntotals: 12345\n") == 12345
    assert instructions.total("") == 0


def test_a_scene_in_which_not_all_took_part_is_in_the_report():
    results = {
        "small": {"aigw": [figures(123.4)], "nginx": [figures(20)], "LiteLLM": [figures(40)]},
        "tls_small": {"aigw": [figures(150)], "nginx": [figures(30)]},
    }
    text = report.markdown(results, "a machine.", "2026-01-01", 5, 3)
    assert "| tls_small, per request | 5.00 | - |" in text


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


def test_so_many_requests_and_no_more(port):
    kept = target(port, "mock")
    with Clients([kept]) as clients:
        clients.exactly(kept, 3, 10)
        clients.exactly(kept, 3, 10)
        assert len(clients.times[kept].whole) == 20


def test_head_and_body_come_apart():
    """Each in a segment of its own, after a pause; on a kept connection too."""
    body, reads = chat("mock"), []

    def serve():
        peer, _ = server.accept()
        with peer:
            while data := peer.recv(65536):
                reads.append(data)
                if data.endswith(body):
                    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        who = Contestant("x", None, server.getsockname()[1])
        apart = replace(who.target(body, apart=True), pause=0.2)  # whatever else this machine does
        with Clients([apart]) as clients:
            clients.exactly(apart, 1, 2)
            assert not clients.times[apart].errors
        thread.join(10)
    heads, bodies = reads[::2], reads[1::2]
    assert bodies == [body] * 2
    assert heads == [who.target(body).request.removesuffix(body)] * 2


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
        (["table", "--runs=1", "--only=small_apart,tls_small,tls_paced"], "| tls_paced, per chunk |"),
        (["--base=HEAD", "--rounds=2", "--only=small_apart,tls_small"], "| tls_small, per request |"),
        (
            ["pair", "--rounds=1", "--only=small", "--instructions"],
            "| machine instructions of the gateway in user mode |",
        ),
        (["latency"], "| time to first output |"),
        (["tls"], "| answers of 1 MB, CPU ms per MB | both |"),
        (["scale", "--streams=200"], "| streams | 200 |"),
    ],
)
def test_the_command(options, shown):
    command = [sys.executable, "-m", "contrib.bench", *options, "--seconds=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| small", "| stream"))]
    assert all(row.split("|")[3].strip() != "-" for row in rows if row.count("|") > 9)
