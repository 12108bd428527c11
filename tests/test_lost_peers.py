"""S24: a peer whose link or machine is lost is found by the kernel. S2: how long a client's idle connection is kept."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import DeferredList
from twisted.internet.task import deferLater

from aigw.connections import timeouts
from tests.harness import AUTH, HELLO, bounded, request, until
from tests.memory import MemoryGateway
from tests.providers import ROLE, begin_stream, chunk, drip, event, hang, then

PROBED = {
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 30,
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 10,
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 3,
}


def options(transport) -> dict:
    found = getattr(transport, "transport", transport).socket
    limit = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    return {option: found.getsockopt(*option) for option in PROBED} | {"limit": limit}


def channels(gateway) -> list:
    return list(gateway.service._site._open)


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@ensureDeferred
async def test_s24_both_sides_are_probed_after_30_s_and_given_up_within_60(world, tls):
    provider = world.provider(hang, tls=tls)
    gateway = world.gateway(provider, tls=tls)
    await gateway.send(request(HELLO))
    await until(lambda: provider.requests)
    (client,) = channels(gateway)
    assert options(client.transport) == PROBED | {"limit": 42_000}
    (pool,) = gateway.service._runtime.upstream._pools.values()
    (connection,) = pool._open
    assert options(connection.transport) == PROBED | {"limit": 60_000}


@ensureDeferred
async def test_s24_a_unix_socket_needs_no_probes(world, tmp_path):
    provider = world.provider(hang)
    steps = [{"provider": "p", "model": "m"}]
    tree = {
        "api_key": AUTH["Authorization"].removeprefix("Bearer "),
        "listen": [f"unix:{tmp_path / 'api.sock'}"],
        "providers": [{"name": "p", "base_url": world.base_url(provider)}],
        "routes": [{"name": "route", "steps": steps}],
    }
    world.gateway_of(tree)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "api.sock"))
        client.sendall(request(HELLO))
        await until(lambda: provider.requests)


@ensureDeferred
async def test_s24_s2_a_client_that_reads_nothing_keeps_its_60_seconds(world, monkeypatch):
    """The kernel would count its time from the moment when its window is closed."""
    monkeypatch.setattr(timeouts, "READ_SECONDS", 4.0)
    large = event({"content": "x" * 60_000})
    provider = world.provider(begin_stream(ROLE, *[large] * 200))
    gateway = world.gateway(provider)
    client = await gateway.send(request({**HELLO, "stream": True}))
    await until(lambda: provider.requests)
    (channel,) = channels(gateway)
    client.transport.pauseProducing()
    await until(lambda: options(channel.transport)["limit"] == 58_000)
    client.transport.resumeProducing()
    await until(lambda: options(channel.transport)["limit"] == 42_000)


@pytest.mark.parametrize(("top", "seconds"), [({}, 75), ({"limits": {"keep_alive": "20s"}}, 20)], ids=["75", "20"])
def test_s2_an_idle_connection_is_kept_for_limits_keep_alive(top, seconds):
    world = MemoryGateway(top=top)
    client = world.open()
    client.say(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    world.clock.advance(seconds - 0.5)
    assert not client.disconnected
    world.clock.advance(3)
    assert client.disconnected


@ensureDeferred
async def test_s2_a_reload_changes_keep_alive(world):
    gateway = world.gateway(world.provider())
    assert gateway.service._site.keep_alive == 75
    gateway.tree["limits"] = {"keep_alive": "1m30s"}
    await gateway.reload()
    assert gateway.service._site.keep_alive == 90


# Two network namespaces, joined by a pair of virtual interfaces: root only.

HERE, THERE = "10.213.77.1", "10.213.77.2"
CLIENT = """
import socket, sys
client = socket.create_connection((sys.argv[1], int(sys.argv[2])))
client.sendall(sys.stdin.buffer.read())
while data := client.recv(65536):
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def namespace():
    """Its name, which is that of the interface in it, too."""
    name = f"aigw{os.getpid()}"
    outside = f"{name}o"
    ip("netns", "add", name)
    try:
        ip("link", "add", outside, "type", "veth", "peer", "name", name, "netns", name)
        ip("addr", "add", f"{HERE}/24", "dev", outside)
        ip("link", "set", outside, "up")
        ip("-n", name, "addr", "add", f"{THERE}/24", "dev", name)
        ip("-n", name, "link", "set", name, "up")
        yield name
        ip("link", "del", outside)
    finally:
        ip("netns", "del", name)  # and with it the pair of interfaces


PIECE = chunk(event({"content": "a few words"}))


def endless(piece: bytes, seconds: float):
    """Sends ``piece`` again and again."""

    def run(connection) -> None:
        if not connection.is_closed:
            connection.send(piece)
            reactor.callLater(seconds, run, connection)

    return run


STREAMS = {
    "an event a second": drip(PIECE * 1000, len(PIECE), 1.0),
    "an event every 15 s": drip(PIECE * 1000, len(PIECE), 15.0),
    "silence after the first output": hang,
    "20 MB a second": endless(chunk(event({"content": "x" * 60_000})), 0.003),
}


@pytest.mark.netns
@ensureDeferred
async def test_s24_a_client_whose_link_is_lost_in_a_stream_is_found_within_60_seconds(world, namespace, capsys):
    providers = {
        name: world.provider(then(begin_stream(ROLE, event({"content": "hi"})), each)) for name, each in STREAMS.items()
    }
    tree = {
        "api_key": AUTH["Authorization"].removeprefix("Bearer "),
        "listen": [{"endpoint": f"tcp:0:interface={HERE}", "insecure": True}],
        "providers": [{"name": name, "base_url": world.base_url(provider)} for name, provider in providers.items()],
        "routes": [{"name": name, "steps": [{"provider": name, "model": "m"}]} for name in providers],
    }
    gateway = world.gateway_of(tree)
    clients = []
    try:
        for name in providers:
            command = ["ip", "netns", "exec", namespace, sys.executable, "-c", CLIENT, HERE, str(gateway.port)]
            client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
            clients.append(client)
            client.stdin.write(request({**HELLO, "model": name, "stream": True}))
            client.stdin.close()
        await until(lambda: all(provider.requests for provider in providers.values()), 20)
        await deferLater(reactor, 5)  # the streams run
        assert not any(provider.connections[0].is_closed for provider in providers.values())
        ip("-n", namespace, "link", "set", namespace, "down")
        lost, took = time.monotonic(), {}
        for name, provider in providers.items():
            provider.connections[0].closed.addCallback(
                lambda _, name=name: took.setdefault(name, time.monotonic() - lost)
            )
        await bounded(DeferredList([provider.connections[0].closed for provider in providers.values()]), 120)
    finally:
        for client in clients:
            client.kill()
            client.wait()
    with capsys.disabled():
        print("", *(f"{name}: {seconds:.1f} s" for name, seconds in took.items()), sep="\n  ")
    assert max(took.values()) <= 60
    await until(lambda: len(world.records) == len(providers))
    assert {(record["status"], record["outcome"]) for record in world.records} == {(499, "client_gone")}
