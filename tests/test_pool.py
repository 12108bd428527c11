"""F1, and what else is true of connections that are used again."""

from __future__ import annotations

import pytest
from pytest_twisted import ensureDeferred

from aigw.upstream.connection import MOST_TO_COPY
from tests.harness import until
from tests.memory import MemoryGateway
from tests.properties import times
from tests.providers import (
    LAST_CHUNK,
    ROLE,
    STREAM,
    STREAM_HEAD,
    answer,
    chunk,
    completion,
    drip,
    fin,
    head,
    raw,
    rst,
    then,
)

PLAIN = head(Content_Length=str(len(completion()))) + completion()


def first_then(kill):
    """Answers the first request on each connection, and closes at the next just as it comes."""

    def run(connection):
        first, connection.used = not getattr(connection, "used", False), True
        (answer() if first else kill)(connection)

    return run


@pytest.mark.parametrize("kill", [fin, rst], ids=["fin", "rst"])
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@times(40, 250)
@ensureDeferred
async def test_f1_a_provider_that_closes_idle_connections_just_as_we_write(world, times, tls, kill):
    """The client never sees it, no step rests, nothing is sent twice on a fresh one."""
    provider = world.provider(first_then(kill), tls=tls)
    gateway = world.gateway(provider, None)
    died = 0
    for _ in range(2 * times):
        got = await gateway.ask()
        assert (got.status, got.headers["x-aigw-attempts"]) == (200, "1")
        died = len(provider.requests) - len(world.records)
    assert died >= times - 1
    assert len(provider.requests) == 2 * times + died
    assert len(provider.connections) == 1 + died
    assert {record["provider"] for record in world.records} == {"p1"}
    assert not [line for line in world.log if "Step failed" in line]


@ensureDeferred
async def test_f1_a_reused_connection_that_dies_behind_the_first_byte_of_its_answer_is_a_failure(world):
    """What has begun to answer may have done the work: it is not sent again."""
    half = then(raw(b"HTTP/1.1 2"), fin)
    provider = world.provider(answer(), half, answer())
    gateway = world.gateway(provider, world.provider())
    assert (await gateway.ask()).headers["x-aigw-provider"] == "p1"
    assert (await gateway.ask()).headers["x-aigw-provider"] == "p2"
    assert len(provider.requests) == 2


