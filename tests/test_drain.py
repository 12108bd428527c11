"""D2: a stop lets what is under way end, tells who cannot be waited for, and flushes what was written."""

from __future__ import annotations

import json
import os
import signal
import socket

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred

from aigw.connections.closing import LINGER_SECONDS
from aigw.connections.timeouts import LAST_REQUEST_SECONDS
from aigw.daemon.drain import FLUSH_SECONDS, Drain
from tests.harness import HELLO, bounded, request, until
from tests.memory import MemoryGateway, body_of, error_of
from tests.providers import (
    DONE,
    LAST_CHUNK,
    ROLE,
    STREAM,
    STREAM_HEAD,
    begin_stream,
    chunk,
    completion,
    head,
)
from tests.test_daemon import Daemon

SECONDS = 30.0
ANSWER = head(Content_Length=str(len(completion()))) + completion()


def draining(gateway: MemoryGateway, seconds: float = SECONDS) -> Deferred:
    drain = Drain(gateway.site, gateway.gateway.running, gateway.clock, seconds)
    gateway.drain = drain
    return drain.begin()


def test_d2_without_a_client_it_is_over_at_once():
    assert draining(MemoryGateway()).called


def test_d2_an_idle_client_may_send_one_more_request():
    gateway = MemoryGateway()
    client = gateway.ask()
    gateway.doors["p1"].wire.say(ANSWER)
    assert b"connection: close" not in client.take().lower()
    done = draining(gateway)
    gateway.clock.advance(LAST_REQUEST_SECONDS - 0.1)
    client.say(request(HELLO))
    gateway.clock.advance(1)
    gateway.doors["p1"].wire.say(ANSWER)
    said = client.take()
    assert b"connection: close" in said.lower()
    assert body_of(said) == completion()
    assert client.disconnected
    assert done.called
    gateway.gateway.upstream.close()
    assert not gateway.timers()


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat", None], ids=["new", "half a head", "between requests"])
def test_d2_who_sends_nothing_more_is_closed_soon(sent):
    gateway = MemoryGateway()
    if sent is None:
        client = gateway.ask()
        gateway.doors["p1"].wire.say(ANSWER)
    else:
        client = gateway.open()
        client.say(sent)
    gateway.clock.advance(1)
    done = draining(gateway)
    assert not client.disconnected
    for _ in range(15):
        gateway.clock.advance(1)
    gateway.clock.advance(LINGER_SECONDS)
    assert client.disconnected
    assert done.called


def test_d2_an_idle_client_that_catches_up_late_is_closed_soon():
    gateway = MemoryGateway()
    client = gateway.ask()
    client.producer.pauseProducing()
    gateway.doors["p1"].wire.say(ANSWER)
    done = draining(gateway)
    gateway.clock.advance(0.5)
    client.producer.resumeProducing()
    gateway.clock.advance(LAST_REQUEST_SECONDS)
    gateway.clock.advance(LINGER_SECONDS)
    assert client.disconnected
    assert done.called


def test_d2_a_request_under_way_is_answered_and_its_connection_closed():
    gateway = MemoryGateway()
    client = gateway.ask()
    done = draining(gateway)
    gateway.clock.advance(SECONDS - 1)
    gateway.doors["p1"].wire.say(ANSWER)
    said = client.take()
    assert b"connection: close" in said.lower()
    assert body_of(said) == completion()
    assert (client.disconnected, done.called) == (True, True)
    assert gateway.records[0].status == 200


def test_d2_a_body_that_is_still_coming_is_served():
    gateway = MemoryGateway()
    client = gateway.open()
    data = request(HELLO)
    client.say(data[:-5])
    done = draining(gateway)
    gateway.clock.advance(5)
    client.say(data[-5:])
    gateway.doors["p1"].wire.say(ANSWER)
    assert body_of(client.take()) == completion()
    assert done.called


def test_d2_a_stream_under_way_ends_as_it_would():
    gateway = MemoryGateway()
    client = gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    provider.say(STREAM_HEAD + chunk(ROLE) + chunk(STREAM[1]))
    client.take()
    done = draining(gateway)
    gateway.clock.advance(SECONDS - 1)
    provider.say(b"".join(map(chunk, STREAM[2:])) + LAST_CHUNK)
    said = client.take()
    assert DONE in said
    assert said.endswith(LAST_CHUNK)
    assert (client.disconnected, done.called) == (True, True)


