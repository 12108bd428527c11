"""B3-B6, R3-R5, S1, S3, S4, A5, F6: the front, seen by clients on real sockets."""

from __future__ import annotations

import json
import re

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor

from aigw.connections import closing
from aigw.server.resources import ApiResource
from tests.harness import AUTH, CHAT, HELLO, KEY, Answer, Client, bounded, contents, request, until
from tests.memory import MemoryGateway, error_of
from tests.properties import grid
from tests.providers import STREAM, answer, chunk, completion, fin, hang, stream, whole_stream

LIMIT = {"limits": {"body": "2KiB"}}
HEALTHY = b'{"status": "healthy"}'
HEALTH = request(None, "/health", "GET", {})
SECURE = pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
ENDPOINTS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]


def assert_refusal(got: Answer, status: int, code: str | None) -> None:
    """S4: an error in the OpenAI shape, and nothing that says what serves it."""
    assert (got.status, got.whole) == (status, True)
    assert got.headers["content-type"] == "application/json"
    assert list(got.json) == ["error"]
    assert {"message", "type", "param", "code"} <= got.error.keys()
    assert got.error["code"] == code
    assert got.error["message"]
    assert got.error["type"] in ("invalid_request_error", "upstream_error", "server_error")
    assert re.fullmatch("[A-Za-z0-9._:/+=@-]{1,128}", got.headers["x-request-id"])
    assert "server" not in got.headers
    assert not re.search(rb"twisted|python|<html|traceback", got.body, re.IGNORECASE)


def answers(received: bytes, *methods: str) -> list[Answer]:
    """All whole answers in what a connection received; ``methods`` are those of the requests, where not POST."""
    found = []
    for number in range(len(received)):
        reader = Client(methods[number] if number < len(methods) else "POST")
        reader.dataReceived(received)
        if not reader.answer.whole:
            break
        found.append(reader.answer)
        received = reader._parser.trailing_data[0]
    assert not received
    return found


def chunked(size: int, **members) -> bytes:
    """A request whose body has ``size`` bytes, in chunks of at most 100."""
    whole = body(size, **members)
    head = request(b"", headers={**AUTH, "Transfer-Encoding": "chunked"})
    head = head.replace(b"\r\nContent-Length: 0", b"")
    return head + b"".join(chunk(whole[at : at + 100]) for at in range(0, size, 100)) + b"0\r\n\r\n"


def body(size: int, **members) -> bytes:
    """A good body of exactly so many bytes."""
    short = json.dumps({**HELLO, **members, "user": ""})
    return json.dumps({**HELLO, **members, "user": "x" * (size - len(short))}).encode()


# B3: health


@pytest.mark.parametrize("path", ["/health", "/health?verbose=1"])
@pytest.mark.parametrize(("method", "told"), [("GET", HEALTHY), ("HEAD", b"")])
@ensureDeferred
async def test_b3_health(world, method, told, path):
    got = await world.gateway(world.provider()).get(path, {}, method)
    assert (got.status, got.body, got.headers["content-length"]) == (200, told, str(len(HEALTHY)))
    assert got.headers["content-type"] == "application/json"


@ensureDeferred
async def test_b3_health_is_answered_while_50_requests_hang(world):
    provider = world.provider(hang)
    gateway = world.gateway(provider)
    for _ in range(50):
        await gateway.send(request(HELLO))
    await until(lambda: len(provider.requests) == 50)
    took = []
    for _ in range(9):
        begun = reactor.seconds()
        assert (await gateway.get("/health", {})).body == HEALTHY
        took.append(reactor.seconds() - begun)
    assert sorted(took)[4] < 0.05
    assert len(provider.connections) == 50


# B4: models

NAMES = ["route", "org/model:free", "org/sub/model", "with space", "100%", "a?b#c", "modèle"]


def routes(*names: str) -> dict:
    return {"routes": [{"name": name, "steps": [{"provider": "p1", "model": "m"}]} for name in names]}


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/", "/v1/models?limit=2"])
@ensureDeferred
async def test_b4_the_list(world, path):
    provider = world.provider()
    got = await world.gateway(provider, top=routes(*NAMES)).get(path)
    assert (got.status, got.json["object"]) == (200, "list")
    assert [model["id"] for model in got.json["data"]] == NAMES
    for model in got.json["data"]:
        assert model.keys() == {"id", "object", "created", "owned_by"}
        assert (model["object"], model["owned_by"]) == ("model", "ai-gateway")
        assert isinstance(model["created"], int)
    assert not provider.connections


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("route", "route"),
        ("org/model:free", "org/model:free"),
        ("org%2Fmodel:free", "org/model:free"),
        ("org%2fmodel%3Afree", "org/model:free"),
        ("org/sub/model", "org/sub/model"),
        ("org%2Fsub/model", "org/sub/model"),
        ("with%20space", "with space"),
        ("100%25", "100%"),
        ("a%3Fb%23c", "a?b#c"),
        ("mod%C3%A8le", "modèle"),
        ("route?x=1", "route"),
    ],
)
@ensureDeferred
async def test_b4_one(world, path, name):
    got = await world.gateway(world.provider(), top=routes(*NAMES)).get(f"/v1/models/{path}")
    assert (got.status, got.json["id"], got.json["owned_by"]) == (200, name, "ai-gateway")


@pytest.mark.parametrize("path", ["other", "Route", "route/x", "org", "org%252Fmodel:free", "%FF%00", "route%0A", "%"])
@ensureDeferred
async def test_b4_an_unknown_one(world, path):
    got = await world.gateway(world.provider(), top=routes(*NAMES)).get(f"/v1/models/{path}")
    assert_refusal(got, 404, "model_not_found")
    assert got.error["param"] == "model"


