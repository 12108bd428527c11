"""M1 to M6: the contract of Anthropic's messages, through the whole gateway in memory, and its scanner alone."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st

from aigw.errors import GatewayError, StreamBroken
from aigw.protocols.endpoints import ENDPOINTS
from aigw.protocols.meaning import END, ERROR, OUTPUT, SILENCE
from tests.harness import KEY, request
from tests.memory import MemoryGateway, body_of
from tests.properties import given
from tests.providers import chunk, head
from tests.test_bytes import SPACES, members
from tests.test_bytes import value as any_value

PATH = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
ASKED = {"model": "route", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
STREAM_HEAD = head(kind="text/event-stream", Transfer_Encoding="chunked")


def sent(kind: str, **more) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), json.dumps({"type": kind, **more}).encode())


USAGE = {"input_tokens": 25, "cache_read_input_tokens": 5, "output_tokens": 1}
MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_sequence": None, "usage": USAGE}
START = sent("message_start", message={**MESSAGE, "content": [], "stop_reason": None})
PING = sent("ping")
BLOCK = sent("content_block_start", index=0, content_block={"type": "text", "text": ""})
STOP = sent("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 15})
END_OF_BLOCK = sent("content_block_stop", index=0)
END_OF_ALL = sent("message_stop")
OVERLOADED = sent("error", error={"type": "overloaded_error", "message": "Overloaded"})


def delta(text: str, kind: str = "text") -> bytes:
    return sent("content_block_delta", index=0, delta={"type": f"{kind}_delta", kind: text})


HEL_LO = [delta("hel"), delta("lo")]
STREAM = [START, BLOCK, PING, *HEL_LO, END_OF_BLOCK, STOP, END_OF_ALL]
WHOLE = {**MESSAGE, "content": [{"type": "text", "text": "hello"}], "stop_reason": "end_turn"}
PLAIN = json.dumps(WHOLE).encode()


def block(**content) -> bytes:
    return sent("content_block_start", index=0, content_block=content)


def change(**more) -> bytes:
    return sent("message_delta", delta={"stop_reason": None, "stop_sequence": None}, **more)


def part(**inside) -> bytes:
    return sent("content_block_delta", index=0, delta=inside)


@pytest.mark.parametrize(
    ("event", "meaning"),
    [
        (PING, SILENCE),
        (b'data: {"type": "ping"}\n\n', SILENCE),
        (START, SILENCE),
        (BLOCK, SILENCE),
        (block(type="thinking", thinking="", signature=""), SILENCE),
        (block(type="tool_use", id="toolu_1", name="f", input={}), SILENCE),
        (block(type="server_tool_use", id="srvtoolu_1", name="web_search", input={}), SILENCE),
        (delta(""), SILENCE),
        (delta("", "thinking"), SILENCE),
        (part(type="input_json_delta", partial_json=""), SILENCE),
        (END_OF_BLOCK, SILENCE),
        (change(usage={"output_tokens": 0}), SILENCE),
        (b"data: {}\n\n", SILENCE),
        (b": comment\n\n", SILENCE),
        (delta("hel"), OUTPUT),
        (delta("hm", "thinking"), OUTPUT),
        (part(type="signature_delta", signature="x"), OUTPUT),
        (part(type="input_json_delta", partial_json="{"), OUTPUT),
        (part(type="citations_delta", citation={"a": 1}), OUTPUT),
        (part(type="text_delta", text="", more=1), OUTPUT),
        (sent("content_block_delta", index=0, delta="x"), OUTPUT),
        (STOP, OUTPUT),
        (change(something=1), OUTPUT),
        (block(type="text", text="hello"), OUTPUT),
        (block(type="tool_use", id="toolu_1", name="f", input={"a": 1}), OUTPUT),
        (block(type="redacted_thinking", data="x"), OUTPUT),
        (block(type="web_search_tool_result", content=[]), OUTPUT),
        (block(type="unknown"), OUTPUT),
        (sent("content_block_start", index=0, content_block=None), OUTPUT),
        (sent("message_start", message={"content": [{"type": "text", "text": "x"}]}), OUTPUT),
        (sent("unknown"), OUTPUT),
        (b'data: {"x": 1}\n\n', OUTPUT),
        (b"data: no json\n\n", OUTPUT),
        (OVERLOADED, ERROR),
        (OVERLOADED.partition(b"\n")[2], ERROR),
        (b'event: error\ndata: {"message": "no"}\n\n', ERROR),
        (b'data: {"error": {"message": "no"}}\n\n', ERROR),
        (b'data: {"detail": "no"}\n\n', ERROR),
        (END_OF_ALL, END),
        (b"data: [DONE]\n\n", END),
    ],
    ids=lambda value: value.decode() if isinstance(value, bytes) else value.name,
)
def test_m2_what_an_event_means_before_the_first_output(event, meaning):
    scanner = ENDPOINTS["messages"].scanner()
    scanner.feed(START)
    assert scanner.feed(event)[1] is meaning
    assert scanner.has_output is (meaning is OUTPUT)


def streamed(*events: bytes, whole: bool = True, asked: dict | None = None, path: str = PATH):
    """What a client gets of a stream of the first step, and the gateway."""
    world = MemoryGateway()
    client = world.open()
    client.say(request({**ASKED, "stream": True, **(asked or {})}, path))
    wire = world.doors["p1"].wire
    wire.say(STREAM_HEAD + b"".join(map(chunk, events)) + (b"0\r\n\r\n" if whole else b""))
    if not whole:
        wire.lost(ConnectionError())
    return client.take(), world


def events_in(got: bytes) -> bytes:
    """The body of a chunked answer."""
    _, _, rest = got.partition(b"\r\n\r\n")
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body


def test_m2_a_stream_reaches_the_client_byte_for_byte():
    got, world = streamed(*STREAM)
    assert events_in(got) == b"".join(STREAM)
    assert got.endswith(b"0\r\n\r\n")
    assert [record.outcome for record in world.records] == ["ok"]


def test_m6_usage_is_the_last_value_of_each_count():
    counted = change(usage={"input_tokens": 30, "output_tokens": 7})
    assert streamed(START, delta("x"), counted, STOP, END_OF_ALL)[1].records[0].usage == {
        "input_tokens": 30,
        "cache_read_input_tokens": 5,
        "output_tokens": 15,
    }
    scanner = ENDPOINTS["messages"].scanner()
    for event in (START, delta("x"), counted, delta("y"), STOP, END_OF_ALL):
        scanner.feed(event)
    assert scanner.usage.counts() == {"input_tokens": 30, "cache_read_input_tokens": 5, "output_tokens": 15}


@pytest.mark.parametrize("last", [(STOP,), (STOP, END_OF_ALL), (END_OF_ALL,)], ids=["stop_reason", "both", "stop"])
def test_m2_a_stream_is_whole_by_message_stop_or_by_a_stop_reason_and_a_clean_end(last):
    got, world = streamed(START, delta("x"), *last)
    assert [record.outcome for record in world.records] == ["ok"]
    assert b"event: error" not in got


OURS = b"event: error\ndata: "


@pytest.mark.parametrize(
    ("events", "whole", "code"),
    [
        ((START, delta("x")), True, "stream_truncated"),
        ((START, delta("x"), END_OF_BLOCK), True, "stream_truncated"),
        ((START, delta("x")), False, "stream_truncated"),
        ((START, delta("x"), STOP), False, "stream_truncated"),
        ((START, delta("x"), b"data: [DONE]\n\n"), True, "stream_truncated"),
        ((START, delta("x"), b'data: {"detail": "no"}\n\n', STOP, END_OF_ALL), True, "provider_error"),
        ((START, delta("x"), OVERLOADED.partition(b"\n")[2]), True, "provider_error"),
        ((START, delta("x"), OVERLOADED.partition(b"\n")[2], STOP, END_OF_ALL), True, "provider_error"),
    ],
    ids=[
        "clean end",
        "end of block",
        "lost",
        "lost behind stop_reason",
        "[DONE]",
        "detail",
        "no event line",
        "and an end",
    ],
)
def test_m3_a_break_is_an_error_event_that_anthropic_s_clients_see(events, whole, code):
    got, world = streamed(*events, whole=whole)
    body = events_in(got)
    assert body.count(OURS) == 1
    said = body.partition(OURS)[2].partition(b"\n\n")[0]
    error = json.loads(said)
    assert error["type"] == "error"
    assert error["error"]["type"] == "api_error"
    assert set(error["error"]) == {"type", "message"}
    assert [record.outcome for record in world.records] == [code]
    assert got.endswith(b"0\r\n\r\n"), "an error of the protocol's own ends the answer properly"


def test_m3_an_error_of_the_provider_behind_the_first_output_goes_on_as_it_is():
    got, world = streamed(START, delta("x"), OVERLOADED)
    assert events_in(got) == START + delta("x") + OVERLOADED
    assert [record.outcome for record in world.records] == ["provider_error"]


def test_m3_an_event_in_pieces_is_ended_before_ours():
    scanner = ENDPOINTS["messages"].scanner()
    scanner.feed(START + delta("x"))
    scanner.feed(delta("y" * 200_000)[:-10])
    got = scanner.error_event(StreamBroken("stream_reset", "It was reset."))
    assert got.startswith(b"\n\nevent: error\ndata: ")


def test_m2_a_large_event_in_pieces_is_output_and_its_stop_reason_completes():
    scanner = ENDPOINTS["messages"].scanner()
    scanner.feed(START + delta("x"))
    large = sent("message_delta", delta={"stop_reason": "end_turn"}, more="y" * 200_000)
    for at in range(0, len(large), 70_000):
        scanner.feed(large[at : at + 70_000])
    assert scanner.complete


@pytest.mark.parametrize("first", [[OVERLOADED], [START, OVERLOADED], [START, BLOCK, PING, OVERLOADED], [START, PING]])
def test_m2_an_error_first_or_no_output_at_all_falls_through(first):
    _, world = streamed(*first)
    assert b'"model":"model-of-p2"' in world.doors["p2"].wire.take()


def test_m3_a_keep_alive_is_a_ping_of_the_protocol():
    world = MemoryGateway(1, keepalive="15s")
    client = world.open()
    client.say(request({**ASKED, "stream": True}, PATH))
    world.doors["p1"].wire.say(STREAM_HEAD + chunk(START) + chunk(delta("x")))
    assert events_in(client.take()) == START + delta("x")
    world.clock.advance(15.1)
    assert client.take().split(b"\r\n")[1] == b'event: ping\ndata: {"type": "ping"}\n\n'


# What is not streamed


def plain(body: bytes, path: str = PATH, status: int = 200, **route) -> tuple[bytes, MemoryGateway]:
    world = MemoryGateway(**route)
    client = world.open()
    client.say(request(ASKED, path))
    world.doors["p1"].wire.say(head(status, Content_Length=str(len(body))) + body)
    return client.take(), world


@pytest.mark.parametrize(
    "body", [PLAIN, json.dumps({**WHOLE, "content": []}).encode(), PLAIN[:-1] + b', "error": null}']
)
def test_m2_a_whole_message_is_an_answer(body):
    got, world = plain(body)
    assert body_of(got) == body
    assert world.records[0].usage == USAGE


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}',
        PLAIN[:-9],
        b"<html>",
    ],
)
def test_m2_a_200_without_a_message_falls_through(body):
    got, world = plain(body)
    assert got == b""
    assert b"POST /v1/messages HTTP/1.1" in world.doors["p2"].wire.take()


def test_m5_count_tokens_is_an_endpoint_whose_answer_is_a_number():
    got, world = plain(b'{"input_tokens": 12}', COUNT)
    assert json.loads(body_of(got)) == {"input_tokens": 12}
    assert b"POST /v1/messages/count_tokens HTTP/1.1" in world.doors["p1"].wire.take()
    got, world = plain(b'{"type": "message"}', COUNT)
    assert got == b""


def test_m5_a_404_to_count_tokens_is_passed_on_at_once():
    """The client then counts by itself; another step's model would count in another way."""
    body = b'{"detail": "Not Found"}'
    got, world = plain(body, COUNT, 404)
    assert got.startswith(b"HTTP/1.1 404 ")
    assert body_of(got) == body
    assert "p2" not in world.doors or not world.doors["p2"].wires
    got, _ = plain(body, PATH, 404)
    assert got == b"", "a message goes on to the next step"