def test_d2_a_stream_that_takes_too_long_ends_with_the_error_event():
    gateway = MemoryGateway()
    client = gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    provider.say(STREAM_HEAD + chunk(ROLE) + chunk(STREAM[1]))
    client.take()
    done = draining(gateway)
    gateway.clock.advance(SECONDS)
    said = client.take()
    event = json.loads(said.partition(b"data: ")[2].partition(b"\n\n")[0])
    assert event["error"] == {
        "message": "The gateway is stopping.",
        "type": "upstream_error",
        "param": None,
        "code": "stream_truncated",
    }
    assert b"[DONE]" not in said
    assert not said.endswith(LAST_CHUNK)
    assert (client.disconnected, provider.aborted, done.called) == (True, True, True)
    assert gateway.records[0].outcome == "draining"
    assert not gateway.timers()


@pytest.mark.parametrize("phase", ["no answer", "held", "connecting", "retry pause"])
def test_d2_who_has_no_answer_yet_hears_so(phase):
    steps = [{"provider": name, "model": "m", "retries": 1} for name in ("p1", "p2")]
    gateway = MemoryGateway(steps=2, top={"routes": [{"name": "route", "steps": steps}]})
    if phase == "connecting":
        gateway.doors["p1"].opens = Deferred()
    client = gateway.ask(stream=True)
    if phase == "held":
        gateway.doors["p1"].wire.say(STREAM_HEAD + chunk(ROLE))
    elif phase == "retry pause":
        gateway.doors["p1"].wire.say(head(500, Content_Length="0", retry_after="200"))
    done = draining(gateway, 5.0)
    gateway.clock.advance(5)
    said = client.take()
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in said.lower()
    assert error_of(said)["code"] == "draining"
    assert (client.disconnected, done.called) == (True, True)
    (record,) = gateway.records
    assert (record.status, record.error) == (503, "draining")
    assert record.attempts[-1].outcome == ("refused" if phase == "retry pause" else "draining")
    assert not gateway.doors["p2"].wires, "no further step is started"
    assert not gateway.timers()


def test_d2_who_is_still_sending_hears_so_too():
    gateway = MemoryGateway()
    client = gateway.open()
    client.say(request(HELLO)[:-5])
    draining(gateway, 5.0)
    gateway.clock.advance(5)
    said = client.take()
    assert said.startswith(b"HTTP/1.1 503 ")
    assert error_of(said)["code"] == "draining"
    client.say(b"12345" + request(HELLO))
    gateway.clock.advance(LINGER_SECONDS)
    assert client.disconnected
    assert not gateway.doors["p1"].wires


@pytest.mark.parametrize("begun", [False, True])
def test_d2_giving_up_closes_everything_now_and_says_who_did_it(begun):
    gateway = MemoryGateway()
    client = gateway.ask(stream=True)
    if begun:
        gateway.doors["p1"].wire.say(STREAM_HEAD + chunk(ROLE) + chunk(STREAM[1]))
    done = draining(gateway)
    gateway.drain.give_up()
    assert (client.disconnected, done.called) == (True, True)
    assert not gateway.timers()
    (record,) = gateway.records
    assert (record.status, record.outcome) == ((200, "draining") if begun else (503, "error"))


def test_d2_a_client_that_does_not_read_is_not_waited_for_for_ever():
    gateway = MemoryGateway()
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunk(ROLE) + chunk(STREAM[1]))
    client.loseConnection = lambda: None  # something is unsent
    done = draining(gateway)
    gateway.clock.advance(SECONDS)
    assert not done.called
    gateway.clock.advance(FLUSH_SECONDS)
    assert (client.aborted, done.called) == (True, True)


