"""S20: wrong keys are counted, logged with the address that they came from, and answered the later the more there are."""

from __future__ import annotations

import tracemalloc

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from aigw.access.refused_keys import (
    FORGET_SECONDS,
    FREE,
    MAX_ADDRESSES,
    MAX_LINES,
    MAX_WAITING,
    RefusedKeys,
)
from aigw.connections.ahead import MAX_BEHIND
from aigw.telemetry import notices
from aigw.telemetry.notices import LOG_SECONDS
from tests.harness import AUTH, CHAT, HELLO, bounded, request, until
from tests.memory import MemoryGateway
from tests.test_status import HTML, sign_in

WRONG = {"X-Api-Key": "wrong"}
GUESS = request(None, "/v1/models", "GET", WRONG)
GOOD = request(None, "/v1/models", "GET")
PAUSES = [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]


def peer(host):
    return (IPv6Address if ":" in host else IPv4Address)("TCP", host, 5)


@pytest.fixture
def logged(monkeypatch):
    """What is logged as refused: address and number."""
    lines = []
    monkeypatch.setattr(notices.logs, "warn", lambda _, **fields: lines.append((fields["address"], fields["refused"])))
    return lines


def guessed(gateway, host="10.0.0.5", times=FREE):
    """A client's connection behind as many guesses."""
    client = gateway.open(host)
    for _ in range(times):
        client.say(GUESS)
        assert client.take().startswith(b"HTTP/1.1 401 ")
    return client


# The pause


def test_s20_the_pause_grows_to_five_seconds_and_is_forgotten(logged):
    clock = Clock()
    refused = RefusedKeys(clock)
    assert [refused.add(peer("10.0.0.5")) for _ in range(FREE + 8)] == [0.0] * FREE + PAUSES
    assert refused.add(peer("10.0.0.6")) == 0.0
    assert refused.total == FREE + 9
    clock.pump([FORGET_SECONDS] * 7)
    assert refused.add(peer("10.0.0.5")) == 0.0
    assert refused.add(peer("10.0.0.5")) == 0.25, "it is forgotten little by little"
    refused.close()
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:10.0.0.5", "10.0.0.5", True),
    ],
)
def test_s20_an_ipv6_network_counts_as_one_address(logged, one, other, together):
    refused = RefusedKeys(Clock())
    for _ in range(FREE):
        refused.add(peer(one))
    assert bool(refused.add(peer(other))) is together


def test_s20_nobody_waits_on_a_unix_socket(logged):
    refused = RefusedKeys(Clock())
    assert {refused.add(UNIXAddress("/run/x")) for _ in range(20)} == {0.0}
    assert refused.total == 20


def test_s20_the_answer_waits_and_closes_the_connection(logged):
    gateway = MemoryGateway()
    client = guessed(gateway)
    client.say(GUESS)
    gateway.clock.advance(0.2)
    assert client.take() == b""
    gateway.clock.advance(0.1)
    answer = client.take()
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nConnection: close\r\n" in answer
    gateway.clock.advance(5)
    assert client.disconnected
    assert gateway.site.refused_keys.total == FREE + 1


def test_s20_a_right_key_waits_for_nothing_from_the_same_address(logged):
    gateway = MemoryGateway()
    guessed(gateway)
    for _ in range(20):
        gateway.open("10.0.0.5").say(GUESS)
    client = gateway.open("10.0.0.5")
    client.say(GOOD)
    assert client.take().startswith(b"HTTP/1.1 200 ")


def test_s20_no_key_at_all_is_no_guess(logged):
    gateway = MemoryGateway()
    client = gateway.open("10.0.0.5")
    for _ in range(20):
        client.say(request(None, "/v1/models", "GET", {}))
        assert client.take().startswith(b"HTTP/1.1 401 ")
    assert (gateway.site.refused_keys.total, logged) == (0, [])


@pytest.mark.parametrize("behind", [GOOD, request(HELLO), GUESS])
def test_s20_s1_nothing_that_is_sent_meanwhile_is_a_request(logged, behind):
    gateway = MemoryGateway()
    client = guessed(gateway)
    client.say(GUESS + behind)
    client.say(behind)
    gateway.clock.advance(0.3)
    client.say(behind)
    assert client.take().count(b"HTTP/1.1 ") == 1
    assert not any(door.wires for door in gateway.doors.values())
    assert gateway.site.refused_keys.total == FREE + 1


