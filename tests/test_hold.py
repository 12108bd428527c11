"""H1 to H6: ``hold: whole``, where the commit point of an answer is its end."""

from __future__ import annotations

import gc
import json
import tracemalloc

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.error import ConnectionLost

from aigw.proxy import held as held_module
from aigw.proxy.held_buffer import BLOCK, HeldBuffer
from aigw.server.request import Request
from tests.harness import AUTH, HELLO, bounded, request, until
from tests.memory import MemoryGateway, body_of, error_of
from tests.providers import (
    COMMENT,
    DONE,
    ERROR_EVENT,
    LAST_CHUNK,
    ROLE,
    STREAM,
    STREAM_HEAD,
    begin_stream,
    chunk,
    completion,
    drip,
    event,
    head,
    whole_stream,
)
from tests.test_record import gateway_of

HEL, LO, STOP = STREAM[1:4]
GOOD = b"".join(STREAM)
MIB = 2**20


def whole(**more) -> MemoryGateway:
    return MemoryGateway(hold="whole", **more)


def chunks(*events: bytes) -> bytes:
    return b"".join(map(chunk, events))


def unchunked(message: bytes) -> bytes:
    """The body of a chunked answer that is complete."""
    rest, body = body_of(message), b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        number = int(size, 16)
        if number == 0:
            assert rest == b"\r\n"
            return body
        body, rest = body + rest[:number], rest[number + 2 :]


def so_far(message: bytes) -> bytes:
    """What came of a chunked body."""
    return unchunked(message + LAST_CHUNK)


def plain(size: int) -> bytes:
    body = completion("x" * size)
    return head(Content_Length=str(len(body))) + body


# A stream


def test_h1_nothing_is_sent_before_the_end_and_then_the_bytes_are_the_provider_s():
    gateway = whole()
    client = gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    provider.say(STREAM_HEAD + chunks(COMMENT, ROLE, HEL))
    gateway.clock.advance(2)
    provider.say(chunks(LO, STOP))
    assert client.take() == b""
    gateway.clock.advance(1)
    provider.say(chunks(DONE) + LAST_CHUNK)
    got = client.take()
    assert unchunked(got) == COMMENT + GOOD
    assert b"X-Aigw-Provider: p1" in got
    (record,) = gateway.records
    assert (record.outcome, record.held_ms, record.ttft_ms, record.bytes_out) == ("ok", 3000, 3000, len(COMMENT + GOOD))
    assert gateway.gateway.running.held.now == 0


BREAKS = {
    "an end": (LAST_CHUNK, "broken"),
    "an error event": (chunks(ERROR_EVENT, DONE) + LAST_CHUNK, "broken"),
    "an error event without an end": (chunks(ERROR_EVENT), "broken"),
    "a field error": (chunks(b'error: {"message": "no"}\n\n') + LAST_CHUNK, "broken"),
    "finish_reason error": (chunks(event({}, "error"), DONE) + LAST_CHUNK, "broken"),
    "a bad chunk": (b"zz\r\n", "broken"),
    "silence": (b"", "timeout"),
    "comments": (chunks(COMMENT), "timeout"),
}


@pytest.mark.parametrize("how", BREAKS)
def test_h1_a_stream_that_breaks_after_its_first_output_falls_through(how):
    end, outcome = BREAKS[how]
    gateway = whole(idle_timeout=3)
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(ROLE, HEL) + end)
    gateway.clock.advance(3.1)
    gateway.doors["p2"].wire.say(STREAM_HEAD + chunks(*STREAM) + LAST_CHUNK)
    got = client.take()
    assert unchunked(got) == GOOD
    assert b"X-Aigw-Provider: p2" in got
    (record,) = gateway.records
    assert [attempt.outcome for attempt in record.attempts] == [outcome, "ok"]
    assert gateway.doors["p1"].wire.disconnected or not end or end.endswith(LAST_CHUNK)
    assert gateway.gateway.running.held.now == 0


def test_h1_a_reset_falls_through():
    gateway = whole()
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(ROLE, HEL))
    gateway.doors["p1"].wire.lost(ConnectionLost())
    gateway.doors["p2"].wire.say(STREAM_HEAD + chunks(*STREAM) + LAST_CHUNK)
    assert unchunked(client.take()) == GOOD
    assert gateway.records[0].attempts[0].message == "connection reset in the middle of its stream"


