"""S2: how many connections there may be, in all and of one address, and what one too many gets."""

from __future__ import annotations

import json
import os
import resource
import socket
import ssl
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme
from twisted.internet.error import ConnectionDone
from twisted.logger import globalLogPublisher

from aigw.connections import connection_limits
from aigw.connections import open_files as openfiles
from aigw.telemetry import notices
from tests.harness import HELLO, KEY, request
from tests.memory import MemoryGateway, body_of, error_of
from tests.test_daemon import Daemon

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def limits(**settings: int) -> dict:
    return {"limits": settings}


@pytest.fixture
def said():
    """The lines on refused connections."""
    seen: list[dict] = []

    def observe(event: dict) -> None:
        if str(event.get("aigw_message", "")).startswith("The gateway refused connections"):
            seen.append(event["aigw_fields"])

    globalLogPublisher.addObserver(observe)
    yield seen
    globalLogPublisher.removeObserver(observe)


def test_s2_2000_connections_in_all(said):
    assert MemoryGateway().limiter.connections == 2000
    world = MemoryGateway(top=limits(connections=200))
    clients = [world.ask() for _ in range(200)]
    refused = world.open()
    told = refused.take()
    assert told.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: 1\r\n" in told
    assert error_of(told)["code"] == "too_many_connections"
    assert (world.limiter.open, world.limiter.refused) == (200, 1)
    refused.say(request(HELLO))
    world.clock.advance(connection_limits.LINGER_SECONDS)
    assert refused.aborted
    assert refused.take() == b""
    assert not any(client.disconnected for client in clients)
    clients[0].lost(ConnectionDone())
    accepted = world.open()
    accepted.say(HEALTH)
    assert body_of(accepted.take()) == b'{"status": "healthy"}'
    assert said == [{"refused": 1, "connections": 200, "addresses": {"127.0.0.1": 200}}]


def test_s2_whoever_has_been_without_a_request_for_the_longest_gives_way(said):
    world = MemoryGateway(top=limits(connections=4))
    asks, kept, half, fresh = world.ask(), world.open(), world.open(), world.open("10.0.0.9")
    kept.say(HEALTH)  # and so has been idle since after the others
    half.say(HEALTH[:20])  # no request yet, and nobody can prove that there will be one
    one = world.ask()
    assert (half.disconnected, fresh.disconnected, kept.disconnected) == (True, False, False)
    two = world.ask()
    assert (fresh.disconnected, kept.disconnected) == (True, False)
    three = world.ask()
    assert kept.disconnected
    assert world.open().take().startswith(b"HTTP/1.1 503 ")
    assert not any(each.disconnected for each in (asks, one, two, three))
    assert (world.limiter.open, world.limiter.leaving, world.limiter.refused) == (4, 0, 1)
    assert said == [{"refused": 1, "connections": 4, "addresses": {"127.0.0.1": 4}}]


def test_s2_without_a_key_a_body_that_does_not_come_is_no_request():
    world = MemoryGateway(top=limits(connections=1))
    with_key = world.open()
    with_key.say(request(HELLO)[:-1])
    assert world.open().take().startswith(b"HTTP/1.1 503 ")
    assert not with_key.disconnected


def test_s2_over_tls_one_too_many_ends_without_a_word():
    world = MemoryGateway(top=limits(connections=1))
    world.ask()
    refused = world.open(secure=True)
    assert refused.take() == b""
    refused.say(b"\x16\x03\x01")
    world.clock.advance(connection_limits.LINGER_SECONDS)
    assert refused.aborted


def test_s2_refused_connections_linger_in_a_bounded_number_and_leave_nothing():
    world = MemoryGateway(top=limits(connections=1))
    world.ask()
    refused = [world.open() for _ in range(connection_limits.MAX_LINGERING + 5)]
    assert [wire.protocol is None for wire in refused] == [False] * connection_limits.MAX_LINGERING + [True] * 5
    refused[0].lost(ConnectionDone())
    assert world.open().protocol is not None
    world.clock.advance(connection_limits.LINGER_SECONDS)
    assert world.limiter.lingering == 0
    assert world.open().protocol is not None


def test_s2_refusals_are_counted_and_logged_at_most_once_in_10_seconds(said):
    world = MemoryGateway(top=limits(connections=1))
    client = world.ask()
    for _ in range(250):
        world.open()
        world.clock.advance(0.125)
    assert [each["refused"] for each in said] == [1, 79, 80, 80]
    world.clock.advance(10)
    world.clock.advance(10)
    assert [each["refused"] for each in said] == [1, 79, 80, 80, 10]
    client.lost(ConnectionDone())
    assert world.timers() == []
    assert world.limiter.refused == 250


def test_s2_what_is_unsaid_when_it_stops_is_said(said):
    world = MemoryGateway(top=limits(connections=1))
    world.ask().take()
    for _ in range(3):
        world.open()
    world.site.stopFactory()
    assert [each["refused"] for each in said] == [1, 2]
    world.clock.advance(connection_limits.LINGER_SECONDS)
    assert len(world.timers()) == 2, "only those of the request that is under way, and of its connection"


