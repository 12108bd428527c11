"""S6: what comes byte by byte costs no more the more there is of it already."""

from __future__ import annotations

import time

import pytest

from aigw.connections.ahead import MAX_BEHIND
from aigw.protocols import sse
from aigw.protocols.scanner import HOLD_STREAM
from tests.harness import request
from tests.memory import MemoryGateway
from tests.providers import DONE, STREAM_HEAD, chunk, event

OUTPUT = chunk(event({"content": "x"}))


@pytest.fixture
def searched(monkeypatch):
    """How many bytes were looked through for the end of an event or for silence."""
    sizes: list[int] = []

    def counting(name):
        search = getattr(sse, name)

        def count(data, *more):
            sizes.append(len(data))
            return search(data, *more)

        monkeypatch.setattr(sse, name, count)

    for name in ("boundary", "find_end", "is_silence"):
        counting(name)
    return sizes


def test_bytes_behind_a_running_stream():
    """118 KB took 37.6 s of CPU, most of it in adding up how much there was."""
    gateway = MemoryGateway()
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + OUTPUT)
    begun = time.process_time()
    for _ in range(MAX_BEHIND):
        client.say(b"x")
    assert time.process_time() - begun < 5.0, "quadratic it is minutes"
    assert not client.disconnected
    client.say(b"x")
    assert client.aborted


def test_a_whole_request_behind_a_running_stream_byte_by_byte_is_served_in_its_time():
    gateway = MemoryGateway()
    client = gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    provider.say(STREAM_HEAD + OUTPUT)
    for each in request(None, "/health", "GET", {}):
        client.say(bytes([each]))
    client.take()
    provider.say(chunk(DONE) + b"0\r\n\r\n")
    gateway.turns()
    assert client.take().endswith(b'{"status": "healthy"}')


@pytest.mark.parametrize("before", [b"", OUTPUT], ids=["held", "flowing"])
@pytest.mark.parametrize("what", [b"data: ", b": "], ids=["event", "comment"])
def test_an_event_that_does_not_end(searched, before, what):
    gateway = MemoryGateway(idle_timeout=3600)
    client = gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    provider.say(STREAM_HEAD + before)
    provider.say(chunk(what))
    for _ in range(60_000):
        provider.say(b"1\r\nx\r\n")
    assert sum(searched) < 20 * HOLD_STREAM, "each byte once, and what it may end with"
    client.take()
    provider.say(chunk(b"\n\n"))
    provider.say(chunk(event({"content": "y"})) + chunk(DONE) + b"0\r\n\r\n")
    told = client.take()
    assert what + b"x" * 60_000 + b"\n\n" in told.replace(b"\r\n", b"", 0)
    assert b"error" not in told


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n"])
@pytest.mark.parametrize("before", [b"", OUTPUT], ids=["held", "flowing"])
def test_a3_every_event_leaves_when_it_is_whole_however_its_end_is_cut(end, before):
    gateway = MemoryGateway()
    client = gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    provider.say(STREAM_HEAD + before)
    client.take()
    one = b'data: {"choices": [{"delta": {"content": "abc"}}]}' + end
    for each in one[:-2]:
        provider.say(chunk(bytes([each])))
        assert b"abc" not in client.take()
    for each in one[-2:]:  # a CR alone may be the empty line
        provider.say(chunk(bytes([each])))
    assert b"abc" in client.take()


@pytest.mark.parametrize(("sent", "alive"), [(b": a comment that goes on\n: and on", False), (b": c\ndata: 1", True)])
def test_t1_only_what_is_no_comment_is_a_sign_of_life_byte_by_byte(sent, alive):
    gateway = MemoryGateway(idle_timeout=10)
    client = gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    provider.say(STREAM_HEAD + OUTPUT)
    for each in sent:
        gateway.clock.advance(9 / len(sent))
        provider.say(chunk(bytes([each])))
    client.take()
    gateway.clock.advance(5)
    assert (b"stream_idle_timeout" in client.take()) is not alive