def test_h1_the_responses_api_is_held_too():
    gateway = whole()
    client = gateway.open()
    client.say(request({"model": "route", "input": "hi", "stream": True}, "/v1/responses"))
    begun = b'data: {"type":"response.created","response":{"id":"r1"},"sequence_number":0}\n\n'
    delta = b'data: {"type":"response.output_text.delta","delta":"he","sequence_number":1}\n\n'
    failed = b'data: {"type":"response.failed","response":{"id":"r1","error":{"message":"no"}},"sequence_number":2}\n\n'
    done = b'data: {"type":"response.completed","response":{"id":"r2"},"sequence_number":2}\n\n'
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(begun, delta, failed) + LAST_CHUNK)
    gateway.doors["p2"].wire.say(STREAM_HEAD + chunks(begun, delta, done) + LAST_CHUNK)
    assert unchunked(client.take()) == begun + delta + done


def test_h1_if_every_stream_breaks_the_client_gets_a_status():
    gateway = whole()
    client = gateway.ask(stream=True)
    for name in ("p1", "p2"):
        gateway.doors[name].wire.say(STREAM_HEAD + chunks(ROLE, HEL) + LAST_CHUNK)
    got = client.take()
    assert got.startswith(b"HTTP/1.1 502 ")
    assert "ended its stream before it was complete" in error_of(got)["message"]
    assert gateway.records[0].held_ms is None


def test_h2_timeout_bounds_the_whole_answer_and_idle_timeout_every_silence():
    gateway = whole(timeout=10, idle_timeout=3)
    gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(ROLE, HEL))
    for _ in range(4):
        gateway.clock.advance(2)
        gateway.doors["p1"].wire.say(chunks(LO))
    assert not gateway.doors["p2"].wires
    gateway.clock.advance(2.1)
    assert gateway.doors["p1"].wire.aborted
    assert gateway.failed[0].message == "answer limit of 10 s passed"
    gateway.doors["p2"].wire.say(STREAM_HEAD + chunks(ROLE, HEL))
    gateway.clock.advance(2.9)
    assert len(gateway.failed) == 1
    gateway.clock.advance(0.2)
    assert gateway.failed[1].message == "idle limit of 3 s passed"


def test_h2_before_the_first_output_only_timeout_counts():
    gateway = whole(timeout=10, idle_timeout=3)
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(ROLE))
    gateway.clock.advance(9)
    gateway.doors["p1"].wire.say(chunks(*STREAM) + LAST_CHUNK)
    assert unchunked(client.take()) == ROLE + GOOD
    assert gateway.records[0].held_ms == 0


# A plain answer


def test_h3_a_plain_answer_over_1_mib_is_held_until_it_is_whole():
    gateway = whole()
    client = gateway.ask()
    sent = plain(3 * MIB)
    half = len(sent) // 2
    gateway.doors["p1"].wire.say(sent[:half])
    assert client.take() == b""
    assert gateway.gateway.running.held.now > MIB
    gateway.doors["p1"].wire.say(sent[half:])
    got = client.take()
    assert body_of(got) == body_of(sent)
    assert b"\r\nContent-Length: %d\r\n" % len(body_of(sent)) in got
    assert gateway.gateway.running.held.now == 0
    assert gateway.records[0].usage["total_tokens"] == 7


def test_h3_one_that_breaks_falls_through():
    gateway = whole()
    client = gateway.ask()
    gateway.doors["p1"].wire.say(plain(3 * MIB)[:-9])
    gateway.doors["p1"].wire.loseConnection()
    gateway.doors["p2"].wire.say(plain(2))
    assert body_of(client.take()) == completion("xx")
    assert [attempt.outcome for attempt in gateway.records[0].attempts] == ["broken", "ok"]


def test_h3_one_that_is_no_answer_falls_through():
    gateway = whole()
    client = gateway.ask()
    body = b'{"error": {"message": "no"}, "pad": "%s"}' % (b"x" * 2 * MIB)
    gateway.doors["p1"].wire.say(head(Content_Length=str(len(body))) + body)
    gateway.doors["p2"].wire.say(plain(2))
    assert body_of(client.take()) == completion("xx")


def test_h3_one_that_is_too_slow_falls_through_at_timeout():
    gateway = whole(timeout=10)
    gateway.ask()
    gateway.doors["p1"].wire.say(plain(3 * MIB)[:-9])
    gateway.clock.advance(9.9)
    assert not gateway.doors["p1"].wire.aborted
    gateway.clock.advance(0.2)
    assert gateway.failed[0].message == "answer limit of 10 s passed"


# The memory


def output(size: int) -> bytes:
    return chunk(event({"content": "x" * size}))


