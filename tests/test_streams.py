"""A3, A4: after the commit point the bytes are the provider's, and a break is told of inside the stream."""

from __future__ import annotations

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor

from tests.harness import HELLO, bounded, request
from tests.providers import (
    COMMENT,
    DONE,
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
    stream,
    then,
    whole_stream,
)

HEL, LO, STOP = STREAM[1:4]
CLOSE_DELIMITED = head(kind="text/event-stream", Connection="close")
HALF = LO[:-20]

#   how it ends                       behaviour                                                       bytes passed on       code
BREAKS = {
    "fin after output":              (then(begin_stream(ROLE, HEL), fin),                            ROLE + HEL,           "stream_truncated"),
    "fin in an event":               (then(begin_stream(ROLE, HEL, HALF), fin),                      ROLE + HEL,           "stream_truncated"),
    "last chunk without an end":     (stream(ROLE, HEL),                                             ROLE + HEL,           "stream_truncated"),
    "last chunk in an event":        (stream(ROLE, HEL, HALF),                                       ROLE + HEL,           "stream_truncated"),
    "bad chunk":                     (then(begin_stream(ROLE, HEL), raw(b"zz\r\n")),                 ROLE + HEL,           "stream_truncated"),
    "fin, close-delimited":          (then(raw(CLOSE_DELIMITED, ROLE, HEL), fin),                    ROLE + HEL,           "stream_truncated"),
    "fin after finish_reason":       (then(begin_stream(ROLE, HEL, STOP), fin),                      ROLE + HEL + STOP,    "stream_truncated"),
    "fin after [DONE]":              (then(begin_stream(*STREAM), fin),                              b"".join(STREAM),     "stream_truncated"),
    "silence":                       (begin_stream(ROLE, HEL),                                       ROLE + HEL,           "stream_idle_timeout"),
    "silence in an event":           (begin_stream(ROLE, HEL, HALF),                                 ROLE + HEL,           "stream_idle_timeout"),
    "only comments":                 (then(begin_stream(ROLE, HEL), drip(chunk(COMMENT) * 99, 19, 0.05)), None,            "stream_idle_timeout"),
}  # fmt: skip


@pytest.mark.parametrize("case", BREAKS)
@ensureDeferred
async def test_a4_a_stream_that_breaks_says_so_in_band(world, case):
    behaviour, passed, code = BREAKS[case]
    gateway = world.gateway(world.provider(behaviour), world.provider(), idle_timeout=0.3)

    got = await gateway.ask(stream=True)

    assert got.status == 200
    assert not got.whole, "the client's HTTP layer must not take it for whole either"
    *events, last = got.body.removesuffix(b"\n\n").split(b"\n\n")
    assert last.startswith(b'data: {"error":{"message":')
    assert b'"type":"upstream_error","param":null,"code":"%s"' % code.encode() in last
    assert passed is None or b"".join(each + b"\n\n" for each in events) == passed
    assert b"[DONE]" not in last
    (record,) = world.records
    assert (record["outcome"], record["status"]) == (code, 200)


@ensureDeferred
async def test_a4_a_reset_is_told_of_as_such(world):
    provider = world.provider(begin_stream(ROLE, HEL))
    client = await world.gateway(provider).send(request({**HELLO, "stream": True}))
    await bounded(client.started)
    provider.connections[0].rst()
    got = await bounded(client.done)
    assert b'"code":"stream_reset"' in got.body
    assert not got.whole


#   how a good stream may look
WHOLE = {
    "chunked":             (whole_stream(), STREAM),
    "no [DONE]":           (whole_stream(STREAM[:-1]), STREAM[:-1]),
    "no finish_reason":    (whole_stream([ROLE, HEL, DONE]), [ROLE, HEL, DONE]),
    "close-delimited":     (CLOSE_DELIMITED + b"".join(STREAM), STREAM),
    "CRLF":                (whole_stream([e.replace(b"\n", b"\r\n") for e in STREAM]), [e.replace(b"\n", b"\r\n") for e in STREAM]),
    "lone CR":             (whole_stream([e.replace(b"\n", b"\r") for e in STREAM]), [e.replace(b"\n", b"\r") for e in STREAM]),
    "BOM":                 (whole_stream([b"\xef\xbb\xbf", *STREAM]), [b"\xef\xbb\xbf", *STREAM]),
    "no last blank line":  (whole_stream([*STREAM[:-1], b"data: [DONE]"]), [*STREAM[:-1], b"data: [DONE]"]),
    "comments between":    (whole_stream([COMMENT, ROLE, COMMENT, HEL, COMMENT, STOP]), [COMMENT, ROLE, COMMENT, HEL, COMMENT, STOP]),
    "a 1 MiB event":       (whole_stream([ROLE, event({"content": "x" * 2**20}), STOP, DONE]), [ROLE, event({"content": "x" * 2**20}), STOP, DONE]),
    "invalid UTF-8":       (whole_stream([ROLE, b"data: \xff\xfe\n\n", STOP]), [ROLE, b"data: \xff\xfe\n\n", STOP]),
    "usage":               (whole_stream([ROLE, HEL, STOP, event(usage={"total_tokens": 9}), DONE]), [ROLE, HEL, STOP, event(usage={"total_tokens": 9}), DONE]),
    "65 empty events":     (whole_stream([ROLE] * 65 + STREAM), [ROLE] * 65 + STREAM),
}  # fmt: skip


@pytest.mark.parametrize("case", WHOLE)
@ensureDeferred
async def test_a3_a_good_stream_arrives_byte_for_byte(world, case):
    wire, events = WHOLE[case]
    ends = [fin] if case == "close-delimited" else []
    gateway = world.gateway(world.provider(then(raw(wire), *ends)))

    got = await gateway.ask(stream=True)

    assert got.body == b"".join(events)
    assert got.whole
    (record,) = world.records
    assert (record["outcome"], record["bytes_out"]) == ("ok", len(got.body))
    assert record["usage"] == ({"total_tokens": 9} if case == "usage" else {})


@pytest.mark.parametrize("size", [1, 7, 100])
@ensureDeferred
async def test_a3_a_dripped_stream_arrives_byte_for_byte(world, size):
    got = await world.gateway(world.provider(drip(whole_stream(), size))).ask(stream=True)
    assert (got.body, got.whole) == (b"".join(STREAM), True)


@ensureDeferred
async def test_a2_nothing_is_sent_before_the_first_output_and_then_all_of_it(world):
    provider = world.provider(begin_stream(COMMENT, ROLE))
    client = await world.gateway(provider).send(request({**HELLO, "stream": True}))
    await bounded(until_seen(provider))
    assert client.received == b""
    provider.connections[0].send(chunk(HEL))
    await bounded(client.started)
    assert client.answer.body == COMMENT + ROLE + HEL


def until_seen(provider):
    from tests.harness import until

    return until(lambda: provider.requests)


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
        from tests.harness import until

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
        stream=True, headers={"X-Api-Key": "gateway-key-1234", "X-Request-Id": "mine-1"}
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