# B5: the route is looked up exactly


@pytest.mark.parametrize(
    "name", ["other", "Route", "ROUTE", "route ", " route", "rout", "model-1", "p1", "rou\u200bte"]
)
@pytest.mark.parametrize("path", ENDPOINTS)
@ensureDeferred
async def test_b5_a_model_that_is_no_route(world, path, name):
    provider = world.provider()
    got = await world.gateway(provider).ask(model=name, path=path)
    assert_refusal(got, 404, "model_not_found")
    assert got.error["param"] == "model"
    assert not provider.connections


# B6: credentials

#   headers                                                                     admitted
CREDENTIALS = {
    "X-Api-Key":               ({"X-Api-Key": KEY},                             True),
    "x-api-key":               ({"x-api-key": KEY},                             True),
    "Bearer":                  ({"Authorization": f"Bearer {KEY}"},             True),
    "bearer":                  ({"authorization": f"bearer {KEY}"},             True),
    "a wrong key":             ({"X-Api-Key": "wrong"},                         False),
    "a wrong token":           ({"Authorization": "Bearer wrong"},              False),
    "longer":                  ({"X-Api-Key": KEY + "5"},                       False),
    "shorter":                 ({"X-Api-Key": KEY[:-1]},                        False),
    "other case":              ({"X-Api-Key": KEY.upper()},                     False),
    "a provider's key":        ({"X-Api-Key": "provider-key-1"},                False),
    "an empty key":            ({"X-Api-Key": ""},                              False),
    "an empty token":          ({"Authorization": "Bearer "},                   False),
    "without scheme":          ({"Authorization": KEY},                         False),
    "another scheme":          ({"Authorization": f"Basic {KEY}"},              False),
    "in a cookie":             ({"Cookie": f"X-Api-Key={KEY}"},                 False),
    "8-bit":                   ({"X-Api-Key": "\u00e9"},                        False),
    "none":                    ({},                                             False),
}  # fmt: skip


@pytest.mark.parametrize("case", CREDENTIALS)
@ensureDeferred
async def test_b6_credentials(world, case):
    headers, admitted = CREDENTIALS[case]
    provider = world.provider()
    got = await world.gateway(provider).ask(headers=headers)
    if admitted:
        assert got.status == 200
        return
    assert_refusal(got, 401, "invalid_api_key")
    assert got.headers["www-authenticate"] == "Bearer"
    assert not provider.connections
    assert KEY not in got.body.decode()
    assert not any("wrong" in line or KEY in line for line in world.log)


@grid("path", "method", "headers")
@pytest.mark.parametrize("headers", [{}, {"X-Api-Key": "wrong"}], ids=["no key", "wrong key"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("path", ["/", "/v1", "/v1/models", "/v1/models/route", "/v1/nothing", "/metrics", *ENDPOINTS])
@ensureDeferred
async def test_b6_every_path_but_health_wants_a_key(world, path, method, headers):
    got = await world.gateway(world.provider()).ask(path=path, method=method, headers=headers)
    assert_refusal(got, 401, "invalid_api_key")
    assert "allow" not in got.headers, "who has no key learns nothing of what there is"


@ensureDeferred
async def test_b6_a_key_in_the_query_is_none(world):
    assert_refusal(await world.gateway(None).get(f"/v1/models?api_key={KEY}", {}), 401, "invalid_api_key")
    assert not any(KEY in line for line in world.log)


# R3: the endpoints

EMBEDDING = json.dumps({"object": "list", "data": [{"object": "embedding", "embedding": [0.5, 1.0]}]}).encode()
LEGACY = json.dumps({"object": "text_completion", "choices": [{"text": "hello", "finish_reason": "stop"}]}).encode()
RESPONSE = json.dumps({"object": "response", "output": [{"type": "message", "content": []}], "error": None}).encode()

#   path                        asked                                                       answered
EACH = {
    "/v1/chat/completions":    ({"messages": [{"role": "user", "content": "hi"}]},          completion()),
    "/v1/completions":         ({"prompt": "hi"},                                           LEGACY),
    "/v1/embeddings":          ({"input": ["hi", "ho"], "encoding_format": "float"},        EMBEDDING),
    "/v1/responses":           ({"input": "hi", "store": False},                            RESPONSE),
}  # fmt: skip


@pytest.mark.parametrize("path", EACH)
@ensureDeferred
async def test_r3_every_endpoint_reaches_the_provider_and_its_answer_comes_back(world, path):
    asked, answered = EACH[path]
    provider = world.provider(answer(200, answered))
    got = await world.gateway(None, provider).ask(json.dumps({"model": "route", **asked}).encode(), path=path)
    assert (got.status, got.body, got.whole) == (200, answered, True)
    assert got.headers["content-length"] == str(len(answered))
    assert [seen.line for seen in provider.requests] == [f"POST {path} HTTP/1.1"]
    assert provider.bodies == [{"model": "model-2", **asked}]
    assert world.records[0]["path"] == path


def said(kind: str, **more) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), json.dumps({"type": kind, **more}).encode())


RESPONSE_STREAM = [
    said("response.created", response={"status": "in_progress", "error": None}),
    said("response.output_item.added", item={"type": "message"}),
    said("response.output_text.delta", delta="hel"),
    said("response.output_text.delta", delta="lo"),
    said("response.completed", response={"status": "completed", "usage": {"input_tokens": 3, "output_tokens": 4}}),
]