#   what an answer leaves behind, and whether its connection may be used again
LEFTOVERS = {
    "nothing":                   (PLAIN, True),
    "nothing, chunked":          (STREAM_HEAD.replace(b"event-stream", b"json") + chunk(completion()) + LAST_CHUNK, True),
    "Connection: close":         (PLAIN.replace(b"\r\n", b"\r\nConnection: close\r\n", 1), False),
    "HTTP/1.0":                  (PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"), False),
    "a byte too many":           (PLAIN + b"x", False),
    "a second answer unasked":   (PLAIN + PLAIN, False),
    "a line end too many":       (PLAIN + b"\r\n", None),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFTOVERS)
def test_f1_a_connection_with_unasked_for_bytes_is_never_used_again(case):
    said, again = LEFTOVERS[case]
    world = MemoryGateway(1)
    world.ask()
    world.doors["p1"].wire.say(said)
    assert [record.status for record in world.records] == [200]
    world.ask()
    if again is not None:
        assert (len(world.doors["p1"].wires) == 1) is again
    world.doors["p1"].wire.say(PLAIN)
    assert [record.status for record in world.records] == [200, 200]


def test_f1_bytes_on_an_idle_connection_end_it():
    world = MemoryGateway(1)
    world.ask()
    world.doors["p1"].wire.say(PLAIN)
    world.doors["p1"].wire.say(b"HTTP/1.1 408 Idle\r\n\r\n")
    assert world.doors["p1"].wire.aborted
    world.ask()
    assert len(world.doors["p1"].wires) == 2


def test_f1_an_answer_before_the_request_was_sent_whole_ends_the_connection():
    world = MemoryGateway(1)
    world.ask()
    wire = world.doors["p1"].wire
    wire.producer.pauseProducing()
    wire.say(PLAIN)
    assert wire.aborted
    assert [record.status for record in world.records] == [200]


@pytest.mark.parametrize("size", [100, 20_000, 200_000, 600_000])
def test_f1_an_answer_while_the_end_of_the_request_waits_for_the_kernel_ends_the_connection(size):
    """Also where less than 64 KiB of it wait, for which Twisted pauses nobody. What the kernel has is sent."""
    for waits in (b"", b"the end"):
        world = MemoryGateway(1)
        for _ in range(2):
            world.ask(messages=[{"role": "user", "content": "x" * size}])
            world.turns()
            wire = world.doors["p1"].wire
            wire.dataBuffer = waits if size > MOST_TO_COPY else b""
            wire.say(PLAIN)
            assert wire.aborted is bool(wire.dataBuffer)
        assert [record.status for record in world.records] == [200, 200]


def test_idle_connections_are_used_again_most_recent_first_and_end_after_4_seconds():
    world = MemoryGateway(1)
    for _ in range(3):
        world.ask()
    wires = world.doors["p1"].wires
    for wire in wires:
        wire.take()
        wire.say(PLAIN)
        world.clock.advance(1)
    world.ask()
    assert [bool(wire.take()) for wire in wires] == [False, False, True]
    wires[2].say(PLAIN)
    world.clock.advance(1)
    assert [wire.aborted for wire in wires] == [True, False, False]
    world.clock.advance(3)
    assert [wire.aborted for wire in wires] == [True, True, True]


#   what the provider's answer says                 how long its connection is kept
KEPT = {
    "nothing":                  ({},                                        4),
    "as node does":             ({"Keep_Alive": "timeout=5"},               4),
    "as nginx does":            ({"keep_alive": "timeout=75"},              74),
    "with a number, too":       ({"Keep_Alive": "max=100, Timeout = 20"},   19),
    "quoted":                   ({"Keep_Alive": 'timeout="20"'},            19),
    "a short time":             ({"Keep_Alive": "timeout=2"},               1),
    "a time too short for it":  ({"Keep_Alive": "timeout=1"},               0),
    "none":                     ({"Keep_Alive": "timeout=0"},               0),
    "very long":                ({"Keep_Alive": "timeout=86400"},           300),
    "no time":                  ({"Keep_Alive": "max=100"},                 4),
    "no number":                ({"Keep_Alive": "timeout=-5"},              4),
    "not a possible one":       ({"Keep_Alive": "timeout=" + "9" * 40},     4),
    "of another name":          ({"Keep_Alive": "xtimeout=99"},             4),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_s27_idle_connections_are_kept_as_long_as_the_provider_allows(case):
    headers, seconds = KEPT[case]
    world = MemoryGateway(1)
    world.ask()
    wire = world.doors["p1"].wire
    wire.say(head(Content_Length=str(len(completion())), **headers) + completion())
    if seconds:
        world.clock.advance(seconds - 0.01)
        assert not wire.aborted
        world.clock.advance(0.02)
    assert wire.aborted
    assert [record.status for record in world.records] == [200]


def test_s27_each_connection_has_the_time_of_its_last_answer():
    world = MemoryGateway(1)
    times = ["timeout=31", "timeout=3", "timeout=11"]
    for _ in times:
        world.ask()
    wires = list(world.doors["p1"].wires)
    for wire, time in zip(wires, times, strict=True):
        wire.say(head(Content_Length=str(len(completion())), Keep_Alive=time) + completion())
    for seconds, open_ones in ((1.9, [0, 1, 2]), (0.2, [0, 2]), (7.8, [0, 2]), (0.2, [0]), (19.8, [0]), (0.2, [])):
        world.clock.advance(seconds)
        assert [number for number, wire in enumerate(wires) if not wire.aborted] == open_ones


def test_s27_at_most_256_idle_connections_are_kept_for_a_provider():
    world = MemoryGateway(1)
    for _ in range(259):
        world.ask()
    for wire in world.doors["p1"].wires:
        wire.say(PLAIN)
    assert sum(not wire.aborted for wire in world.doors["p1"].wires) == 256


@ensureDeferred
async def test_one_tls_context_serves_all_connections_of_a_provider(world, monkeypatch):
    from twisted.internet._sslverify import OpenSSLCertificateOptions

    made = []
    make = OpenSSLCertificateOptions._makeContext
    monkeypatch.setattr(OpenSSLCertificateOptions, "_makeContext", lambda self, *a: made.append(1) or make(self, *a))
    provider = world.provider(then(answer(), fin), tls=True)
    gateway = world.gateway(provider)
    made.clear()
    for count in range(1, 6):
        assert (await gateway.ask()).status == 200
        await until(
            lambda count=count: all(c.is_closed for c in provider.connections) and len(provider.connections) == count
        )
    assert len(made) <= 2, "one for the gateway's side, one for the provider's"


@ensureDeferred
async def test_a3_a_stream_that_is_paused_leaves_its_connection_fit_for_use(world):
    provider = world.provider(drip(STREAM_HEAD + chunk(ROLE) + b"".join(map(chunk, STREAM)) + LAST_CHUNK, 50))
    gateway = world.gateway(provider)
    for _ in range(3):
        assert (await gateway.ask(stream=True)).whole
    assert len(provider.connections) == 1
