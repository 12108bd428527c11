"""D4's sister `--check-providers`: what it says of each provider and step, and how it exits."""

from __future__ import annotations

import json
from functools import partial

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor

from aigw.commands.check_providers import Check, neighbours
from aigw.commands.check_report import as_json, as_text
from aigw.config import loader
from aigw.upstream.connector import Host, Resolver
from aigw.upstream.providers import Upstream
from tests.harness import bounded
from tests.providers import answer, fin, hang, raw
from tests.switch import Switch
from tests.test_daemon import run

CANARY = "canary-key-4711"


def models(*names, **more):
    return answer(body=json.dumps({"object": "list", "data": [{"id": name} for name in names]}).encode(), **more)


REFUSED = answer(401)


def by_key(with_key, without=REFUSED):
    """What a provider does for who shows its key, and for others."""

    def run(connection):
        asked = connection.provider.requests[-1]
        (with_key if asked.header("authorization") == f"Bearer {CANARY}" else without)(connection)

    return run


async def check(world, provider, key=CANARY, model="m", tries=False, route=None, step=None, **more):
    if not isinstance(provider, str | None):
        more = {**({"ca_file": str(world.ca_file)} if provider.tls else {}), **more}
    checked, steps, text = await check_all(world, provider, key, model, tries, route or {}, step, **more)
    return checked[0], steps[0], text


async def check_all(world, provider, key, model, tries, route, step=None, **more):
    tree = {
        "api_key": "k",
        "providers": [{"name": "p", "base_url": world.base_url(provider), **({"api_key": key} if key else {}), **more}],
        "routes": [{"name": "r", "steps": [{"provider": "p", "model": model, **(step or {})}], **route}],
    }
    loaded = loader.build(tree, {}, world.folder)
    upstream = Upstream(reactor, loaded.providers.values(), partial(Host, reactor, Resolver(reactor)))
    checked, steps = await bounded(Check(loaded, upstream, reactor).run(tries))
    upstream.close()
    text = as_text(checked, steps) + as_json(checked, steps)
    assert CANARY not in text
    assert "canary-content" not in text
    return checked, steps, text


@pytest.mark.parametrize("tries", [False, True])
@ensureDeferred
async def test_n4_a_star_is_asked_for_with_the_models_of_its_route(world, tries):
    listed, chat = models("a", "x-b"), answer(body=b'{"choices": [{}]}')
    provider = world.provider(lambda c: (listed if c.provider.requests[-1].line.startswith("GET") else chat)(c))
    route = {"name": "o/*", "models": ["o/a", "o/c"]}
    _, steps, _ = await check_all(world, provider, None, "*", tries, route)
    assert [(step.route, step.model, step.listed) for step in steps] == [("o/*", "a", True), ("o/*", "c", False)]
    assert [step.works for step in steps] == ([True, True] if tries else [True, False])
    asked = [json.loads(each.body)["model"] for each in provider.requests if each.line.startswith("POST")]
    assert asked == (["a", "c"] if tries else [])


@pytest.mark.parametrize("tries", [False, True])
@ensureDeferred
async def test_n4_a_star_without_models_is_unknown(world, tries):
    provider = world.provider(models("a"))
    _, step, text = await check(world, provider, None, "*", tries, {"name": "o/*"})
    assert (step.model, step.listed, step.works, step.problem) == ("*", None, None, None)
    assert "clients choose the model; name some in models of the route" in text
    assert "--try" not in text
    assert {each.line for each in provider.requests} == {"GET /v1/models HTTP/1.1"}


@ensureDeferred
async def test_n4_a_star_at_a_provider_that_cannot_be_reached_does_not_work(world):
    _, step, _ = await check(world, f"http://127.0.0.1:{world.dead_port()}/v1", None, "*", False, {"name": "o/*"})
    assert (step.works, step.note) == (False, None)
    assert step.problem


