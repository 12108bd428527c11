"""R7: a request's body may be compressed: decoded in short steps, within the limits of other bodies."""

from __future__ import annotations

import gc
import gzip
import json
import random
import socket
import time
import zlib
from collections import Counter

import brotli
import pytest
import zstandard

from aigw import tap
from aigw.errors import BadRequest, TooLarge, UnsupportedCoding
from aigw.net import codings
from tests.harness import AUTH, HELLO, KEY, request
from tests.memory import MemoryGateway, error_of
from tests.properties import times
from tests.providers import completion, head
from tests.test_daemon import KEYS, Daemon
from tests.test_memory import rss

MIB = 1024 * 1024
ANSWER = head(Content_Length=str(len(completion()))) + completion()


def raw_deflate(data: bytes) -> bytes:
    made = zlib.compressobj(wbits=-15)
    return made.compress(data) + made.flush()


ENCODE = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": raw_deflate,  # without its header, as some clients send it
    "zstd": zstandard.compress,
    "BR": lambda data: brotli.compress(data, quality=1),
}


def decoded(body: bytes, coding: str, most: int = 32 * MIB) -> tuple[bytes, list[int], float]:
    """What comes out, what was taken for it, and the longest step in seconds."""
    taken: list[int] = []
    steps, longest = codings.decode(body, coding, most, taken.append), 0.0
    while True:
        began = time.thread_time()
        try:
            next(steps)
        except StopIteration as end:
            return bytes(end.value), taken, longest
        longest = max(longest, time.thread_time() - began)


@pytest.mark.parametrize("named", ENCODE)
@pytest.mark.parametrize("data", [b"", b"{}", random.Random(1).randbytes(300_000), b"x" * 6 * MIB], ids=len)
def test_r7_what_comes_out_is_what_went_in(named, data):
    coding = codings.coding_in(named.encode())
    body, taken, longest = decoded(ENCODE[named](data), coding)
    assert body == data
    assert sum(taken) == len(data)
    assert longest < 0.05


def test_r7_gzip_of_several_members():
    assert decoded(gzip.compress(b"a" * 70_000) + gzip.compress(b"b"), "gzip")[0] == b"a" * 70_000 + b"b"


@pytest.mark.parametrize("named", ENCODE)
def test_r7_what_is_cut_or_damaged_is_corrupt_and_never_anything_else(named):
    chance = random.Random(named)
    whole = ENCODE[named](json.dumps([chance.random() for _ in range(50)]).encode())
    for _ in range(300):
        sent = bytearray(whole)
        if chance.random() < 0.5:
            del sent[chance.randrange(len(sent)) :]
        for _ in range(chance.randrange(4)):
            if sent:
                sent[chance.randrange(len(sent))] = chance.randrange(256)
        try:
            decoded(bytes(sent), named.lower(), MIB)
        except (BadRequest, TooLarge):
            continue


HEADER = 7  # of a frame; without it there is no data, which is no JSON


