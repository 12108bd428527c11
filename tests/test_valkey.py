"""L10 to L12 with three gateways, processes of their own, and one real Redis (pytest -m valkey; Debian: redis-server)."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from types import SimpleNamespace

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred as start
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater

from tests import harness
from tests.harness import HELLO, bounded, request, until
from tests.providers import answer, as_asked, begin_stream, event
from tests.test_daemon import KEYS, FreshDaemon
from tests.test_keys import ALICE, named

pytestmark = [pytest.mark.valkey, pytest.mark.skipif(not shutil.which("redis-server"), reason="needs redis-server")]
PASSWORD = "the-password-of-this-store"
HEADERS = {"Authorization": f"Bearer {ALICE}"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Redis:
    def __init__(self, folder, port: int | None = None, *more: str) -> None:
        self.folder, self.port, self.more = folder, port or free_port(), more
        self.start()

    def start(self) -> None:
        own = ["--save", "", "--dir", str(self.folder), "--requirepass", PASSWORD, "--masterauth", PASSWORD, *self.more]
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", *own]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                time.sleep(0.02)  # a poll of another process, within a bound
        raise AssertionError("it does not start")

    def do(self, *command: str) -> str:
        """The answer; an error is one too, and so is that it is not there."""
        tool = ["redis-cli", "-p", str(self.port), "-a", PASSWORD, "--no-auth-warning", *command]
        return subprocess.run(tool, capture_output=True, text=True, timeout=10, check=False).stdout.strip()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()


class Process(harness.Gateway):
    """A gateway in a process of its own."""

    def __init__(self, world, folder, url: str, store: str, prefix=(), host: str = "127.0.0.1", **limits) -> None:
        folder.mkdir()
        self.host = host
        endpoint = f"tcp:0:interface={host}"
        config = {
            "api_key": "${GATEWAY_API_KEY}",
            "admin": "tcp:0:interface=127.0.0.1",
            "listen": [endpoint if host == "127.0.0.1" else {"endpoint": endpoint, "insecure": True}],
            "providers": [{"name": "a", "base_url": url, "api_key": "${A_KEY}"}],
            "routes": [{"name": "route", "steps": [{"provider": "a", "model": "m"}]}],
            "keys": [named("alice", ALICE, **limits)],
            "store": store,
            "instances": 3,
        }
        environ = {**KEYS, "PASSWORD": PASSWORD}
        self.daemon = FreshDaemon(
            folder, "-c", "config.yaml", config=json.dumps(config), environ=environ, prefix=prefix
        )
        world._closers.append(self.kill)
        self.world, self.tls = world, False
        self.admin = self.daemon.wait_for("The gateway has opened the admin listener", seconds=30)["address"]
        self.port = int(self.daemon.wait_for("The gateway has opened a listener")["address"].rpartition(":")[2])
        self.daemon.wait_for("The gateway has started")

    def failures(self) -> float:
        text = urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=5).read().decode()
        found = [line for line in text.splitlines() if line.startswith("aigw_store_failures_total ")]
        return float(found[0].split()[1])

    def kill(self) -> None:
        self.daemon.process.kill()
        self.daemon.process.wait()


@pytest.fixture
def redis(tmp_path):
    running = Redis(tmp_path)
    yield running
    running.stop()


def start_all(world, tmp_path, redis, provider, count: int = 3, store: str = "", **limits):
    store = store or f"valkey://:${{PASSWORD}}@127.0.0.1:{redis.port}/0"
    url = world.base_url(provider)
    return [Process(world, tmp_path / f"g{number}", url, store, **limits) for number in range(count)]


def pause(seconds: float):
    return deferLater(reactor, seconds, lambda: None)


async def only_ten_of_200_pass(gateways, redis) -> None:
    """Where the machine is so busy that the store takes longer than 50 ms, limits are local ones: then once more."""
    before = [0] * len(gateways)
    for attempt in range(4):
        redis.do("FLUSHALL")
        found = await statuses(gateways, 200)
        assert sorted(set(found)) == [200, 429]
        lines = [gateway.daemon.log.read_text().count("use the store") for gateway in gateways]
        if lines == before:
            break
        assert attempt < 3, "the store was away in each attempt"
        before = lines
        await pause(61.0)  # such a line comes once a minute: one in this pause could hide one in the next attempt
    assert found.count(200) == 10


async def statuses(gateways, count: int, **more) -> list[int]:
    asked = [start(gateways[n % len(gateways)].ask(headers=HEADERS, **more)) for n in range(count)]
    return [each.status for each in await bounded(gatherResults(asked), 60)]


@ensureDeferred
async def test_l10_of_200_requests_at_once_over_three_processes_10_pass(world, tmp_path, redis):
    gateways = start_all(world, tmp_path, redis, world.provider(), requests="10/h")
    await pause(1.0)
    await only_ten_of_200_pass(gateways, redis)


@ensureDeferred
async def test_l10_five_streams_at_once_pass_the_tokens_by_no_more_than_one_reservation(world, tmp_path, redis):
    gateways = start_all(world, tmp_path, redis, world.provider(as_asked(), as_asked()), tokens="100/h")
    await pause(1.0)
    found = await statuses(gateways, 5, max_tokens=30, stream=True)
    assert 1 <= found.count(200) <= 3
    usage = (await gateways[0].get("/v1/usage", headers=HEADERS)).json["data"][0]
    assert usage["tokens"] <= 100 + 60


@ensureDeferred
async def test_l12_a_killed_gateway_gives_its_slots_back_within_15_s(world, tmp_path, redis):
    gateways = start_all(
        world, tmp_path, redis, world.provider(begin_stream(event({"content": "x"}))), 2, concurrency=2
    )
    await pause(1.0)
    for _ in range(2):
        await gateways[0].send(request({**HELLO, "stream": True}, headers=HEADERS))
    await until(lambda: redis.do("ZCARD", "aigw:{limits}:key alice:leases") == "2")
    assert (await gateways[1].ask(headers=HEADERS)).status == 429
    gateways[0].kill()
    began = time.monotonic()
    world_ok = 429
    while world_ok == 429 and time.monotonic() - began < 20:
        client = await gateways[1].send(request({**HELLO, "stream": True}, headers=HEADERS))
        await until(lambda client=client: client.answer.status)
        world_ok = client.answer.status
        await pause(0.5)
    assert world_ok == 200
    assert time.monotonic() - began < 15


FAULTS = {
    "paused": lambda redis: redis.process.send_signal(signal.SIGSTOP),
    "stopped": lambda redis: (redis.process.kill(), redis.process.wait()),
    "flushed": lambda redis: redis.do("FLUSHALL"),
    "without scripts": lambda redis: redis.do("SCRIPT", "FLUSH"),
    "read-only": lambda redis: redis.do("CONFIG", "SET", "min-replicas-to-write", "1"),
    "a replica": lambda redis: redis.do("REPLICAOF", "127.0.0.1", "1"),
}
MENDED = {
    "paused": lambda redis: redis.process.send_signal(signal.SIGCONT),
    "stopped": lambda redis: redis.start(),
    "flushed": lambda redis: None,
    "without scripts": lambda redis: None,
    "read-only": lambda redis: redis.do("CONFIG", "SET", "min-replicas-to-write", "0"),
    "a replica": lambda redis: redis.do("REPLICAOF", "NO", "ONE"),
}


async def times_of(gateway, count: int) -> list[float]:
    took = []
    for _ in range(count):
        began = time.monotonic()
        assert (await gateway.ask(headers=HEADERS)).status == 200
        took.append(time.monotonic() - began)
    return sorted(took)


@pytest.mark.parametrize("fault", FAULTS)
@ensureDeferred
async def test_l11_no_request_fails_and_none_waits(world, tmp_path, redis, fault):
    (gateway,) = start_all(world, tmp_path, redis, world.provider(), 1, requests="100000/h", concurrency=30)
    await pause(1.0)
    before = (await times_of(gateway, 200))[197]
    FAULTS[fault](redis)
    after = (await times_of(gateway, 200))[197]
    assert after - before < 0.06
    if fault not in ("flushed", "without scripts"):
        assert gateway.failures() >= 1
        assert len([line for line in gateway.daemon.lines() if "cannot use the store" in line["message"]]) == 1
    MENDED[fault](redis)
    if fault not in ("flushed", "without scripts"):
        await until(lambda: redis.do("EXISTS", "aigw:{limits}:probe") == "1", 20)
    for _ in range(40):
        await times_of(gateway, 1)
        if int(redis.do("HGET", "aigw:{limits}:key alice", "taken") or 0) >= (200 if fault == "flushed" else 401):
            break
        await pause(0.5)
    taken = int(redis.do("HGET", "aigw:{limits}:key alice", "taken") or 0)
    assert taken >= (200 if fault == "flushed" else 200 if fault in ("stopped", "a replica") else 401)
    assert redis.do("ZCARD", "aigw:{limits}:key alice:leases") == "0"
    log = gateway.daemon.log.read_text()
    assert PASSWORD not in log
    assert ALICE not in log


@ensureDeferred
async def test_l11_a_wrong_password_is_a_store_that_is_away(world, tmp_path, redis):
    store = f"valkey://:the-wrong-password@127.0.0.1:{redis.port}/0"
    (gateway,) = start_all(world, tmp_path, redis, world.provider(), 1, store, requests="100000/h")
    await pause(2.5)
    await times_of(gateway, 5)
    assert gateway.failures() >= 1
    log = gateway.daemon.log.read_text()
    assert "cannot use the store" in log
    assert "Unhandled" not in log
    assert "Traceback" not in log
    assert "the-wrong-password" not in log


@ensureDeferred
async def test_l11_sentinels_name_another_server(world, tmp_path):
    folders = [tmp_path / name for name in ("one", "two", "sentinel")]
    for folder in folders:
        folder.mkdir()
    first = Redis(folders[0])
    second = Redis(folders[1], None, "--replicaof", "127.0.0.1", str(first.port))
    sentinel = SimpleNamespace(port=free_port())
    (folders[2] / "sentinel.conf").write_text(
        f"port {sentinel.port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {first.port} 1\n"
        f"sentinel auth-pass main {PASSWORD}\nsentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 5000\n"
    )
    command = ["redis-server", "sentinel.conf", "--sentinel"]
    watching = subprocess.Popen(command, cwd=folders[2], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        store = f"valkey://:${{PASSWORD}}@127.0.0.1:{sentinel.port}/0?sentinel=main"
        await pause(12.0)  # sentinels look for replicas each 10 s
        (gateway,) = start_all(world, tmp_path, first, world.provider(answer()), 1, store, requests="100000/h")
        await until(lambda: first.do("EXISTS", "aigw:{limits}:probe") == "1", 20)
        before = (await times_of(gateway, 200))[197]
        first.stop()
        after = (await times_of(gateway, 200))[197]
        assert after - before < 0.06
        await until(lambda: second.do("EXISTS", "aigw:{limits}:probe") == "1" and "master" in second.do("ROLE"), 40)
        await until(lambda: second.do("HGET", "aigw:{limits}:key alice", "taken") == "400", 40)
        assert second.do("ZCARD", "aigw:{limits}:key alice:leases") == "0"
        lines = [line["message"] for line in gateway.daemon.lines()]
        others = [line for line in lines[lines.index("The gateway has started") :] if "Request" not in line]
        assert len([line for line in others if "store" not in line and "blocked" not in line]) == 1, others
    finally:
        watching.kill()
        watching.wait()
        first.stop()
        second.stop()
