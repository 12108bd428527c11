"""S2, S6: what a client may not do, on a clock that the test turns, and one record for each request whatever it does."""

from __future__ import annotations

from socket import SO_RCVBUF, SOL_SOCKET

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.error import ConnectionDone
from twisted.internet.task import deferLater

from aigw.connections import timeouts
from tests.harness import AUTH, HELLO, request
from tests.memory import MemoryGateway, body_of, error_of
from tests.providers import ROLE, STREAM_HEAD, answer, chunk, completion, event, head

GOOD = head(Content_Length=str(len(completion()))) + completion()
HEAD = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: {AUTH['Authorization']}\r\n".encode()


def test_s2_headers_are_complete_within_15_seconds_of_connecting():
    world = MemoryGateway()
    client = world.open()
    for byte in b"GET /health HTT":
        world.clock.advance(0.9)
        client.say(bytes([byte]))
    assert not client.disconnected
    world.clock.advance(1.6)
    client.say(b"P")
    world.clock.advance(30)
    assert client.disconnected


def test_s2_half_a_head_is_told_408_when_its_time_is_over():
    world = MemoryGateway()
    client = world.open()
    client.say(HEAD)
    world.clock.advance(15)
    told = client.take()
    assert told.startswith(b"HTTP/1.1 408 ")
    assert error_of(told)["code"] == "request_timeout"
    world.clock.advance(2)
    assert client.disconnected


def test_s2_silence_from_the_start_is_cut_without_a_word():
    world = MemoryGateway()
    client = world.open()
    world.clock.advance(15)
    assert client.take() == b""
    assert client.disconnected