def zstd_pieces(data: bytes) -> tuple[bytes, bytes]:
    """A frame with a checksum: all of its data, and its end."""
    encoder = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    begun = encoder.compress(data) + encoder.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return begun, encoder.flush()


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'{"model": "route"}' * 9, b"x" * 200_000, random.Random(2).randbytes(200_000)], ids=len
)
def test_r7_zstd_that_is_cut_behind_its_data_is_corrupt_too(data):
    """The library gives all of the data and no error."""
    begun, end = zstd_pieces(data)
    assert decoded(begun + end, "zstd")[0] == data
    assert decoded(begun + end + zstandard.compress(b"more"), "zstd")[0] == data + b"more"
    for kept in range(not begun, len(end)):
        with pytest.raises(BadRequest, match="not valid zstd: it is incomplete"):
            decoded(begun + end[:kept], "zstd")
    for kept in range(HEADER, len(begun), 1 + len(begun) // 200):
        with pytest.raises(BadRequest, match="not valid zstd: it is incomplete"):
            decoded(begun[:kept], "zstd")
    for more in range(1, 4):
        with pytest.raises(BadRequest, match="not valid zstd"):
            decoded(begun + end + zstandard.compress(b"more")[:more], "zstd")
    # A frame without an end may take in what follows it, as its data.
    stored = zstandard.ZstdCompressor(level=-5).compress(random.Random(3).randbytes(500))
    for kept in range(HEADER, len(stored)):
        with pytest.raises(BadRequest, match="not valid zstd: it is incomplete"):
            decoded(stored[:kept], "zstd")


@pytest.mark.parametrize("header", [None, b"", b"identity", b"none", b"utf-8", b" Identity , "])
def test_r7_no_coding(header):
    assert codings.coding_in(header) is None


@pytest.mark.parametrize("header", [b"compress", b"gzip, br", b"gzip,gzip", b"\xff", b"aws-chunked"])
def test_r7_others_are_415_which_names_those_that_are_read_before_the_body_comes(header):
    with pytest.raises(UnsupportedCoding):
        codings.coding_in(header)
    world = MemoryGateway()
    client = world.open()
    client.say(request(None, headers={**AUTH, "Content-Length": "1000", "Content-Encoding": header.decode("latin-1")}))
    answer = client.take()
    assert answer.startswith(b"HTTP/1.1 415 ")
    assert b"\r\nAccept-Encoding: gzip, deflate, zstd, br\r\n" in answer
    assert error_of(answer)["code"] == "unsupported_content_encoding"
    assert not world.doors["p1"].wires


def test_r7_the_key_is_checked_first():
    client = MemoryGateway().open()
    client.say(request(None, headers={"Content-Length": "1000", "Content-Encoding": "compress"}))
    assert client.take().startswith(b"HTTP/1.1 401 ")


def sent(body: bytes, coding: str, key: str = KEY) -> bytes:
    return request(body, headers={"X-Api-Key": key, "Content-Encoding": coding})


@pytest.mark.parametrize("named", ENCODE)
@pytest.mark.parametrize("pad", [0, 5 * MIB])
def test_r7_the_provider_gets_the_body_as_it_was(named, pad):
    world = MemoryGateway()
    client = world.open()
    body = json.dumps({**HELLO, "pad": "x" * pad}).encode()
    client.say(sent(ENCODE[named](body), named))
    world.turns()
    wire = world.doors["p1"].wire
    upstream_head, _, upstream_body = wire.take().partition(b"\r\n\r\n")
    assert b"content-encoding" not in upstream_head.lower()
    got = json.loads(upstream_body)
    assert got.pop("model") == "model-of-p1"
    assert got == {name: value for name, value in json.loads(body).items() if name != "model"}
    wire.say(ANSWER)
    assert client.take().startswith(b"HTTP/1.1 200 ")
    assert world.site.bodies.under_way == 0


def test_r7_corrupt_is_400_and_too_large_413_and_both_free_what_they_took():
    world = MemoryGateway(top={"limits": {"body": "1MiB"}})
    for body, status, words in [
        (gzip.compress(b"{}")[:-3], 400, "gzip"),
        (b"junk", 400, "gzip"),
        (gzip.compress(b"x" * (MIB + 1)), 413, "decompressed"),
    ]:
        client = world.open()
        client.say(sent(body, "gzip"))
        world.turns()
        answer = client.take()
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert words in error_of(answer)["message"]
    assert world.site.bodies.under_way == 0
    assert not world.doors["p1"].wires


def test_r7_r6_what_is_decoded_counts_to_the_bodies_under_way():
    world = MemoryGateway(top={"limits": {"body": "2MiB", "bodies": "3MiB"}})
    for _ in range(2):
        client = world.open()
        client.say(sent(gzip.compress(json.dumps({**HELLO, "pad": "x" * 1_900_000}).encode()), "gzip"))
        world.turns()
    assert error_of(client.take())["code"] == "too_many_bodies"


def test_r7_a_client_that_leaves_ends_the_decoding():
    world = MemoryGateway()
    client = world.open()
    client.say(sent(gzip.compress(b"[" + b" " * 30 * MIB), "gzip"))
    client.lost(ConnectionError())
    world.turns()
    assert world.site.bodies.under_way == 0
    assert [record.status for record in world.records] == [499]


@pytest.mark.parametrize("coding", ["zstd", "gzip"])
@pytest.mark.parametrize("pad", [0, 400_000])
def test_r7_a_body_that_begins_as_compressed_without_a_label_is_told_so(coding, pad):
    world = MemoryGateway()
    client = world.open()
    noise = random.Random(1).randbytes(pad).hex()
    client.say(request(ENCODE[coding](json.dumps({**HELLO, "pad": noise}).encode())))
    world.turns()
    answer = client.take()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert f"send it with 'Content-Encoding: {coding}'" in error_of(answer)["message"]


FUZZED = [
    "gzip",
    "x-gzip",
    "deflate",
    "zstd",
    "br",
    "identity",
    "",
    "GZIP",
    "utf-8",
    "compress",
    "gzip, br",
    "zstd;q=1",
]


def damaged(chance: random.Random) -> tuple[str, bytes]:
    """A coding, and a body that is somehow of it: whole, cut, changed, repeated, of another coding, or noise."""
    encode = ENCODE[chance.choice([*ENCODE])]
    text = json.dumps({**HELLO, "pad": chance.choice(["x", "[", "\\u0000"]) * int(10 ** chance.uniform(0, 4))}).encode()
    body = bytearray(encode(text) if chance.random() < 0.9 else chance.randbytes(chance.randrange(300)))
    for _ in range(chance.choice([0, 1, 1, 2, 8])):
        where = chance.randrange(len(body) + 1)
        what = chance.randrange(5)
        if what == 0:
            del body[where:]
        elif what == 1:
            body[where:where] = chance.randbytes(chance.randrange(1, 9))
        elif what == 2:
            del body[where : where + chance.randrange(1, 9)]
        elif what == 3:
            body += body[where:]
        elif body:
            body[min(where, len(body) - 1)] ^= 1 << chance.randrange(8)
    return chance.choice(FUZZED), bytes(body)


@pytest.fixture
def garbage_as_in_the_daemon():
    """The collector visits what the gateway makes, as often as in the daemon, and nothing of pytest or of other tests.

    A collection of all that a test process holds takes 0.2 s, whichever turn it falls into: 100,000 records that a test
    keeps are the most of it, and the gateway keeps none.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*tap.GARBAGE_THRESHOLDS)
    yield
    gc.set_threshold(*before)


@times(300, 100_000)
@pytest.mark.usefixtures("garbage_as_in_the_daemon")
def test_r7_s7_whatever_comes_compressed_is_an_answer_below_500_and_no_hold_up(times):
    """One turn of the event loop, in processor time and with the search for garbage in it, is never over 50 ms."""
    recorded: Counter[str] = Counter()
    world = MemoryGateway(steps=1, sink=lambda record: recorded.update([record.outcome]))
    chance = random.Random(times)
    statuses: Counter[int] = Counter()
    longest = 0.0
    for _ in range(times):
        coding, body = damaged(chance)
        client = world.open()
        began = time.thread_time()
        client.say(sent(body, coding))
        longest = max(longest, time.thread_time() - began)
        while due := [when for when in world.timers() if when <= world.clock.seconds()]:
            began = time.thread_time()
            world.clock.advance(0)
            longest = max(longest, (time.thread_time() - began) / len(due))
        for wire in world.doors["p1"].wires if "p1" in world.doors else ():
            if wire.take():
                wire.say(ANSWER)
        answer = client.take()
        statuses[int(answer[9:12])] += 1
        client.lost(ConnectionError())
    assert set(statuses) <= {200, 400, 404, 413, 415}, statuses  # 404: a bit of the model's name
    assert {200, 400, 415} <= set(statuses)
    assert recorded.total() == statuses.total() == times
    assert longest < 0.05
    assert world.site.bodies.under_way == 0


def bombs() -> dict[str, bytes]:
    """Small, and 10 GB or as near as the coding comes to that."""
    return {
        "gzip": gzip.compress(b"\0" * 64 * MIB, 1),
        "zstd": zstandard.ZstdCompressor(level=3).compress(b"\0" * 64 * MIB) * 160,
        "br": brotli.compress(b"\0" * 64 * MIB, quality=1),
    }


def test_r7_a_bomb_costs_no_memory(tmp_path):
    """It is measured before it is kept; ``test_r7_what_comes_out...`` times the steps."""
    key = KEYS["GATEWAY_API_KEY"]
    with Daemon(tmp_path) as daemon:
        address = daemon.address()
        before, grown = rss(daemon.process.pid), {}
        for coding, bomb in bombs().items():
            with socket.create_connection(address, timeout=20) as sock:
                sock.sendall(sent(bomb, coding, key))
                assert sock.recv(100).startswith(b"HTTP/1.1 413 "), coding
            grown[coding] = rss(daemon.process.pid) - before
        assert before + max(grown.values()) < 80 * 1024, (before, grown)
