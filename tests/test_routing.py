"""Policy: which attempts a call gets, and what the client is told when none of them worked."""

import json
import traceback
from pathlib import Path

import pytest

from aigw import __version__
from aigw.config.loader import build
from aigw.config.model import Config
from aigw.errors import (
    RouteNotFound,
    UpstreamBroken,
    UpstreamFailure,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from aigw.net.headers import lines
from aigw.protocols.endpoint import Call
from aigw.protocols.endpoints import ENDPOINTS
from aigw.protocols.error_bodies import error_body
from aigw.protocols.refusals import reason_in
from aigw.proxy.failure_report import all_failed
from aigw.routing.cooldown import Cooldowns
from aigw.routing.router import Router
from aigw.secret import KeySearch, Secret
from aigw.telemetry.record import AttemptRecord
from aigw.upstream.attempt import Attempt
from tests.calls import read_call

GATEWAY_KEY, FIRST_KEY, SECOND_KEY = "gw-key-0123456789", "sk-first-0123456789", "sk-second-0123456789"


def config(**first) -> Config:
    """Three providers and a few routes; ``first`` are more settings of the provider ``first``."""
    tree = {
        "api_key": GATEWAY_KEY,
        "providers": [
            {"name": "first", "base_url": "https://first.example/v1/", "api_key": FIRST_KEY, **first},
            {"name": "second", "base_url": "http://second.example:8000/api/v1", "api_key": SECOND_KEY},
            {"name": "open", "base_url": "http://127.0.0.1:11434/v1"},
        ],
        "routes": [
            {
                "name": "smart",
                "steps": [
                    {"provider": "second", "model": "b", "conflict_resolution": "tools"},
                    {"provider": "first", "model": "a", "conflict_resolution": "format"},
                    {"provider": "second", "model": "b"},
                    {"provider": "open", "model": 'org/"llama":8b-é'},
                ],
            },
            {"name": "Org/Smart", "steps": [{"provider": "first", "model": "a"}]},
            {"name": "first only", "steps": [{"provider": "first", "model": "a"}]},
        ],
    }
    return build(tree, {}, Path())


def call(path: str = "chat/completions", more: bytes = b"", headers: tuple[tuple[bytes, bytes], ...] = ()) -> Call:
    body = b'{"model":"smart","messages":[{"role":"user"}]%s}' % more
    return read_call(ENDPOINTS[path], body, {name: lines([(name, value)]) for name, value in headers}, "req-1")


def attempts(config: Config, call: Call, route: str = "smart") -> list[Attempt]:
    router = Router(config)
    return [router.attempt(step, call) for step in Cooldowns(lambda: 0.0).order(router.routes[route].steps)]


def sent_in(attempt: Attempt) -> list[tuple[bytes, bytes]]:
    """Its headers, names in lower case."""
    pairs = [line.removesuffix(b"\r\n").split(b": ", 1) for line in attempt.headers.values()]
    assert [name.lower() for name, _ in pairs] == list(attempt.headers)
    return [(name.lower(), value) for name, value in pairs]


def first_headers(client: tuple[tuple[bytes, bytes], ...] = (), **first) -> list[tuple[bytes, bytes]]:
    """What the provider ``first`` is sent, when it is configured so and the client sent these headers."""
    (attempt,) = attempts(config(**first), call(headers=client), "first only")
    return sent_in(attempt)


# B5: the look-up


@pytest.mark.parametrize("name", ["smart", "Org/Smart", "first only"])
def test_b5_a_route_is_found_by_its_exact_name(name):
    assert Router(config()).routes[name].name == name


@pytest.mark.parametrize(
    "name",
    ["Smart", "SMART", "org/smart", "smart ", " smart", "smar", "smart2", "Org", "first", "a", "", "ｓmart", "*"],
)
def test_b5_any_other_name_is_not_found(name):
    with pytest.raises(RouteNotFound) as caught:
        Router(config()).routes[name]
    shape = json.loads(error_body(caught.value))["error"]
    assert (caught.value.status, shape["type"], shape["code"], shape["param"]) == (
        404,
        "invalid_request_error",
        "model_not_found",
        "model",
    )


def test_b5_the_message_is_bounded_and_can_be_printed():
    with pytest.raises(RouteNotFound) as caught:
        Router(config()).routes["x\n\x1b[31m" * 100_000]
    assert len(caught.value.message) < 2000
    assert caught.value.message.isprintable()


# B7: the steps in order


def test_b7_the_attempts_are_the_steps_in_order():
    found = attempts(config(), call())
    assert [(a.step.number, a.step.provider.name, a.step.model, a.url) for a in found] == [
        (1, "second", "b", "http://second.example:8000/api/v1/chat/completions"),
        (2, "first", "a", "https://first.example/v1/chat/completions"),
        (3, "second", "b", "http://second.example:8000/api/v1/chat/completions"),
        (4, "open", 'org/"llama":8b-é', "http://127.0.0.1:11434/v1/chat/completions"),
    ]


@pytest.mark.parametrize("path", [path for path, each in ENDPOINTS.items() if b"application/json" in each.takes])
def test_r3_the_path_is_that_of_the_endpoint(path):
    assert attempts(config(), call(path))[1].url == f"https://first.example/v1/{path}"


def test_b7_each_attempt_has_its_own_model_and_resolution():
    more = b',"tools":[1],"response_format":{}'
    bodies = [json.loads(attempt.body) for attempt in attempts(config(), call(more=more))]
    assert [(b["model"], "tools" in b, "response_format" in b) for b in bodies] == [
        ("b", True, False),
        ("a", False, True),
        ("b", True, True),
        ('org/"llama":8b-é', True, True),
    ]


# R4: what a provider is sent


def test_r4_each_provider_gets_its_own_key_and_no_other():
    for attempt, key in zip(attempts(config(), call()), (SECOND_KEY, FIRST_KEY, SECOND_KEY, None), strict=True):
        authorizations = [value for name, value in sent_in(attempt) if name == b"authorization"]
        assert authorizations == ([b"Bearer " + key.encode()] if key else [])
        sent = repr((attempt.headers, attempt.body, attempt.url))
        assert [k for k in (GATEWAY_KEY, FIRST_KEY, SECOND_KEY) if k in sent] == ([key] if key else [])


def test_r4_the_whole_of_it():
    client = ((b"content-type", b"application/json"), (b"x-title", b"app"))
    assert first_headers(client, headers={"X-Org": "mine"}) == [
        (b"user-agent", f"aigw/{__version__}".encode()),
        (b"authorization", b"Bearer " + FIRST_KEY.encode()),
        (b"x-org", b"mine"),
        (b"content-type", b"application/json"),
        (b"x-title", b"app"),
        (b"x-request-id", b"req-1"),
    ]


@pytest.mark.parametrize("configured", ["x-title", "X-Title", "X-TITLE"])
def test_r4_a_configured_header_wins_over_the_clients(configured):
    client = ((b"x-title", b"client"), (b"openai-beta", b"client"))
    found = first_headers(client, headers={configured: "ours"})
    assert [value for name, value in found if name == b"x-title"] == [b"ours"]
    assert [value for name, value in found if name == b"openai-beta"] == [b"client"]


@pytest.mark.parametrize(
    ("name", "value"), [("Authorization", "Basic abc"), ("authorization", "Token t"), ("User-Agent", "mine/1.0")]
)
def test_r4_a_configured_header_wins_over_the_gateways(name, value):
    found = first_headers(headers={name: value})
    assert [v for n, v in found if n == name.lower().encode()] == [value.encode()]


def test_r4_an_azure_key_is_a_configured_header():
    found = first_headers(api_key=None, headers={"api-key": "azure-0123456789"})
    assert (b"api-key", b"azure-0123456789") in found
    assert b"authorization" not in dict(found)


def test_b9_an_attempt_shows_no_key():
    attempt = attempts(config(headers={"api-key": "azure-0123456789"}), call(more=b',"user":"private"'), "first only")[
        0
    ]
    for shown in (repr(attempt), str(attempt), f"{attempt}", f"{[attempt]!r}", repr(attempt.step)):
        assert FIRST_KEY not in shown
        assert "azure-0123456789" not in shown
        assert "private" not in shown
    assert "first" in repr(attempt)


# F6: none of them worked

SECRETS = [Secret(key) for key in (GATEWAY_KEY, FIRST_KEY, SECOND_KEY)]


def record(failure: UpstreamFailure, number: int = 1, provider: str = "first") -> AttemptRecord:
    return AttemptRecord(number, provider, f"model-{number}", failure.outcome, failure.status, 12, failure.message)


def refused(status: int, detail: str | None = None) -> UpstreamRefused:
    return UpstreamRefused(status, detail=detail)


def told(*failures: UpstreamFailure, secrets: list[Secret] = SECRETS) -> dict:
    """The error object that the client is sent."""
    error = all_failed([(record(failure, n), failure) for n, failure in enumerate(failures, 1)], KeySearch(secrets))
    return json.loads(error_body(error))["error"]


def test_t1_a_limit_that_had_just_passed_is_one_of_0_seconds():
    assert str(UpstreamTimeout("deadline", -0.0001)) == "deadline limit of 0 s passed"


def test_f6_b9_the_words_of_a_provider_are_cut_before_they_are_searched_and_no_key_is_halved():
    key = "sk-" + "0123456789" * 12
    (attempt,) = told(refused(400, key * 40), secrets=[Secret(key)])["attempts"]
    assert attempt["message"].startswith("answered 400: ******")
    assert "sk" not in attempt["message"]
    assert attempt["message"].endswith("***")


def test_f6_the_shape():
    failures = [
        refused(401, "Incorrect API key provided"),
        UpstreamTimeout("first output", 2.5),
        UpstreamUnreachable("connection refused"),
        UpstreamBroken("answered 2xx with an error", detail="overloaded"),
    ]
    error = all_failed([(record(failure, n), failure) for n, failure in enumerate(failures, 1)], KeySearch(SECRETS))
    shape = json.loads(error_body(error))["error"]
    assert error.status == 502
    assert shape.pop("message") == (
        "No step of the route gave an answer: first (answered 401: Incorrect API key provided), "
        "first (first output limit of 2.5 s passed), first (connection refused), "
        "first (answered 2xx with an error: overloaded)"
    )
    assert shape == {
        "type": "upstream_error",
        "param": None,
        "code": "all_steps_failed",
        "attempts": [
            {
                "step": number,
                "provider": "first",
                "model": f"model-{number}",
                "status": status,
                "outcome": outcome,
                "duration_ms": 12,
                "message": message,
            }
            for number, status, outcome, message in [
                (1, 401, "refused", "answered 401: Incorrect API key provided"),
                (2, None, "timeout", "first output limit of 2.5 s passed"),
                (3, None, "unreachable", "connection refused"),
                (4, None, "broken", "answered 2xx with an error: overloaded"),
            ]
        ],
    }


def test_f6_messages_are_bounded():
    shape = told(*[refused(500, "x" * 100_000)] * 50)
    assert len(shape["attempts"]) == 50
    assert {len(attempt["message"]) for attempt in shape["attempts"]} == {300}
    assert len(shape["message"]) <= 1000


def test_b9_the_record_that_is_logged_does_not_quote_the_provider():
    failure = refused(400, "you asked: private words")
    assert "private" not in repr(record(failure))
    assert "private" not in "".join(traceback.format_exception_only(failure))


@pytest.mark.parametrize(
    "detail",
    [
        "Incorrect API key provided: {}.",
        "{}",
        "{0} and {0}",
        "Bearer {}",
        "x" * 270 + "{}",
        "x" * 280 + " {}",
        "x" * 295 + "{}",
    ],
)
@pytest.mark.parametrize("key", [GATEWAY_KEY, FIRST_KEY, SECOND_KEY])
def test_f6_b9_no_key_comes_back_in_a_providers_words(detail, key):
    shape = told(refused(401, detail.format(key)))
    assert key[:9] not in json.dumps(shape)


@pytest.mark.parametrize("key", ['quo"te\\d-0123456789', "sl/ash+=0123456789"])
@pytest.mark.parametrize("write", [str, lambda key: json.dumps(key)[1:-1]], ids=["plain", "as JSON"])
def test_f6_b9_a_key_is_hidden_however_it_is_written(key, write):
    message = told(refused(401, f"wrong key {write(key)}!"), secrets=[Secret(key)])["attempts"][0]["message"]
    assert message == "answered 401: wrong key ***!"


def test_f6_b9_a_key_that_begins_like_another_is_hidden_whole():
    secrets = [Secret("sk-team"), Secret("sk-team-0123456789")]
    for ordered in (secrets, secrets[::-1]):
        message = told(refused(401, "wrong key sk-team-0123456789!"), secrets=ordered)["attempts"][0]["message"]
        assert "0123456789" not in message


@pytest.mark.parametrize("before", range(230, 300, 10))
def test_f6_b9_a_key_that_a_bound_cuts_in_two_is_hidden_too(before):
    key = "sk-long-" + "0123456789" * 10
    detail = reason_in({"message": "x" * before + key})
    message = told(UpstreamBroken("broke", detail=detail), secrets=[Secret(key)])["attempts"][0]["message"]
    assert "sk-long" not in message


# F6: x-should-retry

LOST = UpstreamBroken("connection closed in the middle of its answer")


@pytest.mark.parametrize(
    ("failures", "hopeless"),
    [
        ([refused(400)], True),
        ([refused(401)], True),
        ([refused(404), refused(422), refused(413)], True),
        ([refused(499)], False),
        ([refused(424)], False),
        ([refused(403)], True),
        ([UpstreamRefused(403, retry_after=5)], False),
        ([refused(408)], False),
        ([refused(409)], False),
        ([refused(429)], False),
        ([refused(400), refused(429)], False),
        ([refused(500)], False),
        ([refused(529)], False),
        ([refused(400), refused(503)], False),
        ([refused(302)], False),
        ([refused(400), refused(302)], False),
        ([LOST], False),
        ([refused(400), LOST], False),
        ([UpstreamTimeout("connect", 1), refused(400)], False),
        ([UpstreamUnreachable("connection refused")], False),
    ],
)
def test_f6_clients_do_not_repeat_what_cannot_help(failures, hopeless):
    error = all_failed([(record(failure), failure) for failure in failures], KeySearch(SECRETS))
    assert error.headers == ({"x-should-retry": "false"} if hopeless else {})


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500, 503])
def test_f6_no_status_of_a_provider_is_passed_on_as_ours(status):
    failure = refused(status)
    assert all_failed([(record(failure), failure)], KeySearch(SECRETS)).status == 502
