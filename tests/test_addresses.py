"""U1 to U6: where requests to a provider go: its endpoints, its paths, its query, its Unix socket."""

from __future__ import annotations

import errno
import json
import socket
from pathlib import Path

import pytest
import yaml
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.error import ConnectError
from twisted.python.failure import Failure

from aigw.config import loader
from aigw.config.file_mode import holds_literal_key
from aigw.config.model import Provider
from aigw.errors import ConfigError, UpstreamUnreachable
from aigw.protocols.endpoints import ENDPOINTS
from aigw.routing.urls import Tail
from aigw.settings.addresses import base_url, provider_path, socket_of
from aigw.settings.endpoint_names import NAMES, PATHS
from aigw.upstream.client import ascii_url
from aigw.upstream.providers import Upstream
from aigw.upstream.reasons import no_socket
from tests.certificates import authority, dns, issue
from tests.harness import AUTH, HELLO, KEY, bounded, request, until
from tests.memory import MemoryGateway, body_of, error_of
from tests.providers import Provider as Scripted
from tests.providers import answer as says
from tests.providers import as_asked, begin_stream, completion, event
from tests.sdks import openai
from tests.test_certificates import serving
from tests.test_check_providers import by_key, check, models
from tests.test_clients import with_openai
from tests.test_daemon import CONFIG, KEYS, run
from tests.test_trace import attributes, collector  # noqa: F401

