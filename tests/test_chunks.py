"""S2, S3: a body in chunks is read strictly, within an allowance for framing, and some of it in a turn."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack, suppress

import pytest
from twisted.internet.error import ConnectionDone

from aigw.connections import chunks
from aigw.connections.chunks import BodyTooLong, ChunkedBody, MalformedChunks
from tests.harness import AUTH, HELLO, KEY, request
from tests.memory import MemoryGateway, error_of
from tests.properties import times
from tests.test_daemon import Daemon

BODY = json.dumps(HELLO).encode()
HEAD = request(None, headers={**AUTH, "Transfer-Encoding": "chunked"})
ENCODED = b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for part in (BODY[:5], BODY[5:6], BODY[6:]))
HEALTH = request(None, "/health", "GET", {})
WHOLE = ENCODED + b"0\r\nX-A: b\r\n\r\n"


class Reader:
    def __init__(self, limit: float = 1 << 30) -> None:
        self.body, self.rest = b"", None
        self.chunked = ChunkedBody(self.take, self.finish)
        self.chunked.limit = limit

    def take(self, data: bytes) -> None:
        self.body += data

    def finish(self, data: bytes) -> None:
        self.rest = data

    def read(self, data: bytes, step: int = 1 << 30) -> Reader:
        for at in range(0, len(data), step):
            self.chunked.dataReceived(data[at : at + step])
            while self.chunked.unread:
                self.chunked.go_on()
            if self.rest is not None:
                self.rest += data[at + step :]
                break
        return self


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1 << 20])
def test_a_body_and_what_follows_it(step):
    reader = Reader().read(WHOLE + b"GET /", step)
    assert (reader.body, reader.rest) == (BODY, b"GET /")


@pytest.mark.parametrize(
    "sent",
    [b"1" + b"0" * 20, b"g\r\n", b"\r\n", b"-1\r\n", b"5 \r\n", b"5\n", b"0x5\r\n", b"5;\x01\r\n", b"1\r\nab", b"1\r\na\rb",
     b"5" + b";" * 2000, b"0\r\nno trailer\r\n", b"0\r\nX: \n\r\n", b"0\r\n" + b"X: y\r\n" * 3000, b"0\r\nX: " + b"y" * 20_000],
)  # fmt: skip
@pytest.mark.parametrize("step", [1, 1 << 20])
def test_s3_what_is_malformed_or_without_end(sent, step):
    with pytest.raises(MalformedChunks):
        Reader().read(sent, step)


def test_s3_a_size_of_2_to_the_80th_is_refused_at_once_and_told_so():
    gateway = MemoryGateway()
    client = gateway.open()
    client.say(HEAD + b"%x" % 2**80)
    told = client.take()
    assert told.startswith(b"HTTP/1.1 400 ")
    assert error_of(told)["type"] == "invalid_request_error"


def test_r5_a_size_over_the_limit_is_refused_before_it_comes():
    with pytest.raises(BodyTooLong):
        Reader(limit=100).read(b"3c\r\n" + b"x" * 60 + b"\r\n29\r\n")
    gateway = MemoryGateway()
    client = gateway.open()
    client.say(HEAD + b"ffffffffffffffff\r\n")
    assert error_of(client.take())["code"] == "request_too_large"


@pytest.mark.parametrize(("size", "fits"), [(1, False), (4, False), (5, True), (1000, True)])
def test_s2_framing_has_16_kib_and_the_size_of_the_body(size, fits):
    sent = (b"%x\r\n%s\r\n" % (size, b"x" * size)) * (300_000 // size)
    if fits:
        assert len(Reader().read(sent, 65536).body) == 300_000 // size * size
    else:
        with pytest.raises(MalformedChunks):
            Reader().read(sent, 65536)


def test_s2_nor_is_there_room_in_extensions():
    with pytest.raises(MalformedChunks):
        Reader().read((b"1;" + b"x" * 1000 + b"\r\n!\r\n") * 20)


def test_s2_a_turn_reads_so_many_chunks_and_the_client_is_not_read_meanwhile():
    gateway = MemoryGateway()
    client = gateway.open()
    client.say(HEAD)
    begun = gateway.site.bodies.under_way
    client.say(b"5\r\nxxxxx\r\n" * 1000)
    assert gateway.site.bodies.under_way - begun == 5 * chunks.AT_ONCE
    assert client.producerState == "paused"
    client.say(b"5\r\nxxxxx\r\n" * 10)  # what TLS had deciphered already
    gateway.turns()
    assert gateway.site.bodies.under_way - begun == 5 * 1010
    assert client.producerState == "producing"
    client.say(b"5\r\nxxxxx\r\n" * 1000)
    client.lost(ConnectionDone())
    gateway.turns()
    assert gateway.timers() == []
    assert gateway.site.bodies.under_way == 0


@pytest.mark.parametrize("reads", [2, 3, 5])
def test_s2_each_of_several_reads_with_many_chunks_is_read_to_its_end(reads):
    """Each takes several turns, the last one too, and so does a read that comes while one before it is being read."""
    gateway = MemoryGateway(steps=1)
    body = json.dumps({**HELLO, "x": "y" * 2000}).encode()
    sent = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    size = len(sent) // reads + 1
    for at_once in (1, 2):
        client = gateway.open()
        client.say(HEAD)
        for number, at in enumerate(range(0, len(sent), size)):
            client.say(sent[at : at + size])
            if number % at_once == 0:
                gateway.turns()
        gateway.turns()
        assert b"y" * 2000 in gateway.doors["p1"].wire.take()
        client.lost(ConnectionDone())


def test_a_body_in_many_chunks_is_read_to_its_end_and_so_is_what_follows():
    gateway = MemoryGateway()
    client = gateway.open()
    body = json.dumps({**HELLO, "pad": "x" * 10_000}).encode()
    parts = b"".join(b"a\r\n%s\r\n" % body[at : at + 10] for at in range(0, len(body) - len(body) % 10, 10))
    end = body[len(body) - len(body) % 10 :]
    last = b"%x\r\n%s\r\n" % (len(end), end) if end else b""
    client.say(HEAD + parts + last + b"0\r\n\r\n" + request(None, "/health", "GET", {}))
    gateway.turns()
    assert b"x" * 10_000 in gateway.doors["p1"].wire.take()
    gateway.doors["p1"].wire.say(b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n" + b'{"choices": [{}]}')
    gateway.turns()
    assert client.take().count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize("size", [1, 5])
@times(2, 7)
def test_b3_300_connections_of_tiny_chunks_leave_health_under_100_ms(tmp_path, capsys, times, size):
    """With a key; who has none gets no further than the head."""
    piece = (b"%x\r\n%s\r\n" % (size, b"x" * size)) * (65536 // (size + 5))
    config = {
        "api_key": KEY,
        "listen": ["tcp:0:interface=127.0.0.1"],
        "providers": [{"name": "p", "base_url": "http://127.0.0.1:1/v1"}],
        "routes": [{"name": "route", "steps": [{"provider": "p", "model": "m"}]}],
    }
    with ExitStack() as stack, Daemon(tmp_path, config=json.dumps(config)) as daemon:
        address = daemon.address()
        daemon.wait_for("The gateway has started")
        clients = [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(300)]
        health = stack.enter_context(socket.create_connection(address, timeout=20))
        for client in clients:
            client.sendall(HEAD)
            client.setblocking(False)
        health.sendall(HEALTH)
        assert b"healthy" in health.recv(4096), "so many heads cost what they cost"
        took = []
        for _ in range(times):
            for client in clients:
                with suppress(OSError):  # it is not read as fast, or was refused
                    client.send(piece)
            begun = daemon.cpu_seconds()
            health.sendall(HEALTH)
            assert b"healthy" in health.recv(4096)
            took.append(daemon.cpu_seconds() - begun)
        with capsys.disabled():
            print(
                f" [300 connections of chunks of {size}: /health in {[round(each * 1000) for each in took]} ms]", end=""
            )
        assert sorted(took)[(times - 1) // 2] < 0.1, "what the daemon computes meanwhile: a neighbour may have the core"
