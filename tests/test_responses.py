"""A4c, R3: the contract of the responses API, as the official clients and Codex read it."""

from __future__ import annotations

import json

import pytest

from aigw.errors import StreamBroken
from aigw.protocols.endpoints import ENDPOINTS
from aigw.protocols.scanner import HOLD_STREAM
from tests.harness import request
from tests.memory import MemoryGateway, error_of
from tests.providers import chunk, head

RESPONSES = ENDPOINTS["responses"]
ASKED = {"model": "route", "input": "hi", "stream": True}
STREAM_HEAD = head(kind="text/event-stream", Transfer_Encoding="chunked")


def sent(kind: str, number: int | None = None, **more) -> bytes:
    numbered = {} if number is None else {"sequence_number": number}
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), json.dumps({"type": kind, **numbered, **more}).encode())


CREATED = sent("response.created", 0, response={"id": "resp_1", "status": "in_progress", "error": None})
ADDED = sent("response.output_item.added", 1, item={"id": "msg_1", "type": "message"})


def delta(number: int | None = None, text: str = "hel") -> bytes:
    return sent("response.output_text.delta", number, delta=text)


def event_of(data: bytes) -> dict:
    """The one event that ``data`` is."""
    name, line, *rest = data.split(b"\n")
    assert (name, rest) == (b"event: response.failed", [b"", b""])
    return json.loads(line.removeprefix(b"data: "))


def broken_after(*reads: bytes) -> dict:
    scanner = RESPONSES.scanner()
    for data in reads:
        scanner.feed(data)
    assert scanner.has_output
    return event_of(scanner.error_event(StreamBroken("stream_reset", "It was reset.")).removeprefix(b"\n\n"))


def test_a4c_the_event_is_a_response_that_failed_with_an_error_beside_it():
    assert broken_after(CREATED, ADDED, delta(2)) == {
        "type": "response.failed",
        "sequence_number": 3,
        "response": {
            "id": "resp_1",
            "object": "response",
            "status": "failed",
            "error": {"code": "stream_reset", "message": "It was reset."},
            "output": [],
        },
        "error": {"message": "It was reset.", "type": "upstream_error", "param": None, "code": "stream_reset"},
    }


LARGE = {"instructions": "x" * 3 * HOLD_STREAM}
ID_LAST = (
    b'data: {"sequence_number" : 0,"type":"response.created","response" : {"object":"response", "id" : "resp_1"}}\n\n'
)
QUOTED = '"response":{"id":"resp_no"},"sequence_number":99'