@ensureDeferred
async def test_j6_each_of_several_keys_is_asked_with_and_named_by_its_position(world):
    def by_number(connection):
        key = connection.provider.requests[-1].header("authorization") or ""
        {"2": answer(401), "3": answer(429)}.get(key[-1:], models("m") if key else REFUSED)(connection)

    keys = [f"canary-of-a-key-{number}" for number in (1, 2, 3)]
    for tries in (False, True):
        provider = {"name": "p", "base_url": world.base_url(world.provider(by_number)), "api_keys": keys}
        tree = {"api_key": "k", "providers": [provider]}
        tree["routes"] = [{"name": "r", "steps": [{"provider": "p", "model": "m"}]}]
        loaded = loader.build(tree, {}, world.folder)
        upstream = Upstream(reactor, loaded.providers.values(), partial(Host, reactor, Resolver(reactor)))
        checked, steps = await bounded(Check(loaded, upstream, reactor).run(tries))
        upstream.close()
        text, data = as_text(checked, steps), json.loads(as_json(checked, steps))
        assert "canary" not in text + json.dumps(data)
        assert [(each["key_number"], each["key"]) for each in data["providers"]] == [(1, True), (2, False), (3, None)]
        assert "set api_keys[1] to a valid one" in data["providers"][1]["problem"]
        assert [each["key_number"] for each in data["steps"]] == [1, 2, 3]
        works = [each["works"] for each in data["steps"]]
        assert works == ([False, False, None] if tries else [True, False, None])  # its list is no answer to a chat
        assert [line.split()[:3] for line in text.splitlines()[1:4]] == [["p", "key", str(n)] for n in (1, 2, 3)]


@pytest.mark.parametrize("tls", [False, True])
@ensureDeferred
async def test_a_good_provider(world, tls):
    provider = world.provider(by_key(models("m", "other")), tls=tls)
    found, step, text = await check(world, provider)
    assert (found.reachable, found.certificate, found.key, found.problem) == (True, True if tls else None, True, None)
    assert 0 <= found.latency_ms < 5000
    assert (step.listed, step.works) == (True, True)
    assert "1 of 1 steps can work." in text
    assert provider.requests[0].line == "GET /v1/models HTTP/1.1"
    assert provider.requests[1].header("authorization") is None


@pytest.mark.parametrize(
    ("behaviour", "key", "listed", "works", "said"),
    [
        (by_key(models("m"), models("m")), None, True, None, "lists its models without a key"),
        (by_key(models("other")), True, False, False, "the provider does not list the model; correct model"),
        (by_key(models("models/m")), True, True, True, ""),
        (by_key(models("m:latest")), True, True, True, ""),
        (by_key(answer(body=b'[{"id": "m"}]')), True, True, True, ""),
        (answer(401, b'{"error": {"message": "canary-content"}}'), False, None, False, "the provider refuses the key (401); set api_key to a valid one"),
        (answer(403), None, None, None, "gives no list of models (403)"),
        (answer(404), None, None, None, "gives no list of models (404)"),
        (answer(405), None, None, None, "gives no list of models (405)"),
        (answer(429), None, None, None, "gives no list of models (429)"),
        (answer(501), None, None, None, "gives no list of models (501)"),
        (answer(402), None, None, False, "answered 402"),
        (by_key(answer(body=b'{"data": 1}'), fin), None, None, None, "does not have the format of OpenAI"),
        (by_key(models("m"), fin), None, True, None, "lists its models without a key"),
        (answer(500), None, None, False, "answered 500"),
        (answer(302, Location="http://127.0.0.1:1/"), None, None, False, "answered 302"),
        (by_key(answer(body=b"<html>canary-content")), True, None, None, "does not have the format of OpenAI"),
        (by_key(answer(body=b'{"data": 1}')), True, None, None, "does not have the format of OpenAI"),
        (fin, None, None, False, "connection"),
        (raw(b"nonsense\r\n\r\n"), None, None, False, ""),
    ],
)  # fmt: skip
@ensureDeferred
async def test_what_a_provider_may_say(world, behaviour, key, listed, works, said):
    found, step, text = await check(world, world.provider(behaviour))
    assert (found.key, step.listed, step.works) == (key, listed, works)
    assert said in text
    assert ("0 of 1 steps can work. For 1 that is unknown." in text) == (works is None)
    assert ('"works": true,\n  "providers"' in text) == (works is True)


@ensureDeferred
async def test_a_provider_without_a_key_is_asked_once(world):
    provider = world.provider(models("m"))
    found, step, _ = await check(world, provider, key=None)
    assert (found.key, step.works, len(provider.requests)) == (None, True, 1)


@ensureDeferred
async def test_one_that_is_down(world):
    found, step, text = await check(world, None)
    assert (found.reachable, found.certificate, found.latency_ms, step.works) == (False, None, None, False)
    assert "connection refused" in text


@pytest.mark.parametrize(("host", "trusted"), [("elsewhere.example", True), ("127.0.0.1", False)])
@ensureDeferred
async def test_a_wrong_certificate(world, host, trusted):
    provider = world.provider(models("m"), tls=True, host="127.0.0.1")
    if host != "127.0.0.1":
        provider = world.provider(models("m"), tls=True, host=host)
        url = f"https://127.0.0.1:{provider.port}/v1"
        found, step, text = await check(world, url, ca_file=str(world.ca_file))
    else:
        found, step, text = await check(world, f"https://127.0.0.1:{provider.port}/v1")  # the system's CAs
    assert (found.reachable, found.certificate, step.works) == (True, False, False)
    assert "TLS" in text