def test_h4_where_there_is_no_room_a_stream_is_committed_as_usual():
    gateway = whole(top={"limits": {"held": "1MiB"}})
    room = gateway.gateway.running.held
    clients = []
    for _ in range(2):
        clients.append(gateway.ask(stream=True))
        gateway.doors["p1"].wire.say(STREAM_HEAD + chunk(ROLE))
        for _ in range(7):
            gateway.doors["p1"].wire.say(output(100_000))
    first, second = clients
    one, other = (wire for wire in gateway.doors["p1"].wires)
    assert first.take() == b""
    assert so_far(second.value()).count(b"x" * 100_000) >= 3
    assert room.exhausted == 1
    assert MIB / 2 < room.now < MIB
    other.say(chunks(STOP, DONE) + LAST_CHUNK)
    one.say(chunks(STOP, DONE) + LAST_CHUNK)
    for client in clients:
        assert unchunked(client.take()) == ROLE + event({"content": "x" * 100_000}) * 7 + STOP + DONE
    assert room.now == 0
    assert [record.outcome for record in gateway.records] == ["ok", "ok"]


def test_h4_a_stream_that_was_committed_so_breaks_in_band():
    gateway = whole(top={"limits": {"held": "64KiB"}})
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunk(ROLE) + output(100_000))
    assert b"X-Aigw-Provider: p1" in client.take()
    gateway.doors["p1"].wire.say(LAST_CHUNK)
    assert b'"code":"stream_truncated"' in client.take()
    assert not gateway.doors["p2"].wires


def test_h4_a_plain_answer_without_room_flows():
    gateway = whole(top={"limits": {"held": "2MiB"}}, timeout=10)
    client = gateway.ask()
    sent = plain(4 * MIB)
    gateway.doors["p1"].wire.say(sent[: 3 * MIB])
    assert len(client.take()) > 2 * MIB
    gateway.clock.advance(5)
    gateway.doors["p1"].wire.say(sent[3 * MIB : -5])
    gateway.clock.advance(4.9)
    assert not client.aborted
    gateway.clock.advance(0.2)
    assert client.aborted
    assert gateway.records[0].outcome == "answer_timeout"


def test_h4_one_answer_has_a_limit_of_its_own(monkeypatch):
    monkeypatch.setattr(held_module, "ONE_ANSWER", MIB)
    gateway = whole()
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunk(ROLE))
    for _ in range(12):
        gateway.doors["p1"].wire.say(output(100_000))
    assert so_far(client.take()).count(b"x" * 100_000) == 12
    assert gateway.gateway.running.held.now == 0


ENDS = {
    "the client leaves": lambda gateway, client: client.lost(ConnectionResetError()),
    "the provider breaks": lambda gateway, client: gateway.doors["p1"].wire.loseConnection(),
    "the time is over": lambda gateway, client: gateway.clock.advance(400),
    "the gateway stops": lambda gateway, client: [each.interrupt() for each in list(gateway.gateway.running)],
}


@pytest.mark.parametrize("how", ENDS)
def test_h4_what_was_held_is_released_on_every_way_out(how):
    gateway = whole(steps=1)
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunk(ROLE) + output(100_000))
    assert gateway.gateway.running.held.now > 100_000
    ENDS[how](gateway, client)
    assert gateway.gateway.running.held.now == 0
    assert gateway.doors["p1"].wire.disconnected
    assert len(gateway.records) == 1
    assert not gateway.gateway.running


def test_h4_a_client_that_leaves_while_its_answer_is_held_stops_the_provider():
    gateway = whole()
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(ROLE, HEL))
    client.lost(ConnectionResetError())
    assert gateway.doors["p1"].wire.aborted
    assert not gateway.doors["p2"].wires
    (record,) = gateway.records
    assert (record.status, record.outcome) == (499, "client_gone")


def test_h4_a_slow_client_is_written_to_as_it_reads_event_by_event():
    gateway = whole()
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunk(ROLE))
    for _ in range(10):
        gateway.doors["p1"].wire.say(output(20_000))
    room = gateway.gateway.running.held
    write, sizes = client.write, []

    def full(data: bytes) -> None:
        """A socket that takes one write at a time."""
        write(data)
        sizes.append(len(data))
        client.producer.pauseProducing()

    client.write = full
    gateway.doors["p1"].wire.say(chunks(STOP, DONE) + LAST_CHUNK)
    while room.now:
        assert room.now + len(so_far(client.value())) >= 200_000
        assert so_far(client.value()).endswith(b"\n\n")
        assert not gateway.records
        client.producer.resumeProducing()
    assert unchunked(client.take()) == ROLE + event({"content": "x" * 20_000}) * 10 + STOP + DONE
    assert len(sizes) > 4
    assert room.now == 0
    assert gateway.records[0].outcome == "ok"


