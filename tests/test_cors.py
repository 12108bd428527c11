"""R11: calls from web pages of other origins. Off by default; a preflight needs no key, everything else does."""

from __future__ import annotations

import pytest

from aigw.errors import ConfigError
from tests.harness import AUTH, HELLO, request
from tests.memory import MemoryGateway, error_of
from tests.providers import STREAM, STREAM_HEAD, chunk, completion, head

APP = "https://app.example.com"
PREFLIGHT = {
    "Origin": APP,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
}
PATHS = [
    "/v1/chat/completions",
    "/v1/models",
    "/v1/models/a/b",
    "/v1/audio/speech",
    "/v2/rerank",
    "/health",
    "/v1/nothing",
]


def world(*origins: str) -> MemoryGateway:
    return MemoryGateway(top={"cors": {"origins": list(origins)}} if origins else {})


def answered(gateway: MemoryGateway, data: bytes, wire=None) -> tuple[int, dict[str, str], bytes]:
    wire = wire or gateway.open()
    wire.say(data)
    gateway.turns()
    told = wire.take()
    top, _, body = told.partition(b"\r\n\r\n")
    lines = top.decode().split("\r\n")
    return int(lines[0].split()[1]), dict(line.lower().split(": ", 1) for line in lines[1:]), body


def preflight(gateway: MemoryGateway, path: str = PATHS[0], **headers: str | None):
    given = {name: value for name, value in {**PREFLIGHT, **headers}.items() if value is not None}
    return answered(gateway, request(None, path, "OPTIONS", given))


@pytest.mark.parametrize("path", PATHS)
def test_r11_a_preflight_needs_no_key_and_is_no_record(path):
    gateway = world("https://other.example", APP)
    status, headers, body = preflight(gateway, path)
    assert (status, body) == (204, b"")
    assert headers["access-control-allow-origin"] == APP
    assert headers["access-control-allow-headers"] == PREFLIGHT["Access-Control-Request-Headers"]
    assert "post" in headers["access-control-allow-methods"]
    assert headers["vary"].startswith("origin")
    assert "content-length" not in headers
    assert "access-control-allow-credentials" not in headers
    assert gateway.records == []


def test_r11_the_connection_goes_on_behind_a_preflight():
    gateway = world(APP)
    wire = gateway.open()
    assert answered(gateway, request(None, PATHS[0], "OPTIONS", PREFLIGHT), wire)[0] == 204
    assert answered(gateway, request(None, "/v1/models", "GET", {**AUTH, "Origin": APP}), wire)[0] == 200


@pytest.mark.parametrize(
    "given",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "https://app.example.com.evil.example"},
        {"Origin": "http://app.example.com"},
        {"Origin": "https://app.example.com:444"},
        {"Origin": "null"},
        {"Origin": None},
        {"Access-Control-Request-Method": None},
    ],
    ids=str,
)
def test_r11_others_get_what_they_got_before(given):
    status, headers, _ = preflight(world(APP), **given)
    assert status == 401
    if given.get("Origin", APP) != APP:
        assert not [name for name in headers if name.startswith("access-control")]
    status, headers, _ = preflight(world(), **given)
    assert status == 401
    assert "vary" not in headers


def test_r11_it_is_off_by_default():
    status, headers, _ = preflight(world())
    assert status == 401
    assert not [name for name in headers if name.startswith("access-control")]


def test_r11_a_body_of_a_preflight_is_not_read():
    gateway = world(APP)
    wire = gateway.open()
    wire.say(request(None, PATHS[0], "OPTIONS", {**PREFLIGHT, "Content-Length": "9999"}))
    told = wire.take()
    assert told.startswith(b"HTTP/1.1 204 ")
    assert b"\r\nconnection: close\r\n" in told.lower()
    wire.say(b"x" * 5000)
    assert gateway.site.bodies.under_way == 0


@pytest.mark.parametrize("names", ["a\x01b", "x" * 5000, 'a"b'])
def test_r11_odd_names_of_headers_are_not_repeated(names):
    headers = {**PREFLIGHT, "Access-Control-Request-Headers": names}
    data = request(None, PATHS[0], "OPTIONS", headers)
    status, got, _ = answered(world(APP), data)
    assert status in (204, 400)
    assert "access-control-allow-headers" not in got