def test_s2_the_head_of_a_second_request_has_15_seconds_too():
    world = MemoryGateway()
    client = world.open()
    client.say(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    client.take()
    world.clock.advance(50)
    client.say(b"GET /health HTTP/1.1\r\n")
    world.clock.advance(14)
    assert client.take() == b""
    world.clock.advance(1)
    assert client.take().startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(("rate", "survives"), [(60_000, True), (40_000, False)])
def test_s2_a_body_comes_at_no_less_than_50_kb_a_second_after_30(rate, survives):
    world = MemoryGateway()
    client = world.open()
    client.say(HEAD + b"Content-Length: 30000000\r\n\r\n")
    for _ in range(300):
        world.clock.advance(1)
        client.say(b" " * rate)
    assert client.disconnected is not survives
    if not survives:
        assert client.take().startswith(b"HTTP/1.1 408 ")
        assert [(each.status, each.outcome) for each in world.records] == [(408, "error")]


def test_s2_an_idle_connection_is_kept_for_75_seconds():
    world = MemoryGateway()
    client = world.ask()
    world.clock.advance(200)
    world.doors["p1"].wire.say(GOOD)
    world.clock.advance(74)
    assert not client.disconnected
    world.clock.advance(1)
    assert client.disconnected


def test_s2_a_client_that_does_not_read_for_60_seconds_is_cut_and_its_provider_stopped():
    world = MemoryGateway()
    client = world.ask(stream=True)
    provider = world.doors["p1"].wire
    provider.say(STREAM_HEAD + chunk(ROLE) + chunk(event({"content": "x"})))
    client.producer.pauseProducing()
    assert provider.producerState == "paused"
    world.clock.advance(59)
    assert not client.disconnected
    world.clock.advance(1)
    assert client.aborted
    assert provider.aborted
    assert [each.status for each in world.records] == [499]


def test_s2_a_client_that_catches_up_is_not():
    world = MemoryGateway()
    client = world.ask(stream=True)
    world.doors["p1"].wire.say(STREAM_HEAD + chunk(ROLE) + chunk(event({"content": "x"})))
    for _ in range(5):
        client.producer.pauseProducing()
        world.clock.advance(50)
        client.producer.resumeProducing()
        world.clock.advance(50)
    assert not client.disconnected


def test_s2_a_request_that_is_being_answered_has_no_limit_of_ours():
    world = MemoryGateway(timeout=5000)
    client = world.ask()
    world.clock.advance(4000)
    world.doors["p1"].wire.say(GOOD)
    assert client.take().startswith(b"HTTP/1.1 200 ")


def test_s2_s7_a_body_over_the_limit_just_before_the_head_s_time_is_over():
    """The time of a request that was refused says nothing any more, and nobody looks for its body."""
    world = MemoryGateway(top={"limits": {"body": 1024}})
    client = world.open()
    client.say(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    world.clock.advance(14)
    client.say(b"800\r\n" + b"x" * 2048)
    assert client.take().startswith(b"HTTP/1.1 413 ")
    world.clock.advance(1.5)
    world.clock.advance(1)
    assert client.disconnected
    assert world.timers() == []


def test_s2_a_second_request_has_its_whole_15_seconds_however_late_it_comes():
    world = MemoryGateway()
    client = world.open()
    client.say(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    client.take()
    world.clock.advance(74.9)
    client.say(b"GET /health HTTP/1.1\r\n")
    world.clock.advance(10)
    client.say(b"Host: x\r\n\r\n")
    assert client.take().startswith(b"HTTP/1.1 200 ")


#   how a request ends without an answer of a provider, and what its one record says
ENDINGS = {
    "hangs up in the body": (HEAD + b"Content-Length: 100\r\n\r\nabc", "gone", 499),
    "hangs up in a chunk":  (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", "gone", 499),
    "hangs up waiting":     (request(HELLO), "gone", 499),
    "a bad chunk":          (HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n", "told", 400),
    "a silent body":        (HEAD + b"Content-Length: 100\r\n\r\nabc", "waits", 408),
    "bad JSON":             (request(b"{"), "told", 400),
    "no route":             (request({**HELLO, "model": "x"}), "told", 404),
    "no key":               (request(HELLO, headers={}), "told", 401),
    "a wrong method":       (request(None, method="GET"), "told", 405),
}  # fmt: skip


@pytest.mark.parametrize("case", ENDINGS)
def test_b9_every_request_has_exactly_one_record(case):
    data, how, status = ENDINGS[case]
    world = MemoryGateway()
    client = world.open()
    client.say(data)
    if how == "gone":
        client.lost(ConnectionDone())
    if how == "waits":
        world.clock.advance(30)
        world.clock.advance(1)
    told = client.take()
    assert [record.status for record in world.records] == [status]
    if how != "gone":
        assert told.startswith(b"HTTP/1.1 %d " % status)
        assert f"x-request-id: {world.records[0].request_id}".encode() in told.lower()
        assert body_of(told)
    client.lost(ConnectionDone())
    world.clock.advance(100)
    assert len(world.records) == 1
    assert world.timers() == []


@ensureDeferred
async def test_s2_a_client_that_reads_slowly_gets_all_of_a_large_answer(world, monkeypatch):
    """What counts is that it reads, not that it ever catches up."""
    # The kernel takes more only when a third of what it may hold is free, which this client reads in some 0.2 s.
    monkeypatch.setattr(timeouts, "READ_SECONDS", 1.0)
    large = b'{"data": ["%s"]}' % (b"x" * 2_000_000)
    gateway = world.gateway(world.provider(answer(200, large)))
    client = await gateway.connect()
    client.transport.socket.setsockopt(SOL_SOCKET, SO_RCVBUF, 16 * 1024)
    client.transport.pauseProducing()
    client.transport.write(request(HELLO))
    begun = reactor.seconds()
    while not client.done.called and reactor.seconds() - begun < 30:
        client.transport.resumeProducing()
        await deferLater(reactor, 0.002)
        client.transport.pauseProducing()
        await deferLater(reactor, 0.2)
    assert client.answer.whole
    assert client.answer.body == large
    assert reactor.seconds() - begun > 1.1, "it was slow enough to count"