# What goes to the provider, and what comes back


def asked_with(headers: dict[str, str], target: str = PATH, body: bytes | dict = ASKED) -> tuple[bytes, MemoryGateway]:
    """The request that the provider got."""
    world = MemoryGateway()
    client = world.open()
    client.say(request(body, target, headers={"x-api-key": KEY, **headers}))
    return world.doors["p1"].wire.take() if "p1" in world.doors else client.take(), world


def test_m4_the_query_and_every_anthropic_header_go_on():
    given = {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,unknown-9999-99-99",
        "anthropic-dangerous-direct-browser-access": "true",
        "Anthropic-Something-New": "a, b;c",
    }
    got, _ = asked_with(given, f"{PATH}?beta=true&x=%2F")
    assert got.startswith(b"POST /v1/messages?beta=true&x=%2F HTTP/1.1\r\nHost: p1\r\n")
    lines = got.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
    for name, value in given.items():
        assert f"{name}: {value}".lower().encode() in lines
    assert KEY.encode() not in got


def test_m4_the_query_of_a_client_is_remembered_nowhere():
    world = MemoryGateway()
    client = world.open()
    for number in range(3):
        client.say(request(ASKED, f"{PATH}?n={number}"))
        assert b"?n=%d HTTP/1.1\r\n" % number in world.doors["p1"].wire.take()
        world.doors["p1"].wire.say(head(Content_Length=str(len(PLAIN))) + PLAIN)
    (known,) = world.gateway.upstream._clients["p1"]._starts
    assert known == ("POST", "http://p1/v1/messages")


