"""S1-S4, S7, R2: whatever a client sends is answered in the OpenAI shape or closed, never with a 500, a hang or a traceback.

In memory thousands of connections with about three requests each; then some on real sockets, where TCP and TLS must
give the very answers that memory gave. A failing example prints its seed: ``r=Random(...)``.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from random import Random

import h11
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pytest_twisted import ensureDeferred
from twisted.internet.error import ConnectionDone

from aigw.access import refused_keys
from aigw.connections.ahead import MAX_BEHIND
from aigw.server.channel import Channel
from tests.harness import AUTH, CHAT, HELLO, KEY, request, until
from tests.memory import MemoryGateway, Wire
from tests.properties import times
from tests.providers import chunk, completion, head, whole_stream

ANSWER = completion(data=[{"embedding": [0.5]}], output=[], input_tokens=1)  # to a request of any endpoint
RESPONSE = [
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"x"}\n\n',
    b'event: response.completed\ndata: {"type":"response.completed","response":{"status":"completed"}}\n\n',
]
GOOD = head(Content_Length=str(len(ANSWER))) + ANSWER
STATUSES = {200, 400, 401, 404, 405, 408, 413, 415, 431}
LIMITS = {"limits": {"body": "64KiB"}}
CANARY = request(HELLO)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


# What comes back


@dataclass
class Answered:
    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def closes(self) -> bool:
        return b"close" in self.headers.get(b"connection", b"")

    @property
    def executed(self) -> bool:
        """Whether a provider was asked."""
        return self.headers.get(b"x-aigw-attempts", b"0") != b"0"


def answers(received: bytes, methods: list[bytes], closed: bool) -> tuple[list[Answered], bytes]:
    """All whole answers in what a connection received, by h11, which is strict, and the rest, which is not (yet) whole."""
    found: list[Answered] = []
    while received and received != CONTINUE:  # behind which a connection may be aborted, for too much was sent ahead
        method = b"HEAD" if methods[len(found) : len(found) + 1] == [b"HEAD"] else b"POST"
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "x"), ("Content-Length", "0")]))
        parser.send(h11.EndOfMessage())
        parser.receive_data(received)
        if closed:
            parser.receive_data(b"")
        each, event = Answered(0, {}, b""), None
        while type(event) is not h11.EndOfMessage:
            event = parser.next_event()
            if type(event) is h11.Response:
                each.status, each.headers = event.status_code, dict(event.headers)
            elif type(event) is h11.Data:
                each.body += event.data
            elif event is h11.NEED_DATA:
                return found, received
            else:
                assert type(event) in (h11.EndOfMessage, h11.InformationalResponse), event
        received = parser.trailing_data[0]
        assert not (received and each.closes), "nothing follows an answer that closes"
        check_shape(each, method)
        found.append(each)
    return found, b""


def check_shape(found: Answered, method: bytes) -> None:
    """S4: a status that makes sense, and an error in the OpenAI shape."""
    assert found.status in STATUSES
    assert b"server" not in found.headers
    if found.status == 200 or method == b"HEAD":
        return
    assert found.headers[b"content-type"] == b"application/json"
    assert int(found.headers[b"content-length"]) == len(found.body)
    whole = json.loads(found.body)
    assert list(whole) == ["error"]
    assert whole["error"].keys() == {"message", "type", "param", "code"}
    assert isinstance(whole["error"]["message"], str)
    assert whole["error"]["message"]
    assert whole["error"]["type"] == "invalid_request_error"


# The gateway under fire


class Target:
    """A gateway in memory, and its provider, which answers at once (or, told so, not at all)."""

    def __init__(self) -> None:
        self.world = MemoryGateway(steps=1, top=LIMITS)
        self.methods = methods = []

        class Spy(Channel):
            def connectionMade(self):
                super().connectionMade()
                takes = self.plain.takes

                def noted(*of):
                    methods.append(b"POST")
                    return takes(*of) or (methods.pop() and False)

                self.plain.takes = noted

            def _check_head(self, head, rest):
                methods.append(head.method)
                super()._check_head(head, rest)

        self.world.site.protocol = Spy

    def fire(self, segments: list[bytes], silent: bool = False) -> list[Answered]:
        """One connection that sends this, and everything that must be so whatever it is. Gives the answers."""
        self.methods.clear()
        client = self.world.open()
        executed = 0
        for segment in segments:
            if client.producerState == "paused":
                break
            client.say(segment)
            executed += self.provide(silent)
        for seconds in (60, 60, 5):  # half a line is waited for like a next request, 75 s; then a close may linger
            self.world.clock.advance(seconds)
        waiting = silent and executed > 0
        assert client.disconnected or waiting, "it hangs"
        found, rest = answers(client.take(), self.methods, client.disconnected)
        assert rest in (b"", CONTINUE), "half an answer"
        assert sum(each.executed for each in found) + waiting == executed, "each request is answered, or none was made"
        assert len(self.methods) - len(found) <= 1, "only the last may be incomplete, or wait"
        client.lost(ConnectionDone())
        self.tidy(waiting)
        return found

    def wires(self) -> list[Wire]:
        door = self.world.doors.get("p1")
        return door.wires if door else []

    def provide(self, silent: bool) -> int:
        """Answer what reached the provider; the number of requests."""
        total = 0
        self.world.turns()
        while asked := [wire for wire in self.wires() if wire.value()]:
            for wire in asked:
                top, separator, body = wire.take().partition(b"\r\n\r\n")
                assert separator
                assert b"content-length: %d\r\n" % len(body) in top.lower() + b"\r\n"
                total += 1
                if not silent:
                    wire.say(good(top, body))
            self.world.turns()
        return total

    def tidy(self, waiting: bool) -> None:
        """T4: what waited is gone with its client."""
        if waiting:
            assert self.wires()[-1].disconnected
        if self.wires():
            self.wires()[:] = [wire for wire in self.wires() if not wire.disconnected]
        self.world.records.clear()
        self.world.failed.clear()


def good(top: bytes, body: bytes) -> bytes:
    """A provider's answer to a request of any endpoint."""
    path = top.partition(b"\r\n")[0]
    if b"/embeddings" in path or b"/responses/" in path or not streamed(body):
        return GOOD
    return whole_stream(RESPONSE) if b"/responses" in path else whole_stream()