EXPOSED = "x-request-id x-aigw-route x-aigw-step x-aigw-provider x-aigw-model x-aigw-attempts x-aigw-skipped x-aigw-dropped retry-after"


@pytest.mark.parametrize("streamed", [False, True])
def test_r11_an_answer_may_be_read_by_the_page(streamed):
    gateway = world(APP)
    wire = gateway.open()
    wire.say(request({**HELLO, "stream": streamed}, headers={**AUTH, "Origin": APP}))
    gateway.turns()
    good = (
        STREAM_HEAD + b"".join(map(chunk, STREAM))
        if streamed
        else head(Content_Length=str(len(completion()))) + completion()
    )
    gateway.doors["p1"].wire.say(good)
    _, headers, _ = answered(gateway, b"", wire)
    assert headers["access-control-allow-origin"] == APP
    assert set(EXPOSED.split()) <= set(headers["access-control-expose-headers"].split(", "))
    assert headers["vary"] == "origin"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(HELLO, headers={"Origin": APP}), 401),
        (request(HELLO, headers={"Origin": APP, "Authorization": "Bearer wrong-key-1234567890"}), 401),
        (request({"model": "route"}, headers={**AUTH, "Origin": APP}), 400),
        (request({**HELLO, "model": "no such"}, headers={**AUTH, "Origin": APP}), 404),
        (request(None, "/v1/nothing", "GET", {**AUTH, "Origin": APP}), 404),
        (request(None, "/nothing", "GET", {**AUTH, "Origin": APP}), 404),
        (request(None, PATHS[0], "GET", {**AUTH, "Origin": APP}), 405),
        (request(None, PATHS[0], "POST", {**AUTH, "Origin": APP, "Content-Length": "99999999"}), 413),
    ],
)  # fmt: skip
def test_r11_the_page_may_read_errors_too(data, status):
    got, headers, body = answered(world(APP), data)
    assert (got, headers["access-control-allow-origin"]) == (status, APP)
    assert error_of(b"\r\n\r\n" + body)


def test_r11_an_answer_to_another_page_is_not_for_it():
    _, headers, _ = answered(world(APP), request(None, "/v1/models", "GET", {**AUTH, "Origin": "https://evil.example"}))
    assert headers["vary"] == "origin"
    assert not [name for name in headers if name.startswith("access-control")]


def test_r11_any_page_only_where_that_is_written():
    gateway = world("*")
    _, headers, _ = preflight(gateway, Origin="https://any.example")
    assert headers["access-control-allow-origin"] == "*"
    assert any("pages of all sites" in warning for warning in gateway.config.warnings)


@pytest.mark.parametrize(
    "origin",
    [
        "app.example.com",
        "https://app.example.com/",
        "https://app.example.com/x",
        "https://*.example.com",
        "https://a b",
        "",
        7,
        "null",
    ],
)
def test_b20_an_origin_is_scheme_host_and_port(origin):
    with pytest.raises(ConfigError) as caught:
        MemoryGateway(top={"cors": {"origins": [origin]}})
    assert "cors.origins[0]" in caught.value.mistakes[0]


@pytest.mark.parametrize(
    "origin", ["http://localhost:5173", "https://[::1]:8443", "tauri://localhost", "HTTPS://App.Example.com"]
)
def test_r11_origins_of_local_pages_and_of_apps_are_origins(origin):
    assert preflight(MemoryGateway(top={"cors": {"origins": [origin]}}), Origin=origin.lower())[0] == 204


def test_r11_errors_in_the_middle_of_a_body_name_the_origin_too():
    gateway = world(APP)
    given = {**AUTH, "Origin": APP}
    _, headers, _ = answered(
        gateway, request(None, PATHS[0], headers={**given, "Transfer-Encoding": "chunked"}) + b"zz\r\n"
    )
    assert headers["access-control-allow-origin"] == APP
    slow = gateway.open()
    slow.say(request(None, PATHS[0], headers={**given, "Content-Length": "9000"}) + b"{")
    gateway.clock.advance(120)
    assert slow.take().partition(b"\r\n\r\n")[0].count(b"\r\nAccess-Control-Allow-Origin: " + APP.encode()) == 1
