"""S8: HTTP at an HTTPS port, and the other way round: told or closed at once, and one line in the log."""

from __future__ import annotations

import ssl

import pytest
from pytest_twisted import ensureDeferred

from tests.harness import CHAT, HELLO, bounded, request, until

HELLO_BYTES = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


async def connect_plainly(gateway):
    gateway.tls, tls = False, gateway.tls
    client = await gateway.connect("GET")
    gateway.tls = tls
    return client


@pytest.mark.parametrize("sent", [request(None, "/health", "GET", {}), request(HELLO, CHAT), b"G"])
@ensureDeferred
async def test_s8_plain_http_at_the_https_port_is_told_so(world, sent):
    gateway = world.gateway(world.provider(), tls=True)
    client = await connect_plainly(gateway)
    client.transport.write(sent)
    got = await bounded(client.done, 3.0)
    assert (got.status, got.headers["connection"], got.whole) == (400, "close", True)
    assert "HTTPS port" in got.error["message"]
    client.transport.loseConnection()
    await bounded(client.closed)
    await until(lambda: gateway.service._site.limiter.open == 0)
    assert (await gateway.get("/health")).status == 200
    (line,) = [each for each in world.log if "uses plain HTTP" in each]
    assert '"addresses":{"127.0.0.1":1}' in line.replace(" ", "")


@ensureDeferred
async def test_s8_whoever_speaks_plain_http_there_and_stays_is_closed(world):
    gateway = world.gateway(world.provider(), tls=True)
    client = await connect_plainly(gateway)
    client.transport.write(b"G")
    await bounded(client.done)
    client.transport.write(b"x" * 1000)
    await bounded(client.closed, 4.0)


@pytest.mark.parametrize("size", [1, len(HELLO_BYTES)])
@ensureDeferred
async def test_s8_tls_at_the_plain_port_is_closed_at_the_first_byte(world, size):
    gateway = world.gateway(world.provider())
    for _ in range(3):
        client = await gateway.send(HELLO_BYTES[:size])
        await bounded(client.closed, 2.0)
        assert client.received == b""
    lines = [each for each in world.log if "uses TLS" in each]
    assert len(lines) == 1, "and the others in 10 s"
    assert "127.0.0.1" in lines[0]


@ensureDeferred
async def test_s5_what_is_tls_is_left_to_tls(world):
    gateway = world.gateway(world.provider(), tls=True)
    client = await connect_plainly(gateway)
    context = ssl.create_default_context(cafile=str(world.ca_file))
    context.set_alpn_protocols(["h2", "http/1.1"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            for each in outgoing.read():  # byte by byte
                client.transport.write(bytes([each]))
            seen = len(client.received)
            await until(lambda: len(client.received) > seen)  # noqa: B023
            incoming.write(client.received[seen:])
    assert tls.selected_alpn_protocol() == "http/1.1"
    assert not [each for each in world.log if "speaks" in each]
