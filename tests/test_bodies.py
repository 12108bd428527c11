"""R5, R6, S6: the memory that bodies take: nothing for who has no use for one, a bounded sum, and let go of at once."""

from __future__ import annotations

import gc
import json
import socket
import tracemalloc

import pytest
from twisted.internet.error import ConnectionDone, ConnectionLost

from tests.harness import AUTH, CHAT, HELLO, KEY, request
from tests.memory import MemoryGateway, error_of
from tests.providers import DONE, STREAM_HEAD, chunk, completion, event, head
from tests.test_daemon import FreshDaemon
from tests.test_memory import rss

MIB = 1024 * 1024
ANSWER = head(Content_Length=str(len(completion()))) + completion()
CHUNKED = {**AUTH, "Transfer-Encoding": "chunked"}
NO_KEY = {"Content-Length": str(32 * MIB)}
REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}"


def large(size: int = MIB, **more) -> bytes:
    return request({**HELLO, **more, "pad": "x" * size})


def chunked(size: int) -> bytes:
    return request(None, headers=CHUNKED) + b"%x\r\n" % size + b"x" * size


# Who reads a body


@pytest.mark.parametrize("path", ["/health", "/v1/models"])
@pytest.mark.parametrize("headers", [{**AUTH, "Content-Length": str(32 * MIB)}, CHUNKED], ids=["length", "chunked"])
def test_r5_a_body_that_no_resource_reads_is_not_kept_and_ends_the_connection(path, headers):
    world = MemoryGateway()
    client = world.open()
    client.say(request(None, path, "GET", headers))
    told = client.take()
    assert told.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nconnection: close\r\n" in told.lower()
    channel = client.protocol
    for _ in range(100):
        client.say(b"8000\r\n" + b"x" * 0x8000)
    assert not channel._ahead.data
    assert world.site.bodies.under_way == 0
    assert client.take() == b""
    world.clock.advance(2.0)
    assert client.disconnected


# The sum


def test_r6_the_bodies_under_way_have_a_bound_which_is_told_before_they_are_read():
    world = MemoryGateway(top={"limits": {"body": "2MiB", "bodies": "3MiB"}})
    held = world.open()
    held.say(large(2 * MIB - 1000))
    world.turns()
    small = world.open()
    small.say(large(500_000))
    world.turns()
    one_more = world.open()
    one_more.say(large(1_000_000)[:1000])
    told = one_more.take()
    assert told.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: 1\r\n" in told
    assert error_of(told)["code"] == "too_many_bodies"
    as_it_comes = world.open()
    as_it_comes.say(chunked(400_000))
    assert as_it_comes.take() == b""
    as_it_comes.say(b"\r\n" + chunked(400_000).partition(b"\r\n\r\n")[2])
    assert error_of(as_it_comes.take())["code"] == "too_many_bodies"
    world.doors["p1"].wires[0].say(ANSWER)
    world.doors["p1"].wires[1].say(ANSWER)
    assert world.site.bodies.under_way == 0
    assert {each.error for each in world.records} == {None, "too_many_bodies"}


def served(world, client):
    client.say(large())
    world.turns()
    world.doors["p1"].wire.say(ANSWER)


def streamed(world, client):
    client.say(large(stream=True))
    world.turns()
    world.doors["p1"].wire.say(STREAM_HEAD + chunk(event({"content": "x"})))
    assert world.site.bodies.under_way == 0, "from its first output on nobody needs the prompt"
    world.doors["p1"].wire.say(chunk(DONE) + b"0\r\n\r\n")


def unknown_model(world, client):
    client.say(large(model="no such"))
    world.turns()


def malformed(world, client):
    client.say(request(b"{" * MIB))


def all_steps_fail(world, client):
    client.say(large())
    world.turns()
    for name in ("p1", "p2"):
        world.doors[name].wire.say(REFUSAL)


def no_key(world, client):
    client.say(request(None, headers=NO_KEY) + b"x" * MIB)


def left_while_sending(world, client):
    client.say(large()[:-1])
    client.lost(ConnectionLost())


def left_while_sending_chunks(world, client):
    client.say(chunked(MIB))
    client.lost(ConnectionDone())


def left_while_waiting(world, client):
    client.say(large())
    world.turns()
    client.lost(ConnectionLost())