CANARY = "canary4711secret-of-the/query+x"
ESCAPED = "canary4711secret-of-the%2Fquery%2Bx"
EMBED = {"model": "route", "input": "hi"}
ASK = {"model": "route", "input": "hi"}
MESSAGES = {"model": "route", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
RANK = {"model": "route", "query": "q", "documents": ["a"]}
FORM = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nroute\r\n--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--b--\r\n'
OF_A_FORM = {"Authorization": f"Bearer {KEY}", "Content-Type": "multipart/form-data; boundary=b"}
CHAT_ONLY = {"endpoints": ["chat/completions"]}


def memory(*providers: dict, route: dict | None = None, **top) -> MemoryGateway:
    """A gateway whose route has one step for each of these providers, and the model ``org/model-N``."""
    names = [f"p{number}" for number in range(1, len(providers) + 1)]
    listed = [{"name": n, "base_url": f"http://{n}/v1", **more} for n, more in zip(names, providers, strict=True)]
    steps = [{"provider": n, "model": f"org/model-{n[1:]}"} for n in names]
    return MemoryGateway(
        top={"providers": listed, "routes": [{"name": "route", "steps": steps, **(route or {})}], **top}
    )


def ask(gateway: MemoryGateway, path: str, body, method: str = "POST", headers=None):
    client = gateway.open()
    client.say(request(body, path, method, headers))
    gateway.turns()  # a form is read in short steps
    return client


def asked(gateway: MemoryGateway, door: str) -> list[str]:
    """The methods and targets that a provider was asked for."""
    wires = gateway.doors[door].wires if door in gateway.doors else []
    return [line for wire in wires if (line := wire.value().partition(b" HTTP/1.1")[0].decode())]


def answers(gateway: MemoryGateway, door: str, body: bytes = b"{}", status: int = 200) -> None:
    head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
    gateway.doors[door].wire.say(head + body)


def skipped(client_got: bytes) -> str | None:
    head = client_got.partition(b"\r\n\r\n")[0].decode()
    return next((line.split(": ")[1] for line in head.split("\r\n") if line.lower().startswith("x-aigw-skipped")), None)


# U1: the endpoints of a provider

EVERYWHERE = [
    ("/v1/chat/completions", HELLO, "POST", None),
    ("/v1/completions", {"model": "route", "prompt": "x"}, "POST", None),
    ("/v1/embeddings", EMBED, "POST", None),
    ("/v1/responses", ASK, "POST", None),
    ("/v1/responses/compact", ASK, "POST", None),
    ("/v1/responses/input_tokens", ASK, "POST", None),
    ("/v1/responses", {**ASK, "previous_response_id": "resp_1"}, "POST", None),
    ("/v1/responses/resp_1", None, "GET", None),
    ("/v1/responses/resp_1", None, "DELETE", None),
    ("/v1/responses/resp_1/cancel", None, "POST", None),
    ("/v1/responses/resp_1/input_items?limit=2", None, "GET", None),
    ("/v1/messages", MESSAGES, "POST", None),
    ("/v1/messages?beta=true", MESSAGES, "POST", None),
    ("/v1/messages/count_tokens", MESSAGES, "POST", None),
    ("/v1/moderations", EMBED, "POST", None),
    ("/v1/rerank", RANK, "POST", None),
    ("/v2/rerank", RANK, "POST", None),
    ("/rerank", RANK, "POST", None),
    ("/v1/images/generations", {"model": "route", "prompt": "x"}, "POST", None),
    ("/v1/images/edits", FORM, "POST", OF_A_FORM),
    ("/v1/images/variations", FORM, "POST", OF_A_FORM),
    ("/v1/audio/transcriptions", FORM, "POST", OF_A_FORM),
    ("/v1/audio/translations", FORM, "POST", OF_A_FORM),
    ("/v1/audio/speech", {"model": "route", "input": "x", "voice": "y"}, "POST", None),
]


def endpoint_of(path: str) -> str:
    """What the settings call the endpoint of a request."""
    plain = path.partition("?")[0].removeprefix("/v1/").removeprefix("/v2/").removeprefix("/")
    return next(name for name in sorted(NAMES, key=len, reverse=True) if plain == name or plain.startswith(f"{name}/"))


@pytest.mark.parametrize(("path", "body", "method", "headers"), EVERYWHERE)
def test_u1_a_step_that_does_not_serve_the_endpoint_is_passed_over_without_a_call(path, body, method, headers):
    name = endpoint_of(path)
    gateway = memory({"endpoints": [each for each in NAMES if each != name]}, {"endpoints": [name]}, {})
    client = ask(gateway, path, body, method, headers)
    assert asked(gateway, "p1") == []
    there = path if path != "/v2/rerank" and path != "/rerank" else "/v1/rerank"
    if "resp_1" in json.dumps(body if isinstance(body, dict) else path):  # two serve it: the first of them is asked
        assert asked(gateway, "p2") == ["GET /v1/responses/resp_1"]
        return
    assert asked(gateway, "p2") == [f"{method} {there}"]
    answers(gateway, "p2", b"{}", 500)
    assert asked(gateway, "p3") == [f"{method} {there}"], "one without the setting serves everything"
    answers(gateway, "p3", b"{}", 500)
    got = client.take()
    assert skipped(got) == "1=endpoint_not_served"
    (record,) = gateway.records
    assert [(each.step, each.reason, each.until) for each in record.skipped] == [(1, "endpoint_not_served", None)]
    assert [each.step for each in record.attempts] == [2, 3]


@pytest.mark.parametrize(("path", "body", "method", "headers"), EVERYWHERE)
def test_u1_a_route_that_no_step_serves_is_a_404_at_once(path, body, method, headers):
    others = [name for name in NAMES if name != endpoint_of(path)]
    gateway = memory({"endpoints": others[:2]}, {"endpoints": others[1:3]})
    client = ask(gateway, path, body, method, headers)
    got = client.take()
    assert got.startswith(b"HTTP/1.1 404 ")
    assert asked(gateway, "p1") == asked(gateway, "p2") == []
    error = error_of(got)
    if not path.endswith(("resp_1", "cancel")) and "input_items" not in path:
        assert error["code"] == "endpoint_not_served"
        assert "The model 'route' is not served at /v1/" in error["message"]
        assert error["message"].endswith(
            f", but at {', '.join(f'/v1/{each}' for each in sorted(others[:3], key=NAMES.index))}."
        )
        assert skipped(got) == "1=endpoint_not_served, 2=endpoint_not_served"
    shape = json.loads(body_of(got))
    assert ("type" in shape) == path.startswith("/v1/messages")
    (record,) = gateway.records
    assert (record.status, record.attempts, record.outcome) == (404, (), "error")


def test_u1_nothing_is_looked_up_at_a_provider_that_does_not_serve_responses():
    gateway = memory(CHAT_ONLY, {"endpoints": ["responses"]})
    client = ask(gateway, "/v1/responses/resp_9", None, "GET")
    assert asked(gateway, "p1") == []
    assert asked(gateway, "p2") == ["GET /v1/responses/resp_9"], "the only one that can have it is not asked twice"
    answers(gateway, "p2", b'{"id": "resp_9", "status": "completed", "output": []}')
    assert client.take().startswith(b"HTTP/1.1 200 ")


def test_u1_an_id_of_a_provider_that_no_longer_serves_responses_is_elsewhere():
    gateway = memory({}, {})
    ask(gateway, "/v1/responses", ASK)
    answers(
        gateway, "p1", b'{"id": "resp_1", "object": "response", "status": "completed", "output": [{"type": "message"}]}'
    )
    changed = memory(CHAT_ONLY, {})
    changed.gateway.stored._ids = gateway.gateway.stored._ids
    client = ask(changed, "/v1/responses", {**ASK, "previous_response_id": "resp_1"})
    assert error_of(client.take())["code"] == "state_elsewhere"
    assert asked(changed, "p2") == []


def test_u1_a_default_route_and_its_steps():
    gateway = memory(CHAT_ONLY, {"endpoints": ["moderations"]}, route={"default_for": ["moderations"]})
    ask(gateway, "/v1/moderations", {"input": "x"})
    assert (asked(gateway, "p1"), asked(gateway, "p2")) == ([], ["POST /v1/moderations"])


def test_u1_no_hedge_goes_to_a_step_that_does_not_serve_the_endpoint():
    gateway = memory({}, CHAT_ONLY, {}, route={"hedge": {"after": "1s", "share": "100%"}})
    ask(gateway, "/v1/embeddings", EMBED)
    gateway.clock.advance(1.1)
    assert [asked(gateway, door) for door in ("p1", "p2", "p3")] == [
        ["POST /v1/embeddings"],
        [],
        ["POST /v1/embeddings"],
    ]
    alone = memory({}, CHAT_ONLY, route={"hedge": {"after": "1s", "share": "100%"}})
    client = ask(alone, "/v1/embeddings", EMBED)
    alone.clock.advance(1.1)
    answers(alone, "p1", b'{"data": [{"embedding": [1]}]}')
    assert client.take().startswith(b"HTTP/1.1 200 ")
    assert alone.records[0].hedge is None


def test_u1_the_steps_keep_their_numbers_and_their_order_by_cooldown():
    gateway = memory(CHAT_ONLY, {}, {})
    ask(gateway, "/v1/embeddings", EMBED)
    answers(gateway, "p2", b"{}", 429)
    answers(gateway, "p3", b'{"data": [{"embedding": [1]}]}')
    client = ask(gateway, "/v1/embeddings", EMBED)
    answers(gateway, "p3", b'{"data": [{"embedding": [1]}]}')
    got = client.take()
    assert skipped(got) == "1=endpoint_not_served, 2=cooling_down"
    assert b"x-aigw-step: 3\r\n" in got.lower()


def test_u1_of_the_targets_of_a_step_those_are_left_that_serve_the_endpoint():
    targets = [{"provider": name, "model": "m", "weight": weight} for name, weight in (("p1", 1000), ("p2", 1))]
    gateway = memory(CHAT_ONLY, {}, {}, route={"steps": [{"targets": targets}, {"provider": "p3", "model": "m"}]})
    client = ask(gateway, "/v1/embeddings", EMBED)
    assert [asked(gateway, door) for door in ("p1", "p2")] == [[], ["POST /v1/embeddings"]]
    answers(gateway, "p2", b'{"data": [{"embedding": [1]}]}')
    assert skipped(client.take()) is None, "the step was not passed over"
    one = memory(CHAT_ONLY, CHAT_ONLY, {}, route={"steps": [{"targets": targets}, {"provider": "p3", "model": "m"}]})
    client = ask(one, "/v1/embeddings", EMBED)
    answers(one, "p3", b'{"data": [{"embedding": [1]}]}')
    assert skipped(client.take()) == "1=endpoint_not_served"


def test_u1_several_keys_of_a_provider_are_one_step():
    keys = {"api_keys": ["a-key-of-the-provider-1", "a-key-of-the-provider-2"]}
    gateway = memory({**keys, **CHAT_ONLY}, {**keys, "query": DATE})
    client = ask(gateway, "/v1/embeddings", EMBED)
    assert (asked(gateway, "p1"), asked(gateway, "p2")) == ([], ["POST /v1/embeddings?api-version=2024-10-21"])
    answers(gateway, "p2", b'{"data": [{"embedding": [1]}]}')
    assert skipped(client.take()) == "1=endpoint_not_served"


def test_u1_retry_after_is_that_of_the_steps_that_serve_it():
    gateway = memory({"endpoints": ["embeddings"]}, {})
    ask(gateway, "/v1/embeddings", EMBED)
    answers(gateway, "p1", b"{}", 429)
    answers(gateway, "p2", b'{"data": [{"embedding": [1]}]}')
    client = ask(gateway, "/v1/chat/completions", HELLO)
    answers(gateway, "p2", b"{}", 500)
    assert b"retry-after" not in client.take().lower()


def test_u1_without_the_setting_no_part_is_made():
    assert memory({}, {}).gateway.router.parts == {}
    assert memory({}, {}).gateway.router._tails == {}
    assert {path for _, path in memory(CHAT_ONLY).gateway.router.parts} == set(ENDPOINTS) - {"chat/completions"}


# U2, U3: paths and queries

AZURE = "openai/deployments/{model}/chat/completions"
DATE = {"api-version": "2024-10-21"}
TRUTH = {  # base_url, the provider's settings, what is asked for, what the provider is asked for
    "nothing": ("/v1", {}, "/v1/chat/completions", "/v1/chat/completions"),
    "a path": ("", {"paths": {"chat/completions": "chat"}}, "/v1/chat/completions", "/chat"),
    "a path below": ("/a/b", {"paths": {"chat/completions": "x/chat"}}, "/v1/chat/completions", "/a/b/x/chat"),
    "a path of the host": ("/a/b", {"paths": {"chat/completions": "/x/chat"}}, "/v1/chat/completions", "/x/chat"),
    "the root": ("/a", {"paths": {"chat/completions": "/"}}, "/v1/chat/completions", "/"),
    "the model": ("", {"paths": {"chat/completions": AZURE}}, "/v1/chat/completions", "/openai/deployments/org%2Fmodel-1/chat/completions"),
    "the model below": ("/r", {"paths": {"chat/completions": AZURE}}, "/v1/chat/completions", "/r/openai/deployments/org%2Fmodel-1/chat/completions"),
    "the model first": ("", {"paths": {"chat/completions": "/{model}/c"}}, "/v1/chat/completions", "/org%2Fmodel-1/c"),
    "the model last": ("", {"paths": {"chat/completions": "m/{model}"}}, "/v1/chat/completions", "/m/org%2Fmodel-1"),
    "the model alone": ("/v1", {"paths": {"chat/completions": "{model}"}}, "/v1/chat/completions", "/v1/org%2Fmodel-1"),
    "the model twice": ("", {"paths": {"chat/completions": "{model}/{model}:x"}}, "/v1/chat/completions", "/org%2Fmodel-1/org%2Fmodel-1:x"),
    "another endpoint": ("/v1", {"paths": {"chat/completions": AZURE}}, "/v1/embeddings", "/v1/embeddings"),
    "below a path": ("/v1", {"paths": {"messages": "m"}}, "/v1/messages/count_tokens", "/v1/m/count_tokens"),
    "its own path": ("/v1", {"paths": {"messages": "m", "messages/count_tokens": "c"}}, "/v1/messages/count_tokens", "/v1/c"),
    "below, the query": ("/v1", {"paths": {"messages": "m/{model}"}}, "/v1/messages/count_tokens?beta=true", "/v1/m/org%2Fmodel-1/count_tokens?beta=true"),
    "an escape": ("", {"paths": {"chat/completions": "a%20b/{model}"}}, "/v1/chat/completions", "/a%20b/org%2Fmodel-1"),
    "an alias": ("/v1", {"paths": {"rerank": "v2/rerank"}}, "/rerank", "/v1/v2/rerank"),
    "a form": ("", {"paths": {"audio/transcriptions": "d/{model}/audio"}, "query": DATE}, "/v1/audio/transcriptions", "/d/org%2Fmodel-1/audio?api-version=2024-10-21"),
    "a query": ("/v1", {"query": DATE}, "/v1/chat/completions", "/v1/chat/completions?api-version=2024-10-21"),
    "two": ("/v1", {"query": {"a": "1", "b": "2"}}, "/v1/embeddings", "/v1/embeddings?a=1&b=2"),
    "an empty one": ("/v1", {"query": {"alt": ""}}, "/v1/embeddings", "/v1/embeddings?alt="),
    "escapes": ("/v1", {"query": {"a b&c": "ü=1 &/?#%+"}}, "/v1/embeddings", "/v1/embeddings?a%20b%26c=%C3%BC%3D1%20%26%2F%3F%23%25%2B"),
    "a client's is not passed": ("/v1", {"query": DATE}, "/v1/chat/completions?x=1", "/v1/chat/completions?api-version=2024-10-21"),
    "a client's too": ("/v1", {"query": DATE}, "/v1/messages?beta=true&x=%20", "/v1/messages?api-version=2024-10-21&beta=true&x=%20"),
    "the same name": ("/v1", {"query": DATE}, "/v1/messages?api-version=1&beta=true", "/v1/messages?api-version=2024-10-21&beta=true"),
    "only that": ("/v1", {"query": DATE}, "/v1/messages?api-version=1", "/v1/messages?api-version=2024-10-21"),
    "in other letters": ("/v1", {"query": DATE}, "/v1/messages?API-Version=1", "/v1/messages?api-version=2024-10-21"),
    "escaped": ("/v1", {"query": DATE}, "/v1/messages?api%2dversion=1&%61pi-version=2", "/v1/messages?api-version=2024-10-21"),
    "without a value": ("/v1", {"query": DATE}, "/v1/messages?api-version", "/v1/messages?api-version=2024-10-21"),
    "as a list": ("/v1", {"query": DATE}, "/v1/messages?api-version[]=1", "/v1/messages?api-version=2024-10-21"),
    "behind a semicolon": ("/v1", {"query": DATE}, "/v1/messages?a=1;api-version=2;b=3", "/v1/messages?api-version=2024-10-21&a=1;b=3"),
    "first, then another": ("/v1", {"query": DATE}, "/v1/messages?api-version=2&&b=3", "/v1/messages?api-version=2024-10-21&&b=3"),
    "an empty query": ("/v1", {"query": DATE}, "/v1/messages?", "/v1/messages?api-version=2024-10-21"),
    "an empty query alone": ("/v1", {}, "/v1/messages?", "/v1/messages?"),
    "a question mark": ("/v1", {"query": DATE}, "/v1/messages?a=?", "/v1/messages?api-version=2024-10-21&a=?"),
    "another name": ("/v1", {"query": DATE}, "/v1/messages?api-versions=1", "/v1/messages?api-version=2024-10-21&api-versions=1"),
    "both": ("", {"paths": {"chat/completions": AZURE}, "query": DATE}, "/v1/chat/completions", "/openai/deployments/org%2Fmodel-1/chat/completions?api-version=2024-10-21"),
}  # fmt: skip


@pytest.mark.parametrize(("base", "settings", "target", "expected"), TRUTH.values(), ids=TRUTH)
def test_u2_u3_a_truth_table_of_paths_and_queries(base, settings, target, expected):
    body, headers = next((body, headers) for path, body, _, headers in EVERYWHERE if path == target.partition("?")[0])
    gateway = memory({"base_url": f"http://p1{base}", **settings})
    ask(gateway, target, body, headers=headers)
    assert asked(gateway, "p1") == [f"POST {expected}"]
    assert b"\r\nHost: p1\r\n" in gateway.doors["p1"].wire.value()
    answers(gateway, "p1", b"{}", 500)
    (attempt,) = gateway.records[0].attempts
    assert (attempt.host, attempt.path) == ("p1", expected.partition("?")[0])


STORED = {
    "paths": ({"paths": {"responses": "/openai/responses"}}, "GET", "/resp_1", "/openai/responses/resp_1"),
    "below the model": ({"paths": {"responses": "d/{model}/responses"}}, "DELETE", "/resp_1", "/v1/d/org%2Fmodel-1/responses/resp_1"),
    "a query": ({"query": DATE}, "GET", "/resp_1", "/v1/responses/resp_1?api-version=2024-10-21"),
    "both queries": ({"query": DATE}, "GET", "/resp_1/input_items?limit=2&api-version=9", "/v1/responses/resp_1/input_items?api-version=2024-10-21&limit=2"),
    "both": ({"query": DATE, "paths": {"responses": "r/{model}"}}, "POST", "/resp_1/cancel", "/v1/r/org%2Fmodel-1/resp_1/cancel?api-version=2024-10-21"),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "method", "below", "expected"), STORED.values(), ids=STORED)
