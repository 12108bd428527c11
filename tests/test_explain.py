"""D4 and D4b: what ``--check-config``, ``--explain`` and ``POST /explain`` say, and that they say what is true, without a key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from twisted.internet.address import IPv4Address

from aigw.admin import resources
from aigw.admin.live_feed import LiveFeed
from aigw.admin.session import Cookies
from aigw.commands.describe import described
from aigw.commands.explain import explain
from aigw.config import loader
from aigw.config.model import Config
from aigw.errors import BadRequest
from aigw.explain.explained import Explained
from aigw.explain.explainer import Explainer
from aigw.explain.text import as_json, as_text
from aigw.protocols.walk import whole
from aigw.routing.router import Router
from aigw.secret import KeySearch
from aigw.server.site import GatewaySite
from aigw.telemetry.redaction import Redaction
from aigw.telemetry.telemetry import Telemetry
from tests.harness import HELLO, request
from tests.memory import MemoryGateway, Wire, body_of, error_of
from tests.providers import head
from tests.test_cost import WHOLE
from tests.test_daemon import run
from tests.test_names import PROVIDER, route

STEPS = [
    {"provider": "p1", "model": "m1", "conflict_resolution": "tools"},
    {"provider": "p2", "model": "m2", "conflict_resolution": "format"},
    {"provider": "p3", "model": "m3"},
]
CONFLICT = {**HELLO, "tools": [{"type": "function"}], "response_format": {"type": "json_object"}}
CONTENT = "canary-content-of-the-client"


def gateway(*routes: dict, steps: int = 3) -> MemoryGateway:
    return MemoryGateway(steps, {"routes": list(routes)})


def explainer(world: MemoryGateway, running: bool = True) -> Explainer:
    return Explainer(world.config, world.gateway.router, world.health if running else None)


def explained(world: MemoryGateway, asked: object, running: bool = True) -> Explained:
    data = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    return whole(explainer(world, running).explain(data))


def text_of(world: MemoryGateway, asked: object, running: bool = True) -> str:
    return as_text(explained(world, asked, running), KeySearch(world.config.secrets))


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({**HELLO, "model": "a"}, ("a", "name", "a", None)),
        ({**HELLO, "model": "b"}, ("a", "also", "b", None)),
        ({**HELLO, "model": "o/x"}, ("o/*", "pattern", "o/*", "x")),
        ({**HELLO, "model": "q/x/y"}, ("o/*", "pattern", "q/*", "x/y")),
        ({"path": "/v1/moderations", "body": {"input": "hi"}}, ("a", "default_for", None, None)),
        (
            {"path": "moderations", "headers": {}, "body": {"input": "hi", "model": None}},
            ("a", "default_for", None, None),
        ),
        ({"path": "/rerank?x=1", "body": {"model": "b"}}, ("a", "also", "b", None)),
    ],
)
def test_d4b_which_route_and_by_which_name(asked, found):
    world = gateway(route("a", also=["b"], default_for=["moderations"]), route("o/*", "*", also=["q/*"]))
    made = explained(world, asked)
    assert (made.route, made.found_by, made.name, made.star) == found
    assert made.error is None


def test_d4b_the_text():
    world = gateway({"name": "a", "steps": STEPS, "hedge": {"after": "3s"}, "hold": "whole"})
    assert text_of(world, {**CONFLICT, "model": "a", "stream": True}, running=False).splitlines() == [
        "request: POST /v1/chat/completions, model 'a', 156 bytes, streamed",
        "members: model (3 bytes), messages (35 bytes), tools (22 bytes), response_format (23 bytes), stream (4 bytes)",
        "route: a (by its name)",
        "note: an attempt without output for 3s may get a second one beside it, at the next step",
        "note: the answer is held until it is whole",
        "cooldowns: unknown here, so no step cools down; ask the gateway that runs: POST /explain",
        "steps, in the order in which they are tried:",
        "  step 1: p1: m1",
        "    POST http://p1/v1/chat/completions, 106 bytes",
        '    model becomes "m1"',
        "    response_format is removed (23 bytes)",
        "  step 2: p2: m2",
        "    POST http://p2/v1/chat/completions, 117 bytes",
        '    model becomes "m2"',
        "    tools is removed (22 bytes)",
        "  step 3: p3: m3",
        "    POST http://p3/v1/chat/completions, 148 bytes",
        '    model becomes "m3"',
    ]


def test_d4b_a_member_within_a_member_and_an_added_model():
    world = gateway({"name": "a", "steps": STEPS, "default_for": ["moderations"]})
    body = {"model": "a", "input": "x", "tools": [{}], "text": {"format": {"type": "json_object"}, "verbosity": "low"}}
    lines = text_of(world, {"path": "/v1/responses", "body": body})
    assert "    text.format is removed\n" in lines
    assert '    model is added: "m1"\n' in text_of(world, {"path": "/v1/moderations", "body": {"input": "x"}})


def test_d4b_what_the_settings_add_and_the_step_cannot_take():
    """W1 and B8: it is not sent, so nothing is said of it, and the client lost nothing."""
    step = {**STEPS[0], "set": {"response_format": {"type": "json_object"}, "text": {"format": {"type": "json"}}}}
    world = gateway({"name": "a", "steps": [step]})
    lines = text_of(world, {**HELLO, "model": "a", "tools": [{}]})
    assert "response_format" not in lines
    client = world.ask(model="a", tools=[{}])
    assert b"response_format" not in world.doors["p1"].wire.take()
    world.doors["p1"].wire.say(WHOLE)
    assert b"X-Aigw-Dropped" not in client.take()
    lines = text_of(world, {"path": "/v1/responses", "body": {"model": "a", "input": "x", "tools": [{}]}}).splitlines()
    assert lines[-2:] == ['    text is added: {"format":{"type":"json"}}', "    text.format is removed"]


@pytest.mark.parametrize(
    "asked",
    [
        {**CONFLICT, "model": "a"},
        {**CONFLICT, "model": "a", "stream": True},
        {**HELLO, "model": "o/é-模型"},
        {**HELLO, "model": "o/x", "user": "u" * 300_000},
        {"path": "/v1/embeddings", "body": {"model": "o/x", "input": "y"}},
        {"path": "/v1/responses", "body": {"model": "a", "input": "y"}},
        {"path": "/v1/moderations", "body": {"input": "y"}},
    ],
)
def test_d4b_the_gateway_then_does_what_the_explanation_says(asked):
    """Each step fails in turn, and each provider gets the model and the number of bytes that were announced."""
    steps = [{**each, "model": "*"} for each in STEPS]
    world = gateway({"name": "a", "steps": STEPS, "default_for": ["moderations"]}, {"name": "o/*", "steps": steps})
    for _ in range(3):  # the first step cools down
        world.health.at("chat/completions").failed(world.config.routes["a"].steps[0], False)
        world.health.at("chat/completions").failed(world.config.routes["o/*"].steps[0], False)
    made = explained(world, asked)
    assert all(door.wires == [] for door in world.doors.values())
    client = world.open()
    client.say(request(asked.get("body", asked), asked.get("path", "/v1/chat/completions")))
    world.turns()
    for step in made.steps:
        wire = world.doors[step.provider].wires[-1]
        said = wire.take()
        world.turns()
        said += wire.take()
        assert said.startswith(f"POST {step.url.removeprefix(f'http://{step.provider}')} HTTP/1.1\r\n".encode())
        assert (len(body_of(said)), json.loads(body_of(said))["model"]) == (step.bytes, step.model)
        wire.say(head(400, Content_Length="0"))
        world.turns()
    assert [each.step for each in world.records[0].attempts] == [each.step for each in made.steps]
    assert made.route == world.records[0].route


def test_d4b_steps_that_cool_down_come_last_with_their_seconds():
    world = gateway({"name": "a", "steps": STEPS})
    world.ask(model="a")
    world.doors["p1"].wire.say(head(429, Content_Length="0", Retry_After="40"))
    world.doors["p2"].wire.say(head(429, Content_Length="0", Retry_After="30"))
    world.doors["p3"].wire.say(WHOLE)
    before = [(each.step, each.cools_down_s) for each in explained(world, {**HELLO, "model": "a"}).steps]
    assert before == [(3, None), (2, 30), (1, 40)]
    lines = text_of(world, {**HELLO, "model": "a"}).splitlines()
    assert lines[3:5] == ["steps, in the order in which they are tried:", "  step 3: p3: m3"]
    assert "  step 2: p2: m2, cools down for 30 s" in lines
    assert [
        each.cools_down_s for each in explained(world, {"path": "/v1/responses", "body": {"model": "a"}}).steps
    ] == [None] * 3
    assert [each.step for each in explained(world, {**HELLO, "model": "a"}, running=False).steps] == [1, 2, 3]
    world.clock.advance(31)
    after = explained(world, {**HELLO, "model": "a"}).steps
    assert [(each.step, each.cools_down_s, each.probe) for each in after] == [
        (2, None, True),
        (3, None, False),
        (1, 9, False),
    ]
    assert explained(world, {**HELLO, "model": "a"}).steps == after  # nothing has changed


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({**HELLO, "model": "nothing"}, 404, "model_not_found"),
        ({"model": "a"}, 400, None),
        ({"model": "a", "messages": []}, 400, None),
        ({"model": 1, "messages": [{"role": "user"}]}, 400, None),
        ({"path": "/v1/embeddings", "body": {}}, 400, None),
        ({"path": "/v1/embeddings", "body": [CONTENT]}, 400, None),
        ({"path": "/v1/embeddings", "body": CONTENT}, 400, None),
        ({"path": "/v1/moderations", "body": {"input": CONTENT}}, 400, None),
    ],
)
def test_d4b_an_error_at_once_is_that_of_the_gateway(asked, status, code):
    world = gateway(route("a"))
    made = explained(world, asked)
    client = world.open()
    client.say(request(asked.get("body", asked), asked.get("path", "/v1/chat/completions")))
    told = client.take()
    assert told.startswith(b"HTTP/1.1 %d " % status)
    assert (made.error.status, made.error.code) == (status, code)
    assert made.error.message == error_of(told)["message"]
    assert (made.steps, CONTENT in text_of(world, asked)) == ([], False)
    assert text_of(world, asked).splitlines()[-1].startswith(f"answer: {status}")
    assert "no model" not in text_of(world, asked) or "model" not in asked.get("body", asked)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "The request is not a JSON object: "),
        (b"not json " + CONTENT.encode(), "The request is not a JSON object: "),
        (b"[1]", "The request is not a JSON object: its top level is another value; write the body of a request, or"),
        (b'{"x":' + b"[" * 100_000, "The request is not a JSON object: it is nested too deeply"),
        (b'{"body": {}, "headres": 1}', "The member 'headres' beside 'body' is unknown; write the body"),
        (b'{"body": {}, "headers": {"a": 1}}', "'headers' names with strings"),
        (b'{"body": {}, "headers": []}', "'headers' names with strings"),
        (b'{"body": {}, "path": 1}', "'path' must be a string"),
        (
            b'{"body": {}, "path": "/v1/models"}',
            "'path' is not the path of an endpoint with a body; write one of /v1/chat/",
        ),
        (b'{"body": {}, "path": "/v1/audio/transcriptions"}', "are forms, which cannot be explained"),
        (b'{"x": "' + b"y" * 300_000 + b'"', "The request is not a JSON object: "),
    ],
)
def test_d4b_what_is_no_request_is_said(data, says):
    with pytest.raises(BadRequest) as caught:
        explained(gateway(route("a")), data)
    assert says in caught.value.message
    assert CONTENT not in caught.value.message
    assert len(caught.value.message) < 700


def test_d4b_of_the_content_there_are_names_and_sizes_only():
    world = gateway({"name": "a", "steps": STEPS})
    asked = {
        **CONFLICT,
        "model": "a",
        "messages": [{"role": "user", "content": CONTENT}],
        "user": CONTENT,
        "tools": [{"type": "function", "function": {"name": CONTENT}}],
        "metadata": {CONTENT: 1},
    }
    headers = {"Authorization": f"Bearer {CONTENT}", "X-Session-Id": CONTENT, "Cookie": CONTENT}
    for each in (asked, {"headers": headers, "body": asked}):
        found = explained(world, each)
        assert CONTENT not in text_of(world, each) + as_json(found, KeySearch([])).decode() + repr(found)
    assert found.members["user"] == len(CONTENT) + 2


def test_d4b_many_and_long_members_are_bounded():
    asked = {**HELLO, "model": "route", **{f"{n}-{'x' * 100}": 1 for n in range(200)}}
    found = explained(MemoryGateway(), asked)
    assert (len(found.members), max(map(len, found.members))) == (100, 64)


def test_d4b_a_name_that_is_no_utf_8_is_explained():
    """Such a member goes to the provider as it is."""
    asked = b'{"model":"a","messages":[{"role":"user","content":"x"}],"user\\ud800":1}'
    world = gateway(route("a"))
    found = explained(world, asked)
    assert found.members == {"model": 3, "messages": 31, "user?": 1}
    assert json.loads(as_json(found, KeySearch([])))["members"]["user?"] == 1
    assert "user? (1 bytes)" in as_text(found, KeySearch([]))


def test_d4b_a_caller_that_may_not_use_the_route():
    """The only caller is known; of several nobody is."""
    keys = [{"name": n, "key": f"sk-of-{n}-0123456789abcdef", "routes": ["a"]} for n in ("alice", "bob")]

    def asked(model: str, *keys: dict) -> Explained:
        tree = {"providers": [PROVIDER], "routes": [route("a"), route("b")], "keys": list(keys)}
        config = loader.build(tree, {}, Path("/nonexistent"))
        return whole(Explainer(config, Router(config)).explain(json.dumps({**HELLO, "model": model}).encode()))

    assert asked("a", keys[0]).error is None
    made = asked("b", keys[0])
    assert (made.error.code, made.route, made.steps) == ("model_not_found", None, [])
    made = asked("b", *keys)
    assert (made.error, made.route) == (None, "b")
    assert made.notes == ["a caller whose key has routes without this one gets 404; the caller is not known here"]


# The listener for administrators


class Admin:
    """The listener for administrators of a gateway in memory."""

    def __init__(self, world: MemoryGateway) -> None:
        telemetry = Telemetry(lambda: None, world.clock, Redaction())
        state = resources.AdminState(telemetry, LiveFeed(telemetry.status, world.clock), Cookies())
        self.world = world
        world.site = GatewaySite(resources.tree(world.config, state, lambda: None, explainer(world)), world.clock)
        world.site.bodies.limit = world.config.max_bodies

    def ask(self, body: object, headers: dict[str, str] | None = None, method: str = "POST") -> bytes:
        client: Wire = self.world.open()
        client.hostAddr = IPv4Address("TCP", "127.0.0.1", 1)
        client.say(request(body, "/explain", method, {"Host": "localhost", **(headers or {})}))
        self.world.turns()
        return client.take()


def test_d4b_the_listener_for_administrators_explains_without_a_key():
    world = gateway({"name": "a", "steps": STEPS})
    admin, asked = Admin(world), {**HELLO, "model": "a"}
    answered = admin.ask(asked)
    assert answered.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nContent-Type: text/plain; charset=utf-8\r\n" in answered
    assert b"\r\nCache-Control: no-store\r\n" in answered
    assert body_of(answered).decode() == text_of(world, asked)
    answered = admin.ask(asked, {"Accept": "application/json"})
    assert b"\r\nContent-Type: application/json\r\n" in answered
    assert json.loads(body_of(answered))["steps"][0]["url"] == "http://p1/v1/chat/completions"
    large = {**asked, "user": "x" * 600_000}
    assert body_of(admin.ask(large)).decode() == text_of(world, large)


def test_d4b_its_errors():
    admin = Admin(gateway(route("a")))
    assert admin.ask({**HELLO, "model": "nothing"}).startswith(b"HTTP/1.1 200 ")
    assert error_of(admin.ask([1]))["message"].startswith("The request is not a JSON object: ")
    assert admin.ask([1]).startswith(b"HTTP/1.1 400 ")
    assert admin.ask(None, method="GET").startswith(b"HTTP/1.1 405 ")
    assert admin.ask({"x": "y" * 1024 * 1024}).startswith(b"HTTP/1.1 413 ")
    assert admin.ask(HELLO, {"Host": "evil.example"}).startswith(b"HTTP/1.1 421 ")


def test_d4b_other_listeners_do_not_have_it():
    client = gateway(route("a")).open()
    client.say(request(HELLO, "/explain"))
    assert client.take().startswith(b"HTTP/1.1 404 ")


# Keys

CANARIES = {
    "api_key of the gateway": "gw-canary-key-0000000001",
    "api_key from a variable": "sk-canary-key-0000000002",
    "api_key in the file": "sk-canary-key-0000000003",
    "header with a scheme": "sk-canary-key-0000000004",
    "header from a variable": "sk-canary-key-0000000005",
}
OF = list(CANARIES.values())
ENVIRON = {"GATEWAY_API_KEY": OF[0], "A_KEY": OF[1], "A_HEADER": OF[4]}
WITH_KEYS = f"""
api_key: ${{GATEWAY_API_KEY}}
listen: ["tcp:0:interface=127.0.0.1"]
providers:
  - {{name: a, base_url: "http://127.0.0.1:1/v1", api_key: "${{A_KEY}}"}}
  - name: b
    base_url: http://127.0.0.1:2/v1
    api_key: {OF[2]}
    auth: x-api-key
    headers: {{Authorization: "Bearer {OF[3]}", X-Extra: "${{A_HEADER}}"}}
  - {{name: c, base_url: "http://127.0.0.1:3/v1"}}