def streamed(body: bytes) -> bool:
    """Whether a provider, which reads JSON as anybody does, is asked for a stream."""
    return json.loads(body.decode(errors="replace"), parse_int=len, parse_float=len).get("stream") is True


# What a client may send

COMPLETE = json.dumps(HELLO).encode()


def chunked(body: bytes, size: int = 7, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    top = request(None, headers={**AUTH, "Transfer-Encoding": "chunked"})
    pieces = [chunk(body[at : at + size]) for at in range(0, len(body), size)]
    pieces = [piece.replace(b"\r\n", extension + b"\r\n", 1) for piece in pieces]
    return top + b"".join(pieces) + b"0\r\n" + trailers + b"\r\n"


GOODS = [
    CANARY,
    request({**HELLO, "stream": True}),
    request({"model": "route", "input": "x"}, "/v1/embeddings"),
    request({"model": "route", "input": "x", "stream": True}, "/v1/responses"),
    request({"model": "route", "prompt": "x"}, "/v1/completions?a=b"),
    request({**HELLO, "model": "other"}),
    request(HELLO, headers={"X-Api-Key": "wrong"}),
    request(HELLO, headers={**AUTH, "Expect": "100-continue"}),
    request(HELLO, headers={**AUTH, "X-Request-Id": "a", "traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"}),
    request(HELLO, headers={**AUTH, "Connection": "close"}),
    request(HELLO).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    request(None, "/health", "GET", {}),
    request(None, "/health", "HEAD", {}),
    request(None, "/v1/models", "GET"),
    request(None, "/v1/models/route%2fx", "GET"),
    request(None, "http://gateway/v1/models/route", "HEAD"),
    request(None, "/nothing", "DELETE"),
    chunked(COMPLETE),
    chunked(COMPLETE, 1000, b";a=b", b"X-Sum: 1\r\n"),
]
INSERTS = [
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\n\n", b"\0", b"\x80", b"\xff\xfe", b"\xc3\xa9", b" ", b"\t", b":", b",", b";", b"%", b"0\r\n\r\n", b"\x1b[0m", b"\x7f",
    b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Host: x\r\n", b"GET /health HTTP/1.1\r\n\r\n", b"{", b"}", b'"', b"\\u", b"ffffffffffffffff",
]  # fmt: skip


def mutated(r: Random, data: bytes) -> bytes:
    """``data`` with one to three mistakes."""
    for _ in range(r.choice([1, 1, 2, 3])):
        at = r.randrange(len(data) + 1)
        # Half of all mistakes are in the first line or near it.
        at = at if r.random() < 0.5 else min(at, r.randrange(80))
        size = min(r.choice([1, 1, 2, 5, 20, 100]), len(data) - at)
        kind = r.randrange(7)
        if kind == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << r.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + data[at + size :]
        elif kind == 2:
            data = data[:at] + data[at : at + size] * r.choice([2, 2, 3, 50]) + data[at + size :]
        elif kind == 3 and r.random() < 0.3:
            data = data[:at]
        elif kind == 4:
            data = data[:at] + r.randbytes(size) + data[at + size :]
        elif kind == 5 and b"\r\n" in data:
            lines = data.split(b"\r\n")
            lines.insert(r.randrange(len(lines)), lines.pop(r.randrange(len(lines))))
            data = b"\r\n".join(lines)
        else:
            data = data[:at] + r.choice(INSERTS) + data[at:]
    return data


def bytes_of_any_kind(r: Random) -> bytes:
    if r.random() < 0.1:
        return r.randbytes(r.choice([1, 10, 100, 1000, 40_000])) + r.choice([b"", b"\r\n\r\n"])
    return mutated(r, r.choice(GOODS))


VALUES = [
    "null", "true", "false", "0", "-0", "-1", "1.0", "1e400", "-1e-400", "9" * 30, "9" * 5000, "[]", "{}", "[[]]", "[{}]", "[null]", '""', '"x"', '"route"', '"\\ud83d"', '"\\uDE00\\uD83D"',
    '"\\u0000"', '"\u2028"', '"\U0001f600"', '[{"role":"user"}]', '[{"role":""}]', '[{"role":1}]', '[{"role":"\\ud800"}]', '[{"role":"user"},[]]', '[{"role":"user","role":null}]',
    '{"role":"user"}', '[{"role":"user","content":[{"type":"text","text":"\\udfff"}]}]', "[1,]", "NaN", "Infinity", "-Infinity", "01", "+1", ".5", "1.", "0x1", "'x'", '"\\x"', '"\\u12"', '"', "[", "{",
    "]", "}", "", "tru", "undefined", "//", '"\n"', '"\0"', '"\x7f"', "[" * 50 + "]" * 50, '{"a":' * 50 + "1" + "}" * 50,
]  # fmt: skip
KEYS = ["model", "messages", "stream", "tools", "response_format", "functions", "user", "", "\\u006dodel", "mod\\u0065l", "\\ud800", "Model", "a.b", "$", "__proto__", "\u00e9"]  # fmt: skip
WHOLES = [
    b"", b" ", b"\r\n", b"null", b"[]", b'""', b"1", b"{}", b"{", b"}", b"[", b"\xef\xbb\xbf", b"\xef\xbb\xbf" + COMPLETE, b"\xff\xfe" + COMPLETE.decode().encode("utf-16-le"),
    COMPLETE.decode().encode("utf-16"), COMPLETE.decode().encode("utf-32"), COMPLETE + COMPLETE, COMPLETE + b"\n" + COMPLETE, COMPLETE + b"\0", b"\0" + COMPLETE, b"model=route", b"<xml/>",
    COMPLETE.replace(b"hi", b"\xff"), COMPLETE.replace(b"hi", b"\xed\xa0\x80"), COMPLETE.replace(b"hi", b"\xc0\x80"), COMPLETE.replace(b"hi", b"\xf5\x80\x80\x80"), COMPLETE.replace(b"route", b"\xff"),
    COMPLETE.replace(b"role", b"\xff"), COMPLETE.replace(b"hi", b"\\ud800"), COMPLETE.replace(b"hi", b"\n"), COMPLETE.replace(b"route", b"\\ud800"), COMPLETE.replace(b"route", b"rout\\u0065"),
]  # fmt: skip
DEEP = [
    opens * depth + "1" + closes * depth
    for depth in (100, 500, 990, 1000, 1100, 5000)
    for opens, closes in (("[", "]"), ('{"a":', "}"), ('[{"\\ud800":', "}]"))
] + ["[" * 20_000, '{"a":' * 10_000, "[{" * 10_000]
PATHS = [CHAT, CHAT, CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses"]


def json_of_any_kind(r: Random) -> bytes:
    """A JSON body that is wrong, or looks as if it were."""
    kind = r.randrange(6)
    if kind == 0:
        body = r.choice(WHOLES)
    elif kind == 1:
        body = mutated(r, COMPLETE)
    else:
        members = {
            "model": '"route"',
            "messages": '[{"role":"user","content":"hi"}]',
            "stream": r.choice(["true", "false"]),
        }
        pairs = list(members.items())[: r.choice([3, 3, 3, 2, 1, 0])]
        for _ in range(r.choice([1, 1, 2, 4])):
            hostile = r.choice(DEEP) if r.random() < 0.05 else r.choice(VALUES)
            if pairs and r.random() < 0.5:
                at = r.randrange(len(pairs))
                pairs[at] = (pairs[at][0], hostile)
            else:
                pairs.append((r.choice(KEYS), hostile))
        if r.random() < 0.3:
            r.shuffle(pairs)
        body = ("{" + ",".join(f'"{key}":{value}' for key, value in pairs) + "}").encode()
    path = r.choice(PATHS)
    if r.random() < 0.2:
        return chunked(body, r.choice([1, 7, 1000, 100_000]) if len(body) < 2000 else 5000)
    return request(body, path)


METHODS = [
    b"POST", b"POST", b"POST", b"GET", b"HEAD", b"post", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT", b"PRI", b"X" * 300, b"X" * 20_000, b"P\xd6ST", b"P\0ST", b"P:T", b"", b"\x16\x03\x01", b"get",
]  # fmt: skip
TARGETS = [
    CHAT.encode(), CHAT.encode(), CHAT.encode(), b"/v1/models", b"/health", b"*", b"", b"/", b"//", b"///v1/models", b"x", b"?", b"#", b"/?", b"/#x", b"http://", b"http://x", b"https://x/v1/models", b"http:///v1/models",
    b"HTTP://a@b:1/health", b"ftp://x/health", b"gateway:443", b"/v1/models/%ff%00", b"/v1/models/%", b"/v1/models/%zz", b"/v1/models/\xc3\xa9", b"/v1/../v1/models", b"/v1/chat/completions/", b"/v1//chat/completions",
    b"/v1/chat", b"/v1/models/" + b"x" * 1000, b"/" + b"x" * 17_000, b"/" + b"a/" * 5000, b"/health?" + b"&".join([b"a=b"] * 2000), b"/he\0alth", b"/he\talth", b"/health\x7f", b"/v1/models/<script>", b"/v1/models/a\\b", b"/%2e%2e/",
]  # fmt: skip
VERSIONS = [b" HTTP/1.1"] * 12 + [b" HTTP/1.0", b" HTTP/1.2", b" HTTP/2.0", b" HTTP/0.9", b" http/1.1", b" HTTP/1.1 x", b" HTTP/11", b" HTTP/1.", b" HTTP/-1.1", b"", b" ", b"  HTTP/1.1", b"\tHTTP/1.1", b" HTTP/1.1\r"]  # fmt: skip
LENGTHS = [
    b"0", b"1", b"5", b"00005", b"-1", b"+5", b" 5", b"5 ", b"5,5", b"5, 6", b"0x5", b"5.0", b"1e1", b"", b" ", b"x", b"9" * 18, b"9" * 19, b"9" * 5000, b"99999", b"65537", "\u0665".encode(), b"\xb2", b"5;", b"5_0", b"\x0b5", b"18446744073709551621",
]  # fmt: skip
CODINGS = [
    b"chunked", b"Chunked", b"CHUNKED", b"chunked, chunked", b"gzip, chunked", b"chunked, gzip", b"gzip", b"identity", b"", b"x", b"\x0bchunked", b"chunked\x0b", b"chunked;q=1", b'"chunked"', b"chunked,", b"xchunked", b"chun ked", b"\xffchunked",
]  # fmt: skip
CONNECTIONS = [
    b"close", b"Close", b"keep-alive", b"keep-alive, close", b"close, keep-alive", b"xclose", b"close;q=1", b"upgrade", b"Upgrade, HTTP2-Settings", b"", b",", b",,,", b"content-length", b"transfer-encoding", b"authorization, x-api-key",
    b"\xff", b"close\t", b'"close"', b"x" * 5000,
]  # fmt: skip
EXPECTS = [
    b"100-continue",
    b"100-Continue",
    b"100-continue, 100-continue",
    b"200-ok",
    b"",
    b"100",
    b"\xff",
    b"x" * 1000,
]
NAMES = [
    b"X-Odd", b"X_Under", b"", b" ", b"X Odd", b"X-Odd ", b"\tX", b"X\0", b"X\xff", b"(x)", b"X" * 300, b"X\rY", b"x\x0b", b":", b"Cookie", b"Set-Cookie", b"Upgrade", b"HTTP2-Settings", b"X-Request-Id", b"traceparent",
    b"Accept", b"Content-Type", b"Idempotency-Key", b"X-Api-Key", b"Authorization", b"Proxy-Authorization", b"Content-Encoding", b"Trailer", b"TE", b"OpenAI-Beta", b"HTTP-Referer", b"X-Title", b"Range", b"If-None-Match",
]  # fmt: skip
ODD_VALUES = [
    b"", b" ", b"x", b"\xff\xfe", "\u00e9".encode(), b"a\0b", b"a\rb", b"a\x0bb", b"a\x7fb", b"a\x1bb", b"x" * 1000, b"x" * 17_000, b"=?utf-8?q?x?=", b"a=b; c=d", b"trailers, deflate", b"h2c", b"gzip", b"bytes=0-1", b"a" * 128, b"a" * 129, b"a b",
    b"00-" + b"0" * 32 + b"-" + b"1" * 16 + b"-01", b"Bearer", b"Bearer  ", b"Basic x", KEY.encode(), b"Bearer " + KEY.encode(), b"text/plain", b"application/json; charset=\xff", b"x\r\n folded", b"x\n folded", b"x\nX-Other: y",
]  # fmt: skip


def headers_of_any_kind(r: Random) -> bytes:
    """A head that no client of ours would send."""
    body = r.choice(
        [
            COMPLETE,
            COMPLETE,
            b"",
            b"5\r\nhello\r\n0\r\n\r\n",
            chunk(COMPLETE) + b"0\r\n\r\n",
            b"zz\r\n",
            b"-5\r\nhello",
            b"f" * 40 + b"\r\n",
            b"0\r\nX: y\r\n" * 3,
        ]
    )
    lines = [b"Host: gateway", b"Authorization: Bearer " + KEY.encode(), b"Content-Length: %d" % len(body)]
    if r.random() < 0.2:
        del lines[r.randrange(3)]
    for _ in range(r.choice([0, 1, 1, 1, 2, 2, 3])):
        kind = r.randrange(9)
        if kind == 0:
            added = b"Content-Length: " + r.choice([*LENGTHS, b"%d" % len(body)])
        elif kind == 1:
            added = b"Transfer-Encoding: " + r.choice(CODINGS)
        elif kind == 2:
            added = b"Connection: " + r.choice(CONNECTIONS)
        elif kind == 3:
            added = b"Expect: " + r.choice(EXPECTS)
        elif kind == 4:
            added = b"Host: " + r.choice([b"gateway", b"", b"other", b"a b", b"\xff", b"x" * 5000])
        elif kind == 5 and r.random() < 0.3:
            added = b"\r\n".join([b"X-Many: " + b"y" * r.choice([1, 300])] * r.choice([90, 101, 150, 1000]))
        elif kind == 6:
            added = r.choice([b"no colon", b" folded: x", b"\tfolded", b"x", b"\0", b"GET / HTTP/1.1", b"\xff" * 10])
        else:
            added = r.choice(NAMES) + r.choice([b": ", b":", b" : ", b":\t"]) + r.choice(ODD_VALUES)
        lines.insert(r.randrange(len(lines) + 1), added)
        if kind in (0, 1) and r.random() < 0.4:  # instead of ours, not beside it
            lines = [line for line in lines if line is added or not line.startswith(b"Content-Length")]
    method, target, version = r.choice(METHODS[:3] if r.random() < 0.7 else METHODS), r.choice(TARGETS[:3] if r.random() < 0.7 else TARGETS), r.choice(VERSIONS)  # fmt: skip
    end = r.choice([b"\r\n"] * 20 + [b"\n", b"\r", b"\r\r\n", b"\n\r"])
    return end.join([method + b" " + target + version, *lines, b"", b""]) + body


KINDS = {"bytes": bytes_of_any_kind, "json": json_of_any_kind, "headers": headers_of_any_kind}


def pipelined(r: Random, kind) -> bytes:
    """What is hostile, between good requests, on one connection; a good one is always the last."""
    before = [r.choice(GOODS) for _ in range(r.choice([0, 0, 1, 2]))]
    return b"".join([*before, kind(r), *([kind(r)] if r.random() < 0.3 else []), CANARY])


def segments(r: Random, data: bytes) -> list[bytes]:
    """``data`` as the network may cut it."""
    if len(data) < 700 and r.random() < 0.05:
        return [data[at : at + 1] for at in range(len(data))]
    cuts = sorted(r.randrange(len(data) + 1) for _ in range(r.choice([0, 0, 1, 2, 5])))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if start < end]


@pytest.fixture
def target():
    return Target()


@pytest.mark.parametrize("kind", KINDS)
@times(100, 5000)
def test_s1_s2_s3_s4_s7_r2_fuzz(times, kind, target, failures):
    """So many connections of each kind, with over four answered requests for each three of them."""
    statuses: Counter[int] = Counter()

    @example(r=Random(4123882693))  # of `bytes`: half a line behind a request
    @example(r=Random(5058))  # of `headers`: more behind a request than is kept
    @given(r=st.randoms(use_true_random=True))
    @settings(max_examples=times, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def run(r):
        data = pipelined(r, KINDS[kind])
        found = target.fire(segments(r, data), silent=r.random() < 0.1)
        assert not failures, failures
        statuses.update(each.status for each in found)

    run()
    assert statuses.total() > times * 4 / 3, statuses
    assert statuses[200] > times / 5, "the good requests around the hostile one are served"
    assert statuses[400] > times / 5, statuses
    assert not target.world.timers(), "nothing is left behind"


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
@times(20, 300)
@ensureDeferred
async def test_s1_s4_s7_fuzz_on_real_sockets(world, times, tls, target, monkeypatch):
    """So many connections, which are answered as in memory: nothing more, nothing less, nothing else."""
    monkeypatch.setattr(refused_keys, "FREE", math.inf)  # S20: a wrong key would have to wait, and end its connection
    r = Random(f"seed {tls}")
    provider = world.provider(
        lambda c: c.send(good(c.provider.requests[-1].line.encode(), c.provider.requests[-1].body))
    )
    gateway = world.gateway(provider, tls=tls, top=LIMITS)
    executed = 0
    for number in range(times):
        pieces = segments(r, pipelined(r, KINDS[list(KINDS)[number % 3]]))
        if sum(map(len, pieces)) > MAX_BEHIND:
            continue  # whether it is cut depends on what is answered when the rest comes
        expected = [each for each in target.fire(pieces) if each.status != 408]  # that one takes its time
        executed += sum(each.executed for each in expected)
        client = await gateway.connect()
        for piece in pieces:
            client.transport.write(piece)
        await until(lambda: len(received(client, target)) == len(expected))  # noqa: B023
        assert [each.status for each in received(client, target)] == [each.status for each in expected]
        if not client.closed.called:
            client.transport.abortConnection()
    assert len(provider.requests) == executed
    assert {record["status"] for record in world.records} <= {*STATUSES, 499}
    assert not any('"level":"error"' in line.replace(" ", "") for line in world.log)
    assert (await gateway.get("/health", {})).status == 200


def received(client, target: Target) -> list[Answered]:
    return answers(client.received, target.methods, client.closed.called)[0]


@pytest.mark.parametrize(
    "body", [b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"Content-Length: 5\r\n\r\nab"], ids=["malformed", "cut"]
)
def test_s3_s4_a_head_request_with_a_body_is_answered_once_and_without_one(body, target):
    """RFC 9110, 9.3.2: a client takes what follows the head for the next answer. Nothing reads the body of a HEAD."""
    assert [each.status for each in target.fire([b"HEAD /health HTTP/1.1\r\nHost: x\r\n" + body])] == [200]
