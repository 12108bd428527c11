"""S2, B7: what of a provider's answer is no body is bounded, wherever it stands; and it costs no more than it is long."""

from __future__ import annotations

import time

import pytest

from aigw.upstream.response_parser import MAX_FRAMING, MAX_HEAD, MAX_HEADERS, ResponseParser
from tests.memory import MemoryGateway, body_of
from tests.providers import LAST_CHUNK, STREAM, STREAM_HEAD, chunk, completion, head, whole_stream

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"

# What comes first, and what then comes for ever.
ENDLESS = {
    "a trailer's value": (CHUNKED + b"0\r\nX: ", b"y" * 8192),
    "a trailer's name": (CHUNKED + b"0\r\n", b"y" * 8192),
    "spaces in front of a trailer's value": (CHUNKED + b"0\r\nX:", b" " * 8192),
    "trailers": (CHUNKED + b"0\r\n", b"X: y\r\n" * 1000),
    "large trailers": (CHUNKED + b"0\r\n", b"X: %s\r\n" % (b"y" * 8000)),
    "an extension of a chunk": (CHUNKED + b"5;", b"y" * 8192),
    "a value of an extension": (CHUNKED + b"5;a=", b"y" * 8192),
    "a quoted value of an extension": (CHUNKED + b'5;a="', b"y" * 8192),
    "an extension of the last chunk": (CHUNKED + b"0;", b"y" * 8192),
    "zeros in front of a chunk's size": (CHUNKED + b"0", b"0" * 8192),
    "1xx": (b"", b"HTTP/1.1 102 X\r\n\r\n" * 500),
    "1xx with headers": (b"", b"HTTP/1.1 103 X\r\nLink: x\r\n\r\n" * 300),
    "a header in 1xx": (b"HTTP/1.1 103 X\r\nLink: ", b"x" * 8192),
    "line ends in front of the status": (b"", b"\r\n" * 4096),
    "a reason phrase": (b"HTTP/1.1 200 ", b"y" * 8192),
    "a header's value": (OK + b"X: ", b"y" * 8192),
    "a header's name": (OK, b"y" * 8192),
    "spaces in front of a header's value": (OK + b"X:", b" " * 8192),
    "headers": (OK, b"X: y\r\n" * 1000),
    "zeros in a length": (OK + b"Content-Length: ", b"0" * 8192),
}


def fed(begin: bytes, more: bytes, reads: int) -> tuple[ResponseParser, int]:
    """What comes of so many reads, and how many of them were taken."""
    framing = ResponseParser()
    framing.feed(begin)
    for taken in range(reads):
        if framing.broken:
            return framing, taken
        framing.feed(more)
        framing.take()
    return framing, reads


@pytest.mark.parametrize("kind", ENDLESS)
def test_b7_what_is_no_body_does_not_go_on_for_ever(kind):
    begin, more = ENDLESS[kind]
    framing, reads = fed(begin, more, 1000)
    assert framing.broken
    assert not framing.complete
    assert reads * len(more) <= MAX_FRAMING + len(more)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if at % 4 else []) for at, kind in enumerate(ENDLESS)]
)
def test_b7_it_ends_in_single_bytes_too(kind):
    begin, more = ENDLESS[kind]
    framing = ResponseParser()
    framing.feed(begin)
    begun = time.process_time()
    for count in range(MAX_FRAMING + 2):
        framing.feed(more[count % len(more)].to_bytes(1, "big"))
        if framing.broken:
            break
    assert framing.broken
    assert time.process_time() - begun < 5  # 131,000 reads: each a few microseconds, not one for each byte before it


@pytest.mark.parametrize("kind", ENDLESS)
def test_b7_a_provider_that_sends_it_is_left_for_the_next_step(kind):
    begin, more = ENDLESS[kind]
    for stream in (False, True):
        world = MemoryGateway()
        client = world.ask(stream=stream)
        world.doors["p1"].wire.say(begin)
        for _ in range(40):
            world.doors["p1"].wire.say(more)
        assert world.doors["p1"].wire.aborted
        world.doors["p2"].wire.say(
            whole_stream() if stream else head(Content_Length=str(len(completion()))) + completion()
        )
        assert client.take().startswith(b"HTTP/1.1 200 ")
        assert [each.outcome for each in world.records[0].attempts] == ["broken", "ok"]


