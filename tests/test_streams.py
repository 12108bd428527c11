"""A3, A4: after the commit point the bytes are the provider's, and a break is told of inside the stream."""

from __future__ import annotations

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor

from tests.harness import HELLO, bounded, request, until
from tests.memory import MemoryGateway
from tests.providers import (
    COMMENT,
    LAST_CHUNK,
    ROLE,
    STREAM,
    STREAM_HEAD,
    answer,
    begin_stream,
    chunk,
    completion,
    drip,
    event,
    fin,
    head,
    raw,
    rst,
    then,
    whole_stream,
)

HEL = STREAM[1]


@ensureDeferred
async def test_a4_a_reset_is_told_of_as_such(world):
    provider = world.provider(begin_stream(ROLE, HEL))
    client = await world.gateway(provider).send(request({**HELLO, "stream": True}))
    await bounded(client.started)
    provider.connections[0].rst()
    got = await bounded(client.done)
    assert b'"code":"stream_reset"' in got.body
    assert not got.whole


@ensureDeferred
async def test_a2_events_without_output_are_held_whatever_their_number(world):
    provider = world.provider(begin_stream(*[ROLE] * 100))
    client = await world.gateway(provider).send(request({**HELLO, "stream": True}))
    await until(lambda: provider.requests)
    assert client.received == b""
    provider.connections[0].send(chunk(HEL))
    await bounded(client.started)
    assert client.answer.body == ROLE * 100 + HEL


def test_a2_of_more_than_64_kib_the_comments_and_what_comes_last_are_dropped():
    large = ROLE.replace(b"data: ", b"data: " + b" " * 33_000)
    assert len(large) < 64 * 1024 < 2 * len(large)
    world = MemoryGateway()
    client = world.ask(stream=True)
    provider = world.doors["p1"].wire
    provider.say(STREAM_HEAD)
    for nothing in (b": " + b"x" * 40_000 + b"\n\n", large, large, COMMENT, ROLE):
        provider.say(chunk(nothing))
        assert client.take() == b""
    provider.say(chunk(HEL))
    assert client.take().partition(b"\r\n\r\n")[2] == b"".join(map(chunk, (large + ROLE + HEL,)))


@pytest.mark.parametrize("nothing", [COMMENT, ROLE, b'data: {"type":"ping"}\n\n'], ids=["comment", "role", "ping"])
def test_a2_what_says_nothing_never_commits_and_the_first_output_is_still_due(nothing):
    world = MemoryGateway(timeout=30)
    client = world.ask(stream=True)
    provider = world.doors["p1"].wire
    provider.say(STREAM_HEAD)
    for _ in range(29):
        world.clock.advance(1)
        provider.say(chunk(nothing * 1000))
    assert not provider.aborted
    world.clock.advance(1.1)
    assert provider.aborted
    assert client.take() == b""
    assert world.doors["p2"].wire.take()
    assert world.failed[0].message == "first output limit of 30 s passed"


@pytest.mark.parametrize("size", [1, 7, 100])
@ensureDeferred
async def test_a3_a_dripped_stream_arrives_byte_for_byte(world, size):
    got = await world.gateway(world.provider(drip(whole_stream(), size))).ask(stream=True)
    assert (got.body, got.whole) == (b"".join(STREAM), True)


@ensureDeferred
async def test_a2_nothing_is_sent_before_the_first_output_and_then_all_of_it(world):
    provider = world.provider(begin_stream(COMMENT, ROLE))
    client = await world.gateway(provider).send(request({**HELLO, "stream": True}))
    await until(lambda: provider.requests)
    assert client.received == b""
    provider.connections[0].send(chunk(HEL))
    await bounded(client.started)
    assert client.answer.body == COMMENT + ROLE + HEL


@ensureDeferred
async def test_a3_each_event_leaves_within_10_ms_of_its_arrival_and_alone(world):
    """Twenty events, each sent when the one before has reached the client: none is held back or joined to another."""
    provider = world.provider(begin_stream(ROLE, HEL))
    client = await world.gateway(provider).send(request({**HELLO, "stream": True}))
    await bounded(client.started)
    took = []
    for number in range(20):
        said = event({"content": str(number)})
        size = len(client.answer.body)
        begun = reactor.seconds()
        provider.connections[0].send(chunk(said))
        await until(lambda size=size: len(client.answer.body) > size)
        took.append(reactor.seconds() - begun)
        assert client.answer.body[size:] == said
    assert sorted(took)[10] < 0.01


