"""Q: the straight path changes nothing. Each case is played on two gateways, of which one has no straight path."""

from __future__ import annotations

import gc
import gzip
import itertools
import json
import os
import random
import subprocess
import sys
import weakref
from unittest.mock import patch

import pytest
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone

from aigw.net import headers
from aigw.protocols.envelope import SMALL as MOST
from aigw.proxy.exchange import Exchange
from aigw.proxy.plain import HOLD_PLAIN
from aigw.server import plain_requests, repeated_head
from aigw.straight import path as straight
from aigw.straight.path import StraightCall
from aigw.upstream.connection import Connection
from tests.harness import HELLO, KEY, request
from tests.memory import MemoryGateway, Wire
from tests.properties import given
from tests.providers import chunk, event, head
from tests.twins import ASK, BODY, GOOD, difference


def answer(body: bytes = BODY, status: int = 200, kind: str = "application/json", **headers: str) -> bytes:
    return head(status, kind, Content_Length=str(len(body)), **headers) + body


def plain(lines: bytes, body: bytes = BODY) -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n" + body


def chunked(body: bytes, ends: bytes = b"0\r\n\r\n", **headers: str) -> bytes:
    pieces = [body[at : at + 40] for at in range(0, len(body), 40)]
    return head(200, "application/json", Transfer_Encoding="chunked", **headers) + b"".join(map(chunk, pieces)) + ends


def choices(**choice: object) -> bytes:
    return json.dumps({"choices": [choice]}).encode()


def padded(size: int) -> bytes:
    return BODY[:-1] + b', "x": "' + b"x" * (size - len(BODY) - 10) + b'"}'