# On real sockets


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@ensureDeferred
async def test_d2_what_was_written_last_is_flushed(world, tls):
    """The stream's last MiB is in buffers when the provider is done; the client reads on only then."""
    provider = world.provider(begin_stream(ROLE, STREAM[1]))
    gateway = world.gateway(provider, tls=tls)
    gateway.tree["drain"] = 10
    await gateway.reload()
    client = await gateway.send(request({**HELLO, "stream": True}))
    await bounded(client.started)
    client.transport.pauseProducing()
    big = [b"data: " + b"x" * 1000 + b"\n\n" for _ in range(3000)]
    provider.connections[0].send(b"".join(map(chunk, big + STREAM[3:])) + LAST_CHUNK)
    stopped = gateway.service.stopService()
    await bounded(until(lambda: not gateway.service.ports))
    client.transport.resumeProducing()
    got = await bounded(client.done)
    assert got.whole
    assert got.body == b"".join([ROLE, STREAM[1], *big, *STREAM[3:]])
    client.transport.loseConnection()
    await bounded(stopped)


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@ensureDeferred
async def test_d2_ready_says_so_at_once_and_no_connection_is_taken(world, tls):
    gateway = world.gateway(world.provider(begin_stream(ROLE, STREAM[1])), tls=tls)
    gateway.tree["drain"] = 10
    await gateway.reload()
    got = await gateway.get("/ready", {})
    assert (got.status, got.json) == (200, {"status": "ready", "pid": os.getpid()})
    waiting, healthy = await gateway.connect("GET"), await gateway.connect("GET")
    stream = await gateway.send(request({**HELLO, "stream": True}))
    await bounded(stream.started)
    stopped = gateway.service.stopService()
    waiting.transport.write(request(None, "/ready", "GET", {}))
    healthy.transport.write(request(None, "/health", "GET", {}))
    got = await bounded(waiting.done)
    assert (got.status, got.error["code"], got.error["pid"]) == (503, "draining", os.getpid())
    assert (await bounded(healthy.done)).status == 200
    with pytest.raises(Exception, match="refused"):
        await gateway.connect()
    gateway.service.stop_now()
    await bounded(stopped)
    assert not (await bounded(stream.done)).whole


# The daemon

SERVES = """
api_key: a-key-of-the-gateway
drain: 20s
listen: ["tcp:0:interface=127.0.0.1"]
providers: [{name: a, base_url: "http://127.0.0.1:%d/v1"}]
routes: [{name: route, steps: [{provider: a, model: m}]}]
"""
ASK = request({**HELLO, "stream": True}, headers={"X-Api-Key": "a-key-of-the-gateway"})


def test_d2_two_signals_at_once(tmp_path):
    """The second comes before the first was obeyed."""
    with socket.socket() as provider:
        provider.bind(("127.0.0.1", 0))
        provider.listen()
        with Daemon(tmp_path, config=SERVES % provider.getsockname()[1]) as daemon:
            with socket.create_connection(daemon.address(), 5) as client:
                client.sendall(ASK)
                provider.accept()[0].close()
                daemon.wait_for("Request")
                client.sendall(ASK)
                upstream, _ = provider.accept()
                with upstream:
                    daemon.process.send_signal(signal.SIGSTOP)
                    daemon.process.send_signal(signal.SIGTERM)
                    daemon.process.send_signal(signal.SIGINT)
                    daemon.process.send_signal(signal.SIGCONT)
                    assert daemon.process.wait(5) in (-signal.SIGTERM, -signal.SIGINT)
            assert "Traceback" not in daemon.err.read_text()


@pytest.mark.parametrize("second", [None, signal.SIGTERM, signal.SIGINT], ids=["once", "twice", "then Ctrl-C"])
def test_d2_sigterm_waits_for_a_stream_and_a_second_one_does_not(tmp_path, second):
    with socket.socket() as provider:
        provider.bind(("127.0.0.1", 0))
        provider.listen()
        with Daemon(tmp_path, config=SERVES % provider.getsockname()[1]) as daemon:
            with socket.create_connection(daemon.address(), 5) as client:
                client.sendall(ASK)
                upstream, _ = provider.accept()
                with upstream:
                    upstream.recv(65536)
                    upstream.sendall(STREAM_HEAD + chunk(ROLE) + chunk(STREAM[1]))
                    assert client.recv(65536).startswith(b"HTTP/1.1 200")
                    daemon.process.terminate()
                    assert daemon.wait_for("The gateway is stopping")["in_flight"] == 1
                    if second:
                        daemon.process.send_signal(second)
                        daemon.wait_for("The gateway stops at once and ends running requests")
                    else:
                        upstream.sendall(b"".join(map(chunk, STREAM[2:])) + LAST_CHUNK)
                        rest = b""
                        while data := client.recv(65536):
                            rest += data
                        assert rest.endswith(LAST_CHUNK)
            assert daemon.process.wait(5) == -signal.SIGTERM
            assert "The gateway has stopped" in [line["message"] for line in daemon.lines()]
