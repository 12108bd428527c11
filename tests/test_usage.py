"""Usage: what providers report is found, whatever else stands around it, and nothing is made up."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor

from aigw.protocols import usage
from aigw.protocols.endpoints import ENDPOINTS
from aigw.protocols.usage import by_kind, find_usage, usage_in
from tests.providers import DONE, STREAM_HEAD, answer, chunk, completion, event, stream

CHAT = ENDPOINTS["chat/completions"]


def nested(depth, left, right, inside):
    return left * depth + inside + right * depth


@pytest.mark.parametrize(
    ("data", "usage"),
    [
        (b'{"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}', (1, 2, 3)),
        (b'data: {"choices":[],"usage" : {"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n\n', (1, 2, 3)),
    ],
)
def test_usage_is_found_in_bodies_and_in_events(data, usage):
    assert find_usage(data)
    assert usage_in(data) == dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), usage, strict=True))


@pytest.mark.parametrize(
    ("data", "usage"),
    [
        (b'{"usage":{"input_tokens":1,"output_tokens":2}}', {"input_tokens": 1, "output_tokens": 2}),
        (b'{"usage":{"prompt_tokens":0}}', {"prompt_tokens": 0}),
        (b'{"usage":{"prompt_tokens_details":{"cached_tokens":4,"audio_tokens":5}}}', {"cached_tokens": 4}),
        (
            b'{"usage":{"output_tokens_details":{"reasoning_tokens":6},"output_tokens":7}}',
            {"output_tokens": 7, "reasoning_tokens": 6},
        ),
        (b'{"usage":{"prompt_tokens_details":null,"total_tokens":1}}', {"total_tokens": 1}),
        (b'{"usage":{"prompt_tokens":1}} {"usage":{"prompt_tokens":2}}', {"prompt_tokens": 2}),
        (b'{"usage":{"prompt_tokens":1}} {"usage":null}', {"prompt_tokens": 1}),
        (b'{"usage":{"prompt_tokens":1}} {"usage":{"prompt_tok', {"prompt_tokens": 1}),
        (b'{"usage":{"prompt_tokens":-1,"completion_tokens":1.5,"total_tokens":true,"input_tokens":"3"}}', {}),
        (b'{"usage":{"prompt_tokens":null,"completion_tokens":[1],"total_tokens":2}}', {"total_tokens": 2}),
        (b'{"usage":{"prompt_tokens":1e400}}', {}),
        (b'{"usage":{"prompt_tokens":%s}}' % (b"9" * 5000), {}),
        (b'{"usage":{"cost":1,"x":{"y":{"total_tokens":1}}}}', {}),
        (b'{"usage":{}}', {}),
        (b'{"usage":{"x":"\xff","total_tokens":1}}', {"total_tokens": 1}),
        (b'{"usage":%s' % (b'{"a":' * 5000), {}),
    ],
)
def test_usage_holds_only_counts(data, usage):
    assert find_usage(data)
    assert usage_in(data) == usage


@pytest.mark.parametrize(
    "data", [b"", b'{"choices":[]}', b'{"usage":null}', b'{"usage":7}', rb'{"a":"\"usage\":{\"total_tokens\":1}"}']
)
def test_no_usage_is_no_usage(data):
    assert not find_usage(data)
    assert usage_in(data) == {}


def test_usage_stands_a_body_full_of_it():
    """A body that is held whole has up to 1 MiB; looking through it must not stop the reactor for seconds."""
    deep = nested(500, b'{"usage":', b"}", b'{"total_tokens":1}')
    body = b'{"choices":[%s]}' % b",".join([deep] * 200)
    assert len(body) < 1024 * 1024
    assert CHAT.check_answer(body) is None
    started = time.process_time()
    assert usage_in(body) == {"total_tokens": 1}
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize(
    ("usage", "kinds"),
    [
        (
            {"prompt_tokens": 9, "completion_tokens": 8, "cached_tokens": 7, "reasoning_tokens": 6, "total_tokens": 17},
            {"prompt": 9, "completion": 8, "cached": 7, "reasoning": 6},
        ),
        (
            {"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": 3},
            {"prompt": 1, "completion": 2, "cached": 3},
        ),
        ({"prompt_tokens": 1, "prompt_cache_hit_tokens": 1}, {"prompt": 1, "cached": 1}),
        ({"total_tokens": 5}, {}),
        ({}, {}),
    ],
)
def test_usage_by_kind_adds_nothing(usage, kinds):
    assert dict(by_kind(usage)) == kinds


FIRST = {"input_tokens": 25, "output_tokens": 1}
LAST = {"output_tokens": 15}
BIG = b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":"stop"}],"usage":{"prompt_tokens":11,"completion_tokens":22}}'


def in_pieces(big: bytes, *cuts: int):
    """One event of over 64 KiB, cut near its end, where its usage stands."""
    at = [0, *(len(big) - cut for cut in cuts), len(big)]
    pieces = [big[start:end] for start, end in pairwise(at)]
    return [STREAM_HEAD, *(chunk(piece) for piece in pieces), chunk(DONE), b"0\r\n\r\n"]


@pytest.mark.parametrize(
    ("provider", "asked", "usage"),
    [
        (answer(), False, {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}),
        (answer(body=json.dumps({"usage": {"prompt_tokens": 5}, "choices": [{"text": "x" * 9000}]}).encode()), False, {"prompt_tokens": 5}),
        (answer(body=json.dumps({"usage": {"prompt_tokens": 6}, "choices": [{"text": "x" * 2_000_000}]}).encode()), False, {"prompt_tokens": 6}),
        (answer(body=completion("x" * 2_000_000)), False, {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}),
        (stream(event({"content": "a"}), event(finish_reason="stop", usage=None), event(usage={"prompt_tokens": 7}), DONE), True, {"prompt_tokens": 7}),
        (stream(event({"content": "a"}, usage=FIRST), event(finish_reason="stop", usage=LAST), DONE), True, {"input_tokens": 25, "output_tokens": 15}),
        (stream(event({"content": "a"}), event(finish_reason="stop"), DONE), True, {}),
    ],
    ids="plain,at the start,at the start of 2 MB,at the end of 2 MB,a stream,in two events,none".split(","),
)  # fmt: skip
@ensureDeferred
async def test_usage_is_recorded_and_no_byte_is_changed(world, provider, asked, usage):
    sent = world.provider(provider)
    gateway = world.gateway(sent)
    got = await gateway.ask({"stream": asked})
    assert (got.status, got.whole) == (200, True)
    assert world.records[0]["usage"] == usage
    assert world.records[0]["bytes_out"] == len(got.body)


@pytest.mark.parametrize("cuts", [(10,), (40,), (75,), (52, 50), (200, 30), (60, 45, 20)])
@ensureDeferred
async def test_usage_in_an_event_that_comes_in_pieces(world, cuts):
    event_ = BIG % (b"x" * 100_000) + b"\n\n"
    gateway = world.gateway(world.provider(lambda c: send_slowly(c, in_pieces(event_, *cuts))))
    got = await gateway.ask({"stream": True})
    assert got.body == event_ + DONE
    assert world.records[0]["usage"] == {"prompt_tokens": 11, "completion_tokens": 22}


def send_slowly(connection, pieces):
    """Each piece in a read of its own."""
    connection.send(pieces[0])
    if pieces[1:]:
        reactor.callLater(0.02, lambda: connection.is_closed or send_slowly(connection, pieces[1:]))


def test_what_stands_at_the_top_comes_before_what_stands_in_its_details():
    said = b'{"usage": {"prompt_tokens": 5, "prompt_tokens_details": {"prompt_tokens": 0, "cached_tokens": 2}}}'
    assert usage_in(said) == {"prompt_tokens": 5, "cached_tokens": 2}


@pytest.mark.parametrize(
    "data",
    [
        b'{"prompt_tokens":1,"completion_tokens":2}}',
        b'{"prompt_tokens":1.0,"completion_tokens":2e3,"total_tokens":true}',
        b'{"prompt_tokens":9007199254740992,"completion_tokens":9007199254740991,"total_tokens":123456789012345678901}',
        b'{"prompt_tokens":-1,"completion_tokens":null,"total_tokens":"3","cached_tokens":[1],"x":"}"}',
        b'{"prompt_tokens":1,"prompt_tokens":2,"total_tokens":NaN}',
        b'{"x":"}","prompt_tokens":1}',
        b'{"x":"{","prompt_tokens":1}',
        b'{"x":"\xff","prompt_tokens":1}',
        b'{"x":"\\ud800","prompt_tokens":1}',
        b'{"prompt_tokens":1',
        b"{}",
    ],
)
def test_g2_a_flat_object_is_read_as_any_other(monkeypatch, data):
    found = usage.counts_in(data)
    monkeypatch.setattr(usage, "_flat", lambda data: None)
    assert found == usage.counts_in(data)