def test_u2_u3_what_a_provider_stores_is_below_the_path_and_has_the_query(settings, method, below, expected):
    gateway = memory(settings)
    ask(gateway, f"/v1/responses{below}", None, method)
    assert asked(gateway, "p1") == [f"{method} {expected}"]
    answers(gateway, "p1", b"{}", 500)
    (attempt,) = gateway.records[0].attempts
    assert attempt.path == expected.partition("?")[0].replace("resp_1/cancel", "{id}").replace(
        "resp_1/input_items", "{id}"
    ).replace("resp_1", "{id}")


def test_u2_u3_so_is_the_look_up_of_an_id():
    gateway = memory({"query": {"key": CANARY}, "paths": {"responses": "/r/{model}"}}, {})
    ask(gateway, "/v1/responses/resp_1", None, "GET")
    assert asked(gateway, "p1") == [f"GET /r/org%2Fmodel-1/resp_1?key={ESCAPED}"]
    answers(gateway, "p1", b"{}", 404)
    assert asked(gateway, "p2") == ["GET /v1/responses/resp_1"]


def test_u2_u3_a_plain_proxy_gets_the_whole_url():
    settings = {"base_url": "http://llm.example/v1", "proxy": "http://proxy.example:3128"}
    gateway = memory({**settings, "paths": {"chat/completions": AZURE}, "query": DATE})
    ask(gateway, "/v1/chat/completions", HELLO)
    url = "http://llm.example/v1/openai/deployments/org%2Fmodel-1/chat/completions?api-version=2024-10-21"
    assert asked(gateway, "proxy.example") == [f"POST {url}"]


