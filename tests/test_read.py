"""R12: a large body is read in larger pieces than anything else."""

from __future__ import annotations

import pytest
from pytest_twisted import ensureDeferred

from aigw.server.channel import Channel
from tests.harness import HELLO, bounded, request, until

#   bytes of the text               most bytes of the next read
READS = {100: 65_536, 60_000: 65_536, 200_000: 200_065, 900_000: 262_144}


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@ensureDeferred
async def test_r12_a_read_takes_more_only_while_a_large_body_comes(world, monkeypatch, tls):
    """Twisted's 64 KiB before, between and behind them, and for bodies in chunks. With TLS there is nothing to gain."""
    channels, made = [], Channel.connectionMade
    monkeypatch.setattr(Channel, "connectionMade", lambda channel: (channels.append(channel), made(channel)))
    gateway = world.gateway(world.provider(), tls=tls)
    for size, most in READS.items():
        data = request({**HELLO, "messages": [{"role": "user", "content": "x" * size}]})
        begins = data.find(b"\r\n\r\n") + 14
        channels.clear()
        client = await gateway.connect()
        client.transport.write(data[:begins])
        await until(lambda: channels and channels[0].reader is not None)
        assert channels[0].transport.bufferSize == (65_536 if tls else most)
        client.transport.write(data[begins:])
        assert (await bounded(client.done)).status == 200
        assert channels[0].transport.bufferSize == 65_536
