"""H7 to H11: ``keepalive``, comments in streams that would be silent for too long."""

from __future__ import annotations

import pytest
from pytest_twisted import ensureDeferred

from aigw.errors import ConfigError
from aigw.settings.route_settings import KeepAlive
from tests.harness import request
from tests.memory import MemoryGateway
from tests.providers import (
    COMMENT,
    DONE,
    ERROR_EVENT,
    LAST_CHUNK,
    ROLE,
    STREAM,
    STREAM_HEAD,
    answer,
    chunk,
    event,
    head,
    later,
    stream,
)
from tests.sdks import openai
from tests.test_clients import with_openai
from tests.test_hold import so_far, unchunked

OURS = b": keep-alive\n\n"
EVERY = 15
HEL, LO, STOP = STREAM[1:4]
GOOD = b"".join(STREAM)
PING = b": working\n\n"
BOM = b"\xef\xbb\xbf"
RESPONSE = (
    b'data: {"type":"response.created","response":{"id":"r1"},"sequence_number":0}\n\n',
    b'data: {"type":"response.output_text.delta","delta":"he","sequence_number":1}\n\n',
    b'data: {"type":"response.completed","response":{"id":"r1"},"sequence_number":2}\n\n',
)


def kept(keepalive=EVERY, **more) -> MemoryGateway:
    return MemoryGateway(keepalive=keepalive, **{"idle_timeout": "24h", "timeout": "24h", **more})


def early(**more) -> MemoryGateway:
    return kept({"every": EVERY, "before_output": True}, **more)


def chunks(*events: bytes) -> bytes:
    return b"".join(map(chunk, events))


def ask_for_a_response(gateway: MemoryGateway):
    client = gateway.open()
    client.say(request({"model": "route", "input": "hi", "stream": True}, "/v1/responses"))
    return client


# After the first output


def test_h7_a_silent_stream_gets_a_comment_each_time_that_is_over():
    gateway = kept()
    client = gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    provider.say(STREAM_HEAD + chunks(ROLE, HEL))
    gateway.clock.advance(14.9)
    assert OURS not in client.value()
    gateway.clock.advance(0.1)
    assert client.value().count(OURS) == 1
    gateway.clock.advance(30)
    assert client.value().count(OURS) == 3
    provider.say(chunks(LO, STOP, DONE) + LAST_CHUNK)
    assert unchunked(client.take()) == ROLE + HEL + OURS * 3 + LO + STOP + DONE
    (record,) = gateway.records
    assert (record.keepalives, record.outcome, record.bytes_out) == (3, "ok", len(GOOD + OURS * 3))
    assert record.ttft_ms == 0


def test_h7_what_counts_is_what_the_client_gets():
    """Comments that the provider sends are passed on; an event that is not complete is not."""
    gateway = kept()
    client = gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    provider.say(STREAM_HEAD + chunks(ROLE, HEL))
    for _ in range(9):
        gateway.clock.advance(10)
        provider.say(chunks(PING))
    assert OURS not in client.value()
    for byte in LO[:9]:
        gateway.clock.advance(5)
        provider.say(chunk(bytes([byte])))
    assert client.value().count(OURS) == 3


def test_h7_a_plain_request_gets_none():
    gateway = early()
    client = gateway.ask()
    gateway.clock.advance(60)
    assert client.value() == b""


@pytest.mark.parametrize(
    "ask", [lambda gateway: gateway.ask(stream=True), ask_for_a_response], ids=["chat", "responses"]
)
def test_h7_nothing_is_left_behind(ask):
    gateway = kept(steps=1)
    client = ask(gateway)
    gateway.doors["p1"].wire.say(
        STREAM_HEAD + chunks(*(STREAM if ask is not ask_for_a_response else RESPONSE)) + LAST_CHUNK
    )
    client.lost(ConnectionResetError())
    gateway.clock.advance(300)
    assert gateway.timers() == []


A = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
SHORT = A + A + END + DONE
WAYS = {
    "LF": SHORT,
    "CRLF": SHORT.replace(b"\n", b"\r\n"),
    "CR": SHORT.replace(b"\n", b"\r"),
    "comments": PING + A + PING + A + PING + END + PING + DONE,
    "BOM": BOM + SHORT,
    "an event of more lines": A + b"event: x\ndata: {}\nid: 1\n\n" + END + DONE,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("begins", [kept, early])
def test_h8_split_at_every_byte_with_one_due_at_each_the_rest_are_the_provider_s_bytes(way, begins):
    sent = WAYS[way]
    gateway = begins()
    client = gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    provider.say(STREAM_HEAD)
    for at in range(len(sent)):
        provider.say(chunk(sent[at : at + 1]))
        gateway.clock.jump(EVERY)
    provider.say(LAST_CHUNK)
    got = unchunked(client.take())
    assert got.count(OURS) > len(sent) / 2
    assert got.replace(OURS, b"") == (sent.removeprefix(BOM) if begins is early else sent)
    lines = got.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    assert [each for each in lines.split(b"\n\n") if OURS.strip() in each and each.strip() != OURS.strip()] == []
    assert gateway.records[0].outcome == "ok"


@pytest.mark.parametrize("way", ["LF", "CRLF", "CR"])
def test_h8_split_at_one_byte_after_the_other(way):
    sent, gateway = WAYS[way], kept()
    for at in range(1, len(sent)):
        client = gateway.ask(stream=True)
        provider = gateway.doors["p1"].wire
        provider.say(STREAM_HEAD + chunk(sent[:at]))
        gateway.clock.jump(EVERY)
        provider.say(chunk(sent[at:]) + LAST_CHUNK)
        assert unchunked(client.take()).replace(OURS, b"") == sent


def test_h8_none_is_written_inside_an_event_that_goes_out_in_pieces():
    gateway = kept()
    client = gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    large = event({"content": "x" * 200_000})
    provider.say(STREAM_HEAD + chunks(ROLE, HEL) + chunk(large[:150_000]))
    gateway.clock.advance(40)
    assert OURS not in client.value()
    provider.say(chunk(large[150_000:]))
    gateway.clock.advance(16)
    assert client.value().count(OURS) == 1
    provider.say(chunks(STOP, DONE) + LAST_CHUNK)
    assert unchunked(client.take()).replace(OURS, b"") == ROLE + HEL + large + STOP + DONE


def test_h9_a_provider_that_is_silent_is_left_at_idle_timeout_and_not_later():
    gateway = kept(idle_timeout=40)
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(ROLE, HEL))
    gateway.clock.advance(39.9)
    assert client.value().count(OURS) == 2
    assert not gateway.doors["p1"].wire.aborted
    gateway.clock.advance(0.2)
    assert gateway.doors["p1"].wire.aborted
    assert b'"code":"stream_idle_timeout"' in client.value()
    assert client.disconnected
    gateway.clock.advance(60)
    assert client.value().count(OURS) == 2
    assert gateway.records[0].outcome == "stream_idle_timeout"


def test_h9_a_client_that_does_not_read_is_sent_none():
    gateway = kept()
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(ROLE, HEL))
    client.producer.pauseProducing()
    gateway.clock.advance(50)
    assert OURS not in client.value()
    client.producer.resumeProducing()
    gateway.clock.advance(15)
    assert OURS in client.value()


# Before it


@pytest.mark.parametrize("hold", ["first_output", "whole"])
def test_h9_nor_before_a_step_has_answered(hold):
    """It is sent the answer when it reads again."""
    gateway = early(hold=hold)
    client = gateway.ask(stream=True)
    gateway.clock.advance(16)
    client.producer.pauseProducing()
    gateway.clock.advance(40)
    assert client.value().count(OURS) == 1
    provider = gateway.doors["p1"].wire
    provider.say(STREAM_HEAD + chunks(ROLE, HEL))
    assert (provider.producerState == "paused") == (hold == "first_output")
    client.producer.resumeProducing()
    assert provider.producerState == "producing"
    provider.say(chunks(LO, STOP, DONE) + LAST_CHUNK)
    assert unchunked(client.take()) == OURS + GOOD
    assert gateway.records[0].outcome == "ok"


def test_h10_before_the_first_output_nothing_is_sent_by_default():
    gateway = kept()
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(COMMENT, ROLE))
    gateway.clock.advance(100)
    assert client.value() == b""
    gateway.doors["p1"].wire.say(LAST_CHUNK)
    gateway.doors["p2"].wire.say(STREAM_HEAD + chunks(*STREAM) + LAST_CHUNK)
    got = client.take()
    assert b"X-Aigw-Provider: p2" in got
    assert unchunked(got) == GOOD