#   what one address is
SAME = [
    ("10.0.0.1", "10.0.0.1", True),
    ("10.0.0.1", "10.0.0.2", False),
    ("10.0.0.1", "::ffff:10.0.0.1", True),
    ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
    ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
    ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
    ("fe80::1%eth0", "fe80::2%eth1", True),
]


@pytest.mark.parametrize(("one", "other", "same"), SAME)
def test_s2_so_many_of_one_address(one, other, same, said):
    world = MemoryGateway(top=limits(connections_per_address=2))
    clients = [world.open(one), world.open(one)]
    assert (world.open(other).take() != b"") is same
    assert world.open("192.0.2.1").take() == b""
    assert [each["refused"] for each in said] == [1] * same
    assert not same or list(said[0]["addresses"].values()) == [2]
    for client in clients:
        client.lost(ConnectionDone())
    assert world.open(other).take() == b""


def test_s2_no_limit_for_an_address_by_default():
    world = MemoryGateway()
    assert not any(world.open().take() for _ in range(2000))


def test_s2_the_addresses_in_a_line_are_bounded(said):
    world = MemoryGateway(top=limits(connections_per_address=1))
    for address in [f"10.0.0.{number}" for number in range(50)] * 2:
        world.open(address)
    world.clock.advance(10)
    assert [each["refused"] for each in said] == [1, 49]
    assert len(said[1]["addresses"]) == notices.MAX_ADDRESSES


def test_s2_both_limits_may_change_while_it_runs():
    world = MemoryGateway(top=limits(connections=2))
    clients = [world.ask(), world.ask()]
    world.limiter.connections = 1
    assert not any(client.disconnected for client in clients), "those that are there stay"
    clients[0].lost(ConnectionDone())
    assert world.open().take() != b""
    world.limiter.connections = 3
    world.limiter.per_address = 1
    assert world.open().take() != b""
    assert world.open("10.0.0.1").take() == b""


def test_nothing_is_kept_of_addresses_that_left():
    world = MemoryGateway()
    for number in range(100):
        world.open(f"10.0.0.{number}").lost(ConnectionDone())
    assert not world.limiter._by_address
    assert world.limiter.open == 0


# Open files


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "fits", "after"),
    [
        (1024, 524288, 2000, 2000, 4100),
        (1024, 1024, 2000, 462, 1024),
        (256, 512, 2000, 206, 512),
        (8192, 8192, 2000, 2000, 8192),
        (50, 50, 2000, 1, 50),
        (1024, resource.RLIM_INFINITY, 2000, 2000, 4100),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 2000, 2000, resource.RLIM_INFINITY),
    ],
)
def test_s2_there_are_fewer_connections_than_open_files(monkeypatch, soft, hard, wanted, fits, after):
    limit = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limit[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limit.append(new))
    assert openfiles.raise_limit(wanted) == fits
    assert limit[-1] == (after, hard)


# A daemon


def configuration(folder: Path, tls: bool, **settings: int) -> dict:
    tree = {
        "api_key": KEY,
        "drain": 0,
        "listen": ["tcp:0:interface=127.0.0.1"],
        "providers": [{"name": "p", "base_url": "http://127.0.0.1:1/v1"}],
        "routes": [{"name": "route", "steps": [{"provider": "p", "model": "m"}]}],
        **limits(**settings),
    }
    if tls:
        certificate = trustme.CA().issue_cert("127.0.0.1")
        certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "tls.pem"))
        tree["tls"] = {"cert_file": "tls.pem", "key_file": "tls.pem"}
    return tree


def healthy(connection: socket.socket) -> bool:
    connection.sendall(HEALTH)
    return b"healthy" in connection.recv(4096)