def test_u2_of_a_model_that_a_client_chooses_nothing_is_kept():
    """The URLs that are kept are few, whatever the models are."""
    tail = Tail(["/chat"], [])
    assert tail.after("a/../b?x#y z", b"") == b"a%2F..%2Fb%3Fx%23y%20z/chat"
    gateway = memory({"paths": {"chat/completions": AZURE}})
    ask(gateway, "/v1/chat/completions", HELLO)
    (start,) = gateway.gateway.upstream._clients["p1"]._starts.values()
    assert start == b"POST /v1/openai/deployments/"


# U4: mistakes and warnings


def load(tmp_path: Path, provider: str, route: str = "", mode: int = 0o600, **environ: str) -> list[str]:
    text = f"""
api_key: a-gateway-key-of-a-good-length
providers:
  - {{name: p1, base_url: "https://p1.example/v1"{provider}}}
  - {{name: p2, base_url: "https://p2.example/v1", endpoints: [embeddings]}}
routes:
  - {{name: route, steps: [{{provider: p1, model: m}}]{route}}}
  - {{name: other, steps: [{{provider: p2, model: m}}]}}
"""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    path.chmod(mode)
    try:
        return list(loader.load(path, environ, "config.yaml").warnings)
    except ConfigError as error:
        return error.mistakes