def test_m4_elsewhere_neither_goes_on():
    got, _ = asked_with({"anthropic-beta": "x"}, "/v1/chat/completions?beta=true")
    assert got.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert b"nthropic" not in got


def test_m4_a_header_of_the_provider_s_configuration_is_not_replaced():
    top = {
        "providers": [
            {"name": "p1", "base_url": "http://p1/v1", "api_key": "key-of-p1", "headers": {"anthropic-version": "ours"}}
        ]
    }
    world = MemoryGateway(1, top=top)
    world.open().say(request(ASKED, PATH, headers={"x-api-key": KEY, "anthropic-version": "theirs"}))
    got = world.doors["p1"].wire.take().lower()
    assert b"anthropic-version: ours\r\n" in got
    assert b"theirs" not in got


@pytest.mark.parametrize(
    ("auth", "line"),
    [
        (None, b"Authorization: Bearer key-of-p1"),
        ("bearer", b"Authorization: Bearer key-of-p1"),
        ("x-api-key", b"X-Api-Key: key-of-p1"),
    ],
)
def test_m4_the_key_goes_as_the_provider_s_auth_says(auth, line):
    provider = {"name": "p1", "base_url": "http://p1/v1", "api_key": "key-of-p1", **({"auth": auth} if auth else {})}
    world = MemoryGateway(1, top={"providers": [provider]})
    world.open().say(request(ASKED, PATH, headers={"authorization": f"Bearer {KEY}"}))
    lines = world.doors["p1"].wire.take().split(b"\r\n")
    assert line in lines
    assert sum(each.lower().startswith((b"authorization:", b"x-api-key:")) for each in lines) == 1