LENGTH = b"Content-Length: %d\r\n" % len(BODY)
ANSWERS: dict[str, bytes] = {
    "whole": GOOD,
    "in chunks": chunked(BODY),
    "with trailers": chunked(BODY, b"0\r\nX-Late: yes\r\n\r\n"),
    "with extensions of chunks": head(200, Transfer_Encoding="chunked")
    + b"%x;a=b\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "without a type": plain(LENGTH),
    "as text": answer(kind="text/plain"),
    "as a stream": answer(event({"content": "hi"}), kind="text/event-stream"),
    "a page": answer(b"<html>hi</html>", kind="text/html"),
    "headers that go on": answer(x_request_id="r-1", openai_model="m", x_ratelimit_limit_requests="7", retry_after="1"),
    "headers that stay": answer(set_cookie="a=b", server="x", date="now"),
    "many headers": answer(**{f"openai_{n}": "v" for n in range(80)}),
    "too many headers": answer(**{f"x_{n}": "v" for n in range(250)}),
    "a long header": answer(openai_long="v" * 5000),
    "a header over the limit": answer(openai_long="v" * 70000),
    "a key in a header": answer(openai_echo="key-of-p1"),
    "an escaped header": answer(openai_echo="a%20b"),
    "a key in the body": answer(choices(message={"content": "key-of-p1"})),
    "a long key in the body": answer(choices(message={"content": "sk-0123456789abcdefghij"})),
    "coded": answer(gzip.compress(BODY, mtime=0), content_encoding="gzip"),
    "coded as identity": answer(content_encoding="identity"),
    "coded without a word": answer(gzip.compress(BODY, mtime=0)),
    "empty": answer(b""),
    "white space": answer(b"  \r\n "),
    "no JSON": answer(b"hello"),
    "a list": answer(b"[]"),
    "half of JSON": answer(BODY[:-5]),
    "an error": answer(b'{"error": {"message": "no", "code": "bad"}}'),
    "an error beside choices": answer(BODY[:-1] + b', "error": {"message": "no"}}'),
    "no error beside choices": answer(BODY[:-1] + b', "error": null, "code": 0}'),
    "no choices": answer(b'{"choices": null}'),
    "empty choices": answer(b'{"choices": []}'),
    "an empty choice": answer(b'{"choices": [{}]}'),
    "a choice that failed": answer(choices(finish_reason="error")),
    "a choice that failed with content": answer(choices(finish_reason="error", message={"content": "x"})),
    "not a number": answer(BODY[:-1] + b', "x": NaN}'),
    "a lone surrogate": answer(choices(message={"content": "@"}).replace(b"@", rb"\ud83d")),
    "a byte order mark": answer(b"\xef\xbb\xbf" + BODY),
    "two usages": answer(BODY[:-1] + b', "x": {"usage": {"prompt_tokens": 9}}}'),
    "201": answer(status=201),
    "204": head(204),
    "206": answer(status=206),
    "redirect": answer(status=302, location="http://elsewhere/"),
    **{
        str(status): answer(b'{"error": {"message": "no", "type": "t", "code": "c"}}', status)
        for status in (400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 499, 500, 502, 503, 529)
    },
    "429 with a pause": answer(b"{}", 429, retry_after="20"),
    "408 and a close": answer(b"", 408, connection="close"),
    "100 first": b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD,
    "103 first": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + GOOD,
    "101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "not kept": answer(connection="close"),
    "not kept, in chunks": chunked(BODY, connection="close"),
    "until the close": plain(b"Content-Type: application/json\r\n"),
    "HTTP/1.0": GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "HTTP/1.0, kept": answer(connection="keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "two lengths": plain(LENGTH + b"Content-Length: 3\r\n"),
    "length and chunks": plain(LENGTH + b"Transfer-Encoding: chunked\r\n", chunk(BODY) + b"0\r\n\r\n"),
    "gzip and chunks": plain(b"Transfer-Encoding: gzip, chunked\r\n", chunk(BODY) + b"0\r\n\r\n"),
    "a bad length": plain(b"Content-Length: -1\r\n"),
    "a bad chunk": plain(b"Transfer-Encoding: chunked\r\n", b"zz\r\nhello"),
    "a folded header": plain(LENGTH + b"X-A: b\r\n c\r\n"),
    "a control character": plain(LENGTH + b"X-A: b\x00c\r\n"),
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x28",
    "more than was asked for": GOOD + b"more",
    "two answers": GOOD + GOOD,
    "the most that is held": answer(padded(HOLD_PLAIN)),
    "more than is held": answer(padded(HOLD_PLAIN + 1)),
    "much more than is held": chunked(padded(HOLD_PLAIN + 70_000)),
}
SMALL = [name for name, data in ANSWERS.items() if len(data) < 4096]
REST = {
    "nothing": [],
    "the provider closes": [("provider closes",)],
    "the provider resets": [("provider resets",)],
    "time passes": [("advance", 29.0), ("advance", 2.0)],
    "the process was stopped": [("jump", 45.0), ("advance", 3.0)],
    "the client leaves": [("client leaves",)],
    "the gateway stops": [("drain",), ("advance", 3.0), ("advance", 3.0)],
    "the gateway stops now": [("drain",), ("stop",)],
}
AFTER = {
    "nothing": [],
    "another request": [("client", ASK), ("provider", GOOD)],
    "a request of another client": [("other client", ASK), ("provider", GOOD)],
    "the second provider": [("other provider", GOOD), ("client", ASK), ("provider", GOOD)],
    "a short wait": [("advance", 1.0), ("other provider", GOOD), ("client", ASK), ("provider", GOOD)],
}
BEFORE = {
    "nothing": [],
    "the next request": [("client", ASK)],
    "half of the next request": [("client", ASK[:40])],
    "a slow reader": [("client stalls",)],
    "a slow provider": [("provider stalls",)],
    "a request beside it": [("other client", ASK)],
}


def in_reads(data: bytes, places: list[int]) -> list[tuple]:
    cuts = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [("provider", data[a:b]) for a, b in itertools.pairwise(cuts) if a != b]


def held_equal(events, **settings) -> int:
    """How many of the requests went the straight path; fails where the two gateways differ."""
    found, sent = difference(events, **settings)
    for mine, expected in found:
        names = ("event", "clients", "providers", "records", "failed attempts", "pools", "cooldowns", "counts")
        for name, one, other in zip(names, mine, expected, strict=False):
            assert one == other, (name, mine[0])
    return sent


# Q1: answers


@pytest.mark.parametrize("name", ANSWERS)
def test_q1_an_answer_is_what_it_would_be_without_the_straight_path(name):
    """Each of them whole, and in two reads, each with another rest and another follow-up."""
    data, chance = ANSWERS[name], random.Random(name)
    places = {0, 20, data.find(b"\r\n\r\n") + 4, len(data) - 1}
    for place in sorted(place for place in places if 0 <= place <= len(data)):
        rest, after = chance.choice([*REST.values()]), chance.choice([*AFTER.values()])
        events = [("client", ASK), *in_reads(data, [place]), *rest, *after]
        assert held_equal(events) >= 1


@pytest.mark.parametrize("rest", REST)
def test_q1_an_answer_that_does_not_come_whole(rest):
    afters = itertools.cycle(AFTER.values())
    for name in ("whole", "in chunks", "until the close", "400", "more than is held"):
        data = ANSWERS[name]
        for share in (0, len(data) // 2, len(data) - 1):
            assert held_equal([("client", ASK), *in_reads(data[:share], []), *REST[rest], *next(afters)]) >= 1


@pytest.mark.parametrize("before", BEFORE)
def test_q1_what_comes_before_the_answer(before):
    for name in ("whole", "not kept", "503", "a bad chunk"):
        for rest in REST.values():
            assert held_equal([("client", ASK), *BEFORE[before], *in_reads(ANSWERS[name], [60]), *rest]) >= 1


# Q2: requests


def asked(body: object = HELLO, **headers: str) -> bytes:
    written = {"Authorization": f"Bearer {KEY}", **{name.replace("_", "-"): each for name, each in headers.items()}}
    return request(body, headers=written)


def prompt(size: int) -> dict:
    return {**HELLO, "messages": [{"role": "user", "content": "x" * size}]}


TOOLS = {"tools": [{"type": "function"}], "response_format": {"type": "json_object"}}
REQUESTS: dict[str, bytes] = {
    "plain": ASK,
    "of an SDK": asked(User_Agent="OpenAI/Python", X_Stainless_Lang="python", Accept="application/json"),
    "headers for the provider": asked(OpenAI_Beta="a", Idempotency_Key="k", HTTP_Referer="r", X_Title="t"),
    "a trace": asked(Traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    "an id": asked(X_Request_Id="mine-1"),
    "an id that is not sane": asked(X_Request_Id="mine 1"),
    "a type": asked(Content_Type="application/json; charset=utf-8"),
    "another charset": asked(Content_Type="application/json; charset=utf-16"),
    "no type": ASK.replace(b"Content-Type: application/json\r\n", b""),
    "X-Api-Key": ASK.replace(b"Authorization: Bearer", b"X-Api-Key:"),
    "two keys of one caller": asked(Api_Key=KEY),
    "no key": request(HELLO, headers={}),
    "a wrong key": request(HELLO, headers={"Authorization": "Bearer wrong"}),
    "Expect": asked(Expect="100-continue"),
    "Connection": asked(Connection="close"),
    "HTTP/1.0": ASK.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "a leading line": b"\r\n" + ASK,
    "a query": ASK.replace(b" HTTP", b"?a=b HTTP"),
    "a whole URL": ASK.replace(b"POST /", b"POST http://gateway/"),
    "another path": ASK.replace(b"chat/completions", b"completions"),
    "embeddings": ASK.replace(b"chat/completions", b"embeddings"),
    "moderations": ASK.replace(b"chat/completions", b"moderations"),
    "messages": ASK.replace(b"chat/completions", b"messages"),
    "responses": ASK.replace(b"chat/completions", b"responses"),
    "speech": ASK.replace(b"chat/completions", b"audio/speech"),
    "no such path": ASK.replace(b"chat/completions", b"chats"),
    "another method": ASK.replace(b"POST", b"PUT"),
    "a stream": asked({**HELLO, "stream": True}),
    "no stream": asked({**HELLO, "stream": False}),
    "a stream or null": asked({**HELLO, "stream": None}),
    "a wrong stream": asked({**HELLO, "stream": "yes"}),
    "a hidden stream": asked(
        b'{"model": "route", "messages": [{"role": "user", "content": "hi"}], "\\u0073tream": true}'
    ),
    "text with a stream": asked({**HELLO, "messages": [{"role": "user", "content": '"stream"'}]}),
    "no JSON": asked(b"hello"),
    "half of JSON": asked(b'{"model": "route"'),
    "no messages": asked({"model": "route"}),
    "no model": asked({"messages": HELLO["messages"]}),
    "another model": asked({**HELLO, "model": "nothing"}),
    "another name": asked({**HELLO, "model": "also"}),
    "a name with a star": asked({**HELLO, "model": "star/x"}),
    "Model": asked({**HELLO, "Model": "route"}),
    "two models": asked(b'{"model": "x", "model": "route", "messages": [{"role": "user"}]}'),
    "a lone surrogate": asked(b'{"model": "route", "messages": [{"role": "user", "content": "\\ud83d"}]}'),
    "deep": asked(b'{"model": "route", "messages": [{"role": "user"}], "x": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "bytes of its own": asked(b'{ "x" : 1.0 , "model":"route", "messages": [{"role": "user"}], "y": 1e400}'),
    "tools and a format": asked({**HELLO, **TOOLS}),
    "over 16 KiB": asked(prompt(20_000)),
    "over 64 KiB": asked(prompt(100_000)),
    "the most": asked(prompt(MOST - 67 + 2)),
    "over the most": asked(prompt(MOST)),
    "large": asked(prompt(300_000)),
    "in chunks": ASK.partition(b"Content-Length")[0]
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + chunk(b"{}")
    + b"0\r\n\r\n",
    "length 0": asked(b""),
    "a long length": ASK.replace(b"Content-Length: ", b"Content-Length: 000000"),
    "zeros in the length": ASK.replace(b"Content-Length: ", b"Content-Length: 00"),
    "two lengths": ASK.replace(b"Content-Length: ", b"Content-Length: 5\r\nContent-Length: "),
    "a wrong length": ASK.replace(b"Content-Length: ", b"Content-Length: x"),
    "compressed": asked(gzip.compress(json.dumps(HELLO).encode(), mtime=0), Content_Encoding="gzip"),
    "two at once": ASK + ASK,
    "and a half": ASK + ASK[:50],
}
STRAIGHT = """plain; of an SDK; headers for the provider; a trace; an id; an id that is not sane; a type; another charset; no type;
X-Api-Key; two keys of one caller; no stream; a stream or null; another name; bytes of its own; over 16 KiB; over 64 KiB; the most; zeros in the length;
another path; embeddings; moderations; messages; a stream; a hidden stream; two models; a leading line; text with a stream; two at once; and a half"""
ROUTES = {
    "routes": [
        {
            "name": "route",
            "also": ["also", "star/*"],
            "timeout": "30s",
            "steps": [{"provider": f"p{n}", "model": f"model-of-p{n}", "conflict_resolution": "tools"} for n in (1, 2)],
        }
    ]
}
ENDS = {"embeddings": b'{"data": [{"embedding": [1]}]}', "messages": b'{"content": [], "usage": {"input_tokens": 3}}'}


def in_segments(data: bytes, *places: int) -> list[tuple]:
    return [("client", piece) for _, piece in in_reads(data, [*places])]


@pytest.mark.parametrize("name", REQUESTS)
def test_q2_a_request_is_what_it_would_be_without_the_straight_path(name):
    """In one segment, in two (as the official Python client sends it), in three, and again on the same connection."""
    data, good = REQUESTS[name], answer(ENDS[name]) if name in ENDS else GOOD
    at = data.find(b"\r\n\r\n") + 4
    sent = 0
    for places in ([], [at], [at - 2, at + 9]):
        events = [*in_segments(data, *places), ("provider", good), *in_segments(data, *places), ("provider", good)]
        sent += held_equal(events, top=ROUTES)
    is_straight = name in [each.strip() for each in STRAIGHT.replace("\n", " ").split(";")]
    assert (sent > 0) is is_straight, sent


@pytest.mark.parametrize("rest", REST)
def test_q2_a_request_that_does_not_come_whole(rest):
    for end in (ASK.find(b"\r\n\r\n") + 4, len(ASK) - 5):
        for after in ([], [("client", ASK[end:]), ("provider", GOOD)]):
            held_equal([("client", ASK[:end]), *REST[rest], *after])
            held_equal([("client", ASK), ("provider", GOOD), ("client", ASK[:end]), *REST[rest], *after])


# Of a body over 64 KiB a client's connection brings several pieces, and a provider's does not take it at once.
LONG = asked(prompt(150_000))
PIECES = in_segments(LONG, *range(60_000, len(LONG), 60_000))
READS = ("provider reads",)


@pytest.mark.parametrize(
    "name", ["whole", "in chunks", "not kept", "400", "413", "500", "100 first", "103 first", "two answers"]
)
def test_q1_an_answer_before_the_provider_has_a_large_body(name):
    """Before a byte of it, between two reads, and behind it; whole and in two parts."""
    data, chance = ANSWERS[name], random.Random(name)
    for places, rest in itertools.product(([], [30], [len(data) - 3]), chance.sample([*REST.values()], 2)):
        first, *others = in_reads(data, places)
        for events in ([first, *others, READS], [first, READS, *others], [READS, first, *others]):
            assert held_equal([*PIECES, *events, *rest, ("client", ASK), ("provider", GOOD)]) >= 1


@pytest.mark.parametrize("rest", REST)
def test_q1_a_large_body_that_the_provider_does_not_take(rest):
    """It ends in some way before the provider has read it; the client may have sent more, or nothing."""
    for before in BEFORE.values():
        for reads in ([], [READS]):
            assert held_equal([*PIECES, *before, *reads, *REST[rest], ("other provider", GOOD), READS]) >= 1


@pytest.mark.parametrize("rest", REST)
def test_q2_a_large_body_that_does_not_come_whole(rest):
    """In one piece, two or three; its head is new, or the one before it."""
    known = [*PIECES, READS, ("provider", GOOD)]
    for count, first in itertools.product(range(1, len(PIECES)), ([], known)):
        for more in ([], [*PIECES[count:], READS, ("provider", GOOD)]):
            held_equal([*first, *PIECES[:count], *REST[rest], *more, ("client", ASK), ("provider", GOOD)])


def test_q2_a_large_body_is_sent_on_as_it_was_read():
    """Its parts in any number of reads, with white space and names as the client wrote them."""
    body = b'{ "x" : [ 1 ] , "messages" : [ {"content": "%s", "role":"user"} ],\n "model" :"route" }' % (b"y" * 130_000)
    data = asked(body)
    for size in (1 << 14, 1 << 16, 70_001, len(data)):
        events = in_segments(data, *range(size, len(data), size))
        assert held_equal([*events, READS, ("provider", GOOD), *events, READS, ("provider", GOOD)]) == 2


def test_q2_what_is_known_of_a_head_ends_with_the_configuration():
    gateway, other = MemoryGateway(steps=1), MemoryGateway(steps=1, top={"api_key": "another-key-of-the-gateway"})
    client = gateway.open()
    for _ in range(2):
        client.say(ASK)
        gateway.doors["p1"].wire.say(GOOD)
    assert client.take().count(b"200 OK") == 2
    gateway.site.resource = other.site.resource
    client.say(ASK)
    assert client.take().startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("answered", ["500", "whole", "half"])
def test_q1_a_call_ends_as_it_began_after_a_reload_that_removes_its_key(monkeypatch, answered):
    monkeypatch.setattr(straight, "IS_ON", True)
    gateway, other = MemoryGateway(steps=2), MemoryGateway(steps=1, top={"api_key": "another-key-of-the-gateway"})
    client = gateway.ask()
    gateway.doors["p1"].wire.say(GOOD)
    client.say(ASK)
    client.take()
    assert isinstance(*gateway.gateway.running, StraightCall)
    gateway.site.resource = other.site.resource
    gateway.site.limit(other.config)
    if answered == "half":
        gateway.doors["p1"].wire.say(GOOD[:-5])
        gateway.doors["p1"].wire.lost(ConnectionDone())
    else:
        gateway.doors["p1"].wire.say(ANSWERS[answered])
    if answered != "whole":
        gateway.doors["p2"].wire.say(GOOD)
    assert client.take().startswith(b"HTTP/1.1 200 ")
    assert [record.caller for record in gateway.records] == ["default"] * 2
    client.say(ASK)
    assert client.take().startswith(b"HTTP/1.1 401 ")


def test_q1_a_client_that_does_not_read_a_whole_answer_at_once(monkeypatch):
    """The transport pauses its producer in the middle of the one write."""
    for is_on in (True, False):
        monkeypatch.setattr(straight, "IS_ON", is_on)
        gateway = MemoryGateway(steps=1)
        client = gateway.ask()
        gateway.doors["p1"].wire.say(GOOD)
        client.say(ASK)
        client.take()
        monkeypatch.setattr(
            client, "write", lambda data, to=client: (Wire.write(to, data), to.producer.pauseProducing())
        )
        gateway.doors["p1"].wire.say(GOOD)
        assert client.take().endswith(BODY)
        assert client.producerState == "paused"
        assert len(gateway.records) == 2
        client.producer.resumeProducing()
        assert client.producerState == "producing"
        client.say(ASK)
        gateway.doors["p1"].wire.say(GOOD)
        assert client.take().endswith(BODY)
        assert gateway.site.bodies.under_way == 0


@pytest.mark.parametrize("limited", [False, True], ids=["without limits", "with limits"])
def test_q2_a_reload_lets_the_old_configuration_be_freed(monkeypatch, limited):
    monkeypatch.setattr(straight, "IS_ON", True)
    keys = {"keys": [{"name": "a", "key": LIMITED, **LIMITS}]} if limited else {}
    ask = ASK.replace(KEY.encode(), LIMITED.encode()) if limited else ASK
    gateway, other = MemoryGateway(steps=1, top=keys), MemoryGateway(steps=1, top=keys)
    for _ in range(2):
        client = gateway.open()
        for _ in range(2):
            client.say(ask)
            gateway.doors["p1"].wire.say(GOOD)
    tree = gateway.site.resource
    old = [weakref.ref(each) for each in (tree, tree.known[b"/v1/chat/completions"]._limited)]
    gateway.site.resource, gateway.gateway = other.site.resource, other.gateway
    gateway.site.limit(other.config)
    del tree
    gc.collect()
    assert [each() for each in old] == [None, None]


def test_q2_an_id_that_holds_a_key_is_another_id_each_time():
    gateway = MemoryGateway(steps=1)
    gateway.site.redaction.use(gateway.config.secrets)
    client = gateway.open()
    for _ in range(3):
        client.say(asked(X_Request_Id="key-of-p1"))
        gateway.doors["p1"].wire.say(GOOD)
    ids = {record.request_id for record in gateway.records}
    assert len(ids) == 3
    assert "key-of-p1" not in ids


def test_q1_a_call_on_the_straight_path_is_counted_while_it_runs(monkeypatch):
    """Also in the limit of all bodies, until its answer begins."""
    monkeypatch.setattr(straight, "IS_ON", True)
    gateway = MemoryGateway(steps=1)
    client = gateway.open()
    for _ in range(2):
        client.say(ASK)
        (running,) = gateway.gateway.running
        assert running.route == "route"
        assert gateway.site.bodies.under_way == len(ASK.partition(b"\r\n\r\n")[2])
        gateway.doors["p1"].wire.say(GOOD)
        assert not gateway.gateway.running
        assert gateway.site.bodies.under_way == 0
    assert isinstance(running, StraightCall)


def test_q4_the_environment_turns_it_off():
    command = [sys.executable, "-c", "from aigw.straight import path; print(path.IS_ON)"]
    for value, expected in (("off", b"False"), ("", b"True")):
        environ = {**os.environ, "AIGW_STRAIGHT_PATH": value}
        assert subprocess.run(command, env=environ, capture_output=True, check=True).stdout.strip() == expected


# Q3: settings


SETTINGS: dict[str, dict] = {
    "a deadline": {"deadline": "20s"},
    "a hedge": {"hedge": {"after": "3s", "share": "50%"}},
    "held whole": {"hold": "whole"},
    "kept alive": {"keepalive": "15s"},
    "refusals passed on": {"when_refused": "pass_on"},
    "a short limit": {"timeout": "2s"},
    "a long limit": {"timeout": "200s"},
    "no address": {"top": {"log": {"client_address": False}}},
    "cors": {"top": {"cors": {"origins": ["https://a.example"]}}},
    "no idle time": {"top": {"limits": {"keep_alive": "1s"}}},
    "no cooldown": {"top": {"cooldown": "0s"}},
    "several keys": {"top": {"keys": [{"name": "a", "key": "a-key-of-a-caller-1234", "routes": ["ro*"]}]}},
    "a limit of the caller": {"top": {"keys": [{"name": "a", "key": "a-key-of-a-caller-1234", "requests": "5/m"}]}},
    "all limits of the caller": {
        "top": {
            "keys": [
                {
                    "name": "a",
                    "key": "a-key-of-a-caller-1234",
                    "requests": "100/m",
                    "tokens": "20k/m",
                    "concurrency": 3,
                    "wait": "1s",
                    "budget": [{"tokens": 1000000, "per": "day"}],
                }
            ]
        }
    },
    "a limit of tokens that is reached": {
        "top": {"keys": [{"name": "a", "key": "a-key-of-a-caller-1234", "tokens": "1030/m", "concurrency": 1}]}
    },
    "a key that has an end": {
        "top": {"keys": [{"name": "a", "key": "a-key-of-a-caller-1234", "expires": "2099-01-01"}]}
    },
}
SOME = ("whole", "500", "429", "not kept")
LONG_WAY = ("a deadline", "a hedge", "held whole", "cors", "a key that has an end")


@pytest.mark.parametrize("name", SETTINGS)
def test_q3_settings_change_nothing_about_it(name):
    ask = ASK.replace(KEY.encode(), b"a-key-of-a-caller-1234") if "key" in str(SETTINGS[name]) else ASK
    sent = 0
    for first, pause in zip(SOME, itertools.cycle((0.5, 25.0)), strict=False):
        events = [("client", ask), ("client", ask), ("provider", GOOD), ("client", ask), ("advance", pause)]
        events += [*in_reads(ANSWERS[first], [50]), ("other provider", GOOD), ("client", ask), ("advance", 0.5)]
        sent += held_equal([*events, ("provider", ANSWERS["whole"])], **SETTINGS[name])
    assert (sent == 0) is (name in LONG_WAY)


LIMITED = "a-key-of-a-caller-1234"
LIMITS = {
    "requests": "30/m",
    "tokens": "3k/m",
    "concurrency": 1,
    "wait": "5s",
    "budget": [{"tokens": 4000, "per": "day"}],
}


@pytest.mark.parametrize("name", ANSWERS)
def test_q5_limits_of_a_caller_are_taken_and_settled_as_without_it(name):
    """Whole, in two reads, and not at all; with a request that waits for the slot, and with one that finds no limit left."""
    ask, data, sent = ASK.replace(KEY.encode(), LIMITED.encode()), ANSWERS[name], 0
    chance = random.Random(name)
    for place in (0, chance.randrange(len(data) + 1)):
        rest = REST[chance.choice(sorted(REST))]
        events = [("client", ask), ("provider", GOOD), ("client", ask), *in_reads(data, [place]), *rest]
        more = [
            ("other client", ask),
            ("other provider", GOOD),
            ("provider", GOOD),
            ("client", ask),
            ("provider", GOOD),
        ]
        sent += held_equal([*events, *more], top={"keys": [{"name": "a", "key": LIMITED, **LIMITS}]})
        waits = [("client", ask), ("provider", GOOD), ("client", ask), ("other client", ask), ("client", ask)]
        events = [*waits, *in_reads(data, [place]), ("provider", GOOD), ("provider", GOOD), ("advance", 6.0), *rest]
        sent += held_equal(events, top={"keys": [{"name": "a", "key": LIMITED, **LIMITS}]})
    assert sent > 0


def test_q5_a_limit_that_is_reached_is_counted_once():
    ask = ASK.replace(KEY.encode(), LIMITED.encode())
    events = [event for _ in range(5) for event in (("client", ask), ("provider", GOOD))]
    for limits in ({"requests": "3/m"}, {"tokens": "2100/m"}, {"budget": [{"tokens": 1020, "per": "day"}]}):
        assert held_equal(events, top={"keys": [{"name": "a", "key": LIMITED, **limits}]}) > 0


@pytest.mark.parametrize("limits", [{"body": "1KiB"}, {"body": "1KiB", "bodies": "1KiB"}], ids=["one", "all"])
def test_q3_the_limits_of_bodies_hold(limits):
    for sizes in itertools.product((100, 600, 1000, 1100), repeat=2):
        first, second = (asked(prompt(size)) for size in sizes)
        for places in ([], [200], [700]):
            events = [("client", first), *in_segments(second, *places), ("other client", second), ("provider", GOOD)]
            held_equal([*events, ("other client", first), ("provider", GOOD)], top={"limits": limits})


# Q4: whatever happens

EVENTS = st.one_of(
    st.builds(
        lambda name, places: in_segments(REQUESTS[name], *places),
        st.sampled_from([*REQUESTS]),
        st.lists(st.integers(0, 400), max_size=3),
    ),
    st.builds(
        lambda name, places: in_reads(ANSWERS[name], places),
        st.sampled_from(SMALL),
        st.lists(st.integers(0, 400), max_size=3),
    ),
    st.builds(lambda name, size: in_reads(ANSWERS[name][:size], []), st.sampled_from(SMALL), st.integers(0, 200)),
    st.just([("client", ASK), ("provider", GOOD)]),
    st.just([("client", ASK)]),
    st.just([("other client", ASK)]),
    st.builds(lambda size: PIECES[:size], st.integers(1, 3)),
    st.just([*PIECES, READS]),
    st.just([("other provider", GOOD)]),
    st.sampled_from(
        [
            [each]
            for each in (
                ("client leaves",),
                ("client stalls",),
                ("client reads",),
                ("provider closes",),
                ("provider resets",),
                ("provider stalls",),
                READS,
                ("drain",),
                ("stop",),
            )
        ]
    ),
    st.builds(lambda seconds: [("advance", seconds)], st.sampled_from([0.0, 1.0, 3.9, 4.1, 29.9, 30.1, 70.0])),
    st.builds(lambda seconds: [("jump", seconds)], st.sampled_from([0.5, 5.0, 40.0])),
)


@given(st.lists(EVENTS, max_size=8), examples=(40, 1000))
def test_q4_whatever_happens(parts):
    held_equal([event for part in parts for event in part])


# Q6: faults of the gateway itself


FAULTS = {
    "the headers for a provider": (repeated_head.headers, "for_provider", "head"),
    "the lines": (straight.StraightPath, "lines", "head"),
    "the request": (straight.StraightPath, "send", "request"),
    "the call": (StraightCall, "__init__", "request"),
    "the write to the provider": (Connection, "send_straight", "request"),
    "the headers of the answer": (headers, "bounded", "answer"),
    "the usage": (straight, "usage_in", "answer"),
    "the write to the client": (plain_requests, "write", "answer"),
    "the record": (straight.StraightPath, "_record", "answer"),
    "the long way": (Exchange, "resume", "error"),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("limited", [False, True], ids=["without limits", "with limits"])
def test_q6_a_fault_of_the_gateway_leaves_no_client_waiting(monkeypatch, failures, name, limited):
    """The client gets an answer or an end, there is one record, the log has the fault, and nothing stays taken."""
    monkeypatch.setattr(straight, "IS_ON", True)
    keys = {"keys": [{"name": "a", "key": LIMITED, **LIMITS}]} if limited else {}
    gateway = MemoryGateway(timeout="30s", top=keys)
    ask = ASK.replace(KEY.encode(), LIMITED.encode()) if limited else ASK
    client = gateway.open()
    client.say(ask)
    gateway.doors["p1"].wire.say(GOOD)
    assert client.take().endswith(BODY)
    where, what, when = FAULTS[name]
    client = gateway.open() if when == "head" else client
    if when in ("answer", "error"):
        client.say(ask)
    with patch.object(where, what, side_effect=ZeroDivisionError, autospec=isinstance(where, type)):
        if when in ("head", "request"):
            client.say(ask)
        else:
            gateway.doors["p1"].wire.say(ANSWERS["500"] if when == "error" else GOOD)
    gateway.turns()
    assert client.take().startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 500 ")) or client.aborted
    assert len(gateway.records) == (1 if name == "the record" else 2)
    assert all("ZeroDivisionError" in each and "TypeError" not in each for each in failures)
    assert failures
    failures.clear()
    assert not gateway.gateway.running
    assert gateway.site.bodies.under_way == 0
    if limited:
        account = gateway.config.callers[-1].accounts[0]
        store = gateway.site.resource.known[b"/v1/chat/completions"]._limited.admission.store
        assert store.usage_of(account)["running"] == 0


@pytest.mark.parametrize("ends", ["500", "not kept"])
def test_q2_a_reload_during_a_call_lets_the_old_configuration_be_freed(monkeypatch, ends):
    """Also when the call went the long way, and its connection stays open."""
    monkeypatch.setattr(straight, "IS_ON", True)
    gateway, other = MemoryGateway(steps=1), MemoryGateway(steps=1)
    client = gateway.ask()
    gateway.doors["p1"].wire.say(GOOD)
    client.say(ASK)
    old = weakref.ref(gateway.site.resource)
    gateway.site.resource, gateway.gateway = other.site.resource, other.gateway
    gateway.site.limit(other.config)
    gateway.doors["p1"].wire.say(ANSWERS[ends])
    assert not client.disconnected
    gateway.doors.clear()
    gc.collect()
    assert old() is None