def held_by_a_client_that_stops_reading(size):
    """A whole answer of that size, of which the client has read the first piece."""
    gateway = whole()
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunk(ROLE) + output(size))
    write = client.write
    client.write = lambda data: (write(data), client.producer.pauseProducing())
    gateway.doors["p1"].wire.say(chunks(STOP, DONE) + LAST_CHUNK)
    return gateway, client


def test_h4_a_client_that_does_not_read_what_was_held_is_left_after_its_time():
    gateway, client = held_by_a_client_that_stops_reading(500_000)
    assert gateway.gateway.running.held.now > 0
    gateway.clock.advance(61)
    assert client.aborted
    assert gateway.gateway.running.held.now == 0
    assert gateway.records[0].status == 499


def test_d2_a_stop_sends_the_rest_of_a_whole_answer():
    gateway, client = held_by_a_client_that_stops_reading(300_000)
    assert not gateway.records
    for each in list(gateway.gateway.running):
        each.interrupt()
    assert unchunked(client.take()).endswith(STOP + DONE)
    assert gateway.records[0].outcome == "ok"
    assert gateway.gateway.running.held.now == 0


def test_h4_the_log_has_a_line_once_in_a_while(monkeypatch):
    lines = []
    monkeypatch.setattr(held_module.logs, "warn", lambda message, **fields: lines.append(fields["answers"]))
    room = held_module.HeldBytes(10)
    for now in (0.0, 1.0, 2.0, 61.0):
        room.note_exhausted(now)
    assert lines == [1, 3]
    assert room.exhausted == 4


def test_h5_the_first_token_of_a_model_is_the_provider_s_and_not_when_the_answer_was_whole():
    gateway = gateway_of(hold="whole")
    gateway.ask(stream=True)
    gateway.clock.advance(1)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(ROLE, HEL))
    gateway.clock.advance(8)
    gateway.doors["p1"].wire.say(chunks(LO, STOP, DONE) + LAST_CHUNK)
    telemetry = gateway.site.resource.known[b"/v1/chat/completions"]._sink.__self__
    (model, _) = telemetry.counters.models.values()
    assert model.first_token.sum == pytest.approx(1)
    assert telemetry.counters.routes["route"].held.sum == pytest.approx(8)


def test_off_the_default_is_the_first_output():
    gateway = MemoryGateway()
    assert gateway.config.routes["route"].hold == "first_output"
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(ROLE, HEL))
    assert json.dumps("hel").encode() in client.take()


def test_h2_the_deadline_bounds_the_whole_answer():
    gateway = whole(deadline=10)
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(ROLE, HEL))
    gateway.clock.advance(10.1)
    assert client.take().startswith(b"HTTP/1.1 504 ")
    assert not gateway.doors["p2"].wires


def test_f2_f3_a_broken_answer_is_repeated_and_counts_like_another_failure():
    gateway = MemoryGateway(
        steps=1,
        hold="whole",
        top={"routes": [{"name": "route", "hold": "whole", "steps": [{"provider": "p1", "model": "m", "retries": 1}]}]},
    )
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(ROLE, HEL) + LAST_CHUNK)
    gateway.clock.advance(1)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(*STREAM) + LAST_CHUNK)
    assert unchunked(client.take()) == GOOD


def test_f3_three_broken_answers_in_a_row_cool_the_step_down():
    gateway = whole()
    for _ in range(3):
        gateway.ask(stream=True)
        gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(ROLE, HEL) + LAST_CHUNK)
        gateway.doors["p2"].wire.say(STREAM_HEAD + chunks(*STREAM) + LAST_CHUNK)
    client = gateway.ask(stream=True)
    gateway.doors["p2"].wire.say(STREAM_HEAD + chunks(*STREAM) + LAST_CHUNK)
    assert b"X-Aigw-Skipped: 1=cooling_down" in client.take()


def test_a4a_a_done_without_a_finish_reason_falls_through_once_the_model_has_given_one():
    gateway = whole()
    gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(*STREAM) + LAST_CHUNK)
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(ROLE, HEL, DONE) + LAST_CHUNK)
    gateway.doors["p2"].wire.say(STREAM_HEAD + chunks(*STREAM) + LAST_CHUNK)
    assert unchunked(client.take()) == GOOD


