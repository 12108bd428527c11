"""T5, D2: a process that stood still reads what has come before it judges a limit; one that stops, before it closes."""

from __future__ import annotations

import json
import os
import signal
import socket
import time

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone

from aigw.connections import timeouts
from aigw.net import lateness
from tests.harness import HELLO, KEY, request
from tests.memory import MemoryGateway, body_of
from tests.providers import DONE, STREAM_HEAD, chunk, completion, event, head
from tests.test_daemon import Daemon

ANSWER = head(Content_Length=str(len(completion()))) + completion()
HEALTH = request(None, "/health", "GET", {})


# In memory: the clock jumps, its timers fire, and only then is read what has come.


def test_t5_s2_the_rest_of_a_head_and_of_a_body():
    gateway = MemoryGateway()
    client = gateway.open()
    sent = request({**HELLO, "pad": "x" * 200_000})
    client.say(sent[:20])
    gateway.clock.jump(timeouts.HEAD_SECONDS + 5)
    assert client.take() == b""
    client.say(sent[20:100_000])
    gateway.clock.jump(timeouts.BODY_SECONDS + 20)
    assert client.take() == b""
    client.say(sent[100_000:])
    gateway.doors["p1"].wire.say(ANSWER)
    assert client.take().endswith(completion())


def test_t5_s2_the_next_request_of_a_connection_that_is_kept():
    gateway = MemoryGateway()
    client = gateway.open()
    client.say(HEALTH)
    client.take()
    gateway.clock.jump(timeouts.KEEP_ALIVE_SECONDS + 5)
    client.say(HEALTH)
    assert body_of(client.take()) == b'{"status": "healthy"}'


def test_t5_s2_the_grace_is_short_and_given_once():
    gateway = MemoryGateway()
    client = gateway.open()
    client.say(HEALTH[:20])
    gateway.clock.jump(60)
    gateway.clock.advance(lateness.GRACE_SECONDS)
    assert client.take().startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("stream", [False, True])
def test_t5_t1_an_answer_that_has_come_meanwhile(stream):
    gateway = MemoryGateway(timeout=30, deadline=40)
    client = gateway.ask(stream=stream)
    gateway.clock.jump(60)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunk(event({"content": "x"})) if stream else ANSWER)
    if stream:
        gateway.clock.jump(300)
        gateway.doors["p1"].wire.say(chunk(DONE) + b"0\r\n\r\n")
    told = client.take()
    assert told.startswith(b"HTTP/1.1 200 ")
    assert b"error" not in told


def test_t5_t1_a_connection_to_a_provider_that_has_come_meanwhile():
    gateway = MemoryGateway(connect_timeout=5)
    door = gateway.doors["p1"]
    door.opens = opens = Deferred()
    client = gateway.ask()
    gateway.clock.jump(10)
    opens.callback(None)
    door.wire.say(ANSWER)
    assert client.take().endswith(completion())
    client.lost(ConnectionDone())


def test_t5_t1_and_one_that_stays_silent_still_ends():
    gateway = MemoryGateway(timeout=30)
    client = gateway.ask()
    gateway.clock.jump(60)
    gateway.clock.advance(lateness.GRACE_SECONDS)
    assert [each.outcome for each in gateway.failed] == ["timeout"]
    client.lost(ConnectionDone())


# A daemon


def tree(provider: socket.socket | None = None, **more) -> str:
    port = provider.getsockname()[1] if provider else 1
    return json.dumps(
        {
            "api_key": KEY,
            "drain": 5,
            "listen": ["tcp:0:interface=127.0.0.1"],
            "providers": [{"name": "p", "base_url": f"http://127.0.0.1:{port}/v1"}],
            "routes": [{"name": "route", "steps": [{"provider": "p", "model": "m"}], **more}],
        }
    )


def test_t5_t1_a_daemon_that_was_stopped_and_goes_on(tmp_path):
    """For longer than its step's limit, in which the provider answers."""
    with (
        socket.create_server(("127.0.0.1", 0)) as provider,
        Daemon(tmp_path, config=tree(provider, timeout="1s")) as daemon,
        socket.create_connection(daemon.address(), timeout=10) as client,
    ):
        client.sendall(request(HELLO))
        asked, _ = provider.accept()
        asked.recv(65536)
        os.kill(daemon.process.pid, signal.SIGSTOP)
        asked.sendall(ANSWER)
        time.sleep(2.5)  # in which it stands still
        os.kill(daemon.process.pid, signal.SIGCONT)
        told = client.recv(65536)
        assert told.startswith(b"HTTP/1.1 200 "), told
        asked.close()


def test_d2_a_stop_serves_who_waits_in_the_backlog(tmp_path):
    with Daemon(tmp_path, config=tree()) as daemon:
        address = daemon.address()
        daemon.wait_for("The gateway has started")
        os.kill(daemon.process.pid, signal.SIGSTOP)
        clients = [socket.create_connection(address, timeout=10) for _ in range(200)]
        for client in clients[:100]:
            client.sendall(HEALTH)
        os.kill(daemon.process.pid, signal.SIGTERM)
        os.kill(daemon.process.pid, signal.SIGCONT)
        daemon.wait_for("The gateway is stopping")
        for client in clients[100:]:
            client.sendall(HEALTH)
        answers = [client.recv(4096) for client in clients]
        assert all(b"healthy" in each for each in answers)
        for client in clients:
            client.close()
        assert daemon.process.wait(10) == -signal.SIGTERM