def left_in_a_stream(world, client):
    client.say(large(stream=True))
    world.turns()
    world.doors["p1"].wire.say(STREAM_HEAD + chunk(event({"content": "x"})))
    client.lost(ConnectionLost())


def too_slow(world, client):
    client.say(large()[:-1])
    world.clock.advance(120)


def bad_chunks(world, client):
    client.say(chunked(MIB) + b"no line end")


def too_long(world, client):
    client.say(chunked(33 * MIB))


def out_of_time(world, client):
    client.say(large())
    world.turns()
    world.clock.advance(700)


def stopped(world, client):
    client.say(large()[:-1])
    client.protocol.end()


def cut_stream(world, client):
    client.say(large(stream=True))
    world.turns()
    world.doors["p1"].wire.say(STREAM_HEAD + chunk(event({"content": "x"})))
    world.doors["p1"].wire.lost(ConnectionLost())


ENDS = [served, streamed, unknown_model, malformed, all_steps_fail, no_key, left_while_sending,
        left_while_sending_chunks, left_while_waiting, left_in_a_stream, too_slow, bad_chunks, too_long, out_of_time,
        stopped, cut_stream]  # fmt: skip


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_r6_a_body_is_let_go_of_without_the_cyclic_collector(end):
    """However a request ends; and whatever was counted for it is given back."""
    world = MemoryGateway(top={"cooldown": 0})

    def once() -> None:
        client = world.open()
        end(world, client)
        client.clear()
        if not client.disconnected:
            client.lost(ConnectionDone())
        for door in world.doors.values():
            for wire in door.wires:
                wire.clear()
                wire.lost(ConnectionDone())
            door.wires.clear()

    once()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(2):
            once()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
        gc.enable()
    assert grown < MIB // 2, f"{grown} bytes after two requests of a MiB"
    assert world.site.bodies.under_way == 0


# A daemon

LARGE = 32 * MIB


def abandon(address: tuple[str, int], sent: bytes, size: int) -> None:
    """Upload as much as is taken, wait for what is answered if it is, and leave."""
    piece = b"x" * MIB
    with socket.create_connection(address, timeout=20) as client:
        try:
            client.sendall(sent)
            for _ in range(size // MIB):
                client.sendall(piece)
        except OSError:
            pass  # refused


def daemon_of(folder, **more) -> dict:
    return {
        "api_key": KEY,
        "listen": ["tcp:0:interface=127.0.0.1"],
        "providers": [{"name": "p", "base_url": "http://127.0.0.1:1/v1"}],
        "routes": [{"name": "route", "steps": [{"provider": "p", "model": "m"}]}],
        **more,
    }


def declared(path: str, method: str = "GET", headers: dict | None = None) -> bytes:
    return request(None, path, method, {**(headers or {}), "Content-Length": str(LARGE)})


def uploads(address: tuple[str, int], times: int) -> None:
    unknown = b'{"model": "no such", "messages": [{"role": "user", "content": "hi"}], "pad": "'
    for _ in range(times):
        abandon(address, declared("/health"), LARGE)
        abandon(address, declared("/status"), LARGE)
        abandon(address, declared("/status/logout", "POST"), LARGE)
        abandon(address, declared(CHAT, "POST", AUTH), LARGE - MIB)  # and leaves
        with socket.create_connection(address, timeout=20) as client:
            client.sendall(declared(CHAT, "POST", AUTH) + unknown)
            client.sendall(b"x" * (LARGE - len(unknown) - 2) + b'"}')
            assert b"model_not_found" in client.recv(65536)


@pytest.mark.parametrize("times", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_r6_s6_uploads_that_are_refused_or_abandoned_leave_nothing(tmp_path, capsys, times):
    """Five kinds of them, ``times`` each, of 32 MiB."""
    with FreshDaemon(tmp_path, config=json.dumps(daemon_of(tmp_path))) as daemon:
        address = daemon.address()
        daemon.wait_for("The gateway has started")
        before = rss(daemon.process.pid)
        most = 0
        for _ in range(times):
            uploads(address, 1)
            most = max(most, rss(daemon.process.pid) - before)
        with capsys.disabled():
            print(f" [{5 * times} uploads of 32 MiB: at most {most // 1024} MiB over the start]", end="")
        assert most < 150 * 1024
