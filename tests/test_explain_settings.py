"""D4 and D4b with keys, targets, addresses, proxies and bodies: what is said is what is done, and no key is in it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from aigw.commands.describe import described
from aigw.config import loader
from aigw.config.model import Config
from aigw.explain.explained import Explained
from aigw.explain.explainer import Explainer
from aigw.explain.text import as_json, as_text
from aigw.protocols.walk import whole
from aigw.routing.router import Router
from tests.harness import HELLO, request
from tests.memory import MemoryGateway, body_of
from tests.providers import head
from tests.test_daemon import run
from tests.test_explain import explained, gateway, text_of

KEYS = [f"sk-key-of-p1-{n}-0123456789" for n in range(3)]


def with_keys(balance: str = "sticky", **route) -> MemoryGateway:
    """Two targets, the first of which has three keys, and a second step."""
    names = ("p1", "p2", "p3")
    providers = [{"name": n, "base_url": f"http://{n}/v1"} for n in names]
    providers[0] |= {"api_keys": KEYS, "balance": balance}
    targets = [{"provider": "p1", "model": "m1"}, {"provider": "p2", "model": "m2", "weight": 2}]
    steps = [{"targets": targets}, {"provider": "p3", "model": "m3"}]
    return MemoryGateway(3, {"providers": providers, "routes": [{"name": "a", "steps": steps, **route}]})


def places(found: Explained) -> list[tuple]:
    return [(each.step, each.target, each.key, each.provider) for each in found.steps]


@pytest.mark.parametrize(
    ("headers", "more", "session"),
    [
        ({}, {}, "the caller"),
        ({"X-Session-Id": "canary"}, {}, "the header x-session-id"),
        ({"X-Session-Id": "canary", "X-Claude-Code-Session-Id": "c"}, {}, "the header x-claude-code-session-id"),
        ({}, {"user": "canary"}, "the member user"),
        ({}, {"user": "x", "prompt_cache_key": "canary"}, "the member prompt_cache_key"),
        ({"X-Session-Id": "canary"}, {"user": "x"}, "the header x-session-id"),
    ],
)
def test_d4b_the_target_and_the_key_and_what_the_session_is_taken_from(headers, more, session):
    world = with_keys()
    asked = {"headers": headers, "body": {**HELLO, "model": "a", **more}}
    found = explained(world, asked)
    assert found.session == session
    assert {place for place in places(found) if place[0] == 1} == {
        *((1, 1, key, "p1") for key in (1, 2, 3)),
        (1, 2, None, "p2"),
    }
    assert places(found)[-1] == (2, None, None, "p3")
    lines = text_of(world, asked)
    assert f"session: from {session}\n" in lines
    assert "canary" not in lines
    assert ", target 1, key 1: p1: m1 (sticky among targets, sticky among 3 keys)\n" in lines
    assert found.steps[-1].choice is None


@pytest.mark.parametrize("seed", range(12))
def test_d4b_the_gateway_then_tries_these_targets_and_keys_in_this_order(seed):
    chosen = random.Random(seed)
    world = with_keys()
    for step in chosen.sample(world.config.routes["a"].steps, 2):
        world.health.at("chat/completions").cool_down(step, chosen.randrange(5, 60), False)
    asked = {**HELLO, "model": "a", "user": f"user-{seed}"}
    found = explained(world, asked)
    assert places(explained(world, asked)) == places(found)
    client = world.open()
    client.say(request(asked))
    for step in found.steps:
        wire = world.doors[step.provider].wires[-1]
        said = wire.take().decode()
        assert f"POST {step.url.removeprefix(f'http://{step.provider}')} HTTP/1.1\r\n" in said
        key = f"Authorization: Bearer {KEYS[step.key - 1]}\r\n" if step.key else None
        assert (key is None) == ("Authorization" not in said)
        assert key is None or key in said
        wire.say(head(500, Content_Length="0"))
        world.turns()
    assert [each.step for each in world.records[0].attempts] == [each.step for each in found.steps]


def test_d4b_an_explanation_takes_no_turn():
    world = with_keys("round_robin")
    asked = {**HELLO, "model": "a", "user": "u"}
    orders = {tuple(places(explained(world, asked))) for _ in range(5)}
    assert len(orders) == 1
    assert "round_robin among 3 keys" in text_of(world, asked)


def test_d4b_steps_that_are_passed_over_and_why():
    steps = [
        {"provider": "p1", "model": "m1", "max_body": "1KiB"},
        {"provider": "p2", "model": "m2"},
        {"provider": "p3", "model": "m3"},
    ]
    names = ("p1", "p2", "p3")
    providers = [{"name": n, "base_url": f"http://{n}/v1"} for n in names]
    providers[1]["endpoints"] = ["embeddings"]
    world = MemoryGateway(3, {"providers": providers, "routes": [{"name": "a", "steps": steps}]})
    asked = {**HELLO, "model": "a", "user": "x" * 2000}
    found = explained(world, asked)
    assert {(each.step, each.reason) for each in found.passed_over} == {(1, "too_large"), (2, "endpoint_not_served")}
    assert [each.step for each in found.steps] == [3]
    assert "  step 2: p2: m2 (endpoint_not_served)\n" in text_of(world, asked)


@pytest.mark.parametrize(
    ("provider", "step", "status", "code"),
    [({"endpoints": ["embeddings"]}, {}, 404, "endpoint_not_served"), ({}, {"max_body": "1KiB"}, 413, None)],
)
def test_d4b_where_no_step_is_left_the_error_is_that_of_the_gateway(provider, step, status, code):
    providers = [{"name": "p1", "base_url": "http://p1/v1", **provider}]
    steps = [{"provider": "p1", "model": "m", **step}]
    world = MemoryGateway(1, {"providers": providers, "routes": [{"name": "a", "steps": steps}]})
    asked = {**HELLO, "model": "a", "user": "x" * 2000}
    found = explained(world, asked)
    assert found.error.status == status
    assert code is None or found.error.code == code
    client = world.open()
    client.say(request(asked))
    told = client.take()
    assert told.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(body_of(told))["error"]["message"] == found.error.message


def test_d4b_each_change_of_the_body_with_the_values_of_the_settings_only():
    step = {
        "provider": "p1",
        "model": "m",
        "remove": ["user", "absent"],
        "rename": {"max_tokens": "max_completion_tokens", "absent_too": "x"},
        "default": {"temperature": 0.5, "top_p": 1},
        "set": {"metadata": {"team": "blue"}, "service_tier": "flex"},
    }
    providers = [{"name": "p1", "base_url": "http://p1/v1", "ask_usage": True}]
    world = MemoryGateway(1, {"providers": providers, "routes": [{"name": "a", "steps": [step]}]})
    more = {"user": "canary", "max_tokens": 77, "top_p": 0.25, "metadata": {"canary": "canary"}, "stream": True}
    lines = text_of(world, {**HELLO, "model": "a", **more}).splitlines()
    changed = [line.strip() for line in lines[lines.index("  step 1: p1: m") + 2 :]]
    assert sorted(changed) == sorted(
        [
            'model becomes "m"',
            "user is removed (8 bytes)",
            "max_tokens becomes max_completion_tokens (2 bytes)",
            "temperature is added: 0.5",
            'metadata becomes {"team":"blue"}',
            'service_tier is added: "flex"',
            'stream_options is added: {"include_usage":true}',
        ]
    )
    found = explained(world, {**HELLO, "model": "a", **more, "stream_options": {"x": 1}})
    added = [each for each in found.steps[0].changes if each.member == "stream_options.include_usage"]
    assert [(each.change, bytes(each.value)) for each in added] == [("added", b"true")]


def test_d4b_the_url_with_the_model_and_the_names_of_the_query():
    providers = [
        {
            "name": "azure",
            "base_url": "http://azure/x",
            "paths": {"chat/completions": "openai/deployments/{model}/chat/completions"},
            "query": {"api-version": "2024-10-21", "code": "canary-key-0123456789"},
        }
    ]
    route = {"name": "o/*", "steps": [{"provider": "azure", "model": "*"}]}
    world = MemoryGateway(1, {"providers": providers, "routes": [route]})
    asked = {**HELLO, "model": "o/a b/c"}
    (step,) = explained(world, asked).steps
    assert step.url == "http://azure/x/openai/deployments/a%20b%2Fc/chat/completions?api-version=***&code=***"
    client = world.open()
    client.say(request(asked))
    line = world.doors["azure"].wire.take().split(b" HTTP/1.1\r\n")[0].decode()
    assert line.partition("?")[0] == f"POST {step.url.partition('?')[0].removeprefix('http://azure')}"


# Keys

OF = {
    name: f"canary-key-{number:02}-x9Kq7Zt2Lm4Vb8"
    for number, name in enumerate(
        "gateway literal variable list list_variable header header_variable query query_variable proxy_password "
        "environment_proxy key_file command_output command_argument set_variable".split()
    )
}
ENVIRON = {
    "GATEWAY_API_KEY": OF["gateway"],
    "KEY": OF["variable"],
    "LISTED": OF["list_variable"],
    "HEADER": OF["header_variable"],
    "QUERY": OF["query_variable"],
    "ARGUMENT": OF["command_argument"],
    "VALUE": OF["set_variable"],
    "HTTPS_PROXY": f"http://user:{OF['environment_proxy']}@proxy.example:3128",
}
CONFIG = f"""
api_key: ${{GATEWAY_API_KEY}}
listen: ["tcp:0:interface=127.0.0.1"]
providers:
  - {{name: p1, base_url: "https://one.example/v1", api_key: "{OF["literal"]}", auth: api-key}}
  - {{name: p2, base_url: "https://two.example/v1", api_key: "${{KEY}}", proxy: "http://me:{OF["proxy_password"]}@127.0.0.9:3128"}}
  - {{name: p3, base_url: "https://three.example/v1", api_keys: ["{OF["list"]}", "${{LISTED}}"], balance: round_robin, proxy: none}}
  - name: p4
    base_url: https://four.example/v1
    headers: {{Authorization: "Bearer {OF["header"]}", X-Extra: "${{HEADER}}"}}
    endpoints: [chat/completions, embeddings]
    ask_usage: true
  - {{name: p5, base_url: "https://five.example/v1", query: {{api-version: "2024-10-21", code: "{OF["query"]}", sig: "${{QUERY}}"}}}}
  - {{name: p6, base_url: "https://six.example/v1", key_file: key.txt, auth: "header:X-Custom"}}
  - {{name: p7, base_url: "https://seven.example/v1", key_command: [/bin/echo, "${{ARGUMENT}}", "{OF["command_output"]}"]}}