@pytest.mark.parametrize(("tls", "most"), [(False, 2000), (True, 300)], ids=["http", "https"])
def test_s2_2000_idle_connections_lock_nobody_out_of_a_daemon(tmp_path, tls, most):
    """Nor do any number more of them; and whoever is in a request is not closed for those who are not.

    Over TLS with a lower limit, because most of the time goes into handshakes.
    """
    context = ssl._create_unverified_context()

    def connect() -> socket.socket:
        connection = stack.enter_context(socket.create_connection(address, timeout=10))
        return stack.enter_context(context.wrap_socket(connection)) if tls else connection

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4200)), hard))
    with ExitStack() as stack:
        provider = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=50))
        tree = configuration(tmp_path, tls, **({"connections": most} if tls else {}))
        tree["providers"][0]["base_url"] = f"http://127.0.0.1:{provider.getsockname()[1]}/v1"
        daemon = stack.enter_context(Daemon(tmp_path, config=json.dumps(tree)))
        address = daemon.address()
        asks = connect()
        asks.sendall(request(HELLO))
        idle = []
        for _ in range(most - 1):
            idle.append(connect())
            assert healthy(idle[-1])
        for _ in range(50):
            begun = time.monotonic()
            stranger = connect()
            assert healthy(stranger)
            assert time.monotonic() - begun < 1.0
        assert [each.recv(1) for each in idle[:50]] == [b""] * 50, "the longest idle first, and without a reset"
        assert healthy(idle[50])
        told = daemon.wait_for("The gateway closed connections without a request")
        assert told["closed"] >= 1
        assert told["addresses"] == {"127.0.0.1": told["connections"]}
        answered, _ = provider.accept()
        answered.recv(65536)
        answered.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\n{}")
        assert b"502" in asks.recv(65536)
        answered.close()


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_s2_one_connection_too_many_where_all_are_in_a_request(tmp_path, tls):
    context = ssl._create_unverified_context()
    with ExitStack() as stack:
        provider = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=50))
        tree = configuration(tmp_path, tls, connections=5)
        tree["providers"][0]["base_url"] = f"http://127.0.0.1:{provider.getsockname()[1]}/v1"
        daemon = stack.enter_context(Daemon(tmp_path, config=json.dumps(tree)))
        address = daemon.address()
        for _ in range(5):
            client = stack.enter_context(socket.create_connection(address, timeout=10))
            if tls:
                client = stack.enter_context(context.wrap_socket(client))
            client.sendall(request(HELLO))
            stack.enter_context(provider.accept()[0])
        for _ in range(20):
            refused = stack.enter_context(socket.create_connection(address, timeout=10))
            refused.sendall(b"\x16\x03\x01" if tls else request(HELLO))
            begun = time.monotonic()
            told = b"".join(iter(lambda: refused.recv(4096), b""))  # noqa: B023
            assert time.monotonic() - begun < 0.5, "at once, and without a reset"
            assert told == b"" if tls else error_of(told)["code"] == "too_many_connections"
            refused.close()
        assert daemon.wait_for("The gateway refused connections")["connections"] == 5
        client.close()
        wait_for(lambda: reaches(address, context if tls else None))
        daemon.stop()
        refusals = [
            line["fields"] for line in daemon.lines() if line["message"].startswith("The gateway refused connections")
        ]
        assert sum(each["refused"] for each in refusals) >= 20


def reaches(address: tuple[str, int], context: ssl.SSLContext | None) -> bool:
    """Whether a new client is served."""
    try:
        with socket.create_connection(address, timeout=10) as plain:
            if context is None:
                return healthy(plain)
            with context.wrap_socket(plain) as client:
                return healthy(client)
    except OSError:
        return False


def wait_for(condition) -> None:
    """Of another process, within a bound."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def open_files(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except PermissionError:
        pytest.skip("only root may look at the open files of the gateway")


def test_s2_a_limit_of_open_files_that_is_too_low_is_raised_or_heeded(tmp_path):
    with Daemon(tmp_path, config=json.dumps(configuration(tmp_path, False)), files=(200, 300)) as daemon:
        daemon.wait_for("The limit of open files allows only 100 of 2000 connections: raise it")
        soft, hard = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
        assert (soft, hard) == (300, 300)
    with Daemon(tmp_path, config=json.dumps(configuration(tmp_path, False)), files=(200, 5000)) as daemon:
        daemon.wait_for("The gateway has started")
        assert resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE) == (4100, 5000)
        assert not [line for line in daemon.lines() if "open files" in line["message"]]


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_s2_it_survives_that_open_files_run_out(tmp_path, tls):
    """Against all precaution: the limit is lowered behind its back. 300 clients ask, and the provider never answers."""
    context = ssl._create_unverified_context()
    with ExitStack() as stack:
        provider = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=500))
        tree = configuration(tmp_path, tls)
        tree["providers"][0]["base_url"] = f"http://127.0.0.1:{provider.getsockname()[1]}/v1"
        daemon = stack.enter_context(Daemon(tmp_path, config=json.dumps(tree)))
        address, pid = daemon.address(), daemon.process.pid
        daemon.wait_for("The gateway has started")
        before = open_files(pid)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, 64))
        clients = []
        for _ in range(300):
            client = stack.enter_context(socket.create_connection(address, timeout=10))
            clients.append(client)
            try:
                if tls:
                    client = clients[-1] = stack.enter_context(context.wrap_socket(client))
                client.sendall(request(HELLO))
            except OSError:
                pass  # it was closed at once, for want of a file
        wait_for(lambda: open_files(pid) == 64)
        wait_for(lambda: any("EMFILE" in line["message"] for line in daemon.lines()))
        spent = daemon.cpu_seconds()
        time.sleep(1.0)  # what a loop would burn in that time is what is measured
        assert daemon.cpu_seconds() - spent < 0.3
        lines = daemon.lines()
        assert len([line for line in lines if "EMFILE" in line["message"]]) <= 3
        assert not [line for line in lines if "traceback" in line["fields"]]
        for client in clients:
            client.close()
        wait_for(lambda: open_files(pid) <= before)
        client = stack.enter_context(socket.create_connection(address, timeout=10))
        assert healthy(stack.enter_context(context.wrap_socket(client)) if tls else client)
