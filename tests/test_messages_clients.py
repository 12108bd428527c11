"""M2, M3, M5, I1, I2: Anthropic's official clients on messages, and OpenAI's on stored responses, over TLS with verification on."""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue

from tests.harness import KEY, bounded
from tests.providers import LAST_CHUNK, answer, as_asked, begin_stream, fin, hang, head, raw, rst, stream, then
from tests.sdks import anthropic, httpx2, openai
from tests.test_clients import with_openai
from tests.test_messages import END_OF_ALL, HEL_LO, OVERLOADED, PLAIN, START, STOP, STREAM, delta, sent
from tests.test_real_clients import ANSWERED, DOWN, MODES, WHOLE, Outcome, check, later
from tests.test_real_clients import PLAIN as RESPONSE

END = raw(LAST_CHUNK)
JSON_ERROR = OVERLOADED.partition(b"data: ")[2].strip()
GOOD = as_asked(answer(200, PLAIN), stream(*STREAM))
BARE = OVERLOADED.partition(b"\n")[2]  # without its event line, which Anthropic's clients do not see
BROKEN = "ended before it was complete"


def cut(how, *events: bytes):
    return as_asked(then(raw(head(Content_Length="500"), PLAIN[:60]), how), then(begin_stream(*events), how))


def either(*events: bytes):
    return as_asked(answer(200, JSON_ERROR), stream(*events))


HEL = [START, delta("hel")]
#   fault                                 behaviour                              second step  plain   streamed               limits run out
FAULTS = {
    "good":                               (GOOD,                                 None,        WHOLE,  WHOLE,                 0),
    "first step down":                    (None,                                 GOOD,        WHOLE,  WHOLE,                 0),
    "every step down":                    (None,                                 None,        DOWN,   DOWN,                  0),
    "every step hangs":                   (hang,                                 hang,        DOWN,   DOWN,                  2),
    "every step is overloaded":           (answer(529, JSON_ERROR),              answer(529), DOWN,   DOWN,                  0),
    "overloaded inside a 200":            (either(OVERLOADED),                   GOOD,        WHOLE,  WHOLE,                 0),
    "overloaded inside a 200, later":     (either(START, OVERLOADED),            GOOD,        WHOLE,  WHOLE,                 0),
    "overloaded inside a 200, no other":  (either(OVERLOADED),                   None,        DOWN,   DOWN,                  0),
    "FIN before output":                  (cut(fin, START),                      GOOD,        WHOLE,  WHOLE,                 0),
    "FIN after output":                   (cut(fin, *HEL),                       GOOD,        WHOLE,  BROKEN,                0),
    "FIN mid event":                      (cut(fin, *HEL, delta("lo")[:40]),     GOOD,        WHOLE,  BROKEN,                0),
    "RST after output":                   (cut(later(0.05, rst), *HEL),          GOOD,        WHOLE,  "was reset",           0),
    "clean end before message_stop":      (as_asked(answer(200, PLAIN), then(begin_stream(START, *HEL_LO), END)), GOOD, WHOLE, BROKEN, 0),
    "no message_stop":                    (as_asked(answer(200, PLAIN), then(begin_stream(START, *HEL_LO, STOP), END)), GOOD, WHOLE, WHOLE, 0),
    "FIN after stop_reason":              (cut(fin, START, *HEL_LO, STOP),       GOOD,        WHOLE,  BROKEN,                0),
    "silence after output":               (cut(hang, *HEL),                      GOOD,        WHOLE,  "sent nothing",        1),
    "error event after output":           (as_asked(answer(200, PLAIN), stream(*HEL, OVERLOADED)), GOOD, WHOLE, "Overloaded", 0),
    "error without event line":           (as_asked(answer(200, PLAIN), stream(*HEL, BARE, STOP, END_OF_ALL)), GOOD, WHOLE, "Overloaded", 0),
}  # fmt: skip


def base_url(gateway) -> str:
    return gateway.url.removesuffix("/v1")


def with_anthropic(gateway, use):
    """``use(client, outcome)`` in a thread, while the gateway runs."""

    def run() -> Outcome:
        http = anthropic.DefaultHttpxClient(verify=ssl.create_default_context(cafile=str(gateway.world.ca_file)))
        outcome = Outcome()
        started = time.monotonic()
        with anthropic.Anthropic(base_url=base_url(gateway), api_key=KEY, http_client=http, max_retries=0) as client:
            try:
                use(client, outcome)
            except anthropic.APIError as error:
                outcome.error = f"{type(error).__name__}: {error}"
        outcome.seconds = time.monotonic() - started
        return outcome

    return bounded(deferToThread(run), 20)


