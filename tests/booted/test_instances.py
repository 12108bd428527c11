"""Y on a systemd that booted: two instances on two cores, each with a socket of its own on one port."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from contrib.bench import wrk
from contrib.bench.contestants import chat
from tests.booted.conftest import CONFIG, ROOT, SERVICE, Served, Watch, put, unpack, variant
from tests.booted.test_service import failed

ONE, TWO, THREE = (f"ai-gateway@{number}.service" for number in (1, 2, 3))
HELPER = "ai-gateway@upgrade.service"
WITH_MOCK = f"""{
    CONFIG.replace(
        "routes:",
        '''  - {name: mock, base_url: "http://127.0.0.1:9001/v1"}
routes:
  - {name: mock, steps: [{provider: mock, model: mock}]}''',
    )
}admin: ${{AIGW_ADMIN}}
"""
STREAMS = {"streams": 6, "events": 50, "every": 0.5}  # of 25 s each


@pytest.fixture(scope="module")
def server(boot, artefact):
    """A machine of its own, with two instances; tests leave them so."""
    machine = boot()
    installer = unpack(machine, artefact)
    machine.write("/root/config.yaml", WITH_MOCK)
    served = Served(machine)
    served.installer = installer
    done = machine.run("env", "CONFIG=/root/config.yaml", "INSTANCES=2", installer, "install-service", timeout=300)
    served.said = done.stdout
    provider = ROOT / "contrib" / "bench" / "provider.py"
    fast = subprocess.Popen(machine.client(sys.executable, provider, "9001"), cwd=ROOT)
    yield served
    fast.kill()
    fast.wait()
    served.close()


def install(server, *words, check=True, **environ):
    settings = [f"{name}={value}" for name, value in environ.items()]
    done = server.machine.run("env", *settings, server.installer, *words, check=check, timeout=400)
    print(done.stdout, done.stderr)
    return done


def active(server) -> list[str]:
    """The units that run."""
    listed = "systemctl list-units --plain --no-legend --state=active 'ai-gateway*' | cut -d' ' -f1"
    return server.machine.sh(listed).split()


def both(*numbers: int) -> list[str]:
    return [f"ai-gateway@{number}.{kind}" for kind in ("service", "socket") for number in numbers]


def cpu(server, *units) -> float:
    """Seconds that they have used."""
    clocks = ", ".join(f"time.clock_gettime(~{server.pid(unit)} << 3 | 2)" for unit in units)  # clock_getcpuclockid(3)
    return sum(json.loads(server.machine.run("python3", "-c", f"import time; print([{clocks}])").stdout))


def load_by_wrk(server, tmp_path: Path, connections: int, seconds: int) -> subprocess.Popen:
    """wrk of the host in the machine's network: small requests over TLS."""
    (tmp_path / "body").write_bytes(chat("mock"))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout=30s", "-s", wrk.SCRIPT]
    command += ["https://127.0.0.1/v1/chat/completions", "--", "POST", server.key, tmp_path / "body"]
    return subprocess.Popen(server.machine.client(*command), stdout=subprocess.PIPE, text=True)


def connections_of(server) -> Counter:
    """How many clients each instance has."""
    lines = server.machine.sh("ss -Htnp state established '( sport = :443 )'").splitlines()
    pids = Counter(int(found[1]) for line in lines if (found := re.search(r"pid=(\d+)", line)))
    return Counter({unit: pids[server.pid(unit)] for unit in (ONE, TWO)})


def cost(server, tmp_path: Path, *units: str) -> float:
    """CPU microseconds of a request, all units together."""
    before = cpu(server, *units)
    out, _ = load_by_wrk(server, tmp_path, 16, 5).communicate(timeout=90)
    seen = wrk.parse(out)
    assert seen.errors == 0
    return (cpu(server, *units) - before) / seen.requests * 1e6


