"""R1, A3: what goes through comes out byte for byte, whatever it is and however the network cuts it."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st

from tests.harness import request
from tests.memory import MemoryGateway, body_of
from tests.properties import given
from tests.providers import COMMENT, LAST_CHUNK, ROLE, STREAM, STREAM_HEAD, chunk, completion, event, head, whole_stream

GOOD = head(Content_Length=str(len(completion()))) + completion()

# Values as JSON text, so that they are what a client may write: any number, any escape, any spacing.
SPACES = ["", "", "", " ", "\n", "\t ", "\r\n"]
SCALARS = [
    "true",
    "false",
    "null",
    "1.0",
    "-0",
    "1e400",
    "[]",
    "{}",
    '""',
    '"\\ud83d"',
    "12345678901234567890123",
    "0.10",
]
PIECES = [
    "a",
    "1.0",
    "\u00e9",
    "\U0001f600",
    "\u2028",
    "\x7f",
    '\\"',
    "\\\\",
    "\\/",
    "\\n",
    "\\u0000",
    "\\ud83d",
    "\\udE00\\uD83d",
    "'",
    "{",
]


def string(r: Random) -> str:
    return f'"{"".join(r.choices(PIECES, k=r.randrange(6)))}"'


def value(r: Random, depth: int = 3) -> str:
    kind = r.randrange(6) if depth else 0
    space = r.choice(SPACES)
    if kind == 5:
        entries = [f"{string(r)}{space}:{space}{value(r, depth - 1)}" for _ in range(r.randrange(4))]
        return "{" + space + f"{space},".join(entries) + "}"
    if kind == 4:
        return f"[{space}{f'{space},{space}'.join(value(r, depth - 1) for _ in range(r.randrange(4)))}{space}]"
    if kind == 3:
        return string(r)
    if kind == 2:
        return f"{r.choice(['', '-'])}{r.randrange(1, 10**30)}{r.choice(['', '.0', '.50', 'e5', 'E-02', '.1e+3'])}"
    return r.choice(SCALARS)


def members(r: Random) -> dict[str, str]:
    keys = [
        "temperature",
        "x y",
        "\u00e9",
        "tools",
        "user",
        "",
        "\U0001f600",
        "a.b",
        "n",
        "Models",
        "metadata",
        "stream_options",
    ]
    return {key: value(r) for key in r.sample(keys, r.randrange(len(keys)))}


@given(r=st.randoms(use_true_random=True), examples=(150, 5000), suppress_health_check=list(HealthCheck))
def test_r1_every_member_but_model_arrives_as_it_was_sent(r):
    """Random bodies through the whole gateway, in memory."""
    messages = ' [ {"role" : "user", "content":"\\u00e9\\ud83d 1.0"} ]'
    body = list({"model": '"route"', "messages": messages, **members(r)}.items())
    r.shuffle(body)
    space = r.choice(SPACES)
    text = ",".join(f'{space}"{key}"{space}:{space}{each}{space}' for key, each in body)
    world, client = WORLDS[0], CLIENTS[0]
    client.say(request(f"{space}{{{text}}}{space}".encode()))
    sent = body_of(world.doors["p1"].wire.take())
    assert list(json.loads(sent)) == [key for key, _ in body]
    expected = [("model", '"model-of-p1"') if key == "model" else (key, each.strip()) for key, each in body]
    assert sent == ("{" + ",".join(f'"{key}":{each}' for key, each in expected) + "}").encode()
    world.doors["p1"].wire.say(GOOD)
    assert client.take().startswith(b"HTTP/1.1 200 ")


WORLDS = [MemoryGateway()]
CLIENTS = [WORLDS[0].open()]


def streams():
    crlf = [each.replace(b"\n", b"\r\n") for each in STREAM]
    cr = [each.replace(b"\n", b"\r") for each in STREAM]
    return {"LF": [COMMENT, *STREAM], "CRLF": crlf, "CR": cr, "one chunk": [b"".join([ROLE, *STREAM])]}


@pytest.mark.parametrize("kind", streams())
@pytest.mark.parametrize("each", [4, pytest.param(1, marks=pytest.mark.slow)], ids=["some offsets", "all offsets"])
def test_a3_a_stream_cut_at_every_offset_arrives_byte_identical(kind, each):
    """Every way to cut the provider's answer, its head included, into two network reads.

    By default every fourth offset, and all within and around the ends of lines, where one is unlike the other.
    """
    events = streams()[kind]
    wire = whole_stream(events)
    world = MemoryGateway()
    for cut in range(1, len(wire)):
        if cut % each and not {*wire[cut - 2 : cut + 2]} & {*b"\r\n"}:
            continue
        client = world.ask(stream=True)
        world.doors["p1"].wire.say(wire[:cut])
        world.doors["p1"].wire.say(wire[cut:])
        head_sent, _, body = client.take().partition(b"\r\n\r\n")
        assert unchunked(body) == b"".join(events), cut
        assert b"x-aigw-provider: p1" in head_sent.lower()
        assert world.records[-1].outcome == "ok"


def test_a3_a_stream_in_single_bytes_leaves_event_by_event():
    world = MemoryGateway()
    client = world.ask(stream=True)
    for byte in whole_stream():
        world.doors["p1"].wire.say(bytes([byte]))
    body = body_of(client.take())
    held = STREAM[0] + STREAM[1]
    assert body == b"".join(map(chunk, [held, *STREAM[2:]])) + LAST_CHUNK


def test_a1_a_plain_answer_cut_at_every_offset_arrives_byte_identical():
    answer = completion(" \u00e9 ".strip())
    wire = head(Content_Length=str(len(answer))) + answer
    world = MemoryGateway()
    for cut in range(1, len(wire)):
        client = world.ask()
        world.doors["p1"].wire.say(wire[:cut])
        world.doors["p1"].wire.say(wire[cut:])
        assert body_of(client.take()) == answer


def test_r5_a_request_cut_at_every_offset_is_the_same_request():
    wire = request({"model": "route", "messages": [{"role": "user", "content": "hi"}]})
    world = MemoryGateway()
    for cut in range(1, len(wire)):
        client = world.open()
        client.say(wire[:cut])
        client.say(wire[cut:])
        assert json.loads(body_of(world.doors["p1"].wire.take()))["model"] == "model-of-p1"
        world.doors["p1"].wire.say(GOOD)


@pytest.mark.parametrize("ends", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_a3_a_large_event_leaves_whole_when_its_end_comes_alone(ends):
    """The end of an event over 64 KiB may come in a read of its own, or half of it."""
    for cut in range(1, len(ends) + 1):
        world = MemoryGateway()
        client = world.ask(stream=True)
        provider = world.doors["p1"].wire
        provider.say(head(kind="text/event-stream") + event({"content": "a"}))
        large = event({"content": "x" * 70_000}).removesuffix(b"\n\n") + ends
        client.take()
        provider.say(large[:-cut])
        provider.say(large[-cut:])
        assert unchunked(client.take() + LAST_CHUNK) == large, cut


@pytest.mark.parametrize("size", [1000, 4096, 65_521])
def test_a4_a_finish_reason_in_an_event_that_goes_out_in_pieces_is_seen(size):
    """However the pieces fall, the words that complete the stream are not missed where two of them meet."""
    words = [event({"content": "x" * (200_000 + offset)}, "stop") for offset in range(0, 40, 3)]
    world = MemoryGateway()
    for large in words:
        client = world.ask(stream=True)
        wire = whole_stream([ROLE, large])
        for at in range(0, len(wire), size):
            world.doors["p1"].wire.say(wire[at : at + size])
        assert unchunked(body_of(client.take())) == ROLE + large


def test_b7_a_stream_that_never_outputs_gives_the_next_step_and_no_byte_of_itself():
    world = MemoryGateway()
    client = world.ask(stream=True)
    world.doors["p1"].wire.say(STREAM_HEAD + chunk(COMMENT) + chunk(ROLE) + LAST_CHUNK)
    assert client.take() == b""
    world.doors["p2"].wire.say(whole_stream())
    assert unchunked(body_of(client.take())) == b"".join(STREAM)


def unchunked(body: bytes) -> bytes:
    """A chunked body's content; fails unless it is whole."""
    data = b""
    while True:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        data, body = data + rest[:length], rest[length + 2 :]
        if length == 0:
            assert body == b""
            return data