routes:
  - name: "*"
    deadline: 10m
    steps:
      - {{provider: p1, model: m, remove: [user], set: {{metadata: {{token: "${{VALUE}}"}}}}, max_body: 400KiB}}
      - targets: [{{provider: p2, model: a}}, {{provider: p3, model: "*", weight: 3}}]
      - {{provider: p4, model: m}}
      - {{provider: p5, model: m}}
      - {{provider: p6, model: m}}
      - {{provider: p7, model: m}}
"""


def configuration(folder: Path) -> Config:
    (folder / "key.txt").write_text(OF["key_file"])
    (folder / "key.txt").chmod(0o600)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "config.yaml").chmod(0o600)
    return loader.load(folder / "config.yaml", ENVIRON)


def test_d4_check_config_describes_each_provider(tmp_path):
    lines = described(configuration(tmp_path), []).splitlines()
    through = "proxy http://proxy.example:3128 (HTTPS_PROXY)"
    assert [line for line in lines if line.startswith("provider")] == [
        f"provider p1: https://one.example/v1 (key in the file, sent as api-key, {through})",
        "provider p2: https://two.example/v1 (key from ${KEY}, sent as Authorization: Bearer, proxy http://127.0.0.9:3128)",
        "provider p3: https://three.example/v1 (key 1 in the file, key 2 from ${LISTED}, balance round_robin, sent as "
        "Authorization: Bearer, proxy none)",
        "provider p4: https://four.example/v1 (no key, headers Authorization X-Extra, only for chat/completions "
        f"embeddings, streams are asked for their usage, {through})",
        f"provider p5: https://five.example/v1 (no key, query api-version code sig, {through})",
        f"provider p6: https://six.example/v1 (key from the file {tmp_path}/key.txt, sent as x-custom, {through})",
        "provider p7: https://seven.example/v1 (key from the command /bin/echo, sent as Authorization: Bearer, "
        f"{through})",
    ]
    limits = "timeout 300s, connect 10s, idle 120s"
    assert lines[lines.index("route * (deadline 600s)") + 1 : -4] == [
        f"  1. p1: m ({limits}, for bodies up to 409600 bytes, remove user, set metadata)",
        f"  2. sticky over targets ({limits})",
        "     target 1: p2: a, weight 1",
        "     target 2: p3: *, 2 keys (round_robin), weight 3",
        f"  3. p4: m ({limits})",
    ]


@pytest.mark.parametrize("words", [["--check-config"], ["--explain", "r.json"], ["--explain", "r.json", "--json"]])
def test_d4_d4b_no_key_of_any_kind_is_in_what_a_command_prints(tmp_path, words):
    """The request holds all keys that the gateway can know, in its model, its headers and its content."""
    configuration(tmp_path)
    unknown = ("key_file", "command_output", "command_argument", "set_variable")  # nothing reads or runs them here
    known = [key for name, key in OF.items() if name not in unknown]
    body = {"model": " ".join(known[:5]), "messages": [{"role": "user", "content": " ".join(OF.values())}]}
    body |= {"user": OF["variable"], **dict.fromkeys(known, 1)}
    headers = {"x-session-id": OF["list"], "Authorization": f"Bearer {OF['gateway']}"}
    (tmp_path / "r.json").write_text(json.dumps({"headers": headers, "body": body}))
    done = run(tmp_path, *words, config=CONFIG, environ=ENVIRON)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 10
    assert [name for name, key in OF.items() if key in done.stdout] == []
    if "--explain" in words:
        assert "${VALUE}" in done.stdout


def test_d4b_the_explanation_runs_no_command_and_reads_no_key(tmp_path, monkeypatch):
    config = configuration(tmp_path)
    (tmp_path / "key.txt").unlink()
    monkeypatch.setattr("subprocess.Popen", None)
    monkeypatch.setattr("os.posix_spawn", None)
    explainer = Explainer(config, Router(config))
    found = whole(explainer.explain(json.dumps({**HELLO, "model": "x"}).encode()))
    assert [each.step for each in found.steps] == [1, 2, 2, 2, 3, 4, 5, 6]
    assert not [
        key for key in OF.values() if key in as_text(found, explainer.keys) + as_json(found, explainer.keys).decode()
    ]


def test_d4b_a_gateway_with_none_of_these_settings_says_nothing_of_them():
    world = gateway({"name": "a", "steps": [{"provider": "p1", "model": "m"}]})
    lines = text_of(world, {**HELLO, "model": "a"})
    assert not [word for word in ("session", "target", "key", "not tried", "***") if word in lines]