def test_y1_install_service_makes_as_many_as_it_is_asked_for(server):
    assert active(server) == both(1, 2)
    assert server.machine.run("systemctl", "is-enabled", *both(1, 2)).stdout.split() == ["enabled"] * 4
    assert server.machine.run("systemctl", "is-enabled", SERVICE, check=False).stdout.strip() == "disabled"
    pids = {json.loads(server.curl("/ready"))["pid"] for _ in range(40)}
    assert pids == {server.pid(ONE), server.pid(TWO)}
    assert "nothing was changed" in install(server, "install-service", INSTANCES="2").stdout
    assert pids == {server.pid(ONE), server.pid(TWO)}


@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed")
def test_y2_connections_are_within_40_to_60_and_a_request_costs_what_it_costs_one_instance(server, tmp_path):
    process = load_by_wrk(server, tmp_path, 400, 4)
    server.machine.wait_for(lambda: sum(connections_of(server).values()) == 400, 20)
    seen = connections_of(server)
    out, _ = process.communicate(timeout=60)
    print(dict(seen), out)
    assert wrk.parse(out).errors == 0
    assert all(160 <= count <= 240 for count in seen.values())
    of_two = [cost(server, tmp_path, ONE, TWO) for _ in range(3)]
    install(server, "install-service", INSTANCES="1")
    assert active(server) == [SERVICE, "ai-gateway.socket"]
    of_one = [cost(server, tmp_path, SERVICE) for _ in range(3)]
    install(server, "install-service", INSTANCES="auto" if len(server.machine.sh("nproc")) == 2 else "2")
    assert active(server)[:2] == [ONE, TWO]
    share = statistics.median(of_two) / statistics.median(of_one)
    print(f"CPU us of a request: one {of_one}, two {of_two}: {share:.2f}")
    assert share < 1.3, "equal, but for what else this machine does"


def test_y3_an_instance_that_restarts_under_load_fails_nothing(server):
    """Its socket stays open: who was given to it waits until it is there again."""
    with server.load(fresh=40, kept=40, connections=20) as tallies:
        for unit in (ONE, TWO):
            server.machine.run("systemctl", "restart", unit)
    assert not failed(tallies)
    assert tallies["fresh"]["ok"] > 100


def test_y4_a_restart_of_all_lets_nobody_wait_for_the_streams_of_an_instance(server):
    before = server.pid(ONE), server.pid(TWO)
    with server.load(fresh=30, kept=20, **STREAMS) as tallies:
        install(server, "restart")
    assert not failed(tallies)
    assert tallies["streams"]["ok"] >= 6
    assert tallies["fresh"]["slowest"] < 15, "the helper takes them meanwhile"
    assert not set(before) & {server.pid(ONE), server.pid(TWO)}
    assert active(server) == both(1, 2)
    assert server.machine.show(HELPER, "LoadState") in ("loaded", "masked")
    assert server.machine.sh("ls /run/systemd/system").count("upgrade") == 0


def test_y4_upgrade_and_rollback_go_from_one_to_the_next(server, artefact, tmp_path):
    put(server.machine, variant(artefact, tmp_path / "next", "9.1.0-next"), "/root/next.tar.gz")
    release = "readlink /opt/ai-gateway/current"
    old = server.machine.sh(release)
    with Watch(server) as watch, server.load(fresh=20, kept=10, streams=3, events=10, every=0.3) as tallies:
        install(server, "upgrade", "/root/next.tar.gz")
        assert "9.1.0-next" in server.machine.sh(release)
        install(server, "rollback")
    assert server.machine.sh(release) == old
    assert not watch.failures
    assert not failed(tallies)
    assert active(server) == both(1, 2)


def test_y4_a_release_that_fails_leaves_all_instances_as_they_were(server, artefact, tmp_path):
    hangs = variant(artefact, tmp_path / "hangs", "9.2.0-hangs", "daemon/systemd", (r'"READY=1", ', ""))
    put(server.machine, hangs, "/root/hangs.tar.gz")
    before = server.pid(ONE), server.pid(TWO)
    with server.load(fresh=20, kept=10) as tallies:
        done = install(server, "upgrade", "/root/hangs.tar.gz", check=False)
    assert done.returncode != 0
    assert not failed(tallies)
    assert (server.pid(ONE), server.pid(TWO)) == before
    assert active(server) == both(1, 2)