def test_m4_headers_of_the_provider_come_back():
    world = MemoryGateway()
    client = world.open()
    client.say(request(ASKED, PATH))
    named = {
        "request-id": "req_1",
        "anthropic-ratelimit-requests-remaining": "9",
        "anthropic-organization-id": "org",
        "retry-after": "3",
        "x-should-retry": "true",
        "x-secret": "no",
    }
    lines = {name.replace("-", "_"): value for name, value in named.items()}
    world.doors["p1"].wire.say(head(Content_Length=str(len(PLAIN)), **lines) + PLAIN)
    got = client.take().lower().split(b"\r\n")
    for name, value in named.items():
        assert (f"{name}: {value}".encode() in got) is (name != "x-secret")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": KEY}, 0),
        ({"authorization": f"Bearer {KEY}"}, 0),
        ({"x-api-key": KEY, "authorization": f"Bearer {KEY}"}, 0),
        ({"x-api-key": KEY, "authorization": "Bearer wrong-key-of-another"}, 401),
        ({}, 401),
    ],
)
def test_m4_the_key_of_a_client_may_be_in_either_header_or_in_both(headers, status):
    world = MemoryGateway()
    client = world.open()
    client.say(request(ASKED, PATH, headers=headers))
    got = client.take()
    if not status:
        assert world.doors["p1"].wire.take()
        return
    assert got.startswith(b"HTTP/1.1 401 ")
    assert json.loads(body_of(got))["error"]["type"] == "authentication_error"


# Our own errors