@ensureDeferred
async def test_one_that_hangs_is_given_up(world, monkeypatch):
    monkeypatch.setattr("aigw.commands.check_providers.SECONDS", 0.2)
    found, step, text = await check(world, world.provider(hang))
    assert (found.reachable, step.works) == (False, False)
    assert "limit of 0.2 s passed" in text


@ensureDeferred
async def test_a_list_without_end_is_given_up(world, monkeypatch):
    monkeypatch.setattr("aigw.commands.check_providers.MAX_LIST", 1000)
    found, step, _ = await check(world, world.provider(by_key(models(*map(str, range(1000))))))
    assert (found.models, step.listed, step.works) == (None, None, None)


def by_path(**paths):
    """What a provider does at each path, its slashes written as ``__``; 404 elsewhere."""

    def run(connection):
        line = connection.provider.requests[-1].line
        paths.get(line.split()[1].strip("/").replace("/", "__"), answer(404, b"{}"))(connection)

    return run


@pytest.mark.parametrize(
    ("base", "paths", "meant"),
    [
        ("", {"v1__models": by_key(models("m"))}, "/v1"),
        ("/api", {"api__v1__models": by_key(models("m"))}, "/api/v1"),
        ("/", {"v1__models": by_key(models("m"))}, "/v1"),
        ("/v1/models", {"v1__models": by_key(models("m"))}, "/v1"),
        ("/v1/v1", {"v1__models": by_key(models("m"))}, "/v1"),
        ("/v1", {"models": by_key(models("m"))}, ""),
        ("/v1", {"openai__v1__models": by_key(models("m"))}, "/openai/v1"),
        ("", {"models": answer(body=b"<html>Ollama is running", kind="text/html"), "v1__models": models("m")}, "/v1"),
        ("", {"v1__models": answer(401)}, "/v1"),
        ("/v1", {}, None),
        ("/v1", {"models": answer(500), "openai__v1__models": fin}, None),
    ],
)
@ensureDeferred
async def test_d4_a_base_url_beside_the_api_is_asked_did_you_mean(world, base, paths, meant):
    provider = world.provider(by_path(**paths))
    origin = f"http://127.0.0.1:{provider.port}"
    found, step, _ = await check(world, origin + base)
    assert step.works is None
    assert (f"did you mean base_url: {origin}{meant}" in (found.note or "")) == (meant is not None)
    assert len(provider.requests) <= 8


@pytest.mark.parametrize("base_url", ["http://h/v1", "http://h", "http://h/", "https://h:1/a/v1/chat/completions"])
def test_d4_neighbours_are_on_the_same_host_and_not_the_same(base_url):
    near = neighbours(base_url)
    assert 0 < len(near) == len(set(near)) <= 5
    assert all(
        each.split("/")[:3] == base_url.split("/")[:3] and each not in (base_url, base_url + "/") for each in near
    )


# --try: a real request to each step

MESSAGE = b'{"type": "message", "content": [{"type": "text", "text": "Hi"}]}'
EMBEDDING = json.dumps({"object": "list", "data": [{"embedding": [0.1]}]}).encode()
OLD_NAME = b'{"error": {"message": "Unsupported parameter: max_tokens; use max_completion_tokens instead."}}'
LIMIT = b'{"error": {"message": "Could not finish: max_tokens or model output limit was reached."}}'
LOUD = b'{"error": {"message": "no \\u001b[31mdeployment of canary-key-4711"}}'


def in_turn(*behaviours):
    left = list(behaviours)
    return lambda connection: left.pop(0)(connection)