def test_h10_before_output_the_answer_begins_while_steps_are_tried():
    gateway = early()
    client = gateway.ask(stream=True)
    gateway.clock.advance(14.9)
    assert client.value() == b""
    gateway.clock.advance(0.2)
    head = client.value()
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nContent-Type: text/event-stream\r\n" in head
    assert b"\r\nX-Accel-Buffering: no\r\n" in head
    assert b"X-Aigw-Provider" not in head
    assert b"X-Aigw-Route: route" in head
    gateway.clock.advance(15)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(ROLE) + LAST_CHUNK)
    gateway.clock.advance(15)
    gateway.doors["p2"].wire.say(STREAM_HEAD + chunks(*STREAM) + LAST_CHUNK)
    got = client.take()
    assert got.count(b"HTTP/1.1") == 1
    assert unchunked(got) == OURS * 3 + GOOD
    (record,) = gateway.records
    assert (record.status, record.outcome, record.provider, record.keepalives) == (200, "ok", "p2", 3)
    assert record.bytes_out == len(OURS * 3 + GOOD)
    assert record.ttft_ms == 45100


def test_h10_an_answer_that_comes_before_is_as_usual():
    gateway = early()
    client = gateway.ask(stream=True)
    gateway.clock.advance(10)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(*STREAM) + LAST_CHUNK)
    got = client.take()
    assert b"X-Aigw-Provider: p1" in got
    assert unchunked(got) == GOOD


def test_h10_a_failure_that_comes_before_has_its_status():
    gateway = early(steps=1)
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(head(500, Content_Length="0"))
    assert client.take().startswith(b"HTTP/1.1 502 ")


def refuse(gateway: MemoryGateway, status: int = 500) -> None:
    body = b'{"error": {"message": "the prompt is too long"}}'
    gateway.doors["p1"].wire.say(head(status, Content_Length=str(len(body))) + body)


def test_h11_later_the_failure_of_all_steps_is_reported_in_band():
    gateway = early(steps=1)
    client = gateway.ask(stream=True)
    gateway.clock.advance(16)
    refuse(gateway)
    got = so_far(client.take())
    assert got.startswith(OURS + b'data: {"error":{"message":"No step of the route gave an answer: p1 (')
    assert b"the prompt is too long" in got
    assert got.endswith(b'"type":"upstream_error","param":null,"code":"all_steps_failed"}}\n\n')
    assert client.disconnected
    (record,) = gateway.records
    assert (record.status, record.outcome, record.error) == (200, "all_steps_failed", "all_steps_failed")
    assert record.bytes_out == len(got)


def test_h11_on_responses_it_is_a_failed_response_at_a_proper_end():
    gateway = early(steps=1)
    client = ask_for_a_response(gateway)
    gateway.clock.advance(16)
    refuse(gateway)
    got = unchunked(client.take())
    assert b'event: response.failed\ndata: {"type":"response.failed","sequence_number":0,' in got
    assert b'"code":"all_steps_failed"' in got
    assert not client.disconnected


def test_h11_a_refusal_that_would_be_passed_on_is_reported_with_its_reason():
    gateway = early(steps=1, stop_on=[400])
    client = gateway.ask(stream=True)
    gateway.clock.advance(16)
    refuse(gateway, 400)
    got = so_far(client.take())
    assert b'"message":"The provider answered 400: the prompt is too long"' in got
    assert got.endswith(b'"code":"provider_error"}}\n\n')
    assert (gateway.records[0].outcome, gateway.records[0].bytes_out) == ("provider_error", len(got))


def ask_for_a_message(gateway: MemoryGateway):
    client = gateway.open()
    body = {"model": "route", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "stream": True}
    client.say(request(body, "/v1/messages"))
    return client


@pytest.mark.parametrize("ask", [ask_for_a_response, ask_for_a_message])
def test_h11_f9_on_endpoints_of_agents_the_provider_s_words_are_in_the_stream_too(ask):
    gateway = early()
    client = ask(gateway)
    gateway.clock.advance(16)
    refuse(gateway, 400)
    got = unchunked(client.take())
    assert b'"message":"The provider answered 400: the prompt is too long"' in got
    assert gateway.records[0].outcome == "provider_error"
    assert not client.disconnected


def test_h7_on_messages_it_is_a_ping_as_the_provider_s_are():
    gateway = early(steps=1)
    client = ask_for_a_message(gateway)
    gateway.clock.advance(31)
    assert so_far(client.take()) == b'event: ping\ndata: {"type": "ping"}\n\n' * 2


def test_h11_the_deadline():
    gateway = early(steps=1, deadline=20)
    client = gateway.ask(stream=True)
    gateway.clock.advance(21)
    assert b'"code":"deadline_exceeded"' in client.take()
    assert gateway.records[0].outcome == "deadline_exceeded"


