"""The official `openai` client against the gateway, over TLS with certificate verification on."""

from __future__ import annotations

import ssl

import pytest
import yaml
from pytest_twisted import ensureDeferred
from twisted.internet.threads import deferToThread

from tests.harness import KEY, bounded
from tests.providers import ROLE, answer, as_asked, begin_stream, completion, event, fin, hang, stream, then
from tests.sdks import openai
from tests.test_config import KEYS, ORIGINAL

HI = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
FORMAT = {"type": "json_object"}


def original(world, cerebras, openrouter):
    """A gateway with the original's example but for its base URLs, on a port of its own, with a certificate."""
    text = ORIGINAL.replace("https://api.cerebras.ai/v1", world.base_url(cerebras))
    tree = yaml.safe_load(text.replace("https://openrouter.ai/api/v1", world.base_url(openrouter)))
    return world.gateway_of(
        {**{name: tree[name] for name in tree if name != "port"}, "listen": ["tcp:0:interface=127.0.0.1"]},
        tls=True,
        environ={**KEYS, "GATEWAY_API_KEY": KEY},
    )


def with_openai(gateway, use, **options):
    """``use(client)`` in a thread, while the gateway runs."""

    def run():
        context = ssl.create_default_context(cafile=str(gateway.world.ca_file))
        http = openai.DefaultHttpxClient(verify=context)
        with openai.OpenAI(base_url=gateway.url, api_key=KEY, http_client=http, max_retries=0, **options) as client:
            return use(client)

    return bounded(deferToThread(run), 20)


def chat(client, **more):
    return client.chat.completions.create(model="dynamic/n8n", messages=HI, **more)


def streamed(client, **more):
    with chat(client, stream=True, **more) as chunks:
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@ensureDeferred
async def test_b1_the_original_example_serves_the_openai_client(world):
    cerebras, openrouter = world.provider(), world.provider()
    gateway = original(world, cerebras, openrouter)

    def use(client):
        assert [model.id for model in client.models.list()] == ["dynamic/n8n"]
        assert client.models.retrieve("dynamic/n8n").owned_by == "ai-gateway"
        assert chat(client).choices[0].message.content == "hello"
        assert chat(client).usage.total_tokens == 7
        assert streamed(client) == "hello"
        chat(client, tools=TOOLS)
        chat(client, response_format=FORMAT)
        chat(client, tools=TOOLS, response_format=FORMAT)

    await with_openai(gateway, use)
    assert not openrouter.requests
    *_, tools, fmt, both = cerebras.bodies
    assert (tools["tools"], tools["model"]) == (TOOLS, "gpt-oss-120b")
    assert fmt["response_format"] == FORMAT
    assert both["tools"] == TOOLS
    assert "response_format" not in both
    assert cerebras.requests[0].header("authorization") == "Bearer cerebras-key"


@ensureDeferred
async def test_b7_b8_the_second_provider_answers_because_the_first_is_down(world):
    openrouter = world.provider()
    gateway = original(world, None, openrouter)

    def use(client):
        assert chat(client).choices[0].message.content == "hello"
        assert streamed(client) == "hello"
        chat(client, tools=TOOLS, response_format=FORMAT)
        return chat(client, tools=TOOLS, tool_choice="auto", parallel_tool_calls=False)

    await with_openai(gateway, use)
    conflicting, tools = openrouter.bodies[2:]
    assert conflicting["model"] == "nvidia/nemotron-3-nano-30b-a3b:free"
    assert conflicting["response_format"] == FORMAT
    assert "tools" not in conflicting
    assert (tools["tool_choice"], tools["parallel_tool_calls"]) == ("auto", False)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@ensureDeferred
async def test_f6_all_steps_down_raises_with_an_entry_per_attempt(world, stream):
    gateway = original(world, None, None)

    def use(client):
        with pytest.raises(openai.InternalServerError) as caught:
            chat(client, stream=stream)
        return caught.value

    error = await with_openai(gateway, use)
    assert (error.status_code, error.code, error.type) == (502, "all_steps_failed", "upstream_error")
    assert [attempt["provider"] for attempt in error.body["attempts"]] == ["cerebras", "openrouter"]


@pytest.mark.parametrize(
    "cut",
    [then(begin_stream(ROLE, event({"content": "hel"})), fin), stream(ROLE, event({"content": "hel"}))],
    ids=["fin", "clean end without finish_reason"],
)
@ensureDeferred
async def test_a4_a_cut_stream_raises_in_the_openai_client(world, cut):
    gateway = original(world, world.provider(cut), None)

    def use(client):
        chunks = iter(chat(client, stream=True))
        got = [next(chunks).choices[0].delta.content for _ in range(2)]
        with pytest.raises(openai.APIError) as caught:
            next(chunks)
        return got, caught.value

    got, error = await with_openai(gateway, use)
    assert got == ["", "hel"]
    assert error.code == "stream_truncated"


@ensureDeferred
async def test_t4_a_client_that_gives_up_stops_the_provider(world):
    provider = world.provider(hang)
    gateway = original(world, provider, None)

    def use(client):
        with pytest.raises(openai.APITimeoutError):
            chat(client)

    await with_openai(gateway, use, timeout=0.3)
    await bounded(provider.connections[0].closed, 1)


@ensureDeferred
async def test_r3_embeddings_and_responses(world):
    vector = b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.5]}],"model":"m","usage":{"prompt_tokens":1,"total_tokens":1}}'
    item = '{"type":"message","id":"1","status":"completed","role":"assistant","content":[{"type":"output_text","text":"hello","annotations":[]}]}'
    response = (
        b'{"id":"r1","object":"response","created_at":1,"status":"completed","error":null,"model":"m","output":[%s],'
        b'"parallel_tool_calls":true,"tool_choice":"auto","tools":[]}' % item.encode()
    )
    provider = world.provider(answer(200, vector), answer(200, response), as_asked(answer(200, completion())))
    gateway = original(world, None, provider)

    def use(client):
        assert client.embeddings.create(model="dynamic/n8n", input="x", encoding_format="float").data[0].embedding == [
            0.5
        ]
        assert client.responses.create(model="dynamic/n8n", input="x").output_text == "hello"

    await with_openai(gateway, use)
    assert [seen.line for seen in provider.requests] == ["POST /v1/embeddings HTTP/1.1", "POST /v1/responses HTTP/1.1"]