def pieces(data: bytes, size: int = 1000) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize(
    ("reads", "number"),
    [
        ([CREATED + ADDED + delta(2)], 3),
        (pieces(CREATED + ADDED + delta(2), 1), 3),
        ([CREATED, ADDED, delta(2), delta(3), b": ping\n\n", b": ping\n\n"], 4),
        ([CREATED, ADDED, delta(2) + delta(3) + delta(4)[:30]], 4),
        ([CREATED, ADDED, delta(2), delta(3)[:30], delta(3)[30:]], 4),
        ([CREATED, sent("response.reasoning_text.delta", 1), sent("response.function_call_arguments.delta", 2)], 3),
        ([CREATED, delta(10), b'data: {"type":"response.output_text.delta","delta":"x"}\n\n'], 11),
        ([ID_LAST, delta(1)], 2),
        ([CREATED, delta(1, QUOTED)], 2),
        ([*pieces(sent("response.created", 0, response={"id": "resp_1", **LARGE})), delta(1)], 2),
        ([sent("response.created", 0, response={"id": "resp_1", **LARGE}), delta(1)], 2),
        ([CREATED, delta(1), *pieces(sent("response.output_item.done", 2, item=LARGE))], 3),
        ([CREATED, delta(1), *pieces(sent("response.output_item.done", 2, item=LARGE))[:-50]], 3),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else f"{len(value)} reads",
)
def test_a4c_the_id_and_the_next_number_in_whatever_pieces_they_came(reads, number):
    event = broken_after(*reads)
    assert (event["response"]["id"], event["sequence_number"]) == ("resp_1", number)


def test_a4c_a_provider_that_gives_neither():
    event = broken_after(b'data: {"type":"response.output_text.delta","delta":"x"}\n\n')
    assert (event["response"]["id"], event["sequence_number"]) == ("", 0)


def broken_stream(path: str, *events: bytes, asked: dict = ASKED) -> tuple[bytes, MemoryGateway, object]:
    """What the client got of a stream that was cut, whose connection is the third."""
    world = MemoryGateway()
    client = world.open()
    client.say(request(asked, path))
    wire = world.doors["p1"].wire
    wire.say(STREAM_HEAD + b"".join(map(chunk, events)))
    wire.lost(ConnectionError())
    return client.take(), world, client


def test_a4c_the_stream_then_ends_properly_and_the_connection_goes_on():
    got, world, client = broken_stream("/v1/responses", CREATED, ADDED, delta(2))
    assert got.endswith(b"\r\n0\r\n\r\n")
    event = event_of(got[got.index(b"event: response.failed") : -len(b"\r\n0\r\n\r\n")])
    assert event["sequence_number"] == 3
    assert not client.disconnected
    assert [record.outcome for record in world.records] == ["stream_truncated"]
    client.say(request(None, "/v1/models", "GET"))
    assert client.take().startswith(b"HTTP/1.1 200 ")


def test_a4_a_stream_of_chat_still_ends_without_a_proper_end():
    event = b'data: {"choices":[{"delta":{"content":"hel"}}]}\n\n'
    asked = {"model": "route", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    got, _, client = broken_stream("/v1/chat/completions", event, asked=asked)
    assert not got.endswith(b"0\r\n\r\n")
    assert client.disconnected


def test_a4c_d2_a_stop_ends_it_so_too():
    world = MemoryGateway()
    client = world.open()
    client.say(request(ASKED, "/v1/responses"))
    world.doors["p1"].wire.say(STREAM_HEAD + chunk(CREATED) + chunk(delta(1)))
    client.take()
    (exchange,) = world.gateway.running
    exchange.interrupt()
    assert event_of(client.take().split(b"\r\n")[1])["response"]["error"]["message"] == "The gateway is stopping."
    assert [record.outcome for record in world.records] == ["draining"]


# R3: what is below it

COUNT = {"object": "response.input_tokens", "input_tokens": 11}
COMPACTION = {
    "id": "resp_2",
    "object": "response.compaction",
    "created_at": 1,
    "output": [{"type": "compaction", "id": "cmp_1", "encrypted_content": "x"}],
    "usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
}
BELOW = {"/v1/responses/compact": COMPACTION, "/v1/responses/input_tokens": COUNT}


def answered(world: MemoryGateway, path: str, step: str, body: dict) -> bytes:
    """What the provider of a step was sent, once it answers with ``body``."""
    wire = world.doors[step].wire
    data = json.dumps(body).encode()
    got = wire.take()
    assert got.startswith(b"POST %s HTTP/1.1\r\n" % path.encode())
    wire.say(head(Content_Length=str(len(data))) + data)
    return got


@pytest.mark.parametrize("path", BELOW)
def test_r3_compact_and_input_tokens_are_endpoints_with_answers_of_their_own(path):
    world = MemoryGateway()
    client = world.open()
    client.say(request({"model": "route", "input": "hi"}, path))
    answered(world, path, "p1", {"error": {"message": "no"}})
    assert b'"model":"model-of-p2"' in answered(world, path, "p2", {**BELOW[path], "error": None})
    got = client.take()
    assert got.startswith(b"HTTP/1.1 200 ")
    assert json.loads(got.partition(b"\r\n\r\n")[2]) == {**BELOW[path], "error": None}
    assert [record.path for record in world.records] == [path]
    assert world.records[0].outcome == "ok"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/responses", 400),
        ("/v1/responses/", 400),
        ("/v1/responses/compact", 400),
        ("/v1/responses/%63ompact", 400),
        ("/v1/responses/input_tokens", 400),
        ("/v1/%72esponses/input%5Ftokens", 400),
        ("/v1/responses/resp_123", 405),
        ("/v1/responses/resp_123/input_items", 405),
        ("/v1/responses/resp_123/more", 404),
        ("/v1/responses/resp_123/cancel/more", 404),
        ("/v1/responses/resp%2f123", 404),
        ("/v1/responses/%2e%2e", 404),
        ("/v1/responses/%2e%2e/cancel", 404),
        ("/v1/responses/compact/more", 404),
        ("/v1/responses//compact", 404),
        ("/v1/chat/completions/more", 404),
        ("/v1/chat", 404),
    ],
)
def test_r3_s4a_paths_at_and_below_it(path, status):
    """400: the body reaches the endpoint, and has no model. Everything at an endpoint or below it is recorded."""
    world = MemoryGateway()
    client = world.open()
    client.say(request({}, path))
    got = client.take()
    assert int(got[9:12]) == status
    assert len(world.records) == (path != "/v1/chat")
    if status == 404:
        assert "/v1/responses" in error_of(got)["message"]