@pytest.mark.parametrize("kind", [kind for kind, (begin, _) in ENDLESS.items() if begin.startswith(CHUNKED)])
@pytest.mark.parametrize("ended", [False, True], ids=["in the middle", "behind [DONE]"])
def test_a4_behind_the_commit_point_it_breaks_the_stream_unless_that_has_ended(kind, ended):
    begin, more = ENDLESS[kind]
    world = MemoryGateway()
    client = world.ask(stream=True)
    provider = world.doors["p1"].wire
    provider.say(STREAM_HEAD + b"".join(map(chunk, STREAM if ended else STREAM[:2])) + begin.removeprefix(CHUNKED))
    for _ in range(40):
        provider.say(more)
    assert provider.aborted
    assert (b'"code":"stream_truncated"' in client.take()) is not ended
    assert world.records[0].outcome == ("ok" if ended else "stream_truncated")
    assert not world.doors["p2"].wires


@pytest.mark.parametrize("reads", [1, 2, 7])
def test_b7_too_many_trailers_are_too_many_however_they_are_cut(reads):
    """In one read with the end of the answer too."""
    wire = CHUNKED + b"2\r\n{}\r\n0\r\n" + b"X: y\r\n" * (MAX_HEADERS + 1) + b"\r\n"
    size = len(wire) // reads + 1
    framing = ResponseParser()
    for at in range(0, len(wire), size):
        framing.feed(wire[at : at + size])
    assert framing.broken == "its headers are too many or too large"
    assert not framing.complete


def test_b7_the_bounds_are_for_all_headers_of_an_answer_and_for_each_answer_anew():
    framing = ResponseParser()
    trailers = b"X: y\r\n" * (MAX_HEADERS - 52)
    early = b"HTTP/1.1 103 X\r\nLink: x\r\n\r\n" * 50
    for _ in range(5):
        framing.feed(early + CHUNKED + b"2\r\n{}\r\n0\r\n" + trailers + b"\r\n")
        assert framing.complete, framing.broken
        assert framing.take() == b"{}"
        framing.start()
    framing.feed(early + CHUNKED + b"2\r\n{}\r\n0\r\n" + trailers + b"X: y\r\n" * 2 + b"\r\n")
    assert framing.broken


def test_a3_a_long_stream_whose_chunk_sizes_come_alone_is_no_trouble():
    """A size and a body in reads of their own, again and again: far more framing than is allowed in a row."""
    framing = ResponseParser()
    framing.feed(CHUNKED)
    for _ in range(MAX_FRAMING // 4):
        framing.feed(b"0001;x=1\r\n")
        framing.feed(b"y\r\n")
        assert framing.take() == b"y"
    framing.feed(LAST_CHUNK)
    assert framing.complete
    assert not framing.broken


def test_a3_a_large_head_is_still_read():
    framing = ResponseParser()
    framing.feed(OK + b"X: %s\r\nContent-Length: 2\r\n\r\n{}" % (b"y" * (MAX_HEAD - 200)))
    assert framing.complete
    assert not framing.broken


@pytest.mark.parametrize("kind", ENDLESS)
def test_b3_four_times_as_many_bytes_cost_no_more_than_they_should(kind):
    """Whether it is cut or goes on: not quadratic. (8 MB of a trailer's value took 2 s, 16 MB took 7 s.)"""
    begin, more = ENDLESS[kind]

    def seconds(reads: int) -> float:
        begun = time.process_time()
        fed(begin, more, reads)
        return time.process_time() - begun

    assert seconds(2000) < 4 * seconds(500) * 3 + 0.1


@pytest.mark.parametrize("code", [0, 1, 8, 0x0B, 0x1B, 0x1F, 0x7F])
def test_a5_an_answer_with_a_control_character_in_a_header_is_broken(code):
    world = MemoryGateway()
    client = world.ask()
    world.doors["p1"].wire.say(OK + b"OpenAI-Model: a%cb\r\nContent-Length: 2\r\n\r\n{}" % code)
    world.doors["p2"].wire.say(head(Content_Length=str(len(completion()))) + completion())
    assert body_of(client.take()) == completion()
    assert world.records[0].provider == "p2"
