"""M2 to M4, F9: turns of the real Claude Code, which speaks Anthropic's messages and has no key but the gateway's."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.threads import deferToThread

from tests.harness import KEY
from tests.providers import answer, as_asked, begin_stream, fin, later, stream, then
from tests.test_messages import END_OF_ALL, END_OF_BLOCK, OVERLOADED, PLAIN, START, STREAM, delta, sent

pytestmark = pytest.mark.claude

TOO_LONG = json.dumps(
    {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "prompt is too long: 210000 tokens > 200000 maximum"},
    }
).encode()
TOOL_TURN = [
    START,
    sent(
        "content_block_start", index=0, content_block={"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {}}
    ),
    sent(
        "content_block_delta",
        index=0,
        delta={"type": "input_json_delta", "partial_json": '{"command": "echo it-$((40+2))", "description": "count"}'},
    ),
    END_OF_BLOCK,
    sent("message_delta", delta={"stop_reason": "tool_use", "stop_sequence": None}, usage={"output_tokens": 15}),
    END_OF_ALL,
]


@pytest.fixture(scope="session")
def claude(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("claude")
    npm = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), "@anthropic-ai/claude-code@^2"]
    subprocess.run(npm, check=True, capture_output=True, timeout=300)
    return folder / "node_modules" / ".bin" / "claude"


@dataclass
class Turn:
    """What its user reads."""

    text: str
    failed: bool


async def turn(claude: Path, gateway, folder: Path, *options: str) -> Turn:
    home, work = folder / "home", folder / "work"
    home.mkdir()
    work.mkdir()
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "ANTHROPIC_BASE_URL": gateway.url.removesuffix("/v1"),
        "ANTHROPIC_API_KEY": KEY,
        "ANTHROPIC_MODEL": "route",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": "0",
    }
    ran = await deferToThread(
        subprocess.run,
        [str(claude), "-p", "say hello", "--output-format", "json", *options],
        env=environ,
        cwd=work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=90,
    )
    said = json.loads(ran.stdout)
    return Turn(said["result"], said["is_error"])


@ensureDeferred
async def test_m4_a_turn_succeeds_with_the_first_provider_down(world, claude, tmp_path):
    provider = world.provider(stream(*STREAM))
    assert await turn(claude, world.gateway(None, provider), tmp_path) == Turn("hello", False)
    assert [record["outcome"] for record in world.records] == ["ok"]
    seen = provider.requests[0]
    assert seen.line == "POST /v1/messages?beta=true HTTP/1.1"
    assert seen.header("anthropic-version") == "2023-06-01"
    assert "claude-code" in (seen.header("anthropic-beta") or "")
    assert KEY.encode() not in seen.body
    assert KEY not in str(seen.headers)


@ensureDeferred
async def test_m2_a_tool_turn(world, claude, tmp_path):
    provider = world.provider(stream(*TOOL_TURN), stream(*STREAM))
    done = await turn(claude, world.gateway(provider), tmp_path, "--allowedTools", "Bash")
    assert done == Turn("hello", False)
    assert "it-42" in json.dumps(provider.bodies[1]["messages"][-1])


@ensureDeferred
async def test_m2_a_provider_that_is_overloaded_inside_a_200_is_passed_over(world, claude, tmp_path):
    first, second = world.provider(stream(OVERLOADED)), world.provider(stream(*STREAM))
    assert await turn(claude, world.gateway(first, second), tmp_path) == Turn("hello", False)
    assert (len(first.requests), len(second.requests)) == (1, 1)


@ensureDeferred
async def test_m3_a_cut_after_output_is_never_shown_as_whole(world, claude, tmp_path):
    cut = then(begin_stream(START, STREAM[1], delta("hel")), later(fin))
    done = await turn(claude, world.gateway(world.provider(cut)), tmp_path)
    assert done.failed
    assert "hel" not in done.text.split()
    assert [record["outcome"] for record in world.records] == ["stream_truncated", "error"], (
        "it asks once more, plainly"
    )


@ensureDeferred
async def test_m3_after_a_cut_it_asks_once_more(world, claude, tmp_path):
    cut = then(begin_stream(START, STREAM[1], delta("hel")), later(fin))
    provider = world.provider(cut, as_asked(answer(200, PLAIN), stream(*STREAM)))
    assert await turn(claude, world.gateway(provider), tmp_path) == Turn("hello", False)
    assert [record["outcome"] for record in world.records] == ["stream_truncated", "ok"]


@ensureDeferred
async def test_f9_a_context_that_is_too_long_arrives_in_the_provider_s_words(world, claude, tmp_path):
    """By these words it knows that it is to compact; a larger model is not tried."""
    first, second = world.provider(answer(400, TOO_LONG)), world.provider(stream(*STREAM))
    done = await turn(claude, world.gateway(first, second), tmp_path)
    assert done.failed
    assert "prompt is too long" in done.text.lower()
    assert second.requests == []


@ensureDeferred
async def test_m3_an_unknown_model_shows_the_gateway_s_words(world, claude, tmp_path):
    gateway = world.gateway(world.provider())
    done = await turn(claude, gateway, tmp_path, "--model", "no-such-route")
    assert done.failed
    assert "no-such-route" in done.text