@ensureDeferred
async def test_r3_a_stream_of_the_responses_api(world):
    failing = world.provider(stream(RESPONSE_STREAM[0], said("response.failed", response={"error": {"message": "x"}})))
    provider = world.provider(stream(*RESPONSE_STREAM))
    asked = json.dumps({"model": "route", "input": "hi", "stream": True}).encode()
    got = await world.gateway(failing, provider).ask(asked, path="/v1/responses")
    assert (got.status, got.body, got.whole) == (200, b"".join(RESPONSE_STREAM), True)
    assert got.headers["content-type"] == "text/event-stream"
    assert [failing.requests[0].line, provider.requests[0].line] == ["POST /v1/responses HTTP/1.1"] * 2
    assert world.records[0]["usage"] == {"input_tokens": 3, "output_tokens": 4}


@ensureDeferred
async def test_r3_a_base_url_with_a_path_of_its_own(world):
    provider = world.provider()
    url = f"http://127.0.0.1:{provider.port}/api/openai/v1"
    gateway = world.gateway(provider, top={"providers": [{"name": "p1", "base_url": url}]})
    assert (await gateway.ask()).status == 200
    assert provider.requests[0].line == "POST /api/openai/v1/chat/completions HTTP/1.1"
    assert provider.requests[0].header("authorization") is None


# R4: what a provider sees


@ensureDeferred
async def test_r4_the_headers_of_the_simplest_request(world):
    provider = world.provider()
    await world.gateway(provider).ask(headers={"X-Api-Key": KEY, "X-Request-Id": "mine"})
    seen = {name.lower(): value for name, value in provider.requests[0].headers}
    assert seen.pop("user-agent").startswith("aigw/")
    assert seen == {
        "host": f"127.0.0.1:{provider.port}",
        "content-length": str(len(provider.requests[0].body)),
        "content-type": "application/json",
        "accept-encoding": "identity",
        "authorization": "Bearer provider-key-1",
        "x-request-id": "mine",
    }
    assert len(seen) + 1 == len(provider.requests[0].headers), "no header stands twice"


@ensureDeferred
async def test_r4_the_headers_of_a_request_that_carries_everything(world):
    passed = {
        "Accept": "text/event-stream",
        "OpenAI-Beta": "assistants=v2",
        "Idempotency-Key": "once",
        "HTTP-Referer": "https://example.com/",
        "X-Title": "title",
        "Content-Type": "application/json; charset=utf-8",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    }
    kept = {
        "Authorization": f"Bearer {KEY}",
        "X-Api-Key": KEY,
        "Proxy-Authorization": f"Basic {KEY}",
        "Cookie": "session=1",
        "Connection": "keep-alive, X-Hop",
        "X-Hop": "hop",
        "Keep-Alive": "timeout=5",
        "TE": "trailers",
        "Trailer": "X-Sum",
        "Upgrade": "h2c",
        "Accept-Encoding": "gzip, br",
        "User-Agent": "OpenAI/Python",
        "OpenAI-Organization": "org",
        "X-Forwarded-For": "10.0.0.1",
        "Origin": "https://example.com",
    }
    provider = world.provider()
    top = {
        "providers": [
            {
                "name": "p1",
                "base_url": f"http://127.0.0.1:{provider.port}/v1",
                "api_key": "provider-key-1",
                "headers": {"X-Title": "ours", "X-Team": "blue"},
            }
        ]
    }
    assert (await world.gateway(provider, top=top).ask(headers={**passed, **kept})).status == 200
    seen = {name.lower(): value for name, value in provider.requests[0].headers}
    own = {name: seen.pop(name) for name in ("host", "content-length", "user-agent", "x-request-id")}
    assert seen == {
        **{name.lower(): value for name, value in passed.items()},
        "x-title": "ours",
        "x-team": "blue",
        "accept-encoding": "identity",
        "authorization": "Bearer provider-key-1",
    }
    assert own["user-agent"].startswith("aigw/")
    assert re.fullmatch("[0-9a-f]{32}", own["x-request-id"])
    assert KEY not in str(provider.requests)


@ensureDeferred
async def test_r4_no_cookie_is_kept_and_no_redirect_followed(world):
    elsewhere = world.provider()
    redirect = answer(307, b"", Location=f"http://127.0.0.1:{elsewhere.port}/v1/chat/completions", Set_Cookie="b=2")
    provider = world.provider(answer(200, None, Set_Cookie="a=1; Path=/"), redirect, answer())
    gateway = world.gateway(provider)
    assert [(await gateway.ask()).status for _ in range(3)] == [200, 502, 200]
    assert [seen.header("cookie") for seen in provider.requests] == [None] * 3
    assert not elsewhere.connections


# R5, S1: judged by the head alone


@pytest.fixture
def brief(monkeypatch):
    """Over TLS a refusing gateway waits two seconds for the client to close; here it has less patience."""
    monkeypatch.setattr(closing, "LINGER_SECONDS", 0.1)


CODES = {401: "invalid_api_key", 404: "unknown_url", 405: "method_not_allowed", 413: "request_too_large"}

#   method, path                                 headers                                            status
HEADS = {
    "no key":                 ("POST", CHAT,             {"Content-Length": "50"},                  401),
    "wrong key":              ("POST", CHAT,             {"Content-Length": "50", "X-Api-Key": "x"}, 401),
    "no key, chunked":        ("POST", CHAT,             {"Transfer-Encoding": "chunked"},          401),
    "no key, and too large":  ("POST", CHAT,             {"Content-Length": "5000"},                401),
    "unknown path":           ("POST", "/v1/nothing",    {**AUTH, "Content-Length": "50"},          404),
    "unknown path, chunked":  ("POST", "/v1/nothing",    {**AUTH, "Transfer-Encoding": "chunked"},  404),
    "below an endpoint":      ("POST", f"{CHAT}/x",      {**AUTH, "Content-Length": "50"},          404),
    "method":                 ("PUT",  CHAT,             {**AUTH, "Content-Length": "50"},          405),
    "method, chunked":        ("PUT",  CHAT,             {**AUTH, "Transfer-Encoding": "chunked"},  405),
    "method of health":       ("POST", "/health",        {"Content-Length": "50"},                  405),
    "one byte too large":     ("POST", CHAT,             {**AUTH, "Content-Length": "2049"},        413),
    "far too large":          ("POST", CHAT,             {**AUTH, "Content-Length": "9" * 18},      413),
}  # fmt: skip