@pytest.mark.parametrize(
    ("provider", "route", "expected"),
    [
        ("", "", None),
        (", endpoints: [chat/completions, embeddings]", "", None),
        (", endpoints: [chat/completion]", "", "line 4: providers[0].endpoints[0]: 'chat/completion' is not an endpoint; write one of chat/completions, "),
        (", endpoints: [chat/completion]", "", "; did you mean chat/completions?"),
        (", endpoints: [models]", "", "'models' is not an endpoint"),
        (", endpoints: []", "", "expected a list with at least one entry, not an empty list"),
        (", endpoints: chat/completions", "", "expected a list with at least one entry, not a string"),
        (", endpoints: [chat/completions]", ", endpoints: [embeddings]", "line 7: routes[0].endpoints: no step of the route serves embeddings, by the endpoints of its providers; remove it here, or add it to a provider"),
        (", endpoints: [chat/completions]", ", endpoints: [chat/completions, embeddings]", "routes[0].endpoints: no step of the route serves embeddings"),
        (", endpoints: [chat/completions]", ", default_for: [moderations]", "line 7: routes[0].default_for: no step of the route serves moderations"),
        (", endpoints: [chat/completions]", ", endpoints: [chat/completions]", None),
        ("", ", endpoints: [embeddings]", None),
        (", paths: {chat/completions: 'd/{model}/c'}", "", None),
        (", paths: {models: /openai/models, responses/compact: x}", "", None),
        (", paths: {chat/completion: x}", "", "providers[0].paths.chat/completion: is not an endpoint; write one of "),
        (", paths: {chat/completion: x}", "", "did you mean chat/completions?"),
        (", paths: {chat/completions: 'd/{modle}/c'}", "", "has the unknown placeholder {modle}; write {model}; did you mean model?"),
        (", paths: {chat/completions: 'd/{deployment}/c'}", "", "has the unknown placeholder {deployment}; write {model}"),
        (", paths: {chat/completions: 'd/{}/c'}", "", "has the unknown placeholder {}; write {model}"),
        (", paths: {chat/completions: 'd/{model/c'}", "", "has a brace that is not part of {model}"),
        (", paths: {chat/completions: 'd/model}/c'}", "", "has a brace that is not part of {model}"),
        (", paths: {chat/completions: 'https://x/y'}", "", "is a whole URL; write only the path, and the host in base_url"),
        (", paths: {chat/completions: 'x?api-version=1'}", "", "write only the path, and `query: {NAME: VALUE}`"),
        (", paths: {chat/completions: 'a b'}", "", "has characters that cannot be in a URL; percent-encode them"),
        (", paths: {chat/completions: 'ü'}", "", "has characters that cannot be in a URL; percent-encode them"),
        (", paths: {chat/completions: 'a%2'}", "", "has characters that cannot be in a URL; percent-encode them"),
        (", paths: {chat/completions: ''}", "", "is not a path; write a path below base_url"),
        (", paths: {chat/completions: 5}", "", "5 is not a path"),
        (", paths: [x]", "", "expected a mapping"),
        (", endpoints: [embeddings], paths: {chat/completions: x}", "", "providers[0].paths.chat/completions: has no effect, because the provider's endpoints do not have it"),
        (", endpoints: [messages], paths: {messages/count_tokens: x, models: y}", "", None),
        (", query: {api-version: 2024-10-21}", "", None),
        (", query: {api-version: '2024-10-21-preview'}", "", None),
        (", query: {v: 1}", "", "providers[0].query.v: the value is not a string; write it in quotes"),
        (", query: {v: yes}", "", "the value is not a string; write it in quotes"),
        (", query: {v: 2024-10-21T00:00:00Z}", "", "the value is not a string; write it in quotes"),
        (", query: {v: }", "", "the value is not a string; write it in quotes"),
        (", query: {v: [a]}", "", "the value is not a string; write it in quotes"),
        (', query: {v: "a\\nb"}', "", "the value cannot be sent in a query"),
        (", query: {v: ' a'}", "", "the value cannot be sent in a query"),
        (", query: {'': a}", "", "is not a name in a query"),
        (", query: {1: a}", "", "is not a name in a query"),
        (", query: {a: b, A: c}", "", "is written twice, in upper and lower case"),
        (", query: 'api-version=1'", "", "expected a mapping of names to values, not a string"),
        (", query: {key: os.environ/KEY}", "", "seems to name a variable in the syntax of another program"),
    ],
)  # fmt: skip
def test_u4_mistakes_and_warnings(tmp_path, provider, route, expected):
    found = load(tmp_path, provider, route)
    if expected is None:
        assert found == []
    else:
        assert len(found) == 1
        assert expected in found[0]


def test_u4_a_step_that_is_never_tried_is_a_warning():
    gateway = memory(CHAT_ONLY, {}, route={"endpoints": ["embeddings"]})
    assert gateway.config.warnings[-1].startswith("routes[0].steps[0]: is never tried: its provider serves none of")


@pytest.mark.parametrize("written", ["https://u?api-version=1", "https://host/v1?", "http+unix:///run/x.sock:/v1?a=b"])
def test_u4_a_query_in_a_base_url_is_named_with_the_setting_for_it(written):
    with pytest.raises(
        ValueError,
        match=r"contains a query \(\?\); write the URL without it, and `query: \{NAME: VALUE\}` on the provider",
    ):
        base_url(written)


def test_u4_a_placeholder_in_a_base_url_belongs_in_paths():
    with pytest.raises(ValueError, match=r"a path with \{model\} in `paths`"):
        base_url("https://host/deployments/{model}")


def test_u4_every_endpoint_may_have_a_path():
    assert set(PATHS) == {*ENDPOINTS, "models"}
    assert {name for name in NAMES if not Provider("p", "u").serves(name)} == set()
    for path in ENDPOINTS:
        assert any(Provider("p", "u", endpoints=frozenset([name])).serves(path) for name in NAMES), path
        assert provider_path(path) == path


@pytest.mark.parametrize(
    ("query", "secret"),
    [
        ({"api-version": "2024-10-21"}, False),
        ({"api_version": "2024-10-21-preview"}, False),
        ({"version": "2024-10-21"}, False),
        ({"key": "short"}, True),
        ({"sig": CANARY}, True),
        ({"alt": "sse"}, False),
        ({"code": "${CANARY}"}, True),
    ],
)
def test_u3_values_that_may_be_keys_join_the_secrets(query, secret):
    tree = {
        "api_key": KEY,
        "providers": [{"name": "p", "base_url": "https://p/v1", "query": query}],
        "routes": [{"name": "r", "steps": [{"provider": "p", "model": "m"}]}],
    }
    config = loader.build(tree, {"CANARY": CANARY}, Path("/nonexistent"))
    (value,) = config.providers["p"].query.values()
    assert (value in config.secrets) == secret
    assert next(iter(query.values())) not in repr(config.providers)


@pytest.mark.parametrize(
    ("query", "refused"), [("{key: abc}", True), ("{key: '${K}'}", False), ("{api-version: '2024-10-21'}", False)]
)
def test_b10_a_literal_key_in_a_query_is_one(query, refused):
    tree = yaml.safe_load(f"{{api_key: '${{KEY}}', providers: [{{name: p, query: {query}}}]}}")
    assert holds_literal_key(tree) == refused


def test_b22_a_key_in_a_query_over_http_is_a_warning():
    gateway = memory({"base_url": "http://p1.example/v1", "query": {"key": CANARY}})
    assert any("sends a key unencrypted" in each for each in gateway.config.warnings)


