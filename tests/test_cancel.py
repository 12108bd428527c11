"""T4: a client that hangs up closes the provider's connection within a second, whatever is going on."""

from __future__ import annotations

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor

from tests.harness import HELLO, bounded, request, until
from tests.providers import COMMENT, ROLE, STREAM_HEAD, begin_stream, event, hang, head, raw

HEL = event({"content": "hel"})
#   phase                        behaviour                                  stream   output first
PHASES = {
    "waiting, plain":           (hang,                                      False,   False),
    "waiting, streamed":        (hang,                                      True,    False),
    "headers only":             (raw(STREAM_HEAD),                          True,    False),
    "half a plain answer":      (raw(head(Content_Length="99"), b'{"a":'),  False,   False),
    "held before the commit":   (begin_stream(COMMENT, ROLE),               True,    False),
    "streaming":                (begin_stream(ROLE, HEL),                   True,    True),
}  # fmt: skip


@pytest.mark.parametrize("client_tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("provider_tls", [False, True], ids=["to-http", "to-https"])
@pytest.mark.parametrize("phase", PHASES)
@ensureDeferred
async def test_t4_client_hangs_up(world, phase, provider_tls, client_tls):
    behaviour, stream, output = PHASES[phase]
    first, second = world.provider(behaviour, tls=provider_tls), world.provider()
    gateway = world.gateway(first, second, tls=client_tls)
    client = await gateway.send(request({**HELLO, "stream": stream}))
    await until(lambda: first.requests)
    if output:
        await bounded(client.started)

    client.transport.abortConnection()
    begun = reactor.seconds()
    await bounded(first.connections[0].closed, 1.0)

    assert reactor.seconds() - begun < 1.0
    await until(lambda: world.records)
    (record,) = world.records
    assert (record["status"], record["outcome"]) == (499, "client_gone")
    assert [attempt["outcome"] for attempt in record["attempts"]] == ["client_gone"]
    assert not second.connections


@ensureDeferred
async def test_t4_while_the_handshake_with_the_provider_hangs(world):
    first, second = world.provider(), world.provider()  # plain TCP where the gateway expects TLS: it never answers
    first.tls = True
    gateway = world.gateway(first, second)
    client = await gateway.send(request(HELLO))
    await until(lambda: first.connections)
    client.transport.abortConnection()
    await bounded(first.connections[0].closed, 1.0)
    await until(lambda: world.records)
    assert world.records[0]["status"] == 499
    assert not second.connections


@ensureDeferred
async def test_t1_a_provider_whose_handshake_hangs_is_left_within_connect_timeout(world):
    first = world.provider()
    first.tls = True
    gateway = world.gateway(first, world.provider(), connect_timeout=0.3)
    begun = reactor.seconds()
    got = await gateway.ask()
    assert got.headers["x-aigw-provider"] == "p2"
    assert 0.3 <= reactor.seconds() - begun < 0.8
    assert world.records[0]["attempts"][0]["message"] == "connect limit of 0.3 s passed"


@ensureDeferred
async def test_t4_a_client_that_has_pipelined_a_lot_and_leaves_is_noticed(world):
    provider = world.provider(hang)
    client = await world.gateway(provider).send(request(HELLO))
    await until(lambda: provider.requests)
    client.transport.write(request(b"y" * 200_000))
    client.transport.loseConnection()
    await bounded(provider.connections[0].closed, 1.0)


@ensureDeferred
async def test_s2_pipelining_without_end_ends_the_connection(world):
    provider = world.provider(hang)
    client = await world.gateway(provider).send(request(HELLO))
    await until(lambda: provider.requests)
    client.transport.write(request(b"y" * 2_000_000))
    await bounded(client.closed)
    await bounded(provider.connections[0].closed, 1.0)


@ensureDeferred
async def test_b3_health_needs_no_key_and_asks_nobody(world):
    provider = world.provider()
    got = await world.gateway(provider).get("/health", headers={})
    assert (got.status, got.body, got.headers["content-type"]) == (200, b'{"status": "healthy"}', "application/json")
    assert not provider.connections