@grid("case", "expect", "tls")
@SECURE
@pytest.mark.parametrize("expect", [False, True], ids=["", "expect"])
@pytest.mark.parametrize("case", HEADS)
@ensureDeferred
async def test_r5_a_bad_head_is_answered_before_a_byte_of_the_body(world, brief, case, expect, tls):
    method, path, headers, status = HEADS[case]
    provider = world.provider()
    gateway = world.gateway(provider, tls=tls, top=LIMIT)
    more = {"Expect": "100-continue"} if expect else {}
    client = await gateway.send(request(None, path, method, {**headers, **more}))
    got = await bounded(client.done)
    assert_refusal(got, status, CODES[status])
    assert (got.informational, got.headers["connection"]) == ([], "close")
    assert ("allow" in got.headers) == (status == 405)
    await bounded(client.closed)
    assert not provider.connections


def smuggled(case: str) -> bytes:
    """A refused head with everything that a client may send behind it: a body, good requests in it and behind it."""
    method, path, headers, _ = HEADS[case]
    head = request(None, path, method, headers)
    return head + request(HELLO) + b"0\r\n\r\n" + request(HELLO) + HEALTH


REJECTED = {
    "malformed": b"GET /health\r\n\r\n" + request(HELLO),
    "a header without colon": b"GET /health HTTP/1.1\r\nHost: x\r\nbad\r\n\r\n" + request(HELLO),
    "TE and CL": request(HELLO, headers={**AUTH, "Transfer-Encoding": "chunked"}) + request(HELLO),
    "a line too long": b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * 17000) + request(HELLO),
    "101 headers": b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 100 + b"\r\n" + request(HELLO),
    "a bad chunk": chunked(500).replace(b"\r\n64\r\n", b"\r\nzz\r\n", 1) + request(HELLO),
    "chunked over the limit": chunked(3000) + request(HELLO),
    **{case: smuggled(case) for case in HEADS},
}


@SECURE
@pytest.mark.parametrize("case", REJECTED)
@ensureDeferred
async def test_s1_r5_nothing_behind_an_error_that_closes_is_executed(world, brief, case, tls):
    provider = world.provider()
    gateway = world.gateway(provider, tls=tls, top=LIMIT)
    client = await gateway.send(REJECTED[case])
    await bounded(client.closed)
    (got,) = answers(client.received, HEADS[case][0] if case in HEADS else "POST")
    assert got.status in (400, 401, 404, 405, 413, 431)
    assert not provider.connections
    assert len(world.records) <= 1


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("case", REJECTED)
def test_s1_r5_nor_if_it_arrives_in_pieces(case, size):
    """In memory the client's side stays open, so every byte behind the error does arrive."""
    gateway = MemoryGateway(top=LIMIT)
    wire = gateway.open()
    sent = REJECTED[case]
    for at in range(0, len(sent), size):
        wire.say(sent[at : at + size])
    assert error_of(wire.value())
    assert wire.value().count(b"HTTP/1.1 ") == 1
    assert not any(door.wires for door in gateway.doors.values())
    gateway.clock.advance(60)
    assert wire.disconnected
    assert gateway.timers() == []


@SECURE
@ensureDeferred
async def test_r5_a_good_request_with_expect_is_told_to_continue(world, tls):
    provider = world.provider()
    head, _, rest = request(HELLO, headers={**AUTH, "Expect": "100-continue"}).partition(b"\r\n\r\n")
    client = await world.gateway(provider, tls=tls).send(head + b"\r\n\r\n")
    await until(lambda: client.received)
    assert client.received == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert not provider.connections
    client.transport.write(rest)
    got = await bounded(client.done)
    assert (got.informational, got.status, got.body) == ([100], 200, completion())


@pytest.mark.parametrize("path", ["/v1/models", "/health"])
@ensureDeferred
async def test_r5_an_http_1_0_client_is_never_told_to_continue(world, path):
    head = request(None, path, "GET", {**AUTH, "Expect": "100-continue"}).replace(b"HTTP/1.1", b"HTTP/1.0")
    got = await bounded((await world.gateway(None).send(head, "GET")).done)
    assert (got.status, got.informational) == (200, [])


@pytest.mark.parametrize(
    ("size", "status"), [(200, 200), (2047, 200), (2048, 200), (2049, 413), (2100, 413), (100_000, 413)]
)
@pytest.mark.parametrize("how", ["content-length", "chunked"])
@SECURE
@ensureDeferred
async def test_r5_the_limit_of_a_body(world, brief, how, size, status, tls):
    provider = world.provider()
    gateway = world.gateway(provider, tls=tls, top=LIMIT)
    client = await gateway.send(chunked(size) if how == "chunked" else request(body(size)))
    got = await bounded(client.done)
    if status == 200:
        assert (got.status, got.body) == (200, completion())
        assert provider.bodies == [{**json.loads(body(size)), "model": "model-1"}]
        assert world.records[0]["bytes_in"] == size
    else:
        assert_refusal(got, 413, "request_too_large")
        assert "2048" in got.error["message"]
        await bounded(client.closed)
        assert not provider.connections
        assert [record["status"] for record in world.records] == [413]