def test_h11_a_stop():
    gateway = early(steps=1)
    client = gateway.ask(stream=True)
    gateway.clock.advance(16)
    for each in list(gateway.gateway.running):
        each.interrupt()
    assert b'"code":"draining"' in client.take()
    assert gateway.records[0].outcome == "draining"


def test_h11_a_client_that_leaves():
    gateway = early(steps=1)
    client = gateway.ask(stream=True)
    gateway.clock.advance(16)
    client.lost(ConnectionResetError())
    assert gateway.doors["p1"].wire.aborted
    (record,) = gateway.records
    assert (record.status, record.outcome, record.keepalives) == (499, "client_gone", 1)
    gateway.clock.advance(100)
    assert gateway.timers() == []


def test_r6_the_body_counts_until_a_step_has_answered():
    gateway = early()
    gateway.ask(stream=True)
    gateway.clock.advance(16)
    assert gateway.site.bodies.under_way > 0
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(ROLE, HEL))
    assert gateway.site.bodies.under_way == 0


def test_a4b_an_error_after_keep_alives_is_the_provider_s():
    gateway = early()
    client = gateway.ask(stream=True)
    gateway.clock.advance(16)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(ROLE, HEL, ERROR_EVENT) + LAST_CHUNK)
    assert unchunked(client.take()) == OURS + ROLE + HEL + ERROR_EVENT


# With hold: whole


def test_h12_while_an_answer_is_held_its_client_is_kept_alive():
    gateway = kept(hold="whole")
    client = gateway.ask(stream=True)
    gateway.clock.advance(40)
    assert client.value() == b""
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(ROLE, HEL))
    gateway.clock.advance(0)
    assert so_far(client.value()) == OURS
    gateway.clock.advance(15)
    gateway.doors["p1"].wire.say(LAST_CHUNK)
    gateway.clock.advance(15)
    gateway.doors["p2"].wire.say(STREAM_HEAD + chunks(*STREAM) + LAST_CHUNK)
    assert unchunked(client.take()) == OURS * 3 + GOOD
    assert gateway.records[0].outcome == "ok"


def test_h12_if_no_step_answers_after_that_it_is_reported_in_band():
    gateway = kept(hold="whole", steps=1)
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(ROLE, HEL))
    gateway.clock.advance(16)
    gateway.doors["p1"].wire.say(LAST_CHUNK)
    assert b'"code":"all_steps_failed"' in client.take()


def test_h12_an_answer_that_is_whole_sooner_has_its_provider():
    gateway = kept(hold="whole")
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(*STREAM) + LAST_CHUNK)
    got = client.take()
    assert b"X-Aigw-Provider: p1" in got
    assert unchunked(got) == GOOD


# The setting, and real clients


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("15s", KeepAlive(15.0)),
        (2, KeepAlive(2.0)),
        ({"every": "500ms"}, KeepAlive(0.5)),
        ({"before_output": True}, KeepAlive(15.0, True)),
        (None, None),
    ],
)
def test_b2_it_is_a_duration_or_a_mapping(written, meant):
    assert MemoryGateway(keepalive=written).config.routes["route"].keepalive == meant


@pytest.mark.parametrize("written", [0, "soon", True, {"every": 0}, {"each": "15s"}, {"before_output": 1}, ["15s"]])
def test_b2_other_values_are_mistakes_with_their_path(written):
    with pytest.raises(ConfigError, match=r"^routes\[0\]\.keepalive"):
        MemoryGateway(keepalive=written)


def texts(client) -> str:
    with client.chat.completions.create(
        model="route", messages=[{"role": "user", "content": "hi"}], stream=True
    ) as chunks:
        return "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)


@ensureDeferred
async def test_h10_h11_the_openai_client_reads_past_the_comments_and_raises_the_error(world):
    slow = world.provider(later(stream(*STREAM), 0.5), later(answer(400, b'{"error": {"message": "too long"}}'), 0.5))
    gateway = world.gateway(slow, tls=True, keepalive={"every": "100ms", "before_output": True})
    assert await with_openai(gateway, texts) == "hello"
    with pytest.raises(openai.APIError, match="too long"):
        await with_openai(gateway, texts)
    first, second = world.records
    assert first["keepalives"] >= 3
    assert (first["outcome"], second["outcome"], second["status"]) == ("ok", "all_steps_failed", 200)