@ensureDeferred
async def test_a1_a_large_plain_answer_flows_and_a_cut_one_is_not_taken_for_whole(world):
    large = completion("x" * 3 * 2**20)
    cut = then(raw(head(Content_Length=str(len(large))), large[: 2 * 2**20]), fin)
    gateway = world.gateway(world.provider(answer(200, large), cut))

    whole = await gateway.ask()
    assert (whole.body, whole.whole) == (large, True)

    got = await gateway.ask()
    assert not got.whole
    assert large.startswith(got.body)
    assert world.records[-1]["outcome"] == "answer_truncated"


@ensureDeferred
async def test_a5_a_stream_without_a_content_type_gets_that_of_a_stream(world):
    wire = whole_stream().replace(b"Content-Type: text/event-stream\r\n", b"")
    got = await world.gateway(world.provider(raw(wire))).ask(stream=True)
    assert got.headers["content-type"] == "text/event-stream"
    assert got.body == b"".join(STREAM)


@ensureDeferred
async def test_b9_usage_of_a_plain_answer_that_is_too_large_to_hold(world):
    large = b'{"object":"list","data":["%s"],"usage":{"prompt_tokens":5,"total_tokens":5}}' % (b"x" * 1_100_000)
    await world.gateway(world.provider(answer(200, large))).ask()
    assert world.records[0]["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


@ensureDeferred
async def test_a5_headers_of_a_stream(world):
    headers = STREAM_HEAD.removesuffix(b"\r\n") + (
        b"X-RateLimit-Remaining-Tokens: 7\r\nOpenAI-Processing-Ms: 3\r\nX-Request-Id: theirs\r\n"
        b"Set-Cookie: a=b\r\nServer: secret\r\nRetry-After: 3\r\n\r\n"
    )
    provider = world.provider(raw(headers, b"".join(map(chunk, STREAM)), LAST_CHUNK))
    got = await world.gateway(None, provider).ask(
        stream=True, headers={"X-Api-Key": "gateway-key-1234-of-the-tests", "X-Request-Id": "mine-1"}
    )
    assert got.headers == {
        "content-type": "text/event-stream",
        "x-ratelimit-remaining-tokens": "7",
        "openai-processing-ms": "3",
        "x-upstream-request-id": "theirs",
        "retry-after": "3",
        "cache-control": "no-cache",
        "x-accel-buffering": "no",
        "x-request-id": "mine-1",
        "x-aigw-route": "route",
        "x-aigw-step": "2",
        "x-aigw-provider": "p2",
        "x-aigw-model": "model-2",
        "x-aigw-attempts": "2",
        "transfer-encoding": "chunked",
    }
    assert provider.requests[0].header("x-request-id") == "mine-1"


@ensureDeferred
async def test_b7_a_rst_between_two_answers_is_no_failure_of_the_second(world):
    """F1: the connection died while idle; the request goes to a fresh one and nobody notices."""
    provider = world.provider(answer(200), rst, answer(200))
    gateway = world.gateway(provider)
    assert (await gateway.ask()).status == 200
    got = await gateway.ask()
    assert (got.status, got.headers["x-aigw-attempts"]) == (200, "1")
    assert [len(provider.requests), len(provider.connections)] == [3, 2]
    assert [attempt["outcome"] for attempt in world.records[-1]["attempts"]] == ["ok"]


@ensureDeferred
async def test_f1_a_fresh_connection_that_dies_is_not_tried_again(world):
    provider = world.provider(fin)
    got = await world.gateway(provider).ask()
    assert got.status == 502
    assert len(provider.requests) == 1


CUT = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'


@pytest.mark.parametrize("at", range(1, len(CUT) + 1))
@ensureDeferred
async def test_a4_a_stream_cut_in_its_last_event_is_not_whole(world, at):
    provider = world.provider(raw(STREAM_HEAD, chunk(HEL), chunk(CUT[:at]), LAST_CHUNK))
    got = await world.gateway(provider).ask(stream=True)
    assert got.whole == (at >= len(CUT) - 2), "no more is missing than the empty line"
    assert (b'"code":"stream_truncated"' in got.body) != got.whole


@pytest.mark.parametrize("hold", ["first_output", "whole"])
@pytest.mark.parametrize("ends", ["\r\r", "\r\n\r", "\r\n\r\n", "\n\n"])
def test_a4_a_body_that_does_not_end_after_its_last_event_is_left(ends, hold):
    """Whichever line ends it has: what the provider sends later is never in the next answer on the connection."""
    world = MemoryGateway(hold=hold)
    client = world.open()
    client.say(request({**HELLO, "stream": True}))
    provider = world.doors["p1"].wire
    events = b"".join(each.replace(b"\n\n", ends.encode()) for each in STREAM)
    provider.say(STREAM_HEAD + chunk(events))
    world.clock.advance(1.1)
    assert client.take().endswith(b"0\r\n\r\n")
    assert provider.disconnected
    provider.say(chunk(b"\n" * 3))
    assert client.take() == b""
    (record,) = world.records
    assert record.outcome == "ok"
