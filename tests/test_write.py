"""S2, S6: what is written at once, and what Twisted is left with, on real sockets."""

from __future__ import annotations

import socket

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from zope.interface import implementer

from aigw.net import write

PIECE = b"0123456789abcdef" * 64


@implementer(IPushProducer)
class Connected(Protocol):
    paused = False

    def __init__(self, made):
        self.made = made

    def connectionMade(self):
        write.prepare(self.transport)
        self.transport.registerProducer(self, True)
        self.made.callback(self)

    def pauseProducing(self):
        self.paused = True

    def resumeProducing(self):
        self.paused = False

    def stopProducing(self):
        pass


@pytest.fixture
def connect():
    """A connection of the gateway, and the plain socket of its client, which reads only when the test does."""
    open_ones = []

    async def connected():
        made = Deferred()
        port = reactor.listenTCP(0, Factory.forProtocol(lambda: Connected(made)), interface="127.0.0.1")
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", port.getHost().port))
        protocol = await made
        await port.stopListening()
        open_ones.append((protocol.transport, client))
        return protocol, client

    yield connected
    for transport, client in open_ones:
        transport.abortConnection()
        client.close()


async def fill(protocol) -> bytes:
    """Write numbered pieces until the kernel takes no more and Twisted holds 64 KiB; gives them all."""
    sent = []
    while not protocol.paused:
        sent.append(b"%08d" % len(sent) + PIECE)
        write.write(protocol.transport, sent[-1])
        assert len(sent) < 10_000, "the kernel takes everything"
    return b"".join(sent)


async def read_all(client, size: int) -> bytes:
    read = b""
    while len(read) < size:
        await deferLater(reactor, 0)
        try:
            read += client.recv(size - len(read))
        except BlockingIOError:
            continue
    return read


@ensureDeferred
async def test_pieces_arrive_in_order_whatever_the_kernel_takes(connect):
    protocol, client = await connect()
    transport = protocol.transport
    sent = await fill(protocol)
    for number in range(200):
        piece = b"%08d" % number + PIECE * (80 if number % 50 == 0 else 1)
        write.write(transport, piece)
        sent += piece
        if number % 2:
            got = await read_all(client, min(3000, len(sent)))
            assert sent.startswith(got)
            sent = sent[len(got) :]
    assert await read_all(client, len(sent)) == sent


@ensureDeferred
async def test_s2_what_each_write_looks_at_is_found_in_the_connection_itself(connect):
    """In its class Python finds an attribute that is none of a method seven times as slowly."""
    protocol, _ = await connect()
    assert {"TLS", "bufferSize", "dataBuffer", "disconnecting"} <= vars(protocol.transport).keys()


@ensureDeferred
async def test_s2_what_is_unsent_changes_only_when_the_client_reads(connect):
    protocol, client = await connect()
    transport = protocol.transport
    sent = await fill(protocol)
    write.write(transport, PIECE * 1000)  # so that not everything is sent when the client reads a little
    for _ in range(20):  # until the kernel has moved all it can to the client's side
        await deferLater(reactor, 0.005)
    before = write.unsent(transport)
    for _ in range(5):
        write.write(transport, PIECE)
        await deferLater(reactor, 0)
        assert write.unsent(transport) == before
    await read_all(client, len(sent))
    for _ in range(1000):
        if write.unsent(transport) != before:
            break
        await deferLater(reactor, 0.001)
    assert write.unsent(transport) != before


@ensureDeferred
async def test_what_is_written_after_a_half_close_is_dropped(connect):
    protocol, client = await connect()
    transport = protocol.transport
    transport.unregisterProducer()
    write.write(transport, b"last")
    transport.loseWriteConnection()
    read = b""
    while True:
        await deferLater(reactor, 0)
        try:
            got = client.recv(100)
        except BlockingIOError:
            continue
        if not got:
            break
        read += got
    write.write(transport, b"late")
    assert read == b"last"
    assert not write.unsent(transport)
    assert transport.connected


@pytest.mark.parametrize("before", [b"", PIECE * 2000], ids=["nothing before it", "behind what waits"])
@pytest.mark.parametrize("size", [20_000, 5_000_000])
@ensureDeferred
async def test_q1_a_head_and_its_body_arrive_whole_and_once(connect, size, before):
    """What the kernel does not take is sent later, and it is known whether anything waits."""
    protocol, client = await connect()
    transport = protocol.transport
    assert not write.has_unsent(transport)
    transport.write(before)
    body = (b"%07d " * (size // 8)) % tuple(range(size // 8))
    whole = write.write_both(transport, b"head\r\n\r\n", body)
    assert whole is (size == 20_000 and not before)
    assert write.has_unsent(transport) is not whole
    sent = before + b"head\r\n\r\n" + body
    assert await read_all(client, len(sent)) == sent
    await deferLater(reactor, 0)
    assert not write.has_unsent(transport)


@ensureDeferred
async def test_q1_the_first_bytes_of_a_large_body_are_sent_in_the_same_turn(connect):
    protocol, client = await connect()
    write.write_both(protocol.transport, b"head\r\n\r\n", PIECE * 1000)
    client.setblocking(True)
    client.settimeout(5)
    assert client.recv(8) == b"head\r\n\r\n"


@ensureDeferred
async def test_q1_of_a_head_without_room_nothing_is_lost(connect):
    """The kernel takes a part of the head alone, or none."""
    protocol, client = await connect()
    transport = protocol.transport
    head, whole = b"0123456789" * 1000, transport.socket
    for size in (3, 10_000, 10_005):
        transport.socket = Takes(whole, size)
        assert not write.write_both(transport, head, PIECE)
        transport.socket = whole
        assert await read_all(client, len(head) + len(PIECE)) == head + PIECE
        await deferLater(reactor, 0)


class Takes:
    """A socket that takes so many bytes at once."""

    def __init__(self, socket, size):
        self.socket, self.size = socket, size

    def sendmsg(self, parts):
        return self.socket.send(b"".join(parts)[: self.size])
