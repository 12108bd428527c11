"""S6, B3: what a client sends ahead of its answers is bounded, waits until it reads, and takes a turn a request."""

from __future__ import annotations

import itertools

from twisted.internet.error import ConnectionDone

from tests.harness import HELLO, request
from tests.memory import MemoryGateway
from tests.providers import completion, head

ANSWER = head(Content_Length=str(len(completion()))) + completion()


def pipelined(count: int) -> bytes:
    return request(HELLO) * count


def test_s6_what_is_sent_ahead_is_bounded_however_many_answers_there_are():
    """Each answer made room for as much again, and nothing counted what was there already."""
    gateway = MemoryGateway()
    client = gateway.open()
    size = len(pipelined(1))
    sent = 0
    for _ in range(20):
        client.say(pipelined(100_000 // size))
        sent += 100_000
        if client.disconnected:
            break
        gateway.turns()
        gateway.doors["p1"].wire.say(ANSWER)
        gateway.turns()
    assert client.aborted
    assert sent < 500_000


def test_s6_no_request_is_served_for_a_client_that_does_not_read():
    gateway = MemoryGateway()
    client = gateway.open()
    client.say(pipelined(3))
    client.producer.pauseProducing()
    provider = gateway.doors["p1"].wire
    provider.say(ANSWER)
    gateway.turns()
    assert provider.take().count(b"POST ") == 1
    assert client.producerState == "paused", "what the client would send is left in the kernel"
    client.say(pipelined(1))  # and what TLS had deciphered already waits, too
    gateway.turns()
    assert client.take().count(b"HTTP/1.1 200") == 1
    client.producer.resumeProducing()
    for expected in (2, 3, 4):
        gateway.turns()
        provider.say(ANSWER)
        assert client.take().count(b"HTTP/1.1 200") == 1, expected
    gateway.gateway.upstream.close()


def test_b3_many_requests_in_one_read_take_a_turn_each():
    gateway = MemoryGateway()
    answered = [0]
    call_later = gateway.clock.callLater

    def spy(seconds, *call):
        if seconds == 0:
            answered.append(client.value().count(b"200 OK"))
        return call_later(seconds, *call)

    gateway.clock.callLater = spy
    client = gateway.open()
    client.say(request(None, "/health", "GET", {}) * 1000)
    gateway.turns()
    assert client.value().count(b"200 OK") == 1000
    assert max(after - before for before, after in itertools.pairwise(answered)) <= 2
    client.say(request(None, "/health", "GET", {}) * 3)
    client.lost(ConnectionDone())
    gateway.turns()
    assert not gateway.timers()


def test_pipelined_requests_behind_the_last_are_dropped_when_the_gateway_drains():
    gateway = MemoryGateway()
    client = gateway.open()
    client.say(pipelined(3))
    gateway.site.drain()
    gateway.doors["p1"].wire.say(ANSWER)
    gateway.turns()
    assert client.take().count(b"HTTP/1.1 200") == 1
    assert client.disconnected