def test_y4_a_reload_reaches_all_and_a_refused_one_changes_none(server):
    with server.load(fresh=20, kept=10) as tallies:
        assert install(server, "reload").stdout.count("; reloaded at ") == 2
        server.configure(WITH_MOCK.replace("provider: p,", "provider: q,"))
        done = install(server, "reload", check=False)
        assert done.returncode != 0
        assert f"{ONE} did not reload; it and the units after it keep the configuration" in done.stderr
        assert "Not reloaded" not in server.machine.show(TWO, "StatusText")
        server.configure(WITH_MOCK)
        install(server, "reload")
    assert not failed(tallies)


def test_y3_one_more_and_one_less_under_load_fail_nothing(server):
    """One that goes for good closes its socket, after it has taken who waits there."""
    with server.load(fresh=60, kept=40, connections=20) as tallies:
        install(server, "install-service", INSTANCES="3")
        assert active(server) == both(1, 2, 3)
        install(server, "install-service", INSTANCES="2")
        assert active(server) == both(1, 2)
    assert not failed(tallies)


def test_y3_an_instance_that_cannot_start_gives_its_clients_to_the_other(server):
    server.configure(WITH_MOCK.replace("provider: p,", "provider: q,"))
    assert server.machine.run("systemctl", "restart", TWO, check=False).returncode != 0
    server.machine.wait_for(lambda: server.machine.show("ai-gateway@2.socket", "ActiveState") == "inactive", 10)
    assert all(server.healthy() for _ in range(20))
    server.configure(WITH_MOCK)
    server.machine.run("systemctl", "start", TWO)
    assert active(server) == both(1, 2)


def test_y6_each_has_a_listener_for_administrators_and_prometheus_scrapes_all(server):
    """The Unix socket of each; and by the drop-in of the documentation the targets of prometheus.yml."""
    for number, unit in ((1, ONE), (2, TWO)):
        for path in ("/ready", "/metrics", "/status"):
            server.machine.run("curl", "-sSf", "--unix-socket", f"/run/aigw/{number}.sock", f"http://localhost{path}")
        asked = server.machine.sh(f"curl -sS --unix-socket /run/aigw/{number}.sock http://localhost/ready")
        assert json.loads(asked)["pid"] == server.pid(unit)
    page = (ROOT / "docs" / "operations.md").read_text()
    (dropin,) = re.findall(r"```ini\n(\[Service\]\nEnvironment=AIGW_ADMIN=.*\n)```", page)
    server.machine.write("/etc/systemd/system/ai-gateway@.service.d/admin.conf", dropin)
    server.machine.run("systemctl", "daemon-reload")
    install(server, "restart")
    (job,) = yaml.safe_load((ROOT / "contrib" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    (listed,) = job["file_sd_configs"][0]["files"]
    targets = json.loads(server.machine.sh(f"cat {listed}"))[0]["targets"]
    assert job["static_configs"][0]["targets"] == targets[:1]
    pids = [json.loads(server.machine.sh(f"curl -sSf http://{target}/ready"))["pid"] for target in targets]
    assert pids == [server.pid(ONE), server.pid(TWO)]
    assert all("aigw_" in server.machine.sh(f"curl -sSf http://{target}/metrics") for target in targets)


def test_y5_limits_without_a_store_are_warned_of(server):
    limited = WITH_MOCK.replace(
        "api_key: ${GATEWAY_API_KEY}", "keys: [{name: a, key: '${GATEWAY_API_KEY}', requests: 1000/m}]"
    )
    server.configure(limited)
    try:
        assert "store: is missing, so each instance counts limits alone" in (
            (done := server.machine.run("ai-gateway", "check")).stdout + done.stderr
        )
        install(server, "reload")
        assert "store: is missing, so each instance counts limits alone" in server.machine.journal(ONE, "--since=-20s")
    finally:
        server.configure(WITH_MOCK)
        install(server, "reload")


def test_y7_uninstall_removes_all_instances(server):
    server.machine.run(server.installer, "uninstall", "--purge")
    assert active(server) == []
    assert (
        server.machine.sh("find /etc/systemd/system /usr/local/lib/systemd /run/systemd/system -name 'ai-gateway*'")
        == ""
    )