@ensureDeferred
async def test_u3_no_key_of_a_query_is_in_a_log_page_metric_span_error_or_answer(world, collector):  # noqa: F811
    """Also where the provider repeats the URL, as it is and percent-encoded."""
    url = f"/v1/chat?key={ESCAPED}"
    shown = json.dumps({"error": {"message": f"no {url}, {CANARY}, {ESCAPED.lower()}", "code": CANARY}}).encode()
    echo = completion(f"you called {CANARY} and {ESCAPED}")
    bad = world.provider(says(400, shown, X_Ratelimit_Key=CANARY), says(401, shown), says(500, shown), says(429, shown))
    broken = world.provider(begin_stream(event({"content": "a"}), b"data: " + shown + b"\n\n"))
    good = world.provider(says(body=echo, Openai_Key=ESCAPED))
    secret = {"query": {"key": "${CANARY}", "api-version": "2024-10-21"}}
    settings = {"paths": {"chat/completions": "/v1/chat"}, **secret}
    tree = {
        "api_key": KEY,
        "listen": ["tcp:0:interface=127.0.0.1"],
        "providers": [
            {"name": name, "base_url": world.base_url(at), **settings}
            for name, at in (("bad", bad), ("broken", broken), ("good", good), ("down", None))
        ],
        "routes": [
            {
                "name": name,
                "cooldown": 0,
                "stop_on": [400],
                "steps": [{"provider": step, "model": "m"} for step in steps],
            }
            for name, steps in {"r1": ["bad"], "r2": ["bad", "good"], "r3": ["broken"], "r4": ["down", "good"]}.items()
        ],
    }
    environ = {"CANARY": CANARY, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    gateway = world.gateway_of(tree, environ=environ)
    got = []
    for _ in range(4):
        got += [str((answer.status, answer.headers, answer.body)) for answer in [await gateway.ask({"model": "r1"})]]
    for more in ({"model": "r2"}, {"model": "r4"}, {"model": "r3", "stream": True}):
        answer = await gateway.ask(more)
        got.append(str((answer.status, answer.headers)))
        if "stream" not in more:
            got.append(str(answer.body))
    got += [str((await gateway.get(page, AUTH)).body) for page in ("/metrics", "/status", "/status.json")]
    await until(lambda: len(collector.spans()) >= 16)
    text = "\n".join([*got, *world.log, str(collector.requests), repr(gateway.service.config)])
    assert bad.requests[0].line == f"POST /v1/chat?key={ESCAPED}&api-version=2024-10-21 HTTP/1.1"
    assert '"path":"/v1/chat"' in text.replace(": ", ":")
    assert {attributes(span).get("url.path") for span in collector.spans()} >= {"/v1/chat", "/v1/chat/completions"}
    for form in (CANARY, ESCAPED, ESCAPED.lower(), CANARY.encode().hex()):
        assert form not in text, text[max(0, text.index(form) - 300) : text.index(form) + 100]
    assert "r1" in text, "something was looked at"


@pytest.mark.parametrize("mistake", ["", "    port: 5"], ids=["good", "with a mistake"])
def test_u3_check_config_prints_no_key_of_a_query(tmp_path, mistake):
    query = f'    query: {{key: "${{CANARY}}", sig: {CANARY}, api-version: 2024-10-21}}\n'
    config = CONFIG.replace(
        "providers:\n", f"providers:\n  - name: b\n    base_url: https://b.example/v1\n{query}{mistake}\n"
    )
    done = run(tmp_path, "--check-config", config=config, environ={**KEYS, "CANARY": CANARY})
    assert done.returncode == (78 if mistake else 0), done.stderr
    assert not [form for form in (CANARY, ESCAPED) if form in done.stdout + done.stderr]


@ensureDeferred
async def test_u3_check_providers_sends_the_query_and_prints_no_key_of_it(world):
    provider = world.provider(
        models("m"), says(401, json.dumps({"error": {"message": f"{CANARY} {ESCAPED}"}}).encode())
    )
    more = {"query": {"key": CANARY}, "paths": {"models": "/openai/models", "chat/completions": AZURE}}
    _, _, text = await check(world, provider, key=None, tries=True, **more)
    lines = [each.line for each in provider.requests]
    assert lines[0] == f"GET /openai/models?key={ESCAPED} HTTP/1.1"
    assert lines[1] == f"POST /v1/openai/deployments/m/chat/completions?key={ESCAPED} HTTP/1.1"
    assert not [form for form in (CANARY, ESCAPED) if form in text]


def on_post(behaviour):
    """It has no list of models."""

    def run(connection):
        (behaviour if connection.provider.requests[-1].line.startswith("POST ") else says(404))(connection)

    return run


@ensureDeferred
async def test_u1_check_providers_tries_what_the_provider_serves(world):
    tried = {
        ("embeddings",): ("/v1/embeddings", b'{"data": [{"embedding": [1]}]}'),
        ("messages",): ("/v1/messages", b'{"content": [{"type": "text", "text": "a"}]}'),
        ("responses",): ("/v1/responses", b'{"output": [{"type": "message"}]}'),
        ("completions", "rerank"): ("/v1/completions", completion()),
    }
    for endpoints, (path, body) in tried.items():
        provider = world.provider(on_post(says(body=body)))
        _, step, _ = await check(world, provider, tries=True, endpoints=list(endpoints))
        assert [each.line for each in provider.requests][-1] == f"POST {path} HTTP/1.1"
        assert step.works, endpoints
    provider = world.provider(says(404))
    _, step, text = await check(world, provider, tries=True, endpoints=["rerank"])
    assert step.works is None
    assert "--try has no request for the endpoints of this provider" in text
    assert all(each.line.startswith("GET ") for each in provider.requests)


# Azure: all of it together, by the official client


@ensureDeferred
async def test_u2_u3_the_openai_client_reaches_a_provider_of_the_shape_of_azure(world):
    """The path of the deployment, the version in the query, the key in its header; and no other provider is asked."""
    seen = []

    def azure(connection):
        asked_for = connection.provider.requests[-1]
        path, _, query = asked_for.line.split()[1].partition("?")
        seen.append(path)
        embeds = path == "/openai/deployments/embed%2Flarge/embeddings"
        if (
            query != "api-version=2024-10-21"
            or asked_for.header("api-key") != "azure-key"
            or asked_for.header("authorization")
        ):
            says(404, b'{"error": {"code": "404", "message": "Resource not found"}}')(connection)
        elif embeds:
            says(
                body=b'{"object": "list", "model": "e", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]}'
            )(connection)
        elif path == "/openai/deployments/gpt-4o/chat/completions":
            as_asked()(connection)
        else:
            says(404, b'{"error": {"code": "DeploymentNotFound", "message": "no such deployment"}}')(connection)

    provider, other = world.provider(azure, tls=True), world.provider()
    tree = {
        "api_key": KEY,
        "listen": ["tcp:0:interface=127.0.0.1"],
        "providers": [
            {
                "name": "azure",
                "base_url": f"https://127.0.0.1:{provider.port}",
                "ca_file": str(world.ca_file),
                "api_key": "azure-key",
                "auth": "api-key",
                "endpoints": ["chat/completions", "embeddings"],
                "query": {"api-version": "2024-10-21"},
                "paths": {name: f"openai/deployments/{{model}}/{name}" for name in ("chat/completions", "embeddings")},
            },
            {"name": "other", "base_url": world.base_url(other)},
        ],
        "routes": [
            {"name": "chat", "steps": [{"provider": "azure", "model": "gpt-4o"}, {"provider": "other", "model": "m"}]},
            {"name": "embed", "steps": [{"provider": "azure", "model": "embed/large"}]},
        ],
    }
    gateway = world.gateway_of(tree, tls=True)

    def use(client):
        whole = client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "hi"}])
        with client.chat.completions.create(
            model="chat", messages=[{"role": "user", "content": "hi"}], stream=True
        ) as chunks:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        vector = client.embeddings.create(model="embed", input="hi", encoding_format="float").data[0].embedding
        with pytest.raises(openai.NotFoundError) as refused:
            client.responses.create(model="embed", input="hi")
        client.post("/moderations", cast_to=object, body={"model": "chat", "input": "x"})
        return whole.choices[0].message.content, text, vector, refused.value.code

    other.behaviours = [says(body=b'{"id": "m", "model": "m", "results": [{"flagged": false}]}')]
    assert await with_openai(gateway, use) == ("hello", "hello", [0.5], "endpoint_not_served")
    assert len(other.requests) == 1
    assert other.requests[0].line == "POST /v1/moderations HTTP/1.1"
    assert seen[0] == "/openai/deployments/gpt-4o/chat/completions"
    records = [(each["status"], [a["path"] for a in each["attempts"]], each["skipped"]) for each in world.records]
    assert records[0] == (200, ["/openai/deployments/gpt-4o/chat/completions"], [])
    assert records[4] == (200, ["/v1/moderations"], [{"step": 1, "reason": "endpoint_not_served", "until": None}])


