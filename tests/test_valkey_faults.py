"""L10 to L18 with real gateways and a real Redis, and what goes wrong between them (pytest -m valkey)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time

import pytest
import trustme
from pytest_twisted import ensureDeferred
from twisted.internet import reactor

from tests.harness import HELLO, request, until
from tests.providers import answer, as_asked, begin_stream, event, stream
from tests.test_lost_peers import ip
from tests.test_valkey import (
    HEADERS,
    PASSWORD,
    Process,
    Redis,
    free_port,
    only_ten_of_200_pass,
    pause,
    start_all,
    statuses,
    times_of,
)

pytestmark = [pytest.mark.valkey, pytest.mark.skipif(not shutil.which("redis-server"), reason="needs redis-server")]
ALICES = "aigw:{limits}:key alice"


@pytest.fixture
def redis(tmp_path):
    running = Redis(tmp_path)
    yield running
    running.stop()


def warned(gateway) -> list[str]:
    """Messages and reasons, without those of a machine that is busy."""
    lines = [line for line in gateway.daemon.lines() if line["level"] != "INFO" and "blocked" not in line["message"]]
    return [json.dumps(line) for line in lines if not line["message"].startswith(("Request", "No TLS"))]


async def usage(gateway) -> dict:
    return (await gateway.get("/v1/usage", headers=HEADERS)).json["data"][0]


async def budget(gateway) -> tuple[int, int]:
    (found,) = (await usage(gateway))["limits"]["budget"]
    return found["spent"], found["reserved"]


# Two network namespaces, each with a pair of virtual interfaces to this one: root only.


@pytest.fixture
def namespaces():
    """By name: the address here, and the one there."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made: dict[str, tuple[str, str]] = {}
    try:
        for number in (0, 1):
            name = f"aigw{os.getpid()}n{number}"[:14]
            here, there = f"10.213.{78 + number}.1", f"10.213.{78 + number}.2"
            ip("netns", "add", name)
            made[name] = (here, there)
            ip("link", "add", f"{name}o", "type", "veth", "peer", "name", name, "netns", name)
            ip("addr", "add", f"{here}/24", "dev", f"{name}o")
            ip("link", "set", f"{name}o", "up")
            ip("-n", name, "addr", "add", f"{there}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield made
    finally:
        for name in made:
            subprocess.run(["ip", "link", "del", f"{name}o"], check=False)  # at once; with the namespace it goes later
            ip("netns", "del", name)


@pytest.fixture
def spread(world, tmp_path, namespaces):
    """Starts three gateways, two in one namespace and one in the other; the Redis and the provider are here."""
    addresses = [here for here, _ in namespaces.values()]
    redis = Redis(tmp_path, None, "--bind", "127.0.0.1", *addresses)

    def begin(provider, **limits):
        for here in addresses:
            world._closers.append(reactor.listenTCP(provider.port, provider, interface=here).stopListening)
        first, second = namespaces.items()
        gateways = []
        for number, (name, (here, there)) in enumerate((first, first, second)):
            store, url = f"valkey://:${{PASSWORD}}@{here}:{redis.port}/0", f"http://{here}:{provider.port}/v1"
            prefix = ["ip", "netns", "exec", name]
            gateways.append(Process(world, tmp_path / f"g{number}", url, store, prefix, there, **limits))
        return gateways

    begin.redis = redis
    yield begin
    redis.stop()


@pytest.mark.netns
@ensureDeferred
async def test_l10_of_200_requests_at_once_over_three_processes_in_two_namespaces_10_pass(world, spread):
    gateways = spread(world.provider(), requests="10/h")
    assert len({gateway.host for gateway in gateways}) == 2
    await pause(1.0)
    await only_ten_of_200_pass(gateways, spread.redis)


@pytest.mark.netns
@ensureDeferred
async def test_l10_five_streams_at_once_over_two_namespaces_pass_the_tokens_by_no_more_than_one_reservation(
    world, spread
):
    gateways = spread(world.provider(as_asked(), as_asked()), tokens="100/h")
    await pause(1.0)
    found = await statuses(gateways, 5, max_tokens=30, stream=True)
    assert 1 <= found.count(200) <= 3
    assert (await usage(gateways[2]))["tokens"] <= 100 + 60


@ensureDeferred
async def test_l10_five_streams_that_use_more_than_they_reserved_pass_the_limit_by_one_reservation(
    world, tmp_path, redis
):
    """Each says 30 tokens and uses 33: what passed the limit is what the last admitted ones used more, and no more."""
    used = stream(
        event({"content": "x"}), event(usage={"prompt_tokens": 3, "completion_tokens": 30, "total_tokens": 33})
    )
    gateways = start_all(world, tmp_path, redis, world.provider(as_asked(None, used)), tokens="100/h")
    await pause(1.0)
    for _ in range(3):
        await statuses(gateways, 5, max_tokens=5, stream=True)
    shown = (await usage(gateways[0]))["limits"]["tokens"]
    assert shown["reserved"] == 0
    assert 66 <= shown["spent"] <= 100 + 5 * 33
    assert await statuses(gateways, 3, max_tokens=5, stream=True) == [429] * 3


# A gateway that is killed


@ensureDeferred
async def test_l14_what_a_killed_gateway_had_reserved_is_never_free(world, tmp_path, redis):
    """Its budget is right within one request after the restart, and the estimate is charged when the leases are over."""
    provider = world.provider(answer(), begin_stream(event({"content": "x"})))
    limits = {"budget": [{"tokens": 1000, "per": "year"}], "assume": 500}
    (gateway,) = start_all(world, tmp_path, redis, provider, 1, **limits)
    await pause(1.0)
    assert (await gateway.ask(headers=HEADERS)).status == 200
    await gateway.send(request({**HELLO, "stream": True}, headers=HEADERS))
    await until(lambda: len(provider.requests) == 2)
    spent, reserved = await budget(gateway)
    assert spent == 7
    assert reserved > 500
    gateway.kill()
    killed = time.monotonic()
    restarted = Process(world, tmp_path / "again", world.base_url(provider), store_of(redis), **limits)
    await until(lambda: redis.do("EXISTS", "aigw:{limits}:probe") == "1")
    assert sum(await budget(restarted)) == 7 + reserved
    assert (await restarted.ask(headers=HEADERS)).json["error"]["code"] == "insufficient_quota"
    while (found := await budget(restarted)) != (7 + reserved, 0):
        assert found == (7, reserved)
        assert time.monotonic() - killed < 15
        await pause(0.2)
    assert (await restarted.ask(headers=HEADERS)).json["error"]["code"] == "insufficient_quota"


@ensureDeferred
async def test_l14_a_gateway_that_was_stopped_for_20_s_is_charged_once(world, tmp_path, redis):
    provider = world.provider(begin_stream(event({"content": "x"})))
    limits = {"budget": [{"tokens": 10_000, "per": "year"}], "assume": 500, "concurrency": 1}
    gateways = start_all(world, tmp_path, redis, provider, 2, **limits)
    await pause(1.0)
    client = await gateways[0].send(request({**HELLO, "stream": True}, headers=HEADERS))
    await until(lambda: provider.requests)
    _, reserved = await budget(gateways[1])
    gateways[0].daemon.process.send_signal(signal.SIGSTOP)
    await pause(16.0)
    assert await budget(gateways[1]) == (reserved, 0)
    gateways[0].daemon.process.send_signal(signal.SIGCONT)
    end = time.monotonic() + 20
    while await budget(gateways[1]) != (0, reserved):
        assert time.monotonic() < end
        await pause(0.2)
    assert redis.do("ZCARD", f"{ALICES}:leases") == "1"
    client.transport.abortConnection()
    while (found := await budget(gateways[1])) == (0, reserved):
        assert time.monotonic() < end
        await pause(0.2)
    assert 0 < found[0] < 50
    assert redis.do("HGET", ALICES, "held_tokens") == "0"


@pytest.mark.parametrize("times", [1, 2], ids=["drain", "at once"])
@ensureDeferred
async def test_l12_a_gateway_that_is_stopped_in_a_stream_leaves_no_lease(world, tmp_path, redis, times):
    """Its last settlement is sent before its connection is closed."""
    limits = {"budget": [{"tokens": 10_000, "per": "year"}], "assume": 500, "concurrency": 5}
    provider = world.provider(begin_stream(event({"content": "x"})))
    (gateway,) = start_all(world, tmp_path, redis, provider, 1, **limits)
    await pause(1.0)
    for _ in range(3):
        await gateway.send(request({**HELLO, "stream": True}, headers=HEADERS))
    await until(lambda: redis.do("ZCARD", f"{ALICES}:leases") == "3")
    process = gateway.daemon.process
    process.terminate()
    await pause(0.5)
    if times == 2:
        process.terminate()
    else:
        for connection in provider.connections:
            connection.fin()
    await until(lambda: process.poll() is not None, 20)
    assert redis.do("ZCARD", f"{ALICES}:leases") == "0"
    assert redis.do("HGET", ALICES, "held_tokens") == "0"
    assert 0 < int(redis.do("HGET", ALICES, "used")) < 100


def store_of(redis, credentials: str = ":${PASSWORD}", database: int = 0, scheme: str = "valkey") -> str:
    return f"{scheme}://{credentials}@127.0.0.1:{redis.port}/{database}"


# A store that cannot be used: a reason in one line, no request that fails, and no drift


@pytest.mark.parametrize(
    "rights",
    [
        ["+@all", "-eval", "-evalsha", "-script"],
        ["+@all", "-pexpire"],
        ["+@all", "-zadd"],
        ["+@all", "-time"],
        ["+@all", "resetkeys", "~other:*"],
    ],
)
@ensureDeferred
async def test_l18_a_user_without_the_rights_is_a_store_that_is_away(world, tmp_path, redis, rights):
    assert redis.do("ACL", "SETUSER", "gate", "on", f">{PASSWORD}", "~*", *rights) == "OK"
    store = store_of(redis, "gate:${PASSWORD}")
    (gateway,) = start_all(world, tmp_path, redis, world.provider(), 1, store, requests="100000/h", concurrency=30)
    await pause(2.5)
    await times_of(gateway, 20)
    found = warned(gateway)
    assert len(found) == 1, found
    line = found[0]
    assert "cannot use the store" in line
    assert "NOPERM" in line or "can't run this command" in line
    assert redis.do("HGET", ALICES, "taken") in ("", "0"), "nothing is written by halves"
    redis.do("ACL", "SETUSER", "gate", "resetkeys", "~*", "+@all")
    end = time.monotonic() + 10
    while redis.do("HGET", ALICES, "taken") in ("", "0"):
        assert time.monotonic() < end
        await times_of(gateway, 1)
        await pause(0.3)
    assert int(redis.do("HGET", ALICES, "taken")) >= 20


@ensureDeferred
async def test_l18_a_cluster_is_one_node_and_has_database_0_alone(world, tmp_path):
    port = next(port for port in iter(free_port, 0) if port < 55_000)  # a cluster has one more, 10,000 above
    redis = Redis(tmp_path, port, "--cluster-enabled", "yes")
    try:
        assert redis.do("CLUSTER", "ADDSLOTSRANGE", "0", "16383") == "OK"
        await until(lambda: "cluster_state:ok" in redis.do("CLUSTER", "INFO"), 20)
        for folder, database in (("zero", 0), ("three", 3)):
            (tmp_path / folder).mkdir()
            store = store_of(redis, database=database)
            limits = {"requests": "10/h", "budget": [{"tokens": 10_000, "per": "year"}]}
            (gateway,) = start_all(world, tmp_path / folder, redis, world.provider(), 1, store, **limits)
            await pause(2.5)
            assert (await gateway.ask(headers=HEADERS)).status == 200
            log = gateway.daemon.log.read_text()
            assert ("SELECT is not allowed in cluster mode" in log) is (database == 3)
            assert ("cannot use the store" in log) is (database == 3)
        assert redis.do("HGET", ALICES, "taken") == "1"
    finally:
        redis.stop()


@ensureDeferred
async def test_l18_a_certificate_of_another_name_is_a_store_that_is_away(world, tmp_path):
    certificate = trustme.CA().issue_cert("other.example")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    files = ["--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem", "--tls-auth-clients", "no"]
    plain = Redis(tmp_path, None, "--tls-port", "0", *files)
    secure = plain.do("CONFIG", "SET", "tls-port", str(port := plain.port + 1))
    try:
        if secure != "OK":
            pytest.skip("this redis-server has no TLS")
        store = f"valkeys://:${{PASSWORD}}@127.0.0.1:{port}/0"
        (gateway,) = start_all(world, tmp_path, plain, world.provider(), 1, store, requests="10/h")
        await pause(2.5)
        assert (await gateway.ask(headers=HEADERS)).status == 200
        found = warned(gateway)
        assert len(found) == 1, found
        line = found[0]
        assert "certificate" in line, line
        assert redis_keys(plain) == ""
    finally:
        plain.stop()


def redis_keys(redis) -> str:
    return redis.do("KEYS", "*")


@pytest.mark.parametrize("sentinel", [False, True], ids=["server", "sentinel"])
@ensureDeferred
async def test_l18_a_store_that_is_away_for_long_is_one_line(world, tmp_path, sentinel):
    """Nothing else is logged for each attempt, by no library; nothing is for ever once a second."""
    redis = Redis(tmp_path)
    redis.stop()
    store = store_of(redis) + ("?sentinel=main" if sentinel else "")
    (gateway,) = start_all(world, tmp_path, redis, world.provider(), 1, store, requests="100000/h")
    for _ in range(20):
        await times_of(gateway, 1)
        await pause(0.5)
    lines = [
        line["message"]
        for line in gateway.daemon.lines()
        if not line["message"].startswith(("Request", "The event loop"))
    ]
    after = lines[lines.index("The gateway has started") + 1 :]
    assert len(after) == 1, after
    assert "cannot use the store" in after[0]
    assert PASSWORD not in gateway.daemon.log.read_text()


@ensureDeferred
async def test_l15_counts_do_not_drift_over_pauses_and_kills_of_connections(world, tmp_path, redis):
    """The budget is what the requests used, to the token, however often an answer of the store is lost."""
    provider = world.provider()
    limits = {"budget": [{"tokens": 1_000_000, "per": "year"}], "assume": 50, "concurrency": 90}
    gateways = start_all(world, tmp_path, redis, provider, 2, **limits)
    await pause(1.0)
    asked = 0
    for number in range(6):
        waiting = statuses(gateways, 30)
        asked += 30
        if number % 2:
            redis.process.send_signal(signal.SIGSTOP)
            assert set(await waiting) == {200}
            await pause(7.0 if number == 3 else 0.5)  # longer than a reply may take, once
            redis.process.send_signal(signal.SIGCONT)
        else:
            redis.do("CLIENT", "KILL", "TYPE", "normal")
            assert set(await waiting) == {200}
        await pause(2.5)
    end = time.monotonic() + 30
    while await budget(gateways[0]) != (7 * asked, 0) or int(redis.do("HGET", ALICES, "taken")) < asked:
        assert time.monotonic() < end, (await budget(gateways[0]), 7 * asked)
        await pause(0.5)
    assert redis.do("ZCARD", f"{ALICES}:leases") == "0"
    assert (await usage(gateways[0]))["tokens"] == 7 * asked
