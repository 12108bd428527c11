"""L6: the real clients back off on a short limit and stop on a budget; C2: a key is replaced under load."""

from __future__ import annotations

import time

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import DeferredList
from twisted.internet.defer import ensureDeferred as start
from twisted.internet.threads import deferToThread

from tests.harness import bounded, until
from tests.providers import answer, as_asked
from tests.sdks import anthropic, httpx, langchain_openai, openai
from tests.test_keys import ALICE, BOB, named, write

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
    assert await bounded(deferToThread(CLIENTS[client], gateway, 0)) == "hello"
    counts = gateway.service._admission.store.counts_of(gateway.service.config.callers[-1].accounts[0])
    counts.requests.used, counts.requests.at = (
        3.0,
        time.monotonic(),
    )  # there is room in 3 s, however slow this machine is
    began = time.monotonic()
    assert await bounded(deferToThread(CLIENTS[client], gateway, 3)) == "hello"
    await until(lambda: len(world.records) >= 3)
    statuses = [each["status"] for each in world.records]
    assert (statuses[:2], statuses[-1]) == ([200, 429], 200)
    assert len(statuses) <= 4, "it waits for as long as it is told, and does not ask again and again"
    assert time.monotonic() - began > 2.5


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


@ensureDeferred
async def test_c2_a_key_is_replaced_under_load_and_no_request_fails(world):
    path = world.folder / "keys.yaml"
    write(path, named("alice", ALICE, concurrency=50))
    gateway = world.gateway(world.provider(), top={"keys_file": str(path)})
    keys, statuses, over = [ALICE], [], []

    async def client():
        while not over:
            statuses.append((await gateway.ask(headers={"Authorization": f"Bearer {keys[-1]}"})).status)

    def proofs():
        return [len(caller.proofs) for caller in gateway.service.config.callers if caller.name == "alice"]

    clients = DeferredList([start(client()) for _ in range(8)])
    write(path, named("alice", ALICE, concurrency=50), named("alice", BOB))
    await until(lambda: proofs() == [2])
    keys.append(BOB)
    seen = len(statuses)
    await until(lambda: len(statuses) > seen + 16)  # none with the old key is under way any more
    write(path, named("alice", BOB, concurrency=50))
    await until(lambda: proofs() == [1])
    seen = len(statuses)
    await until(lambda: len(statuses) > seen + 16)
    over.append(True)
    await bounded(clients)
    assert set(statuses) == {200}
    assert (await gateway.ask(headers={"Authorization": f"Bearer {ALICE}"})).status == 401