def test_a3_a_key_in_a_large_plain_answer_is_hidden():
    key = "sk-a1b2c3d4e5f6g7h8i9j0k1l2"
    providers = [{"name": "p1", "base_url": "http://p1/v1", "api_key": key}]
    gateway = whole(steps=1, top={"providers": providers})
    client = gateway.ask()
    body = completion("x" * 2 * MIB + key)
    gateway.doors["p1"].wire.say(head(Content_Length=str(len(body))) + body)
    got = client.take()
    assert body_of(got) == completion("x" * 2 * MIB + "***")
    assert b"\r\nContent-Length: %d\r\n" % len(body_of(got)) in got


@pytest.mark.parametrize("size", [1, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_h4_what_goes_into_the_buffer_comes_out_of_it(size):
    buffer, sent = HeldBuffer(), bytes(range(251)) * (40 if size == 1 else 4000)
    for at in range(0, len(sent), size):
        buffer.append(sent[at : at + size])
    assert buffer.size == len(sent)
    first = buffer.take()
    buffer.append(b"more")
    assert first + buffer.take_all() == sent + b"more"
    assert (buffer.size, buffer.take()) == (0, b"")
    buffer.append(b"again")
    assert buffer.take_all() == b"again"


# On real sockets


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@ensureDeferred
async def test_h1_a_large_stream_arrives_byte_for_byte(world, tls):
    events = [ROLE, *[event({"content": str(number) * 500}) for number in range(2000)], STOP, DONE]
    provider = world.provider(drip(whole_stream(events), 200_000, 0.001), tls=tls)
    gateway = world.gateway(provider, tls=tls, hold="whole", timeout=30)
    got = await gateway.ask(stream=True)
    assert got.whole
    assert got.body == b"".join(events)
    assert world.records[-1]["held_ms"] is not None
    assert gateway.service._running.held.now == 0


@ensureDeferred
async def test_h4_a_client_that_leaves_while_held_stops_the_provider_within_1_s(world):
    provider = world.provider(begin_stream(ROLE, HEL))
    gateway = world.gateway(provider, world.provider(), hold="whole")
    client = await gateway.send(request({**HELLO, "stream": True}))
    await until(lambda: gateway.service._running.held.now)
    begun = reactor.seconds()
    client.transport.abortConnection()
    await bounded(provider.connections[0].closed, 1.0)
    assert reactor.seconds() - begun < 1.0
    await until(lambda: world.records)
    assert world.records[0]["outcome"] == "client_gone"
    assert gateway.service._running.held.now == 0


@ensureDeferred
async def test_d1_a_reload_keeps_what_is_held_and_takes_the_new_limit(world):
    provider = world.provider(begin_stream(ROLE, HEL))
    gateway = world.gateway(provider, hold="whole")
    client = await gateway.send(request({**HELLO, "stream": True}))
    await until(lambda: gateway.service._running.held.now)
    gateway.tree["limits"] = {"held": "1KiB"}
    await gateway.reload()
    assert gateway.service._running.held.limit == 1024
    assert gateway.service._running.held.now == len(ROLE + HEL)
    provider.connections[0].send(chunk(event({"content": "x" * 2000})))
    await bounded(client.started)  # it was committed, as there is no room
    provider.connections[0].send(chunks(STOP, DONE) + LAST_CHUNK)
    got = await bounded(client.done)
    assert got.whole
    assert got.body.endswith(STOP + DONE)
    assert gateway.service._running.held.now == 0


@ensureDeferred
async def test_h5_the_page_and_the_metrics_show_what_is_held_and_kept_alive(world):
    provider = world.provider(begin_stream(ROLE, HEL))
    gateway = world.gateway(provider, hold="whole", keepalive="50ms")
    client = await gateway.send(request({**HELLO, "stream": True}))
    await bounded(client.started)
    shown = (await gateway.get("/status.json", AUTH)).json
    assert shown["held"] == {"bytes": len(ROLE + HEL), "limit": 64 * MIB, "exhausted": 0}
    assert (shown["routes"][0]["hold"], shown["routes"][0]["keepalive_s"]) == ("whole", 0.05)
    provider.connections[0].send(chunks(LO, STOP, DONE) + LAST_CHUNK)
    await bounded(client.done)
    await until(lambda: world.records)
    text = (await gateway.get("/metrics", AUTH)).body.decode()
    assert "aigw_held_bytes 0.0\n" in text
    assert "aigw_held_exhausted_total 0.0\n" in text
    assert 'aigw_held_seconds_count{route="route"} 1.0\n' in text
    count = world.records[0]["keepalives"]
    assert count > 0
    assert f'aigw_keepalives_total{{route="route"}} {count}.0\n' in text


@ensureDeferred
async def test_h5_no_route_that_holds_is_no_tile_on_the_page(world):
    gateway = world.gateway(world.provider())
    assert (await gateway.get("/status.json", AUTH)).json["held"] is None


# Speech, and what is kept beside the held bytes

SPEECH = {"model": "route", "input": "x", "voice": "alloy"}
AUDIO = b"ID3\x04\x00\n\n\r\n\r\nabc" * 30_000


def ask_for_speech(gateway: MemoryGateway):
    client = gateway.open()
    client.say(request(SPEECH, "/v1/audio/speech"))
    return client


def test_h1_f3_speech_that_falls_silent_while_held_is_a_timeout():
    gateway = whole(idle_timeout=3)
    client = ask_for_speech(gateway)
    audio = head(Content_Type="audio/mpeg", Transfer_Encoding="chunked") + chunk(AUDIO)
    gateway.doors["p1"].wire.say(audio)
    gateway.clock.advance(3.1)
    gateway.doors["p2"].wire.say(audio + LAST_CHUNK)
    assert unchunked(client.take()) == AUDIO
    (record,) = gateway.records
    assert [(attempt.step, attempt.outcome) for attempt in record.attempts] == [(1, "timeout"), (2, "ok")]
    assert gateway.gateway.running.held.now == 0


def test_h4_nothing_of_a_held_answer_is_kept_outside_of_what_is_counted():
    tracemalloc.start()
    try:
        gateway = whole()
        for _ in range(4):
            client = gateway.ask()
            gateway.doors["p1"].wire.say(plain(3 * MIB // 2)[:-5])
        gc.collect()
        assert gateway.gateway.running.held.now > 6 * MIB
        assert tracemalloc.get_traced_memory()[0] < 2 * MIB  # what is counted is in mappings, which are not traced
        client.lost(ConnectionLost())
    finally:
        tracemalloc.stop()


def test_h1_m7_the_id_of_a_held_response_is_noted():
    """Of a stream, and of a large plain answer, in which the id is not at the beginning."""
    gateway = whole()
    for stream in (True, False):
        client = gateway.open()
        client.say(request({"model": "route", "input": "hi", "stream": stream}, "/v1/responses"))
        if stream:
            begun = b'data: {"type":"response.created","response":{"id":"resp_s"},"sequence_number":0}\n\n'
            delta = b'data: {"type":"response.output_text.delta","delta":"he","sequence_number":1}\n\n'
            done = b'data: {"type":"response.completed","response":{"id":"resp_s"},"sequence_number":2}\n\n'
            gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(begun, delta, done) + LAST_CHUNK)
        else:
            body = json.dumps({"object": "response", "id": "resp_p", "output": [{"text": "x" * (MIB + MIB // 2)}]})
            gateway.doors["p1"].wire.say(head(Content_Length=str(len(body))) + body.encode())
        assert client.take()
        assert gateway.health.response_ids.place("default", "resp_s" if stream else "resp_p").provider == "p1"


@pytest.mark.parametrize("hold", ["whole", "first_output"])
@pytest.mark.parametrize("part", ["begin", "write"])
def test_h4_f3_a_fault_of_the_gateway_at_the_commit_point_leaves_nothing_behind(hold, part, monkeypatch, failures):
    """Neither held bytes, nor a timer, nor a step that seems to be probed for ever."""
    gateway = MemoryGateway(steps=1, hold=hold, keepalive=15, hedge={"after": "1s"})
    (step,) = gateway.config.routes["route"].steps
    cooldowns = gateway.gateway.cooldowns["chat/completions"]
    cooldowns.cool_down(step, 5, False)
    gateway.clock.advance(6)

    def broken(*_):
        raise ValueError("a fault")

    client = gateway.ask(stream=True)
    with monkeypatch.context() as patched:
        patched.setattr(Request, part, broken)
        gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(*STREAM) + LAST_CHUNK)
    assert not gateway.gateway.running
    assert gateway.gateway.running.held.now == 0
    client.lost(ConnectionLost())
    gateway.clock.advance(5)
    assert gateway.timers() == []
    assert cooldowns.begin(step), "the next request probes"
    assert "a fault" in failures[0]
    failures.clear()