# U5: Unix sockets


@pytest.mark.parametrize(
    ("written", "url", "socket_file"),
    [
        ("http+unix:///run/x.sock:/v1", "http+unix://%2Frun%2Fx.sock/v1", "/run/x.sock"),
        ("http+unix://%2Frun%2Fx.sock/v1", "http+unix://%2Frun%2Fx.sock/v1", "/run/x.sock"),
        ("http+unix://%2frun%2fx.sock/v1/", "http+unix://%2Frun%2Fx.sock/v1", "/run/x.sock"),
        ("HTTP+UNIX:///run/x.sock:/v1", "http+unix://%2Frun%2Fx.sock/v1", "/run/x.sock"),
        ("http+unix:/run/x.sock:/v1", "http+unix://%2Frun%2Fx.sock/v1", "/run/x.sock"),
        ("http+unix:///run/x.sock", "http+unix://%2Frun%2Fx.sock", "/run/x.sock"),
        ("http+unix://%2Frun%2Fx.sock", "http+unix://%2Frun%2Fx.sock", "/run/x.sock"),
        ("http+unix:///run/x.sock:/", "http+unix://%2Frun%2Fx.sock", "/run/x.sock"),
        ("http+unix:///run/a b/ü.sock:/ü", "http+unix://%2Frun%2Fa%20b%2F%C3%BC.sock/%C3%BC", "/run/a b/ü.sock"),
        ("http+unix://%2Frun%2Fa%3Ab/v1", "http+unix://%2Frun%2Fa%3Ab/v1", "/run/a:b"),
        ("https://host/v1", "https://host/v1", None),
    ],
)
def test_u5_a_unix_socket_is_written_in_either_form(written, url, socket_file):
    assert base_url(written) == url
    assert base_url(url) == url
    assert socket_of(url) == socket_file


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("http+unix://", "is not the URL of a Unix socket; write http\\+unix:///run/NAME.sock:/v1 or http"),
        ("http+unix:run/x.sock", "is not the URL of a Unix socket"),
        ("http+unix://run/x.sock:/v1", "is not the URL of a Unix socket"),
        ("http+unix:///run/x.sock/v1", "is not the URL of a Unix socket"),
        ("http+unix:///run/:/v1", "is not the URL of a Unix socket"),
        ("http+unix:///run/x.sock:80", "is not the URL of a Unix socket"),
        ("http+unix://%2Frun%2Fx.sock:80/v1", "is not the URL of a Unix socket"),
        ("http+unix://%2Frun%2F%00.sock/v1", "is not the URL of a Unix socket"),
        ("unix:///run/x.sock", "is not the URL of a Unix socket"),
        ("https+unix:///run/x.sock:/v1", "is not the URL of a Unix socket"),
        (f"http+unix:///{'x' * 120}:/v1", "names a Unix socket of more than 107 bytes"),
        ("http+unix:///run/x.sock:/v1/chat/completions", "ends in /chat/completions, which the gateway appends itself"),
    ],
)
def test_u5_what_is_no_url_of_a_socket_is_a_mistake(written, expected):
    with pytest.raises(ValueError, match=expected):
        base_url(written)


def on_socket(world, file: Path, *behaviours) -> Scripted:
    """A provider that listens on a Unix socket."""
    provider = Scripted(list(behaviours) or [as_asked()])
    port = reactor.listenUNIX(str(file), provider)
    world._closers.append(port.stopListening)
    return provider


@ensureDeferred
async def test_u5_a_provider_behind_a_unix_socket_serves_plain_and_streamed_requests(world):
    provider = on_socket(world, world.folder / "llm.sock")
    gateway = world.gateway(f"http+unix://{world.folder}/llm.sock:/v1")
    assert (await gateway.ask()).status == 200
    assert b"[DONE]" in (await gateway.ask(stream=True)).body
    assert (provider.requests[0].line, provider.requests[0].header("host")) == (
        "POST /v1/chat/completions HTTP/1.1",
        "localhost",
    )
    assert provider.requests[0].header("authorization") == "Bearer provider-key-1"
    assert len(provider.connections) == 1, "the connection is used again"
    (attempt,) = world.records[0]["attempts"]
    assert (attempt["host"], attempt["path"]) == (f"unix:{world.folder}/llm.sock", "/v1/chat/completions")
    assert (await gateway.get("/status.json", AUTH)).status == 200
    assert await gateway.reload() is True
    assert (await gateway.ask()).status == 200


