"""Q8: the straight path changes nothing about a stream either. Each case is played on two gateways, see test_straight."""

from __future__ import annotations

import gc
import itertools
import json
import random
from unittest.mock import patch

import pytest
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone

from aigw.protocols.scanner import HOLD_STREAM
from aigw.proxy import answers, relay
from aigw.proxy.exchange import Exchange
from aigw.proxy.gateway import Gateway
from aigw.proxy.plain import HOLD_PLAIN
from aigw.server import plain_requests
from aigw.server.plain_requests import PlainRequests
from aigw.straight import path as straight
from aigw.straight import stream as straight_stream
from aigw.straight.stream import StraightStream
from aigw.upstream.connection import Connection
from tests.harness import HELLO, KEY, request
from tests.memory import MemoryGateway
from tests.properties import given
from tests.providers import (
    COMMENT,
    DONE,
    ERROR_EVENT,
    LAST_CHUNK,
    ROLE,
    STREAM,
    STREAM_HEAD,
    chunk,
    event,
    head,
    whole_stream,
)
from tests.test_straight import (
    AFTER,
    ANSWERS,
    BEFORE,
    LIMITED,
    LIMITS,
    REST,
    SETTINGS,
    SMALL,
    held_equal,
    in_reads,
    in_segments,
)
from tests.test_straight import asked as ask_for