@pytest.mark.parametrize(
    ("paths", "works", "said"),
    [
        ({"v1__chat__completions": answer()}, True, "1 of 1 steps can work."),
        ({"v1__models": models("other"), "v1__chat__completions": answer()}, True, "1 of 1 steps can work."),
        ({"v1__models": answer(401), "v1__chat__completions": answer(401)}, False, "answered 401"),
        ({"v1__chat__completions": in_turn(answer(400, OLD_NAME), answer())}, True, ""),
        ({"v1__chat__completions": in_turn(answer(400, OLD_NAME), answer(400, LIMIT))}, True, ""),
        ({"v1__embeddings": answer(body=EMBEDDING)}, True, "answers embeddings requests, but not chat requests"),
        ({"v1__messages": answer(body=MESSAGE)}, True, "answers messages requests, but not chat requests"),
        ({"v1__chat__completions": answer(429)}, None, "answered 429"),
        ({"v1__chat__completions": answer(503)}, None, "answered 503"),
        ({"v1__chat__completions": answer(500, LOUD)}, False, "answered 500: no  [31mdeployment of ***"),
        ({"v1__chat__completions": answer(body=b'{"choices": []}')}, False, "answered 2xx without a result"),
        ({"v1__chat__completions": answer(body=b"<title>Log in</title>")}, False, "without a result: Log in"),
        ({"v1__chat__completions": hang}, False, "limit of 0.5 s passed"),
        ({"v1__chat__completions": fin}, False, "closed the connection"),
        ({}, False, "answered 404"),
    ],
)
@ensureDeferred
async def test_d4_try_sends_each_step_a_real_request(world, monkeypatch, paths, works, said):
    monkeypatch.setattr("aigw.commands.check_providers.TRY_SECONDS", 0.5)
    provider = world.provider(by_path(**{"v1__models": by_key(models("m")), **paths}))
    _, step, text = await check(world, provider, tries=True)
    assert (step.tried, step.works) == (True, works)
    assert said in text
    assert "\x1b" not in text
    tried = next(seen for seen in provider.requests if seen.line.startswith("POST"))
    assert tried.line == "POST /v1/chat/completions HTTP/1.1"
    assert tried.header("authorization") == f"Bearer {CANARY}"
    assert json.loads(tried.body) == {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}


@pytest.mark.parametrize("behaviour", [answer(), answer(400, LIMIT)])
@ensureDeferred
async def test_d4a_w1_try_sends_what_the_step_would_send(world, behaviour):
    provider = world.provider(by_path(**{"v1__models": by_key(models("m")), "v1__chat__completions": behaviour}))
    changed = {"rename": {"max_tokens": "max_completion_tokens"}, "set": {"user": "u"}}
    _, step, _ = await check(world, provider, tries=True, step=changed)
    assert step.works
    (tried,) = [json.loads(seen.body) for seen in provider.requests if seen.line.startswith("POST")]
    hi = [{"role": "user", "content": "Hi"}]
    assert tried == {"model": "m", "messages": hi, "max_completion_tokens": 1, "user": "u"}


@ensureDeferred
async def test_d4_without_try_nothing_is_sent_that_costs(world):
    provider = world.provider(by_key(models("m")))
    await check(world, provider)
    assert {seen.line.split()[0] for seen in provider.requests} == {"GET"}


# The command

TREE = """
api_key: gateway-key-0987-0987
providers:
  - {{name: good, base_url: "{url}", api_key: canary-key-4711}}
  - {{name: down, base_url: "http://127.0.0.1:1/v1", api_key: canary-key-4712}}
routes:
  - {{name: r, steps: [{{provider: good, model: m}}{more}]}}
"""


def test_it_exits_with_0_where_every_step_can_work(tmp_path):
    with Switch() as provider:
        done = run(tmp_path, "--check-providers", config=TREE.format(url=provider.url, more=""))
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 of 1 steps can work." in done.stdout
    assert "down" in done.stdout  # no step needs it, but it is told


def test_it_exits_with_1_where_a_step_cannot(tmp_path):
    with Switch() as provider:
        config = TREE.format(url=provider.url, more=", {provider: down, model: x}")
        done = run(tmp_path, "--check-providers", "--json", config=config)
    shown = json.loads(done.stdout)
    assert done.returncode == 1
    assert shown["works"] is False
    assert [step["works"] for step in shown["steps"]] == [True, False]
    assert shown["steps"][1]["problem"] == "connection refused"
    assert shown["providers"][0]["models"] == 1
    assert "canary" not in done.stdout + done.stderr


def test_d4_an_unknown_step_does_not_count_as_working_and_try_finds_out(tmp_path):
    with Switch() as provider:
        provider.lists_to_all = True
        config = TREE.format(url=provider.url, more="")
        unknown = run(tmp_path, "--check-providers", config=config)
        tried = run(tmp_path, "--check-providers", "--try", config=config)
    assert unknown.returncode == 1
    assert (
        "0 of 1 steps can work. For 1 that is unknown. To find out, send a real request of one token to each step with --try."
        in unknown.stdout
    )
    assert (tried.returncode, tried.stderr) == (0, "")
    assert "1 of 1 steps can work." in tried.stdout


def test_it_exits_with_78_where_the_configuration_is_wrong(tmp_path):
    done = run(tmp_path, "--check-providers", config="api_key: [")
    assert done.returncode == 78
    assert "the configuration has mistakes" in done.stderr