@pytest.mark.parametrize(
    ("sent", "status", "kind"),
    [
        (request(b"{", PATH), 400, "invalid_request_error"),
        (request({**ASKED, "model": "no"}, PATH), 404, "not_found_error"),
        (request(ASKED, PATH, headers={}), 401, "authentication_error"),
        (request(ASKED, f"{PATH}/batches"), 404, "not_found_error"),
        (request(None, PATH, "GET"), 405, "invalid_request_error"),
        (request(b"", PATH, headers={"x-api-key": KEY, "Content-Length": "99999999"}), 413, "request_too_large"),
        (
            request(
                b"zz\r\n", PATH, headers={"x-api-key": KEY, "Transfer-Encoding": "chunked", "Content-Length": ""}
            ).replace(b"Content-Length: \r\n", b""),
            400,
            "invalid_request_error",
        ),
    ],
    ids=["body", "model", "key", "path", "method", "size", "chunks"],
)
def test_m3_our_own_errors_have_anthropic_s_envelope(sent, status, kind):
    world = MemoryGateway()
    client = world.open()
    client.say(sent.replace(b"\r\n", b"\r\nX-Request-Id: req-1\r\n", 1))
    got = client.take()
    assert got.startswith(b"HTTP/1.1 %d " % status)
    body = json.loads(body_of(got))
    assert (body["type"], body["error"]["type"], body["request_id"]) == ("error", kind, "req-1")
    assert body["error"]["message"]


BAD_HEADS = {
    "anthropic-version: 1\r\nanthropic-version: 2\r\n": 400,
    "x: a\x01b\r\n": 400,
    "Transfer-Encoding: chunked\r\n": 400,
    "x: " + "y" * 17_000 + "\r\n": 431,
    "x: y\r\n" * 101: 431,
}


@pytest.mark.parametrize("target", [PATH, f"{PATH}?beta=true", f"http://gateway{PATH}", f"{PATH}/count_tokens"])
@pytest.mark.parametrize(("lines", "status"), BAD_HEADS.items(), ids=["repeated", "control", "framing", "long", "many"])
@pytest.mark.parametrize("size", [40, 10**6])
def test_m3_s4_so_has_the_error_of_a_bad_head(target, lines, status, size):
    sent = request(ASKED, target).replace(b"\r\n", b"\r\n" + lines.encode(), 1)
    client = MemoryGateway().open()
    for at in range(0, len(sent), size):
        client.say(sent[at : at + size])
    got = client.take()
    assert got.startswith(b"HTTP/1.1 %d " % status)
    body = json.loads(body_of(got))
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert f"X-Request-Id: {body['request_id']}\r\n".encode() in got


def test_m3_s4_so_has_the_error_of_a_head_that_does_not_end():
    world = MemoryGateway()
    client = world.open()
    client.say(request(ASKED, PATH)[:60])
    world.clock.advance(60)
    assert json.loads(body_of(client.take()))["error"]["type"] == "invalid_request_error"


def test_m3_all_steps_failed_is_an_api_error_with_the_attempts():
    world = MemoryGateway()
    client = world.open()
    client.say(request(ASKED, PATH))
    for name in ("p1", "p2"):
        world.doors[name].wire.say(head(529, Content_Length="2") + b"{}")
    got = client.take()
    assert got.startswith(b"HTTP/1.1 502 ")
    error = json.loads(body_of(got))["error"]
    assert (error["type"], error["code"]) == ("api_error", "all_steps_failed")
    assert [each["status"] for each in error["attempts"]] == [529, 529]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (403, "permission_error"),
        (409, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (507, "api_error"),
    ],
)
def test_m3_the_type_of_an_error_is_that_of_its_status(status, kind):
    error = type("Other", (GatewayError,), {"status": status})("why")
    assert json.loads(ENDPOINTS["messages"].error_body(error, "r"))["error"]["type"] == kind


# HEAD /


@pytest.mark.parametrize("target", ["/", "/?x=1"])
def test_m4_head_of_the_root_needs_no_key(target):
    client = MemoryGateway().open()
    client.say(request(None, target, "HEAD", headers={}))
    got = client.take()
    assert got.startswith(b"HTTP/1.1 200 ")
    assert body_of(got) == b""
    client.say(request(None, "/", "GET", headers={}))
    assert client.take().startswith(b"HTTP/1.1 401 ")
    client.say(request(None, "/", "GET"))
    assert client.take().startswith(b"HTTP/1.1 404 ")


# R1, M4: everything arrives


NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=30)
# RFC 9110, section 5.5: a value has visible characters, what is not ASCII, and spaces and tabs within it.
VALUES = st.text(
    st.characters(codec="latin-1", exclude_categories=["Cc"]) | st.just("\t"), min_size=1, max_size=60
).filter(lambda value: value == value.strip(" \t"))


@given(r=st.randoms(use_true_random=True), examples=(200, 3000), suppress_health_check=list(HealthCheck))
def test_r1_every_byte_of_a_body_arrives_but_for_the_model(r):
    content = (
        f'[ {{"role" : "user", "content":[{any_value(r)}, {any_value(r)}]}}, {{"role":"system","x":{any_value(r)}}} ]'
    )
    body = list({"model": '"route"', "messages": content, "max_tokens": "1.0e2", **members(r)}.items())
    r.shuffle(body)
    space = r.choice(SPACES)
    text = ",".join(f'{space}"{key}"{space}:{space}{each}{space}' for key, each in body)
    world, client = PROPERTY_WORLD, PROPERTY_CLIENT
    client.say(request(f"{space}{{{text}}}{space}".encode(), PATH))
    got = body_of(world.doors["p1"].wire.take())
    expected = [("model", '"model-of-p1"') if key == "model" else (key, each.strip()) for key, each in body]
    assert got == ("{" + ",".join(f'"{key}":{each}' for key, each in expected) + "}").encode()
    world.doors["p1"].wire.say(head(Content_Length=str(len(PLAIN))) + PLAIN)
    assert client.take().startswith(b"HTTP/1.1 200 ")


@given(sent=st.dictionaries(NAMES, VALUES, max_size=20), examples=(100, 2000))
def test_m4_every_anthropic_header_arrives_as_it_is(sent):
    world, client = PROPERTY_WORLD, PROPERTY_CLIENT
    lines = b"".join(f"anthropic-{name}: {value}\r\n".encode("latin-1") for name, value in sent.items())
    client.say(request(ASKED, PATH).replace(b"\r\n\r\n", b"\r\n" + lines + b"\r\n", 1))
    got = world.doors["p1"].wire.take().partition(b"\r\n\r\n")[0].split(b"\r\n")
    found = dict(line.split(b": ", 1) for line in got[1:] if line.lower().startswith(b"anthropic-"))
    assert {name.lower(): value for name, value in found.items()} == {
        f"anthropic-{name}".encode(): value.encode("latin-1") for name, value in sent.items()
    }
    world.doors["p1"].wire.say(head(Content_Length=str(len(PLAIN))) + PLAIN)
    assert client.take().startswith(b"HTTP/1.1 200 ")


QUERIES = st.text("".join(map(chr, range(0x21, 0x7F))).replace('"', "").replace("#", ""), max_size=60)


@given(query=QUERIES, examples=(100, 2000))
def test_m4_a_query_arrives_as_it_is(query):
    world, client = PROPERTY_WORLD, PROPERTY_CLIENT
    client.say(request(ASKED, f"{PATH}?{query}"))
    assert world.doors["p1"].wire.take().startswith(f"POST {PATH}?{query} HTTP/1.1\r\n".encode())
    world.doors["p1"].wire.say(head(Content_Length=str(len(PLAIN))) + PLAIN)
    assert client.take().startswith(b"HTTP/1.1 200 ")


PROPERTY_WORLD = MemoryGateway()
PROPERTY_CLIENT = PROPERTY_WORLD.open()


@given(
    r=st.randoms(use_true_random=True),
    events=st.lists(st.sampled_from([*STREAM, OVERLOADED, b": x\n\n", b"data: x\n\n"]), max_size=8),
    examples=(200, 3000),
    suppress_health_check=list(HealthCheck),
)
def test_a3_however_a_stream_is_cut_into_reads_it_means_the_same(r, events):
    data = b"".join([START, delta("x"), *events])

    def read(pieces: list[bytes]):
        scanner = ENDPOINTS["messages"].scanner()
        passed, ended = b"", False
        for piece in pieces:
            if not ended:
                found, meaning = scanner.feed(piece)
                passed, ended = passed + found, meaning is END
        return passed, ended, scanner.complete, scanner.failure is None, scanner.usage.counts()

    cuts = sorted(r.randrange(len(data) + 1) for _ in range(r.randrange(6)))
    pieces = [data[start:end] for start, end in itertools.pairwise([0, *cuts, len(data)])]
    assert read([piece for piece in pieces if piece]) == read([data])