ASK = request({**HELLO, "stream": True})
WITH_USAGE = request({**HELLO, "stream": True, "stream_options": {"include_usage": True}})
MESSAGES = ASK.replace(b"chat/completions", b"messages")
USAGE = event(usage={"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7})
HI, STOP = event({"content": "hi"}), event(finish_reason="stop")


def named(name: str, **value: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), json.dumps({"type": name, **value}).encode())


def of(*events: bytes, ends: bytes = LAST_CHUNK, beginning: bytes = STREAM_HEAD) -> bytes:
    return beginning + b"".join(chunk(each) for each in events) + ends


TEXT = {"index": 0, "delta": {"type": "text_delta", "text": "hi"}}
MESSAGE = [
    named("message_start", message={"id": "m", "usage": {"input_tokens": 3, "output_tokens": 1}}),
    named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    named("ping"),
    named("content_block_delta", **TEXT),
    named("content_block_stop", index=0),
    named("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 4}),
    named("message_stop"),
]
GOOD = whole_stream()
STREAMS: dict[str, bytes] = {
    "whole": GOOD,
    "with usage": of(*STREAM[:-1], USAGE, DONE),
    "with usage in each": of(event({"content": "a"}, usage={"prompt_tokens": 3}), STOP, USAGE, DONE),
    "in one chunk": of(b"".join(STREAM)),
    "with a length": head(200, "text/event-stream", Content_Length=str(len(b"".join(STREAM)))) + b"".join(STREAM),
    "until the close": head(200, "text/event-stream") + b"".join(STREAM),
    "not kept": of(*STREAM, beginning=head(200, "text/event-stream", Transfer_Encoding="chunked", Connection="close")),
    "HTTP/1.0": (head(200, "text/event-stream") + b"".join(STREAM)).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "with trailers": of(*STREAM, ends=b"0\r\nX-Late: yes\r\n\r\n"),
    "with extensions of chunks": STREAM_HEAD + b"%x;a=b\r\n%s\r\n0\r\n\r\n" % (len(b"".join(STREAM)), b"".join(STREAM)),
    "with CRLF": of(*[each.replace(b"\n", b"\r\n") for each in STREAM]),
    "with CR": of(*[each.replace(b"\n", b"\r") for each in STREAM]),
    "comments first": of(COMMENT, COMMENT, *STREAM),
    "comments between": of(ROLE, COMMENT, HI, COMMENT, STOP, COMMENT, DONE),
    "a byte order mark": of(b"\xef\xbb\xbf" + ROLE, HI, STOP, DONE),
    "role only": of(ROLE, STOP, DONE),
    "nothing but the end": of(DONE),
    "nothing": of(),
    "no events": of(b"hello"),
    "JSON in place of events": of(b'{"error": {"message": "no"}}'),
    "an error first": of(ERROR_EVENT, DONE),
    "an error after the role": of(ROLE, ERROR_EVENT, DONE),
    "an error after output": of(ROLE, HI, ERROR_EVENT, DONE),
    "an error at the end": of(ROLE, HI, ERROR_EVENT),
    "an error and more": of(ROLE, HI, ERROR_EVENT, HI, STOP, DONE),
    "a choice that failed": of(ROLE, HI, event(finish_reason="error"), DONE),
    "no finish": of(ROLE, HI, DONE),
    "no end": of(ROLE, HI, STOP),
    "no finish and no end": of(ROLE, HI),
    "cut": of(ROLE, HI, ends=b""),
    "cut in an event": of(ROLE, HI[:-9], ends=b""),
    "cut in a chunk": of(ROLE, HI, ends=b"40\r\ndata: "),
    "a bad chunk": of(ROLE, HI, ends=b"zz\r\nhello\r\n"),
    "a bad chunk first": of(ends=b"zz\r\nhello\r\n"),
    "more after the end": of(*STREAM, HI, STOP),
    "a pause after the end": of(*STREAM, ends=b""),
    "two streams": GOOD + GOOD,
    "more than was asked for": GOOD + b"more",
    "a last event without its line": of(*STREAM[:-1], DONE[:-1]),
    "parts of events": of(*[piece for each in STREAM for piece in (each[:7], each[7:20], each[20:])]),
    "a large event": of(ROLE, event({"content": "x" * 70_000}), STOP, DONE),
    "a large first event": of(event({"content": "x" * 70_000}), STOP, DONE),
    "many comments": of(*[COMMENT * 500] * 20, *STREAM),
    "silence without end": of(*[b": " + b"x" * 30_000] * 4),
    "more silence than is held": of(*[(b": " + b"x" * 60_000 + b"\n\n")] * (HOLD_PLAIN // 60_000 + 2), *STREAM),
    "as JSON": of(*STREAM, beginning=head(200, "application/json", Transfer_Encoding="chunked")),
    "without a type": of(*STREAM, beginning=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "with a charset": of(*STREAM, beginning=STREAM_HEAD.replace(b"-stream", b"-stream; charset=utf-8")),
    "with a type that is too long": of(
        *STREAM, beginning=STREAM_HEAD.replace(b"-stream", b"-stream; x=" + b"v" * 5000)
    ),
    "in capitals": of(*STREAM, beginning=STREAM_HEAD.replace(b"text/event", b"Text/Event")),
    "headers that go on": of(*STREAM, beginning=STREAM_HEAD[:-2] + b"Openai-Model: m\r\nX-Request-Id: r\r\n\r\n"),
    "headers that we add": of(
        *STREAM, beginning=STREAM_HEAD[:-2] + b"Cache-Control: x\r\nX-Accel-Buffering: y\r\n\r\n"
    ),
    "a key in a header": of(*STREAM, beginning=STREAM_HEAD[:-2] + b"Openai-Echo: key-of-p1\r\n\r\n"),
    "a key in an event": of(ROLE, event({"content": "key-of-p1"}), STOP, DONE),
    "coded": of(b"\x1f\x8b\x08\x00\x00", *STREAM),
    "201": of(*STREAM, beginning=STREAM_HEAD.replace(b"200", b"201")),
    "100 first": b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD,
    "no JSON in an event": of(ROLE, b"data: hello\n\n", STOP, DONE),
    "tools": of(ROLE, event({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}), STOP, DONE),
    "a whole answer": ANSWERS["whole"],
    **{name: ANSWERS[name] for name in ("400", "401", "429", "500", "503", "no HTTP", "an error", "coded", "empty")},
}
LIKE_MESSAGES = {
    "whole": of(*MESSAGE),
    "cut": of(*MESSAGE[:4], ends=b""),
    "no stop": of(*MESSAGE[:-1]),
    "an error": of(*MESSAGE[:4], named("error", error={"type": "overloaded_error", "message": "no"})),
    "an error first": of(named("error", error={"type": "overloaded_error", "message": "no"})),
    "ping first": of(named("ping"), *MESSAGE),
}
FEW = [name for name, data in STREAMS.items() if len(data) < 4096]
REST_OF_STREAMS = {
    **REST,
    "silence": [("advance", 59.0), ("advance", 2.0)],
    "a slow client": [("client stalls",), ("advance", 10.0), ("client reads",)],
    "a client that stops": [("client stalls",), ("advance", 70.0)],
}


def places_in(data: bytes, chance: random.Random) -> list[list[int]]:
    """Whole, the head apart, the first event apart, read by read, and at random."""
    at = data.find(b"\r\n\r\n") + 4
    chunks = [at]
    while (end := data.find(b"\n\n\r\n", chunks[-1])) >= 0:
        chunks.append(end + 4)
    if len(data) > 4096:  # each read of it takes long
        return [[at]]
    return [[], [at], chunks[:2], chunks[:12], sorted(chance.sample(range(len(data) + 1), 3))]


@pytest.mark.parametrize("name", STREAMS)
def test_q8_a_stream_is_what_it_would_be_without_the_straight_path(name):
    data, chance = STREAMS[name], random.Random(name)
    for places in places_in(data, chance):
        rest, after = chance.choice([*REST_OF_STREAMS.values()]), chance.choice([*AFTER.values()])
        assert held_equal([("client", ASK), *in_reads(data, places), *rest, *after]) >= 1


@pytest.mark.parametrize("size", [HOLD_STREAM - 1, HOLD_STREAM, HOLD_STREAM + 1])
def test_q8_the_head_is_sent_before_a_large_first_event_whose_end_comes_with_that_of_the_stream(size):
    """Of an event whose beginning is as large as what may be held nothing is sent yet at the commit point."""
    large = event({"content": "x" * 70_000})
    reads = (STREAM_HEAD + chunk(large[:size]), chunk(large[size:] + STOP + DONE) + LAST_CHUNK)
    events = [("client", ASK), *[("provider", read) for read in reads], ("client", ASK), ("provider", GOOD)]
    assert held_equal(events) == 2


@pytest.mark.parametrize("name", LIKE_MESSAGES)
def test_q8_a_stream_of_messages(name):
    data, chance = LIKE_MESSAGES[name], random.Random(name)
    for places in places_in(data, chance):
        for rest in chance.sample([*REST_OF_STREAMS.values()], 2):
            assert held_equal([("client", MESSAGES), *in_reads(data, places), *rest, ("client", MESSAGES)]) >= 1


@pytest.mark.parametrize("rest", REST_OF_STREAMS)
def test_q8_a_stream_that_does_not_come_whole(rest):
    """With each rest, after each number of its chunks; with another event of the client before it."""
    chunks, before = places_in(GOOD, random.Random(rest))[3], itertools.cycle(BEFORE.values())
    for count in range(len(chunks)):
        events = [("client", ASK), *next(before), *in_reads(GOOD[: chunks[count]], chunks[:count])]
        assert held_equal([*events, *REST_OF_STREAMS[rest]]) >= 1
        rest_of_it = [("provider", GOOD[chunks[count] :]), ("client", ASK), ("provider", GOOD)]
        assert held_equal([*events, *REST_OF_STREAMS[rest], *rest_of_it]) >= 1


@pytest.mark.parametrize("rest", REST_OF_STREAMS)
def test_q8_a_client_that_stops_reading_in_a_write(rest):
    """Its transport is full after a write: in the first one, in another, and in the last. Then it reads on."""
    chunks = places_in(GOOD, random.Random(rest))[3]
    for count, ends in itertools.product(range(1, len(chunks)), (LAST_CHUNK, b"")):
        reads = in_reads(GOOD.removesuffix(LAST_CHUNK) + ends, chunks)
        events = [("client", ASK), *reads[:count], ("client fills",), *reads[count:], *REST_OF_STREAMS[rest]]
        assert held_equal([*events, ("client reads",), ("client", ASK), ("provider", GOOD)]) >= 1


def test_q8_a_model_that_finishes_is_known_to_finish():
    """A later stream of it without a finish_reason is truncated, on either way."""
    for first, second in itertools.product(("whole", "no finish"), repeat=2):
        assert (
            held_equal([("client", ASK), ("provider", STREAMS[first]), ("client", ASK), ("provider", STREAMS[second])])
            == 2
        )


@pytest.mark.parametrize("name", SETTINGS)
def test_q8_settings_change_nothing_about_it(name):
    ask = ASK.replace(KEY.encode(), LIMITED.encode()) if "key" in str(SETTINGS[name]) else ASK
    for first in ("whole", "with usage", "500", "an error after output", "no end"):
        data = STREAMS[first]
        events = [("client", ask), *in_reads(data, [len(data) // 2]), ("client", ask), ("provider", data)]
        held_equal(
            [*events, ("advance", 0.5), ("other provider", GOOD), ("client", ask), ("provider", GOOD)], **SETTINGS[name]
        )


@pytest.mark.parametrize("name", FEW)
def test_q8_limits_of_a_caller_are_taken_and_settled_as_without_it(name):
    """With usage, without, and not to its end; with a request that waits for the slot."""
    data, chance = STREAMS[name], random.Random(name)
    top = {"keys": [{"name": "a", "key": LIMITED, **LIMITS}]}
    sent = 0
    for ask, place in zip(chance.sample((ASK, WITH_USAGE), 2), (0, chance.randrange(len(data) + 1)), strict=True):
        ask = ask.replace(KEY.encode(), LIMITED.encode())
        rest = chance.choice([*REST_OF_STREAMS.values()])
        events = [("client", ask), ("provider", GOOD), ("client", ask), *in_reads(data, [place]), *rest]
        sent += held_equal([*events, ("other client", ask), ("other provider", GOOD), ("provider", GOOD)], top=top)
        waits = [("client", ask), ("other client", ask), ("client", ask), *in_reads(data, [place]), ("provider", GOOD)]
        sent += held_equal([*waits, *rest, ("provider", GOOD), ("advance", 6.0)], top=top)
    assert sent > 0


def test_q8_the_limit_of_a_stream_that_passes_together_with_others_comes_in_the_same_order():
    """Four limits of 30 s for the answers of the second client end when the first client's stream was silent for 120 s."""
    begins = [("client", ASK), ("provider", STREAM_HEAD + chunk(ROLE) + chunk(HI))]
    asks = [("other client", ASK), ("client", ASK), ("provider", ANSWERS["whole"])]
    held_equal([*begins, *asks, *begins])


@pytest.mark.parametrize("name", ["a key in a header", "as JSON", "201"])
def test_q8_the_estimate_of_a_stream_has_no_events_of_the_stream_before_it(name):
    """The claim of the stream before it is used again, also where this one takes the long way before its first byte."""
    ask, usual, data = WITH_USAGE.replace(KEY.encode(), LIMITED.encode()), STREAMS["with usage"], STREAMS[name]
    events = [("client", ask), ("provider", GOOD), ("client", ask), ("provider", usual), ("client", ask)]
    assert held_equal([*events, ("provider", data)], top={"keys": [{"name": "a", "key": LIMITED, **LIMITS}]}) == 3


@pytest.mark.parametrize("last", [ERROR_EVENT, event(finish_reason="error"), DONE.replace(b"\n", b"\r")])
@pytest.mark.parametrize(("limit", "silence"), [("10s", 9.9), ("500ms", 0.0)], ids=["after silence", "a short limit"])
def test_q8_after_an_error_or_the_end_the_limit_on_silence_does_not_shorten_the_time_for_the_rest(last, limit, silence):
    events = [("client", ASK), ("provider", STREAM_HEAD + chunk(ROLE) + chunk(HI)), ("advance", silence)]
    events += [("provider", chunk(last)), ("advance", 0.6)]
    for rest in ([("provider", chunk(HI)), ("provider", chunk(DONE) + LAST_CHUNK)], [("provider", LAST_CHUNK)], []):
        assert held_equal([*events, *rest, ("advance", 3.0), ("client", ASK)], idle_timeout=limit) >= 1


EVENTS = st.one_of(
    st.builds(
        lambda name, places: in_reads(STREAMS[name], places),
        st.sampled_from(FEW),
        st.lists(st.integers(0, 900), max_size=4),
    ),
    st.builds(lambda name, size: in_reads(STREAMS[name][:size], []), st.sampled_from(FEW), st.integers(0, 900)),
    st.builds(lambda name: [("provider", ANSWERS[name])], st.sampled_from(SMALL)),
    st.sampled_from([[("provider", chunk(each))] for each in (*STREAM, ERROR_EVENT, COMMENT, HI[:9], HI[9:])]),
    st.just([("provider", LAST_CHUNK)]),
    st.just([("client", ASK), ("provider", STREAM_HEAD + chunk(ROLE) + chunk(HI))]),
    st.just([("client", ASK), ("provider", GOOD)]),
    st.builds(lambda places: in_segments(WITH_USAGE, *places), st.lists(st.integers(0, 400), max_size=2)),
    st.just([("client", ASK)]),
    st.just([("other client", ASK)]),
    st.just([("client", ask_for())]),
    st.just([("other provider", GOOD)]),
    st.sampled_from(
        [
            [(each,)]
            for each in (
                *("client leaves", "client stalls", "client fills", "client reads", "provider closes"),
                *("provider resets",),
                *("provider stalls", "drain", "stop"),
            )
        ]
    ),
    st.builds(lambda seconds: [("advance", seconds)], st.sampled_from([0.0, 0.9, 1.1, 3.9, 29.9, 30.1, 59.9, 70.0])),
    st.builds(lambda seconds: [("jump", seconds)], st.sampled_from([0.5, 5.0, 40.0])),
)


@given(st.lists(EVENTS, max_size=9), examples=(60, 2000))
def test_q8_whatever_happens(parts):
    held_equal([event for part in parts for event in part])


def test_q8_a_stream_stays_on_the_straight_path_beyond_the_limit_of_its_first_output(monkeypatch):
    """Its prompt is let go of at the commit point; without ``expire_after`` there the limit would end the path."""
    monkeypatch.setattr(straight, "IS_ON", True)
    gateway = MemoryGateway(steps=1, timeout="30s")
    client = gateway.ask()
    gateway.doors["p1"].wire.say(ANSWERS["whole"])
    client.say(ASK)
    assert gateway.site.bodies.under_way > 0
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunk(ROLE) + chunk(HI))
    assert gateway.site.bodies.under_way == 0
    for _ in range(3):
        gateway.clock.advance(25.0)
        gateway.doors["p1"].wire.say(chunk(HI))
        gateway.turns()
    assert isinstance(*gateway.gateway.running, StraightStream)
    gateway.doors["p1"].wire.say(chunk(STOP) + chunk(DONE) + LAST_CHUNK)
    assert not gateway.gateway.running
    assert gateway.records[-1].outcome == "ok"


def test_q8_the_last_event_and_the_end_of_the_answer_are_one_write(monkeypatch):
    monkeypatch.setattr(straight, "IS_ON", True)
    gateway = MemoryGateway(steps=1)
    client = gateway.ask()
    gateway.doors["p1"].wire.say(ANSWERS["whole"])
    client.say(ASK)
    writes: list[bytes] = []
    monkeypatch.setattr(client, "write", writes.append)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunk(ROLE) + chunk(HI))
    gateway.doors["p1"].wire.say(chunk(STOP) + chunk(DONE) + LAST_CHUNK)
    assert len(writes) == 2
    assert writes[-1] == chunk(STOP + DONE) + LAST_CHUNK
    assert [record.outcome for record in gateway.records] == ["ok", "ok"]


@pytest.mark.parametrize("is_straight", [True, False], ids=["straight", "long way"])
@pytest.mark.parametrize(
    "name", ["whole", "no finish", "a bad chunk", "an error first", "an error after output", "a whole answer", "500"]
)
def test_q8_nothing_of_a_stream_waits_for_the_garbage_collector(monkeypatch, name, is_straight):
    """It would keep the request, its claim and its record; with many streams, many of them at a time."""
    monkeypatch.setattr(straight, "IS_ON", is_straight)
    gateway = MemoryGateway(steps=1)
    for data in (ANSWERS["whole"], GOOD, STREAMS[name]):
        client = gateway.ask()
        gateway.doors["p1"].wire.say(ANSWERS["whole"])
        gc.collect()
        gc.disable()
        try:
            client.say(ASK)
            for _, read in in_reads(data, [len(data) - 9]):
                gateway.doors["p1"].wire.say(read)
            gateway.clock.advance(2.0)
            client.lost(ConnectionDone())
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            found = {type(each).__name__ for each in gc.garbage}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert not found


FAULTS = {
    "the head": (straight.StraightPath, "head"),
    "the Relay": (straight_stream, "Stream"),
    "a read": (answers.Stream, "_hold"),
    "the commit": (straight_stream, "Response"),
    "the handing over": (Connection, "deliver_straight"),
    "the first write": (plain_requests, "write"),
    "the flow": (answers.Stream, "flow"),
    "the usage": (answers.Stream, "usage"),
    "the end": (PlainRequests, "end"),
    "the end of the body": (relay.body, "let_end"),
    "the free connection": (Connection, "free"),
    "the end of the pauses": (PlainRequests, "unregisterProducer"),
    "the record": (straight.StraightPath, "_record"),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("limited", [False, True], ids=["without limits", "with limits"])
@pytest.mark.parametrize("cut", [0, len(of(ROLE, HI, ends=b""))], ids=["in one read", "in two reads"])
def test_q6_a_fault_of_the_gateway_leaves_no_client_waiting(monkeypatch, failures, name, limited, cut):
    """The client gets an answer or an end, there is one record, the log has the fault, and nothing stays taken."""
    monkeypatch.setattr(straight, "IS_ON", True)
    keys = {"keys": [{"name": "a", "key": LIMITED, **LIMITS}]} if limited else {}
    gateway = MemoryGateway(timeout="30s", top=keys)
    ask = WITH_USAGE.replace(KEY.encode(), LIMITED.encode()) if limited else WITH_USAGE
    client = gateway.open()
    client.say(ask)
    gateway.doors["p1"].wire.say(STREAMS["with usage"])
    assert client.take().endswith(LAST_CHUNK)
    client.say(ask)
    where, what = FAULTS[name]
    found, calls = getattr(where, what), itertools.count()

    def fails_once(*args, **more):
        if not next(calls):
            raise ZeroDivisionError
        return found.fget(*args) if isinstance(found, property) else found(*args, **more)

    with patch.object(where, what, property(fails_once) if isinstance(found, property) else fails_once):
        for data in filter(None, (STREAMS["with usage"][:cut], STREAMS["with usage"][cut:])):
            gateway.doors["p1"].wire.say(data)
    gateway.turns()
    answer = client.take()
    assert answer.endswith(LAST_CHUNK) or client.aborted or answer.startswith(b"HTTP/1.1 500 ")
    assert name != "the flow" or answer.startswith(b"HTTP/1.1 500 "), "nothing was written before it"
    assert len(gateway.records) == (1 if name == "the record" else 2)
    assert failures
    failures.clear()
    assert not gateway.gateway.running
    assert gateway.site.bodies.under_way == 0
    for pool in gateway.gateway.upstream._pools.values():
        assert len(pool._open) == len(pool._idle)
    if limited:
        account = gateway.config.callers[-1].accounts[0]
        store = gateway.site.resource.known[b"/v1/chat/completions"]._limited.admission.store
        assert store.usage_of(account)["running"] == 0


def test_q6_a_fault_after_the_write_in_which_the_client_stopped_reading_is_recorded_once(monkeypatch, failures):
    """In that write the long way has taken over."""
    monkeypatch.setattr(straight, "IS_ON", True)
    gateway = MemoryGateway(steps=1)
    client = gateway.ask()
    gateway.doors["p1"].wire.say(ANSWERS["whole"])
    client.say(ASK)
    write = client.write

    def stalls(data):
        write(data)
        client.producer.pauseProducing()

    with patch.object(client, "write", stalls), patch.object(PlainRequests, "registerProducer", side_effect=ValueError):
        gateway.doors["p1"].wire.say(GOOD)
    gateway.turns()
    assert client.aborted
    assert [record.outcome for record in gateway.records] == ["ok", "error"]
    assert failures
    failures.clear()
    assert not gateway.gateway.running


TAKE_OVERS = {
    "an error": lambda gateway, client: gateway.doors["p1"].wire.say(chunk(ERROR_EVENT) + LAST_CHUNK),
    "no usage": lambda gateway, client: gateway.doors["p1"].wire.say(chunk(STOP) + chunk(DONE) + LAST_CHUNK),
    "the provider closes": lambda gateway, client: gateway.doors["p1"].wire.lost(ConnectionDone()),
    "silence": lambda gateway, client: gateway.clock.advance(200.0),
    "the client stalls": lambda gateway, client: client.producer.pauseProducing(),
    "the client leaves": lambda gateway, client: client.lost(ConnectionDone()),
    "the gateway stops": lambda gateway, client: [each.interrupt() for each in list(gateway.gateway.running)],
}


@pytest.mark.parametrize("where", [(Gateway, "resume"), (Exchange, "_go_on"), (answers.Stream, "go_on_to")])
@pytest.mark.parametrize("name", TAKE_OVERS)
def test_q6_a_fault_as_the_long_way_takes_over_ends_the_stream(monkeypatch, failures, name, where):
    """Nothing is left of it: no timer whose end would be a second one, no slot, and no connection."""
    monkeypatch.setattr(straight, "IS_ON", True)
    gateway = MemoryGateway(timeout="30s", top={"keys": [{"name": "a", "key": LIMITED, **LIMITS}]})
    client, ask = gateway.open(), ASK.replace(KEY.encode(), LIMITED.encode())
    client.say(ask)
    gateway.doors["p1"].wire.say(STREAMS["with usage"])
    client.say(ask)
    gateway.doors["p1"].wire.say(of(ROLE, HI, ends=b""))
    with patch.object(*where, side_effect=ZeroDivisionError):
        TAKE_OVERS[name](gateway, client)
    gateway.clock.advance(300.0)
    assert client.disconnected
    assert gateway.doors["p1"].wire.disconnected
    assert [record.outcome for record in gateway.records] == ["ok", "error"]
    assert len(failures) == 1
    failures.clear()
    assert not gateway.gateway.running
    assert not gateway.timers()
    store = gateway.site.resource.known[b"/v1/chat/completions"]._limited.admission.store
    assert store.usage_of(gateway.config.callers[-1].accounts[0])["running"] == 0


@pytest.mark.parametrize("is_idle", [True, False], ids=["resumed", "run"])
def test_q6_a_fault_at_the_first_attempt_leaves_nothing_running(monkeypatch, failures, is_idle):
    monkeypatch.setattr(straight, "IS_ON", is_idle)
    gateway = MemoryGateway(steps=1)
    client = gateway.ask()
    gateway.doors["p1"].wire.say(GOOD)
    with patch.object(Exchange, "_try", side_effect=ZeroDivisionError):
        client.say(ASK)
        gateway.doors["p1"].wire.say(ANSWERS["500"])
    assert b"HTTP/1.1 500 " in client.take()
    assert failures
    failures.clear()
    assert not gateway.gateway.running


@pytest.mark.parametrize("count", [5, 20])
def test_q8_silence_before_a_stop_is_held_as_without_the_straight_path(count):
    """What is over the limit of silence is dropped as it comes, not in one read with the first output."""
    silence = [("provider", chunk(COMMENT * 500))] * count
    events = [("client", ASK), ("provider", STREAM_HEAD), *silence, ("drain",), ("provider", GOOD[len(STREAM_HEAD) :])]
    assert held_equal(events) == 1
