"""S6, and the daemon's memory: measured on the process itself, from outside."""

from __future__ import annotations

import json
import re
import socket
import ssl
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.task import deferLater

from tests.harness import KEY, bounded, request, until
from tests.providers import ROLE, STREAM_HEAD, chunk, event
from tests.test_daemon import FreshDaemon

CLIENTS = 100
PIECE = chunk(event({"content": "x" * 16_000}))


class Endless:
    """Sends events for as long as they are taken."""

    def __init__(self, connection) -> None:
        self.connection = connection
        self.sent = 0
        self.stopped = False
        connection.transport.write(STREAM_HEAD + chunk(ROLE))
        connection.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        self.sent += len(PIECE)
        self.connection.transport.write(PIECE)

    def stopProducing(self) -> None:
        self.stopped = True


def rss(pid: int) -> int:
    """Resident memory in KiB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@ensureDeferred
async def test_s6_100_clients_that_never_read_cost_less_than_20_mib(world, tmp_path, capsys, tls):
    streams: list[Endless] = []
    provider = world.provider(lambda connection: streams.append(Endless(connection)))
    config = {
        "api_key": KEY,
        "listen": ["tcp:0:interface=127.0.0.1"],
        "providers": [{"name": "p", "base_url": world.base_url(provider)}],
        "routes": [{"name": "route", "steps": [{"provider": "p", "model": "m"}]}],
    }
    if tls:
        world.ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "tls.pem"))
        config["tls"] = {"cert_file": "tls.pem", "key_file": "tls.pem"}
    context = ssl.create_default_context(cafile=str(world.ca_file))
    with FreshDaemon(tmp_path, config=json.dumps(config)) as daemon:
        daemon.wait_for("The gateway has started")
        asked = request({"model": "route", "stream": True, "messages": [{"role": "user", "content": "hi"}]})
        clients = []

        def connect() -> None:
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(daemon.address())
            if tls:
                client = context.wrap_socket(client, server_hostname="127.0.0.1")
            client.sendall(asked)
            clients.append(client)

        connect()
        await until(lambda: streams)
        before = rss(daemon.process.pid)
        for _ in range(CLIENTS - 1):
            connect()
        await until(lambda: len(streams) == CLIENTS)
        while True:  # until nothing moves any more
            sent = sum(each.sent for each in streams)
            await bounded(deferLater(reactor, 0.5))
            if sum(each.sent for each in streams) == sent:
                break
        grown = rss(daemon.process.pid) - before
        with capsys.disabled():
            print(
                f" [S6: {CLIENTS} stalled readers: {grown} KiB more; {sent // CLIENTS // 1024} KiB taken for each]",
                end="",
            )
        assert grown < 20 * 1024
        for client in clients:
            client.close()
        await until(lambda: all(each.stopped for each in streams), 1.0)