routes:
  - {{name: r, also: [s], steps: [{{provider: a, model: m}}, {{provider: b, model: m}}, {{provider: c, model: m}}]}}
  - {{name: "*", steps: [{{provider: a, model: "x-*"}}]}}
"""


def with_keys(folder: Path) -> Config:
    (folder / "config.yaml").write_text(WITH_KEYS)
    (folder / "config.yaml").chmod(0o600)
    return loader.load(folder / "config.yaml", ENVIRON)


def test_d4_check_config_says_where_each_key_comes_from(tmp_path):
    assert described(with_keys(tmp_path), []).splitlines()[1:] == [
        "provider a: http://127.0.0.1:1/v1 (key from ${A_KEY}, sent as Authorization: Bearer, proxy none)",
        "provider b: http://127.0.0.1:2/v1 (key in the file, sent as x-api-key, headers Authorization X-Extra, proxy none)",
        "provider c: http://127.0.0.1:3/v1 (no key, proxy none)",
        "key default: api_key from ${GATEWAY_API_KEY}, all routes",
        "route r (also s)",
        "  1. a: m (timeout 300s, connect 10s, idle 120s)",
        "  2. b: m (timeout 300s, connect 10s, idle 120s)",
        "  3. c: m (timeout 300s, connect 10s, idle 120s)",
        "route *",
        "  1. a: x-* (timeout 300s, connect 10s, idle 120s)",
        "The configuration is good.",
    ]


@pytest.mark.parametrize("words", [["--check-config"], ["--explain", "r.json"], ["--explain", "r.json", "--json"]])
def test_d4_d4b_no_key_of_any_kind_is_in_what_a_command_prints(tmp_path, words):
    """The request holds all keys too: in its model, its headers and its content."""
    headers = {name.replace(" ", "-"): key for name, key in CANARIES.items()}
    body = {"model": " ".join(OF), "messages": [{"role": "user", "content": " ".join(OF)}], "user": OF[2]}
    (tmp_path / "r.json").write_text(json.dumps({"headers": headers, "body": {**body, **dict.fromkeys(OF, 1)}}))
    done = run(tmp_path, *words, config=WITH_KEYS, environ=ENVIRON)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 5
    assert [name for name, key in CANARIES.items() if key in done.stdout] == []
    assert "***" in done.stdout or words == ["--check-config"]
    if "--json" in words:
        assert json.loads(done.stdout)["route"] == "*"


@pytest.mark.parametrize(
    ("content", "status", "out", "err"),
    [
        (json.dumps({**HELLO, "model": "s"}), 0, "route: r (by its other name 's')", ""),
        ('{"model": "r"}', 1, "answer: 400: 'messages' is missing; it must be a non-empty array of objects.", ""),
        ("[1]", 1, "", "aigw: {}: The request is not a JSON object: its top level is another value; write "),
        (None, 1, "", "aigw: {}: the request cannot be read: No such file or directory"),
    ],
)
def test_d4b_the_command_and_its_exit_status(tmp_path, capsys, content, status, out, err):
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    assert explain(with_keys(tmp_path), str(path), print, False) == status
    printed = capsys.readouterr()
    assert (out in printed.out, bool(printed.out)) == (True, bool(out))
    assert (printed.err.startswith(err.format(path)), bool(printed.err)) == (True, bool(err))


def test_d4b_a_closed_input_is_no_request(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert explain(with_keys(tmp_path), "-", print, False) == 1
    assert capsys.readouterr().err.startswith("aigw: -: The request is not a JSON object: ")


@pytest.mark.parametrize(
    ("broken", "err"), [("full", "aigw: the output cannot be written: No space left on device\n"), ("left", "")]
)
def test_d4_d4b_an_output_that_cannot_be_written(broken, err):
    """A full disk, or a reader such as ``head`` that leaves: exit status 1, and no traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    code = "from aigw.commands.output import put; put('x' * 100_000)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=full if broken == "full" else writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=20,
        check=False,
    )
    os.close(full)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, err)