@ensureDeferred
async def test_r5_a_chunked_body_is_refused_as_soon_as_it_is_over_the_limit(world):
    """The client has announced a chunk of 1 MiB and sent 2,049 bytes of it."""
    head = request(b"", headers={**AUTH, "Transfer-Encoding": "chunked"}).replace(b"\r\nContent-Length: 0", b"")
    client = await world.gateway(None, top=LIMIT).send(head + b"100000\r\n" + b"x" * 2049)
    assert_refusal(await bounded(client.done), 413, "request_too_large")


# S3, S4: errors of the parser


def get(*lines: bytes, start: bytes = b"GET /health HTTP/1.1", host: bytes = b"Host: x") -> bytes:
    return b"\r\n".join([start, *([host] if host else []), *lines, b"", b""])


MALFORMED = {
    "no version":                 get(start=b"GET /health"),
    "HTTP/0.9":                   get(start=b"GET /health HTTP/0.9"),
    "HTTP/2.0":                   b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2":                   get(start=b"GET /health HTTP/1.2"),
    "http/1.1":                   get(start=b"GET /health http/1.1"),
    "two spaces":                 get(start=b"GET  /health HTTP/1.1"),
    "a space in the target":      get(start=b"GET /a b HTTP/1.1"),
    "a tab for a space":          get(start=b"GET\t/health HTTP/1.1"),
    "no target":                  get(start=b"GET  HTTP/1.1"),
    "a method that is no token":  get(start=b"G@T /health HTTP/1.1"),
    "no colon":                   get(b"X-A"),
    "no name":                    get(b": a"),
    "a space before the colon":   get(b"X-A : a"),
    "a bad name":                 get(b"X(A): a"),
    "an 8-bit name":              get(b"X\xe9: a"),
    "NUL in a value":             get(b"X-A: a\0b"),
    "CR in a value":              get(b"X-A: a\rb"),
    "LF in a value":              get(b"X-A: a\nb"),
    "a length that is none":      get(b"Content-Length: x"),
    "an empty length":            get(b"Content-Length: "),
    "a negative length":          get(b"Content-Length: -1"),
    "a signed length":            get(b"Content-Length: +1"),
    "a hexadecimal length":       get(b"Content-Length: 0x1"),
    "a list of lengths":          get(b"Content-Length: 1, 1"),
    "two lengths":                get(b"Content-Length: 1", b"Content-Length: 2"),
    "TE and CL":                  get(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "CL and TE":                  get(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "TE twice":                   get(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "TE gzip":                    get(b"Transfer-Encoding: gzip"),
    "TE gzip, chunked":           get(b"Transfer-Encoding: gzip, chunked"),
    "TE chunked, identity":       get(b"Transfer-Encoding: chunked, identity"),
    "TE xchunked":                get(b"Transfer-Encoding: xchunked"),
    "TE empty":                   get(b"Transfer-Encoding: "),
    "S3 TE identity":             get(b"Transfer-Encoding: identity"),
    "S3 TE in HTTP/1.0":          get(b"Transfer-Encoding: chunked", start=b"GET /health HTTP/1.0") + b"0\r\n\r\n",
    "S3 two Hosts":               get(b"Host: x"),
    "S3 no Host":                 get(host=b""),
    "S3 obs-fold":                get(b"X-A: a", b" b"),
    "S3 obs-fold with a tab":     get(b"X-A: a", b"\tb"),
    "S3 obs-fold at the start":   get(b" X-A: a", host=b"") + b"Host: x\r\n\r\n",
    "S3 19 digits":               get(b"Content-Length: " + b"9" * 19),
    "S3 19 zeros":                get(b"Content-Length: " + b"0" * 19),
    "S3 5,000 digits":            get(b"Content-Length: " + b"9" * 5000),
    "S3 DEL in the target":       get(start=b"GET /health?\x7f HTTP/1.1"),
    "S3 NUL in the target":       get(start=b"GET /health?\x00 HTTP/1.1"),
    "S3 0x80 in the target":      get(start=b"GET /health?\x80 HTTP/1.1"),
    "S3 0xB0 in the target":      get(start=b"GET /health?\xb0 HTTP/1.1"),
    "S3 0xFF in the target":      get(start=b"GET /health?\xff HTTP/1.1"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
@ensureDeferred
async def test_s4_s3_a_malformed_request_is_400_in_json(world, case):
    client = await world.gateway(None).send(MALFORMED[case] + HEALTH, "GET")
    got = await bounded(client.done)
    assert_refusal(got, 400, None)
    assert got.error["type"] == "invalid_request_error"
    assert got.headers["connection"] == "close"
    await bounded(client.closed)
    assert HEALTHY not in client.received


TOO_LARGE = {
    "a request line":          get(start=b"GET /%s HTTP/1.1" % (b"x" * 16 * 1024)),
    "a line without end":      b"x" * 16 * 1024 + b"yy",
    "a header":                get(b"X-A: " + b"x" * 16 * 1024),
    "headers of 33 KiB":       get(*[b"X-A: " + b"x" * 11_250] * 3),
    "101 headers":             get(*[b"X-A: a"] * 100),
    "5,000 headers":           get(*[b"X-A: a"] * 5000),
}  # fmt: skip
WITHIN = {
    "a request line":          get(start=b"GET /health?%s HTTP/1.1" % (b"x" * 16_300)),
    "a header":                get(b"X-A: " + b"x" * 16_300),
    "headers of 31 KiB":       get(*[b"X-A: " + b"x" * 10_500] * 3),
    "100 headers":             get(*[b"X-A: a"] * 99),
}  # fmt: skip


@SECURE
@pytest.mark.parametrize("case", TOO_LARGE)
@ensureDeferred
async def test_s4_headers_too_large_are_431_in_json(world, case, tls):
    client = await world.gateway(None, tls=tls).send(TOO_LARGE[case], "GET")
    got = await bounded(client.done)
    assert_refusal(got, 431, "headers_too_large")
    assert got.headers["connection"] == "close"


@pytest.mark.parametrize("case", WITHIN)
@ensureDeferred
async def test_s4_headers_within_the_limits_pass(world, case):
    got = await bounded((await world.gateway(None).send(WITHIN[case] + WITHIN[case], "GET")).done)
    assert (got.status, got.body) == (200, HEALTHY)


# S4: the other errors


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "allow"),
    [
        ("GET", "/", 404, "unknown_url", None),
        ("GET", "//", 404, "unknown_url", None),
        ("GET", "/v1", 404, "unknown_url", None),
        ("GET", "/v1/", 404, "unknown_url", None),
        ("GET", "/v1/chat", 404, "unknown_url", None),
        ("POST", "/chat/completions", 404, "unknown_url", None),
        ("POST", "/v1/chat/Completions", 404, "unknown_url", None),
        ("POST", "/v1/chat%2Fcompletions", 404, "unknown_url", None),
        ("GET", "/health/x", 404, "unknown_url", None),
        ("GET", "/v1/../health", 404, "unknown_url", None),
        ("GET", "/%00%FF%0d%0aX-Evil:1", 404, "unknown_url", None),
        ("GET", "/<script>alert(1)</script>", 404, "unknown_url", None),
        ("OPTIONS", "*", 404, "unknown_url", None),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed", "POST"),
        ("HEAD", "/v1/embeddings", 405, None, "POST"),
        ("PUT", "/v1/responses", 405, "method_not_allowed", "POST"),
        ("DELETE", "/v1/completions", 405, "method_not_allowed", "POST"),
        ("POST", "/v1/models", 405, "method_not_allowed", "GET, HEAD"),
        ("DELETE", "/v1/models/route", 405, "method_not_allowed", "GET, HEAD"),
        ("OPTIONS", "/health", 405, "method_not_allowed", "GET, HEAD"),
        ("X" * 300, "/health", 405, "method_not_allowed", "GET, HEAD"),
        ("BREW", "/v1/chat/completions", 405, "method_not_allowed", "POST"),
    ],
)
@ensureDeferred
async def test_s4_unknown_paths_and_methods(world, method, path, status, code, allow):
    client = await world.gateway(None).send(request(None, path, method), method)
    got = await bounded(client.done)
    assert got.headers.get("allow") == allow
    if method == "HEAD":
        assert (got.status, got.body, got.whole) == (status, b"", True)
    else:
        assert_refusal(got, status, code)
    assert "x-evil" not in got.headers


@pytest.mark.parametrize("sent", [b"", b"{", b"[]", b"nonsense", b"\xff\xfe", b'{"model": 1}', b"[" * 5000, b"{}" * 9])
@pytest.mark.parametrize("path", ENDPOINTS)
@ensureDeferred
async def test_s4_a_bad_body(world, path, sent):
    got = await world.gateway(None).ask(sent, path=path)
    assert_refusal(got, 400, None)


class Broken(ApiResource):
    """What none of ours does."""

    def render(self, request):
        raise RuntimeError(f"{KEY} in C:\\secret")


@ensureDeferred
async def test_s4_b9_an_unexpected_error_is_500_and_says_nothing(world, failures):
    gateway = world.gateway(None)
    gateway.service._site.resource.putChild(b"broken", Broken(gateway.service.config))
    client = await gateway.send(request(None, "/broken", "GET") + HEALTH, "GET")
    await until(lambda: HEALTHY in client.received)
    got, _ = answers(client.received, "GET", "GET")
    assert_refusal(got, 500, "internal_error")
    assert (got.error["type"], got.error["message"]) == (
        "server_error",
        "The gateway failed with an unexpected error. Its log has the details.",
    )
    (failure,) = failures
    failures.clear()
    assert "RuntimeError" in failure
    (line,) = (line for line in world.log if "A resource failed with an unexpected error" in line)
    assert "RuntimeError" in line
    assert KEY not in line


# Keep-alive

GONE = request({**HELLO, "model": "gone"})


@SECURE
@ensureDeferred
async def test_two_requests_on_one_connection(world, tls):
    provider = world.provider(answer(200, completion("one")), stream())
    client = await world.gateway(provider, tls=tls).send(request(HELLO))
    await bounded(client.done)
    client.transport.write(request({**HELLO, "stream": True}))
    await until(lambda: client.received.endswith(b"\r\n0\r\n\r\n"))
    one, two = answers(client.received)
    assert one.body == completion("one")
    assert two.body == b"".join(STREAM)
    assert "connection" not in {**one.headers, **two.headers}
    assert one.headers["x-request-id"] != two.headers["x-request-id"]
    assert len(world.records) == 2


@SECURE
@ensureDeferred
async def test_pipelined_requests_are_answered_in_order(world, tls):
    def late(connection):
        reactor.callLater(0.1, answer(200, completion("one")), connection)

    provider = world.provider(late, answer(200, completion("two")), stream())
    streamed = request({**HELLO, "stream": True})
    sent = request(HELLO) + HEALTH + request(HELLO) + GONE + streamed + request(None, "/v1/models", "GET")
    client = await world.gateway(provider, tls=tls).send(sent)
    await until(lambda: b'"object":"list"' in client.received)
    one, health, two, gone, three, models = answers(client.received)
    assert [one.body, health.body, two.body] == [completion("one"), HEALTHY, completion("two")]
    assert_refusal(gone, 404, "model_not_found")
    assert (contents(three.body), models.json["data"][0]["id"]) == ("hello", "route")


@pytest.mark.parametrize(
    ("sent", "method", "status"),
    [
        (request(None, "/v1/models", "GET", {}), "GET", 401),
        (request(None, "/v1/nothing", "GET"), "GET", 404),
        (request(None, "/v1/nothing", "HEAD"), "HEAD", 404),
        (request(None, CHAT, "GET"), "GET", 405),
        (request(b"", CHAT, "POST", {}), "POST", 401),
        (request(b"{}"), "POST", 400),
        (GONE, "POST", 404),
        (request(HELLO), "POST", 502),
        (request({**HELLO, "stream": True}), "POST", 502),
    ],
)
@ensureDeferred
async def test_an_error_that_leaves_no_body_unread_keeps_the_connection(world, sent, method, status):
    client = await world.gateway(None).send(sent, method)
    got = await bounded(client.done)
    assert (got.status, got.headers.get("connection")) == (status, None)
    client.transport.write(HEALTH)
    await until(lambda: HEALTHY in client.received)
    assert [each.status for each in answers(client.received, method, "GET")] == [status, 200]


@pytest.mark.parametrize("value", ["close", "Close", "TE, close", "close, TE", "close,TE"])
@ensureDeferred
async def test_connection_close_is_honoured(world, value):
    provider = world.provider()
    client = await world.gateway(provider).send(request(HELLO, headers={**AUTH, "Connection": value}) + HEALTH)
    await bounded(client.closed, 2)
    (got,) = answers(client.received)
    assert (got.status, got.body, got.headers["connection"]) == (200, completion(), "close")


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("headers", [{}, {"Connection": "keep-alive"}], ids=["", "keep-alive"])
@SECURE
@ensureDeferred
async def test_an_http_1_0_client_gets_an_answer_that_the_close_ends(world, streamed, headers, tls):
    sent = request({**HELLO, "stream": streamed}, headers={**AUTH, **headers}).replace(b"HTTP/1.1", b"HTTP/1.0")
    client = await world.gateway(world.provider(), tls=tls).send(sent + HEALTH)
    await bounded(client.closed)
    head, _, rest = client.received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 ")
    assert b"transfer-encoding" not in head.lower()
    assert rest == (b"".join(STREAM) if streamed else completion())


# A5: the headers of an answer


@pytest.mark.parametrize(
    ("offered", "kept"),
    [
        ("mine", True),
        ("550e8400-e29b-41d4-a716-446655440000", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("two words", False),
        ('quo"ted', False),
        ("<b>", False),
        ("", False),
        (None, False),
    ],
)
@pytest.mark.parametrize("how", ["200", "400", "401", "404", "405", "413", "502"])
@ensureDeferred
async def test_a5_the_request_id(world, how, offered, kept):
    provider = world.provider() if how == "200" else None
    sent = {} if offered is None else {"X-Request-Id": offered}
    headers = sent if how == "401" else {**AUTH, **sent}
    asked = {"400": b"{", "413": b"x" * 3000}.get(how)
    method, path = ("PUT" if how == "405" else "POST"), ("/v1/x" if how == "404" else CHAT)
    got = await world.gateway(provider, top=LIMIT).ask(asked, method=method, path=path, headers=headers)
    assert got.status == int(how)
    told = got.headers["x-request-id"]
    assert told == offered if kept else re.fullmatch("[0-9a-f]{32}", told)
    if how in ("200", "400", "401", "413", "502"):
        assert [record["request_id"] for record in world.records] == [told]
    if how == "200":
        assert provider.requests[0].header("x-request-id") == told


@ensureDeferred
async def test_a5_what_a_good_answer_carries(world):
    theirs = {
        "X_Request_Id": "theirs",
        "OpenAI_Processing_Ms": "7",
        "X_RateLimit_Limit_Requests": "9",
        "Retry_After": "3",
        "Set_Cookie": "a=b",
        "Server": "nginx/1.2",
        "X_Served_By": "cache",
        "Location": "http://127.0.0.1/",
    }
    got = await world.gateway(world.provider(fin), world.provider(answer(200, None, **theirs))).ask(
        headers={**AUTH, "X-Request-Id": "mine"}
    )
    assert got.headers == {
        "content-type": "application/json",
        "content-length": str(len(completion())),
        "x-request-id": "mine",
        "x-upstream-request-id": "theirs",
        "openai-processing-ms": "7",
        "x-ratelimit-limit-requests": "9",
        "retry-after": "3",
        "x-aigw-route": "route",
        "x-aigw-step": "2",
        "x-aigw-provider": "p2",
        "x-aigw-model": "model-2",
        "x-aigw-attempts": "2",
    }


@ensureDeferred
async def test_a5_what_a_502_carries_and_never_a_base_url(world):
    first, third = world.provider(answer(500)), world.provider(fin)
    got = await world.gateway(first, None, third).ask(headers={**AUTH, "X-Request-Id": "mine"})
    assert_refusal(got, 502, "all_steps_failed")
    assert {name: value for name, value in got.headers.items() if name.startswith("x-")} == {
        "x-content-type-options": "nosniff",
        "x-request-id": "mine",
        "x-aigw-route": "route",
        "x-aigw-attempts": "3",
    }
    shown = got.body.decode() + str(got.headers)
    assert "127.0.0.1" not in shown
    assert "http:" not in shown


@ensureDeferred
async def test_a5_names_that_are_no_header_values_are_encoded(world):
    top = {"routes": [{"name": "modèle", "steps": [{"provider": "p1", "model": "模"}]}]}
    got = await world.gateway(world.provider(), top=top).ask(model="modèle")
    assert (got.headers["x-aigw-route"], got.headers["x-aigw-model"]) == ("mod%C3%A8le", "%E6%A8%A1")


# F6: all failed


@ensureDeferred
async def test_f6_one_entry_for_each_attempt(world):
    broken = answer(400, json.dumps({"error": {"message": "no such tool"}}).encode())
    gateway = world.gateway(world.provider(broken), None, world.provider(hang), world.provider(fin), timeout=0.3)
    got = await gateway.ask()
    assert_refusal(got, 502, "all_steps_failed")
    assert (got.error["type"], got.error["param"]) == ("upstream_error", None)
    attempts = got.error["attempts"]
    took = [attempt.pop("duration_ms") for attempt in attempts]
    messages = [attempt.pop("message") for attempt in attempts]
    assert attempts == [
        {"step": 1, "provider": "p1", "model": "model-1", "status": 400, "outcome": "refused"},
        {"step": 2, "provider": "p2", "model": "model-2", "status": None, "outcome": "unreachable"},
        {"step": 3, "provider": "p3", "model": "model-3", "status": None, "outcome": "timeout"},
        {"step": 4, "provider": "p4", "model": "model-4", "status": None, "outcome": "broken"},
    ]
    assert messages[:3] == ["answered 400: no such tool", "connection refused", "answer limit of 0.3 s passed"]
    assert messages[3]
    assert 300 <= took[2] < 800
    assert all(0 <= each < 300 for each in took[:2] + took[3:])
    assert not any("no such tool" in line for line in world.log), "B9: what a provider says is content"


@pytest.mark.parametrize(
    ("statuses", "told"),
    [
        ([400], "false"),
        ([401], "false"),
        ([404, 422], "false"),
        ([403, 413, 451], "false"),
        ([408], None),
        ([409], None),
        ([429], None),
        ([400, 429], None),
        ([400, 500], None),
        ([503], None),
        ([302], None),
        ([400, None], None),
        ([None], None),
    ],
)
@ensureDeferred
async def test_f6_x_should_retry_only_where_repeating_cannot_help(world, statuses, told):
    steps = [None if status is None else world.provider(answer(status)) for status in statuses]
    got = await world.gateway(*steps).ask()
    assert (got.status, got.headers.get("x-should-retry")) == (502, told)
    assert [attempt["status"] for attempt in got.error["attempts"]] == statuses


KEYS = ["zebra-key-1", 'sk-"zebra\\back/slash+plus']


def in_json(key: str) -> bytes:
    return json.dumps({"error": {"message": f"bad key {key}"}}).encode()


#   where a provider repeats the key that it was sent
ECHOES = {
    "in a message":           lambda key: answer(401, in_json(f"Bearer {key}")),
    "in JSON in a message":   lambda key: answer(401, in_json(json.dumps({"authorization": f"Bearer {key}"}))),
    "in PHP's JSON":          lambda key: answer(401, in_json(json.dumps(f"Bearer {key}").replace("/", "\\/"))),
    "in .NET's JSON":         lambda key: answer(401, in_json(json.dumps(f"Bearer {key}").replace("+", "\\u002B"))),
    "twice":                  lambda key: answer(400, in_json(f"{key}{key}")),
    "a string for an error":  lambda key: answer(500, json.dumps({"error": f"key {key}"}).encode()),
    "top-level message":      lambda key: answer(500, json.dumps({"message": f"key {key}"}).encode()),
    "plain text":             lambda key: answer(401, f"bad key {key}".encode(), "text/plain"),
    "an error dressed as 200": lambda key: answer(200, in_json(key)),
    "at the bound":           lambda key: answer(401, in_json("x" * (300 - len("answered 401: bad key ") - 5) + key)),
    "in a header":            lambda key: answer(401, b"{}", X_Request_Id=key, OpenAI_Key=key),
    "in an error event":      lambda key: stream(b"data: " + in_json(key) + b"\n\n"),
    "in the status line":     lambda key: lambda c: c.send(f"HTTP/1.1 401 {key}\r\nContent-Length: 0\r\n\r\n".encode()),
    "for HTTP":               lambda key: lambda c: c.send(f"{key}\r\n\r\n".encode()),
}  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=["plain", "awkward"])
@pytest.mark.parametrize("case", ECHOES)
@ensureDeferred
async def test_f6_b9_a_key_that_a_provider_repeats_is_shown_nowhere(world, case, key):
    provider = world.provider(ECHOES[case](key))
    named = {"name": "p1", "base_url": world.base_url(provider), "api_key": key}
    got = await world.gateway(provider, top={"providers": [named]}).ask(stream=case == "in an error event")
    assert provider.requests[0].header("authorization") == f"Bearer {key}"
    assert_refusal(got, 502, "all_steps_failed")
    shown = got.body.decode() + str(got.headers) + "".join(world.log)
    assert "zebra" not in shown
    assert KEY not in shown


@ensureDeferred
async def test_f6_a_provider_s_words_are_bounded(world):
    got = await world.gateway(*[world.provider(answer(500, in_json("x" * 60_000)))] * 3).ask()
    assert all(len(attempt["message"]) <= 300 for attempt in got.error["attempts"])
    assert len(got.body) < 4000


@pytest.mark.parametrize("name", ["X-Request-Id", "OpenAI-Organization", "X-RateLimit-Key"])
@ensureDeferred
async def test_b9_a_key_that_a_provider_repeats_in_a_header_of_a_good_answer_is_not_passed_on(world, name):
    provider = world.provider(answer(200, None, **{name: "Bearer provider-key-1"}))
    got = await world.gateway(provider).ask()
    assert got.status == 200
    assert "provider-key-1" not in str(got.headers)


@ensureDeferred
async def test_f6_a_stream_that_no_step_gives_is_a_502_in_json(world):
    got = await world.gateway(None, world.provider(lambda c: c.send(whole_stream([b": x\n\n"])))).ask(stream=True)
    assert_refusal(got, 502, "all_steps_failed")
    assert [attempt["outcome"] for attempt in got.error["attempts"]] == ["unreachable", "broken"]
