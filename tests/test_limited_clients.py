"""L6, C13: the real clients back off on a short limit and stop on a budget."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue

from tests.harness import HELLO, bounded, request, until
from tests.memory import MemoryGateway, error_of
from tests.providers import answer, as_asked, stream
from tests.sdks import anthropic, httpx, langchain_openai, openai
from tests.test_keys import ALICE, named
from tests.test_messages import STREAM
from tests.test_real_clients import GOOD_RESPONSE

HI = [{"role": "user", "content": "hi"}]
MESSAGE = b"""{"id": "m", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn", "stop_sequence": null,
"content": [{"type": "text", "text": "hello"}], "usage": {"input_tokens": 30, "output_tokens": 40}}"""


def ask_openai(gateway, retries: int) -> str:
    with openai.OpenAI(base_url=gateway.url, api_key=ALICE, max_retries=retries) as client:
        made = client.chat.completions.create(model="route", messages=HI, max_tokens=10)
        return made.choices[0].message.content


def ask_langchain(gateway, retries: int) -> str:
    with httpx.Client() as http:  # without one its connection stays open: it keeps a client of its own for each URL
        client = langchain_openai.ChatOpenAI(
            base_url=gateway.url, api_key=ALICE, model="route", max_retries=retries, max_tokens=10, http_client=http
        )
        return client.invoke("hi").content


def ask_anthropic(gateway, retries: int) -> str:
    with anthropic.Anthropic(base_url=gateway.url[:-3], api_key=ALICE, max_retries=retries) as client:
        return client.messages.create(model="route", messages=HI, max_tokens=10).content[0].text


async def waits(world, gateway, ask, room: float = 3.0) -> None:
    """``ask(retries)`` is one call of a client. It repeats the second one when there is room again, and not before.

    There is room in so many seconds, in which the client has to start, however slow this machine is.
    """
    assert await bounded(ask(0)) == "hello"
    counts = gateway.service._admission.store.counts_of(gateway.service.config.callers[-1].accounts[0])
    counts.requests.used, counts.requests.at = room, time.monotonic()
    counts.requests.idle_at = counts.requests.at + 3600
    began = time.monotonic()
    assert await bounded(ask(3), 20) == "hello"
    await until(lambda: len(world.records) >= 3)
    statuses = [each["status"] for each in world.records]
    assert (statuses[:2], statuses[-1]) == ([200, 429], 200)
    assert len(statuses) <= 4, "it waits for as long as it is told, and does not ask again and again"
    assert time.monotonic() - began > room - 0.5


CLIENTS = {"openai": ask_openai, "langchain": ask_langchain, "anthropic": ask_anthropic}
EACH_CLIENT = pytest.mark.parametrize(
    "client", ["openai", *(pytest.param(client, marks=pytest.mark.slow) for client in CLIENTS if client != "openai")]
)  # to import the others takes as long as many tests


def limited(world, client: str, **limits):
    provider = world.provider(answer(body=MESSAGE) if client == "anthropic" else as_asked())
    return world.gateway(provider, top={"keys": [named("alice", ALICE, **limits)]})


@EACH_CLIENT
@ensureDeferred
async def test_l6_a_client_waits_as_long_as_a_short_limit_asks(world, client):
    gateway = limited(world, client, requests="1/s")
    await waits(world, gateway, lambda retries: deferToThread(CLIENTS[client], gateway, retries))


@EACH_CLIENT
@ensureDeferred
async def test_l6_a_client_stops_on_a_budget(world, client):
    gateway = limited(world, client, budget=[{"tokens": 20, "per": "day"}])
    kind = anthropic.RateLimitError if client == "anthropic" else openai.RateLimitError

    def fail():
        with pytest.raises(kind, match="It is renewed on") as caught:
            CLIENTS[client](gateway, 5)
        return caught.value.body

    body = await bounded(deferToThread(fail))
    error = body.get("error", body)
    assert error["type"] == ("billing_error" if client == "anthropic" else "insufficient_quota")
    await until(lambda: world.records)
    assert [each["status"] for each in world.records] == [429]


@pytest.mark.parametrize(
    "client", ["openai", "anthropic", pytest.param("langchain", marks=pytest.mark.slow)]
)  # which calls by openai's
@ensureDeferred
async def test_l6_a_client_does_not_repeat_what_is_larger_than_the_limit(world, client):
    gateway = limited(world, client, tokens="20/m")
    kind = anthropic.RateLimitError if client == "anthropic" else openai.RateLimitError

    def fail():
        with pytest.raises(kind, match="The request is larger than the limit"):
            CLIENTS[client](gateway, 5)

    await bounded(deferToThread(fail))
    await until(lambda: world.records)
    assert [each["status"] for each in world.records] == [429]


# In memory: what another client gets in place of a 429 that it would repeat

AI_SDK = "ai/6.0.1 ai-sdk/provider-utils/4.0.1 runtime/node.js/v20.20.2"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize(
    ("limits", "status", "type_of_messages"),
    [
        ({"budget": [{"tokens": 20, "per": "day"}]}, 402, "billing_error"),
        ({"tokens": "20/m"}, 413, "request_too_large"),
    ],
)
def test_c13_a_client_that_repeats_each_429_gets_another_status(path, limits, status, type_of_messages):
    gateway = MemoryGateway(top={"keys": [named("alice", ALICE, **limits)]})
    seen = []
    for agent in ("python", AI_SDK):
        client = gateway.open()
        auth = {"Authorization": f"Bearer {ALICE}", "User-Agent": agent}
        client.say(request({**HELLO, "max_tokens": 100}, path, headers=auth))
        answer = client.take()
        assert b"\r\nX-Should-Retry: false\r\n" in answer
        seen.append((int(answer.split()[1]), error_of(answer)))
    (first, error), (second, other) = seen
    assert (first, second) == (429, status)
    assert error["message"] == other["message"]
    assert error.get("code") == other.get("code")
    assert other["type"] == (type_of_messages if "messages" in path else error["type"])


def test_c13_a_wait_of_that_client_too_ends_with_its_status():
    limits = {"concurrency": 1, "wait": "10s", "budget": [{"tokens": 150, "per": "day"}]}
    gateway = MemoryGateway(top={"keys": [named("alice", ALICE, **limits)]})
    auth = {"Authorization": f"Bearer {ALICE}", "User-Agent": AI_SDK}
    first, second = gateway.open(), gateway.open()
    for client in (first, second):
        client.say(request({**HELLO, "max_tokens": 20}, headers=auth))
    assert (first.take(), second.take()) == (b"", b"")
    usage = b'{"choices": [{}], "usage": {"prompt_tokens": 100, "completion_tokens": 40, "total_tokens": 140}}'
    gateway.doors["p1"].wire.say(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(usage) + usage
    )
    gateway.turns()
    assert first.take().startswith(b"HTTP/1.1 200 ")
    assert second.take().startswith(b"HTTP/1.1 402 ")


def test_c13_a_short_limit_is_429_for_that_client_too():
    gateway = MemoryGateway(top={"keys": [named("alice", ALICE, requests="1/m")]})
    auth = {"Authorization": f"Bearer {ALICE}", "User-Agent": AI_SDK}
    client = gateway.open()
    for _ in range(2):
        gateway.open().say(request(HELLO, headers=auth))
    client.say(request(HELLO, headers=auth))
    assert client.take().startswith(b"HTTP/1.1 429 ")


# For Node

PACKAGES = "openai@^6 @anthropic-ai/sdk@^1 ai@^6 @ai-sdk/openai@^3 @ai-sdk/anthropic@^3 @ai-sdk/openai-compatible@^2"
OF_VERCEL = ("chat", "chat streamed", "responses", "messages", "messages streamed", "compatible")
NODE_CLIENTS = ("openai", "anthropic", *(f"ai {each}" for each in OF_VERCEL))


@pytest.fixture(scope="session")
def node_limited(tmp_path_factory) -> Path:
    """The script for Node, beside the clients."""
    folder = tmp_path_factory.mktemp("node-limited")
    npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), *PACKAGES.split()]
    subprocess.run(npm, check=True, capture_output=True, timeout=300)
    return Path(shutil.copy(Path(__file__).with_name("node_limited.mjs"), folder))


def limited_for_node(world, client: str, **limits):
    kind = "messages" if client == "anthropic" else "chat" if client == "openai" else client.split()[1]
    behaviours = {"messages": as_asked(answer(body=MESSAGE), stream(*STREAM)), "responses": GOOD_RESPONSE}
    provider = world.provider(behaviours.get(kind, as_asked()))
    return world.gateway(provider, top={"keys": [named("alice", ALICE, **limits)]})


async def run_node(script: Path, gateway, client: str, retries: int) -> dict:
    job = {"client": client, "base_url": gateway.url, "api_key": ALICE, "retries": retries}
    out, err, code = await getProcessOutputAndValue(shutil.which("node"), [str(script), json.dumps(job)], os.environ)
    assert code == 0, err
    return json.loads(out)


@pytest.mark.node
@pytest.mark.parametrize("client", NODE_CLIENTS)
@ensureDeferred
async def test_l6_a_client_for_node_waits_as_long_as_a_short_limit_asks(world, node_limited, client):
    gateway = limited_for_node(world, client, requests="1/s")

    async def ask(retries):
        got = await run_node(node_limited, gateway, client, retries)
        assert got["error"] is None, got
        return got["text"]

    await waits(world, gateway, lambda retries: Deferred.fromCoroutine(ask(retries)), room=8.0)


@pytest.mark.node
@pytest.mark.parametrize("client", NODE_CLIENTS)
@ensureDeferred
async def test_l6_c13_a_client_for_node_stops_on_a_budget(world, node_limited, client):
    gateway = limited_for_node(world, client, budget=[{"tokens": 20, "per": "day"}])
    got = await bounded(Deferred.fromCoroutine(run_node(node_limited, gateway, client, 5)), 15)
    await until(lambda: world.records)
    is_of_vercel = client.startswith("ai ")
    assert [each["status"] for each in world.records] == [402 if is_of_vercel else 429]
    assert (got["error"], got["repeats"]) == (("AI_APICallError", False) if is_of_vercel else ("RateLimitError", None))
    assert "It is renewed on" in got["message"]
    assert (got["type"] or got["code"]) in ("billing_error", "insufficient_quota")


@pytest.mark.node
@pytest.mark.parametrize("client", NODE_CLIENTS)
@ensureDeferred
async def test_l6_c13_a_client_for_node_does_not_repeat_what_is_larger_than_the_limit(world, node_limited, client):
    gateway = limited_for_node(world, client, tokens="15/m")
    got = await bounded(Deferred.fromCoroutine(run_node(node_limited, gateway, client, 5)), 15)
    await until(lambda: world.records)
    assert [each["status"] for each in world.records] == [413 if client.startswith("ai ") else 429]
    assert "The request is larger than the limit" in got["message"]