@ensureDeferred
async def test_u5_a_client_that_leaves_ends_the_request_over_the_socket(world):
    provider = on_socket(world, world.folder / "llm.sock", begin_stream(event({"content": "a"})))
    gateway = world.gateway(f"http+unix://{world.folder}/llm.sock:/v1")
    client = await gateway.send(request({**HELLO, "stream": True}))
    await bounded(client.started)
    client.transport.abortConnection()
    await until(lambda: provider.connections[0].is_closed, 1)


@ensureDeferred
async def test_u5_a_large_body_goes_over_the_socket(world):
    provider = on_socket(world, world.folder / "llm.sock")
    gateway = world.gateway(f"http+unix://{world.folder}/llm.sock:/v1")
    assert (await gateway.ask({"messages": [{"role": "user", "content": "x" * 3_000_000}]})).status == 200
    assert len(provider.requests[0].body) > 3_000_000


@pytest.mark.parametrize("url", ["http+unix:///run/x.sock:/v1", "http+unix://%2Frun%2Fx.sock/v1"])
@pytest.mark.parametrize("environ", [{}, {"HTTP_PROXY": "http://proxy:3128", "ALL_PROXY": "http://proxy:3128"}])
@pytest.mark.parametrize("top", [{}, {"proxy": "http://proxy:3128"}])
def test_u5_no_proxy_is_on_the_way_to_a_unix_socket(url, environ, top):
    routes = [{"name": "r", "steps": [{"provider": "p", "model": "m"}]}]
    tree = {"api_key": KEY, "providers": [{"name": "p", "base_url": url}], "routes": routes, **top}
    config = loader.build(tree, environ, Path("/nonexistent"))
    assert config.providers["p"].proxy is None


def closed_socket(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(file))


def full_socket(world, file: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(file))
    server.listen(0)
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect(str(file))
    world._closers.extend([server.close, waiting.close])


WHY_NOT = {
    "missing": (lambda world, file: None, "the Unix socket of base_url does not exist; start its server, or correct base_url"),
    "nobody listens": (lambda world, file: closed_socket(file), "connection refused: no server listens on the Unix socket of base_url"),
    "a file": (lambda world, file: file.touch(), "connection refused: no server listens on the Unix socket of base_url"),
    "a full queue": (full_socket, "the Unix socket of base_url takes no connection now; its server may be overloaded"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "why"), WHY_NOT.values(), ids=WHY_NOT)
@ensureDeferred
async def test_u5_why_there_is_no_connection_to_a_socket(world, make, why):
    """The log and --check-providers name the file, the client does not see it."""
    file = world.folder / "llm.sock"
    make(world, file)
    gateway = world.gateway(f"http+unix://{file}:/v1")
    answer = await gateway.ask()
    assert answer.error["code"] == "all_steps_failed"
    assert why in answer.error["message"]
    assert str(file) not in answer.body.decode()
    (attempt,) = world.records[0]["attempts"]
    assert (attempt["outcome"], attempt["host"]) == ("unreachable", f"unix:{file}")
    found, _, _ = await check(world, f"http+unix://{file}:/v1")
    assert found.problem.startswith(why)
    assert found.problem.endswith(f" ({file})")


@pytest.mark.parametrize(
    ("code", "why"),
    [(errno.EACCES, "permission denied: the gateway's user needs write permission"), (errno.ENOTDIR, "does not exist")],
)
def test_u5_what_the_kernel_says_of_a_socket(code, why):
    with pytest.raises(UpstreamUnreachable, match=why):
        no_socket(Failure(ConnectError(code)))


@ensureDeferred
async def test_u5_check_providers_asks_over_the_socket(world):
    provider = on_socket(world, world.folder / "llm.sock", by_key(models("m")))
    found, step, _ = await check(world, f"http+unix://{world.folder}/llm.sock:/v1")
    assert (found.reachable, found.certificate, found.key, step.works) == (True, None, True, True)
    assert provider.requests[0].line == "GET /v1/models HTTP/1.1"


# U6: hosts with an underscore


@pytest.mark.parametrize(
    ("host", "name", "good"),
    [
        ("my_llm.lab.example", "my_llm.lab.example", True),
        ("_llm", "_llm", True),
        ("my_llm.lab.example", "*.lab.example", True),
        ("my_llm.lab.example", "my-llm.lab.example", False),
        ("my_llm.lab.example", "other_llm.lab.example", False),
        ("my_llm.lab.example", "lab.example", False),
    ],
)
@ensureDeferred
async def test_u6_a_host_with_an_underscore_has_a_real_handshake_over_https(world, host, name, good):
    ca = authority()
    (world.folder / "root.pem").write_bytes(ca.pem)
    with serving() as server:
        server.show(issue(dns(name), by=ca))
        more = {"base_url": f"https://{host}:{server.number}/v1", "ca_file": "root.pem", "api_key": "provider-key-1"}
        top = {"providers": [{"name": "p1", **more}]}
        gateway = world.gateway(None, top=top, look_up=lambda _: ["127.0.0.1"])
        answer = await gateway.ask()
        sent = server.received
    if good:
        assert sent.startswith(f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{server.number}\r\n".encode())
    else:
        assert sent == b"", "the key is not sent"
        assert "TLS: the certificate is not for this host" in answer.error["message"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://my_llm/v1", "https://my_llm/v1"),
        ("https://my_llm/ü%20ü", "https://my_llm/%C3%BC%20%C3%BC"),
        ("https://my_llm.ü.example:8443/v1", "https://my_llm.xn--tda.example:8443/v1"),
        ("https://ü.EXAMPLE/ü", "https://xn--tda.EXAMPLE/%C3%BC"),
        ("https://ü。example", "https://xn--tda.example"),
    ],
)
def test_u6_only_a_label_that_needs_it_is_encoded(url, expected):
    assert ascii_url(url) == expected


def test_u6_an_underscore_in_a_label_that_is_not_ascii_is_a_mistake():
    provider = Provider("p", "https://ü_b.example/v1")
    with pytest.raises(ConfigError, match="the host is not a valid host name"):
        Upstream(reactor, [provider], lambda *_: None)


@ensureDeferred
async def test_u6_and_over_http(world):
    provider = world.provider()
    gateway = world.gateway(f"http://my_llm:{provider.port}/v1", look_up=lambda _: ["127.0.0.1"])
    assert (await gateway.ask()).status == 200
    assert provider.requests[0].header("host") == f"my_llm:{provider.port}"