ASKED = {"model": "route", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


def python(gateway, streamed: bool):
    def use(client, outcome):
        if not streamed:
            outcome.text = client.messages.create(**ASKED).content[0].text
            return
        for each in client.messages.create(**ASKED, stream=True):
            if each.type == "content_block_delta":
                outcome.text += each.delta.text

    return with_anthropic(gateway, use)


@pytest.fixture(scope="module", autouse=True)
def used():
    """The client makes its classes at its first answer, whose time would count."""
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=PLAIN))
    with anthropic.Anthropic(api_key=KEY, http_client=httpx2.Client(transport=transport)) as client:
        client.messages.create(**ASKED)


@MODES
@pytest.mark.parametrize("fault", FAULTS)
@ensureDeferred
async def test_m2_m3_python_client(world, fault, streamed):
    await check(world, python, fault, streamed, FAULTS)


@ensureDeferred
async def test_m2_the_client_s_own_stream_makes_a_whole_message(world):
    tool = [
        START,
        sent(
            "content_block_start",
            index=0,
            content_block={"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}},
        ),
        sent("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": '{"a": '}),
        sent("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": "1}"}),
        sent("content_block_stop", index=0),
        sent("message_delta", delta={"stop_reason": "tool_use", "stop_sequence": None}, usage={"output_tokens": 15}),
        END_OF_ALL,
    ]
    gateway = world.gateway(None, world.provider(stream(*tool)), tls=True)

    def use(client, outcome):
        with client.messages.stream(**ASKED, extra_headers={"anthropic-beta": "unknown-9999-99-99"}) as events:
            message = events.get_final_message()
        outcome.text = json.dumps([message.content[0].input, message.stop_reason, message.usage.output_tokens])

    assert json.loads((await with_anthropic(gateway, use)).text) == [{"a": 1}, "tool_use", 15]


@ensureDeferred
async def test_m5_the_client_counts_tokens_and_sees_a_404(world):
    provider = world.provider(answer(200, b'{"input_tokens": 12}'), answer(404, b'{"detail": "Not Found"}'))
    gateway = world.gateway(provider, world.provider(), tls=True)

    def use(client, outcome):
        asked = {"model": "route", "messages": ASKED["messages"]}
        assert client.messages.count_tokens(**asked).input_tokens == 12
        with pytest.raises(anthropic.NotFoundError):
            client.messages.count_tokens(**asked)
        outcome.text = "done"

    assert (await with_anthropic(gateway, use)).text == "done"


@ensureDeferred
async def test_m4_a_beta_call_and_the_request_id(world):
    provider = world.provider(answer(200, PLAIN, request_id="req_of_the_provider"))
    gateway = world.gateway(provider, tls=True)

    def use(client, outcome):
        message = client.beta.messages.create(
            **ASKED, betas=["a-beta-2025-08-07", "unknown-9999-99-99"], extra_query={"beta": "true"}
        )
        outcome.text = message._request_id

    assert (await with_anthropic(gateway, use)).text == "req_of_the_provider"
    (seen,) = provider.requests
    assert seen.line == "POST /v1/messages?beta=true HTTP/1.1"
    assert seen.header("anthropic-beta") == "a-beta-2025-08-07,unknown-9999-99-99"
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", seen.header("anthropic-version") or "")


@pytest.mark.parametrize(
    ("asked", "kind", "kept"),
    [
        ({"model": "no"}, "NotFoundError", "not_found_error"),
        ({"messages": []}, "BadRequestError", "invalid_request_error"),
    ],
)
@ensureDeferred
async def test_m3_our_own_errors_are_the_client_s_classes(world, asked, kind, kept):
    gateway = world.gateway(world.provider(), tls=True)

    def use(client, outcome):
        with pytest.raises(getattr(anthropic, kind)) as caught:
            client.messages.create(**{**ASKED, **asked})
        outcome.text = caught.value.body["error"]["type"]

    assert (await with_anthropic(gateway, use)).text == kept


# Node


def npm_folder(tmp_path_factory, name: str, script: str, package: str) -> Path:
    folder = tmp_path_factory.mktemp(name)
    npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), package]
    subprocess.run(npm, check=True, capture_output=True, timeout=120)
    return Path(shutil.copy(Path(__file__).with_name(script), folder))


@pytest.fixture(scope="session")
def node_messages(tmp_path_factory) -> Path:
    return npm_folder(tmp_path_factory, "node-messages", "node_messages.mjs", "@anthropic-ai/sdk@^1")


@pytest.fixture(scope="session")
def node_stored(tmp_path_factory) -> Path:
    return npm_folder(tmp_path_factory, "node-stored", "node_stored.mjs", "openai@^6")


