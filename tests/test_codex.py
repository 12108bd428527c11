"""A2, A4c, S4a, F1, F9: turns of the real Codex CLI, which speaks the responses API and shows its user the messages of that."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.threads import deferToThread

from tests.harness import KEY
from tests.providers import answer, begin_stream, fin, later, stream, then
from tests.test_responses import ADDED, CREATED, delta, sent

pytestmark = pytest.mark.codex

SETTINGS = """
model = "route"
model_provider = "gateway"
[model_providers.gateway]
name = "gateway"
base_url = "%s"
env_key = "GATEWAY_KEY"
wire_api = "responses"
supports_websockets = %s
request_max_retries = 0
stream_max_retries = 0
"""
USAGE = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
ITEM = {"id": "msg_1", "type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hello"}]}
WHOLE = [
    CREATED,
    ADDED,
    delta(2, "hello"),
    sent("response.output_item.done", 3, item=ITEM),
    sent("response.completed", 4, response={"id": "resp_1", "status": "completed", "usage": USAGE, "output": [ITEM]}),
]
REFUSED = {"code": "invalid_prompt", "message": "The provider does not like this prompt."}
FAILED = sent("response.failed", 3, response={"id": "resp_1", "status": "failed", "error": REFUSED})


@pytest.fixture(scope="session")
def codex(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("codex")
    npm = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), "@openai/codex@^0"]
    subprocess.run(npm, check=True, capture_output=True, timeout=300)
    return folder / "node_modules" / "@openai" / "codex" / "bin" / "codex.js"


@dataclass
class Turn:
    """What its user reads: the answers, and the errors."""

    answers: list[str]
    errors: list[str]


async def turn(codex: Path, gateway, folder: Path, websockets: bool = False, *options: str) -> Turn:
    home, work = folder / "home", folder / "work"
    home.mkdir()
    work.mkdir()
    (home / "config.toml").write_text(SETTINGS % (gateway.url, str(websockets).lower()))
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "CODEX_HOME": str(home), "GATEWAY_KEY": KEY}
    arguments = [
        shutil.which("node"),
        str(codex),
        "exec",
        "--json",
        "--skip-git-repo-check",
        *options,
        "-C",
        str(work),
        "say hello",
    ]
    # Codex reads what more there is to say from a standard input that is open.
    ran = await deferToThread(
        subprocess.run, arguments, env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    events = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith(b"{")]
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    return Turn(
        [item["text"] for item in items if item["type"] == "agent_message"],
        [event["error"]["message"] for event in events if event["type"] == "turn.failed"],
    )


@ensureDeferred
async def test_f1_a_turn_succeeds_with_the_first_provider_down(world, codex, tmp_path):
    provider = world.provider(stream(*WHOLE))
    assert await turn(codex, world.gateway(None, provider), tmp_path) == Turn(["hello"], [])
    assert world.records[0]["outcome"] == "ok"
    assert provider.requests[0].line == "POST /v1/responses HTTP/1.1"


@ensureDeferred
async def test_a4c_a_cut_shows_the_gateway_s_message(world, codex, tmp_path):
    provider = world.provider(then(begin_stream(CREATED, ADDED, delta(2)), later(fin)))
    done = await turn(codex, world.gateway(provider), tmp_path)
    assert done.answers == []
    assert "The provider's stream ended before it was complete." in done.errors[0]


@ensureDeferred
async def test_a3_a_failed_response_shows_the_provider_s_message(world, codex, tmp_path):
    provider = world.provider(stream(CREATED, ADDED, delta(2), FAILED))
    done = await turn(codex, world.gateway(provider), tmp_path)
    assert done.answers == []
    assert REFUSED["message"] in done.errors[0]


@ensureDeferred
async def test_f6_a_refusal_of_every_provider_shows_its_reason(world, codex, tmp_path):
    body = json.dumps({"error": {"message": "Your account is not active."}}).encode()
    done = await turn(codex, world.gateway(world.provider(answer(403, body))), tmp_path)
    assert "answered 403" in done.errors[0]


@ensureDeferred
async def test_s4a_codex_that_asks_for_a_websocket_goes_on_over_http(world, codex, tmp_path):
    provider = world.provider(stream(*WHOLE))
    assert await turn(codex, world.gateway(provider), tmp_path, websockets=True) == Turn(["hello"], [])
    assert [(record["method"], record["status"]) for record in world.records] == [("GET", 426), ("POST", 200)]


CALL = {"id": "fc_1", "type": "function_call", "call_id": "call_1", "status": "completed"}
OVERLOADED = {"code": "server_is_overloaded", "message": "Our servers are currently overloaded."}
TOO_LONG = json.dumps(
    {
        "error": {
            "message": "Your input exceeds the context window of this model. Please adjust your input and try again.",
            "type": "invalid_request_error",
            "param": "input",
            "code": "context_length_exceeded",
        }
    }
).encode()


def calls_a_tool(connection) -> None:
    """Call the shell by the tool that this Codex offers for it."""
    tools = {tool.get("name") for tool in json.loads(connection.provider.requests[-1].body)["tools"]}
    if "exec_command" in tools:
        call = {**CALL, "name": "exec_command", "arguments": json.dumps({"cmd": "echo it-$((40+2))"})}
    else:
        name = "shell" if "shell" in tools else "shell_command"
        command = ["bash", "-c", "echo it-$((40+2))"] if name == "shell" else "echo it-$((40+2))"
        call = {**CALL, "name": name, "arguments": json.dumps({"command": command})}
    stream(
        CREATED,
        sent("response.output_item.added", 1, item={**call, "arguments": "", "status": "in_progress"}),
        sent("response.function_call_arguments.delta", 2, item_id="fc_1", delta=call["arguments"]),
        sent("response.output_item.done", 3, item=call),
        sent(
            "response.completed", 4, response={"id": "resp_1", "status": "completed", "usage": USAGE, "output": [call]}
        ),
    )(connection)


@ensureDeferred
async def test_a2_a_tool_turn(world, codex, tmp_path):
    provider = world.provider(calls_a_tool, stream(*WHOLE))
    options = ("--dangerously-bypass-approvals-and-sandbox",)
    assert await turn(codex, world.gateway(None, provider), tmp_path, False, *options) == Turn(["hello"], [])
    outputs = [item for item in provider.bodies[1]["input"] if item["type"] == "function_call_output"]
    assert "it-42" in json.dumps(outputs)


@ensureDeferred
async def test_a2_a_provider_that_is_overloaded_inside_a_200_is_passed_over(world, codex, tmp_path):
    failed = sent("response.failed", 1, response={"id": "resp_1", "status": "failed", "error": OVERLOADED})
    first, second = world.provider(stream(CREATED, failed)), world.provider(stream(*WHOLE))
    assert await turn(codex, world.gateway(first, second), tmp_path) == Turn(["hello"], [])
    assert (len(first.requests), len(second.requests)) == (1, 1)


@ensureDeferred
async def test_f9_a_context_that_is_too_long_arrives_in_the_provider_s_words(world, codex, tmp_path):
    first, second = world.provider(answer(400, TOO_LONG)), world.provider(stream(*WHOLE))
    done = await turn(codex, world.gateway(first, second), tmp_path)
    assert done.answers == []
    assert "ran out of room in the model's context window" in done.errors[0], "Codex knows it by the provider's code"
    assert second.requests == []