@pytest.mark.parametrize("head", ["Content-Length: 33554432", "Transfer-Encoding: chunked"])
def test_s20_a_body_is_not_kept_while_its_sender_waits_and_not_read_without_end(logged, head):
    gateway = MemoryGateway()
    client = guessed(gateway)
    client.say(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nX-Api-Key: wrong\r\n{head}\r\n\r\n".encode())
    piece = b"x" * 65536
    tracemalloc.start()
    for _ in range(MAX_BEHIND // len(piece)):
        client.say(bytes(piece))
        assert client.producerState == "producing"
    client.say(piece)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < len(piece)
    assert client.producerState == "paused"
    assert client.take() == b""
    gateway.clock.advance(0.3)
    assert client.take().startswith(b"HTTP/1.1 401 ")
    assert client.producerState == "producing", "or its end would not be seen"
    (record,) = gateway.records
    assert (record.status, record.error) == (401, "invalid_api_key")


def test_s20_who_leaves_waits_no_more(logged):
    gateway = MemoryGateway()
    client = guessed(gateway)
    client.say(request(HELLO, headers=WRONG))
    client.loseConnection()
    assert not gateway.site.refused_keys._waiting
    (record,) = gateway.records
    assert (record.status, record.error) == (499, "invalid_api_key")
    gateway.site.refused_keys.close()
    assert not gateway.timers()


def test_s20_so_many_wait_and_no_more(logged):
    gateway = MemoryGateway()
    guessed(gateway, times=FREE)
    clients = [gateway.open("10.0.0.5") for _ in range(MAX_WAITING + 1)]
    for client in clients:
        client.say(GUESS)
    assert len(gateway.site.refused_keys._waiting) == MAX_WAITING
    *waiting, beyond = [client.take() for client in clients]
    assert set(waiting) == {b""}
    assert beyond.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nConnection: close\r\n" in beyond
    gateway.clock.advance(5)
    assert all(client.take().startswith(b"HTTP/1.1 401 ") for client in clients[:-1])
    assert not gateway.site.refused_keys._waiting


def test_s20_d2_nobody_waits_when_the_gateway_stops(logged):
    gateway = MemoryGateway()
    client = guessed(gateway)
    client.say(GUESS)
    drained = gateway.site.drain()
    assert client.take().startswith(b"HTTP/1.1 401 ")
    gateway.clock.pump([0.1] * 50)
    assert drained.called
    assert not gateway.timers()
    assert sum(keys for _, keys in logged) == FREE + 1


def test_s20_what_is_known_of_addresses_is_bounded(logged):
    refused = RefusedKeys(Clock())
    for number in range(MAX_ADDRESSES + 100):
        refused.add(peer(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"))
    assert len(refused._by_address) == MAX_ADDRESSES
    assert len(refused._notice._unwritten) <= MAX_ADDRESSES
    refused.close()
    assert len(logged) <= 2 * MAX_LINES
    assert sum(keys for _, keys in logged) == MAX_ADDRESSES + 100, "none is lost"


# The log


def test_s20_one_line_an_address_in_ten_seconds_with_the_number(logged):
    clock = Clock()
    refused = RefusedKeys(clock)
    for _ in range(100):
        refused.add(peer("10.0.0.5"))
    refused.add(peer("2001:db8::1"))
    assert logged == [("10.0.0.5", 1), ("2001:db8::1", 1)]
    clock.advance(LOG_SECONDS)
    assert logged[2:] == [("10.0.0.5", 99)]
    refused.add(peer("10.0.0.5"), 3)
    assert len(logged) == 3
    clock.advance(LOG_SECONDS)
    assert logged[3:] == [("10.0.0.5", 3)]
    clock.advance(LOG_SECONDS)
    assert not clock.getDelayedCalls()
    refused.add(peer("10.0.0.5"))
    assert logged[4:] == [("10.0.0.5", 1)]


# Every path


async def guess(gateway, path):
    if path == "the form":
        return await sign_in(gateway, "wrong")
    if path == CHAT:
        return await gateway.ask(headers=WRONG)
    return await gateway.get(path, {**HTML, **WRONG} if path == "/status" else WRONG)


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize(
    "path",
    [
        CHAT,
        "/v1/models",
        "/",
        "/nothing",
        "/metrics",
        "/status",
        "/status.json",
        "/status/events",
        "/status/x",
        "the form",
    ],
)
@ensureDeferred
async def test_s20_every_refused_key_is_a_line_and_a_count_and_the_sixth_waits(world, path, tls):
    gateway = world.gateway(world.provider(), tls=tls)
    for _ in range(FREE):
        assert (await guess(gateway, path)).status == (200 if path in ("/status", "the form") else 401)
    lines = [line for line in world.log if "The gateway refused an unknown API key of a client" in line]
    assert len(lines) == 1
    assert '"address":"127.0.0.1"' in lines[0]
    assert "wrong" not in lines[0]
    assert b"aigw_refused_keys_total 5.0" in (await gateway.get("/metrics", AUTH)).body
    sixth = bounded(Deferred.fromCoroutine(guess(gateway, path)))
    await until(lambda: gateway.service._site.refused_keys._waiting)
    assert not sixth.called
    got = await sixth
    assert got.headers["connection"] == "close"