async def run_node(script: Path, gateway, job: dict) -> dict:
    environ = {**os.environ, "NODE_EXTRA_CA_CERTS": str(gateway.world.ca_file)}
    out, err, code = await getProcessOutputAndValue(
        shutil.which("node"), [str(script), json.dumps({"api_key": KEY, **job})], environ
    )
    assert code == 0, err
    return json.loads(out)


@pytest.mark.node
@MODES
@pytest.mark.parametrize("fault", FAULTS)
@ensureDeferred
async def test_m2_m3_node_client(world, node_messages, fault, streamed):
    async def run(gateway, streamed):
        return Outcome(**await run_node(node_messages, gateway, {"base_url": base_url(gateway), "stream": streamed}))

    await check(world, lambda *job: Deferred.fromCoroutine(run(*job)), fault, streamed, FAULTS)


@pytest.mark.node
@ensureDeferred
async def test_m5_node_client_counts_tokens(world, node_messages):
    gateway = world.gateway(world.provider(answer(200, b'{"input_tokens": 12}')), tls=True)
    got = await run_node(node_messages, gateway, {"base_url": base_url(gateway), "count": True})
    assert (got["text"], got["error"]) == ("12", None)


# Stored responses


def storing(connection) -> None:
    """A provider that has the response resp_1, and no other."""
    line = connection.provider.requests[-1].line
    if line.startswith("POST /v1/responses HTTP"):
        return answer(200, RESPONSE)(connection)
    if "/responses/resp_1" not in line:
        return answer(404, b'{"error": {"message": "not found", "code": "not_found"}}')(connection)
    if line.startswith("DELETE"):
        return answer(200, b'{"id": "resp_1", "object": "response", "deleted": true}')(connection)
    if "/input_items" in line:
        return answer(200, b'{"object": "list", "data": [], "has_more": false}')(connection)
    if line.endswith("/cancel HTTP/1.1"):
        return answer(200, json.dumps({**ANSWERED, "status": "cancelled"}).encode())(connection)
    return answer(200, RESPONSE)(connection)


LINES = [
    "POST /v1/responses HTTP/1.1",
    "POST /v1/responses HTTP/1.1",
    "GET /v1/responses/resp_1 HTTP/1.1",
    "GET /v1/responses/resp_1/input_items HTTP/1.1",
    "POST /v1/responses/resp_1/cancel HTTP/1.1",
    "DELETE /v1/responses/resp_1 HTTP/1.1",
]


def asked_for(provider) -> list[str]:
    return [seen.line for seen in provider.requests if "resp_unknown" not in seen.line]


@ensureDeferred
async def test_i1_i2_python_client(world):
    first, second = world.provider(answer(500), answer(404)), world.provider(storing)
    gateway = world.gateway(first, second, tls=True)

    def use(client):
        made = client.responses.create(model="route", input="hi")
        assert client.responses.create(model="route", input="x", previous_response_id=made.id).output_text == "hello"
        assert client.responses.retrieve(made.id).output_text == "hello"
        assert client.responses.input_items.list(made.id).data == []
        assert client.responses.cancel(made.id).status == "cancelled"
        client.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError) as caught:
            client.responses.retrieve("resp_unknown")
        assert caught.value.code == "response_not_found"

    await with_openai(gateway, use)
    assert asked_for(second) == LINES
    assert asked_for(first) == LINES[:1], "the first step was asked once, before anything was known"


@ensureDeferred
async def test_i3_python_client_gets_409_where_the_provider_is_gone(world):
    first, second = world.provider(storing), world.provider(storing)
    gateway = world.gateway(first, second, tls=True)

    def make(client):
        return client.responses.create(model="route", input="hi").id

    name = await with_openai(gateway, make)
    gateway.tree["providers"] = gateway.tree["providers"][1:]
    gateway.tree["routes"][0]["steps"] = gateway.tree["routes"][0]["steps"][1:]
    await gateway.reload()

    def use(client):
        with pytest.raises(openai.ConflictError) as caught:
            client.responses.create(model="route", input="x", previous_response_id=name)
        assert caught.value.code == "state_elsewhere"

    await with_openai(gateway, use)
    assert second.requests == []


@pytest.mark.node
@ensureDeferred
async def test_i1_i2_node_client(world, node_stored):
    second = world.provider(storing)
    gateway = world.gateway(world.provider(answer(500), answer(404)), second, tls=True)
    got = await run_node(node_stored, gateway, {"base_url": gateway.url})
    assert got == {
        "next": "hello",
        "got": "hello",
        "items": 0,
        "status": "cancelled",
        "error": "404 response_not_found",
    }
    assert asked_for(second) == LINES
