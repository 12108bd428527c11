"""A1, A2, A4, B7, F6, T1: the faults of providers seen through the clients that people use, over TLS with verification on.

No client returns half an answer as whole: a stream that breaks raises, and everything else is the whole text or an error.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue

from tests import test_faults as faults
from tests.harness import KEY, bounded, contents, until
from tests.providers import (
    COMMENT,
    DONE,
    ERROR_EVENT,
    LAST_CHUNK,
    ROLE,
    STREAM,
    answer,
    as_asked,
    begin_stream,
    chunk,
    completion,
    event,
    fin,
    hang,
    head,
    raw,
    rst,
    stream,
    then,
)
from tests.sdks import httpx, langchain_openai, openai
from tests.test_responses import delta, sent

HI = [{"role": "user", "content": "hi"}]
LIMIT = 0.3

# What a client makes of it


@dataclass
class Outcome:
    """What one call gave: the text as far as it came, and the error if it raised."""

    text: str = ""
    error: str | None = None
    code: str | None = None
    seconds: float = 0.0


def using(gateway, attempt) -> Outcome:
    """``attempt(outcome, context)`` timed, with its error told; runs in a thread."""
    context = ssl.create_default_context(cafile=str(gateway.world.ca_file))
    outcome = Outcome()
    started = time.monotonic()
    try:
        attempt(outcome, context)
    except (openai.APIError, ValueError) as error:  # a ValueError is what Python has of bytes that are no UTF-8
        outcome.error, outcome.code = f"{type(error).__name__}: {error}", getattr(error, "code", None)
    outcome.seconds = time.monotonic() - started
    return outcome


def text_in(chunk) -> str:
    """That of the last one, with the usage, is empty."""
    return "".join(choice.delta.content or "" for choice in chunk.choices or ())


def python(gateway, streamed: bool):
    def attempt(outcome, context):
        http = openai.DefaultHttpxClient(verify=context)
        with openai.OpenAI(base_url=gateway.url, api_key=KEY, http_client=http, max_retries=0) as client:
            answer = client.chat.completions.create(model="route", messages=HI, stream=streamed)
            if not streamed:
                outcome.text = answer.choices[0].message.content
                return
            for each in answer:
                outcome.text += text_in(each)

    return deferToThread(using, gateway, attempt)


def python_async(gateway, streamed: bool):
    async def run(outcome, context):
        http = openai.DefaultAsyncHttpxClient(verify=context)
        async with openai.AsyncOpenAI(base_url=gateway.url, api_key=KEY, http_client=http, max_retries=0) as client:
            answer = await client.chat.completions.create(model="route", messages=HI, stream=streamed)
            if not streamed:
                outcome.text = answer.choices[0].message.content
                return
            async for each in answer:
                outcome.text += text_in(each)

    return deferToThread(using, gateway, lambda outcome, context: asyncio.run(run(outcome, context)))


def langchain(gateway, streamed: bool):
    """``invoke`` and ``stream``."""

    def use(model, outcome):
        if not streamed:
            outcome.text = model.invoke("hi").content
            return
        for each in model.stream("hi"):
            outcome.text += each.content

    return with_chat_model(gateway, use)


def langchain_gathering(gateway, streamed: bool):
    """``invoke`` of a model that streams inside: it would show half an answer as whole, if any client did."""

    def use(model, outcome):
        outcome.text = model.invoke("hi").content

    return with_chat_model(gateway, use, streaming=streamed)


def with_chat_model(gateway, use, **more):
    def attempt(outcome, context):
        with openai.DefaultHttpxClient(verify=context) as http:
            use(
                langchain_openai.ChatOpenAI(
                    model="route", base_url=gateway.url, api_key=KEY, http_client=http, max_retries=0, **more
                ),
                outcome,
            )

    return deferToThread(using, gateway, attempt)


CLIENTS = {
    "openai": python,
    "openai async": python_async,
    "langchain": langchain,
    "langchain gathering": langchain_gathering,
}


# What a provider does, and what becomes of it

HEL = [ROLE, event({"content": "hel"})]
HALF = event({"content": "lo"})[:40]
JSON_ERROR = b'{"error": {"message": "overloaded", "type": "server_error"}}'
CUT_PLAIN = raw(head(Content_Length="500"), completion()[:60])
BAD_CHUNK = raw(b"zz\r\n")
CHUNKED = head(Transfer_Encoding="chunked") + chunk(completion()[:60])


def later(seconds: float, behaviour):
    return lambda c: reactor.callLater(seconds, lambda: c.is_closed or behaviour(c))


def cut(how, *events: bytes, plain=None):
    """A stream of these events, and a plain answer that is cut as well; ``how`` is what happens then."""
    return as_asked(plain or then(CUT_PLAIN, how), then(begin_stream(*events), how))


GOOD = as_asked()


def slow(seconds: float):
    """Good, but its answer, or its first output, takes so long."""
    rest = raw(*map(chunk, STREAM), LAST_CHUNK)
    return as_asked(later(seconds, answer()), then(begin_stream(COMMENT, ROLE), later(seconds, rest)))


WHOLE = "hello"
DOWN = "all_steps_failed"
END = raw(LAST_CHUNK)

#   fault                                 behaviour                              second step  plain   streamed               limits run out
FAULTS = {
    "good":                               (GOOD,                                 None,        WHOLE,  WHOLE,                 0),
    "first step down":                    (None,                                 GOOD,        WHOLE,  WHOLE,                 0),
    "every step down":                    (None,                                 None,        DOWN,   DOWN,                  0),
    "every step closes unasked":          (fin,                                  fin,         DOWN,   DOWN,                  0),
    "every step answers 500":             (answer(500, JSON_ERROR),              answer(500), DOWN,   DOWN,                  0),
    "hangs":                              (hang,                                 None,        DOWN,   DOWN,                  1),
    "every step hangs":                   (hang,                                 hang,        DOWN,   DOWN,                  2),
    "hangs, then a good step":            (hang,                                 GOOD,        WHOLE,  WHOLE,                 1),
    "first token slow, but in time":      (slow(0.1),                            None,        WHOLE,  WHOLE,                 0),
    "first token too late":               (slow(1),                              GOOD,        WHOLE,  WHOLE,                 1),
    "first token too late, no other":     (slow(1),                              None,        DOWN,   DOWN,                  1),
    "error before output":                (as_asked(answer(200, JSON_ERROR), stream(ROLE, ERROR_EVENT)), GOOD, WHOLE, WHOLE, 0),
    "error before output, no other":      (as_asked(answer(200, JSON_ERROR), stream(ROLE, ERROR_EVENT)), None, DOWN,  DOWN,  0),
    "FIN before output":                  (cut(fin, ROLE),                       GOOD,        WHOLE,  WHOLE,                 0),
    "RST before output, no other":        (cut(rst, ROLE),                       None,        DOWN,   DOWN,                  0),
    "FIN after output":                   (cut(fin, *HEL),                       GOOD,        WHOLE,  "stream_truncated",    0),
    "FIN mid event":                      (cut(fin, *HEL, HALF),                 GOOD,        WHOLE,  "stream_truncated",    0),
    "FIN after output, no other":         (cut(fin, *HEL),                       None,        DOWN,   "stream_truncated",    0),
    "RST after output":                   (cut(later(0.05, rst), *HEL),          GOOD,        WHOLE,  "stream_reset",        0),
    "RST mid event":                      (cut(later(0.05, rst), *HEL, HALF),    GOOD,        WHOLE,  "stream_reset",        0),
    "bad chunk after output":             (cut(BAD_CHUNK, *HEL,                  plain=then(raw(CHUNKED), BAD_CHUNK)), GOOD, WHOLE, "stream_truncated", 0),
    "bad chunk mid event":                (cut(BAD_CHUNK, *HEL, HALF,            plain=then(raw(CHUNKED), BAD_CHUNK)), GOOD, WHOLE, "stream_truncated", 0),
    "clean end without finish_reason":    (cut(END, *HEL,                        plain=then(raw(CHUNKED), END)), GOOD, WHOLE, "stream_truncated", 0),
    "clean end mid event":                (cut(END, *HEL, HALF,                  plain=then(raw(CHUNKED), END)), GOOD, WHOLE, "stream_truncated", 0),
    "FIN after finish_reason":            (cut(fin, *STREAM[:-1]),               GOOD,        WHOLE,  "stream_truncated",    0),
    "silence after output":               (cut(hang, *HEL),                      GOOD,        WHOLE,  "stream_idle_timeout", 1),
    "silence mid event":                  (cut(hang, *HEL, HALF),                GOOD,        WHOLE,  "stream_idle_timeout", 1),
    "comments without end after output":  (cut(hang, *HEL, COMMENT, COMMENT),    GOOD,        WHOLE,  "stream_idle_timeout", 1),
    "error event after output":           (cut(END, *HEL, ERROR_EVENT, DONE),    GOOD,        WHOLE,  "overloaded",          0),
}  # fmt: skip


async def check(world, client, fault, streamed, faults=FAULTS):
    """One call of ``client`` to a gateway with this fault: all of the answer, or an error in time."""
    first, second, *expected, limits = faults[fault]
    steps = [world.provider(step) if step else None for step in (first, second)]
    gateway = world.gateway(*steps, tls=True, timeout=LIMIT, idle_timeout=LIMIT)

    got = await bounded(client(gateway, streamed))

    if expected[streamed] == WHOLE:
        assert (got.text, got.error) == (WHOLE, None)
    else:
        assert got.error is not None, f"half an answer as whole: {got.text!r}"
        assert expected[streamed] in f"{got.code} {got.error}"
        assert WHOLE.startswith(got.text)
        assert streamed or not got.text
        assert expected[streamed] == DOWN or steps[1] is None or not steps[1].requests, "nothing is switched any more"
    assert got.seconds < limits * LIMIT + 3, "a client on a machine that has other work may take seconds to start"
    assert all(len(step.requests) <= 1 for step in steps if step)
    assert len(world.records) == 1


MODES = pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])


@MODES
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "client",
    [pytest.param(client, marks=[pytest.mark.slow] if client != "openai" else []) for client in CLIENTS],
)
@ensureDeferred
async def test_a4_b7_f6_t1_python_clients(world, client, fault, streamed):
    await check(world, CLIENTS[client], fault, streamed)


@pytest.fixture(scope="session")
def node_client(tmp_path_factory) -> Path:
    """The script for Node, beside an ``openai`` of its own."""
    folder = tmp_path_factory.mktemp("node")
    npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), "openai@^6"]
    subprocess.run(npm, check=True, capture_output=True, timeout=120)
    return Path(shutil.copy(Path(__file__).with_name("node_client.mjs"), folder))


def node(node_client, responses=False):
    async def run(gateway, streamed):
        job = {"base_url": gateway.url, "api_key": KEY, "stream": streamed, "responses": responses}
        environ = {**os.environ, "NODE_EXTRA_CA_CERTS": str(gateway.world.ca_file)}
        arguments = [str(node_client), json.dumps(job)]
        out, err, code = await getProcessOutputAndValue(shutil.which("node"), arguments, environ)
        assert code == 0, err
        return Outcome(**json.loads(out))

    return lambda *job: Deferred.fromCoroutine(run(*job))


@pytest.mark.node
@MODES
@pytest.mark.parametrize("fault", FAULTS)
@ensureDeferred
async def test_a4_b7_f6_t1_node_client(world, node_client, fault, streamed):
    await check(world, node(node_client), fault, streamed)


# Every row of the fault table

UNREADABLE = {"invalid UTF-8", "NaN in the answer"}  # whole, and a client may refuse it: JavaScript reads no NaN


async def check_row(world, client, fault, streamed, tls):
    """One call of ``client``: it raises where the table has an error, and else gets all of the answer."""
    what, *expected = faults.TABLE[fault]
    verdict, _, outcome = expected[streamed].partition(" ")
    limit = LIMIT if outcome == "timeout" else 5
    steps = faults.first_step(world, what, tls), world.provider()
    gateway = world.gateway(*steps, tls=True, timeout=limit, idle_timeout=LIMIT, connect_timeout=LIMIT)

    got = await bounded(client(gateway, streamed), 20)

    if verdict == "next":
        assert (got.text, got.error) == (WHOLE, None)
    elif verdict != "whole":
        assert got.error is not None, f"half an answer as whole: {got.text!r}"
        assert verdict == "reported" or got.code == outcome
    elif fault in UNREADABLE and got.error is not None:
        assert not got.text
    elif streamed:
        body = faults.WHOLE.get(fault, (b"", faults.GOOD))[True]
        assert (got.text, got.error) == (contents(body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")), None)
    else:
        assert (got.text, got.error) == (WHOLE, None)
    await until(lambda: world.records)  # a client that has raised may have left
    (record,) = world.records
    assert record["outcome"] == (
        "ok" if verdict in ("next", "whole") else "provider_error" if verdict == "reported" else outcome
    )


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "streamed", "tls"), faults.CASES)
@ensureDeferred
async def test_a4_b7_python_client_in_every_row_of_the_table(world, fault, streamed, tls):
    await check_row(world, python, fault, streamed, tls)


@pytest.mark.node
@pytest.mark.parametrize(("fault", "streamed", "tls"), faults.CASES)
@ensureDeferred
async def test_a4_b7_node_client_in_every_row_of_the_table(world, node_client, fault, streamed, tls):
    await check_row(world, node(node_client), fault, streamed, tls)


# The responses API

MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "hello", "annotations": []}],
}
RESPONSE = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "error": None, "output": []}
ANSWERED = {**RESPONSE, "status": "completed", "output": [MESSAGE]}
REFUSAL = {**RESPONSE, "status": "failed", "error": {"code": "server_error", "message": "overloaded"}}
PLAIN = json.dumps(ANSWERED).encode()
CREATED = sent("response.created", 0, response={**RESPONSE, "status": "in_progress"})
HEL_LO = [delta(1, "hel"), delta(2, "lo")]
COMPLETED = sent("response.completed", 3, response=ANSWERED)
FAILED = sent("response.failed", 3, response=REFUSAL)
CUT_RESPONSE = raw(head(Content_Length="500"), PLAIN[:60])
GOOD_RESPONSE = as_asked(answer(200, PLAIN), stream(CREATED, *HEL_LO, COMPLETED))


def cut_response(how, *events: bytes):
    return as_asked(then(CUT_RESPONSE, how), then(begin_stream(*events), how))


#   fault                                 behaviour                                        second step    plain   streamed            limits run out
RESPONSES_FAULTS = {
    "good":                               (GOOD_RESPONSE,                                  None,          WHOLE,  WHOLE,                 0),
    "first step down":                    (None,                                           GOOD_RESPONSE, WHOLE,  WHOLE,                 0),
    "every step down":                    (None,                                           None,          DOWN,   DOWN,                  0),
    "every step hangs":                   (hang,                                           hang,          DOWN,   DOWN,                  2),
    "failed before output":               (as_asked(answer(200, json.dumps(REFUSAL).encode()), stream(CREATED, FAILED)), GOOD_RESPONSE, WHOLE, WHOLE, 0),
    "FIN before output":                  (cut_response(fin, CREATED),                     GOOD_RESPONSE, WHOLE,  WHOLE,                 0),
    "FIN after output":                   (cut_response(fin, CREATED, HEL_LO[0]),          GOOD_RESPONSE, WHOLE,  "stream_truncated",    0),
    "FIN mid event":                      (cut_response(fin, CREATED, HEL_LO[0], HEL_LO[1][:40]), GOOD_RESPONSE, WHOLE, "stream_truncated", 0),
    "RST after output":                   (cut_response(later(0.05, rst), CREATED, HEL_LO[0]), GOOD_RESPONSE, WHOLE, "stream_reset",      0),
    "clean end before completed":         (as_asked(answer(200, PLAIN), then(begin_stream(CREATED, *HEL_LO), END)), None, WHOLE, "stream_truncated", 0),
    "silence after output":               (cut_response(hang, CREATED, HEL_LO[0]),         GOOD_RESPONSE, WHOLE,  "stream_idle_timeout", 1),
    "failed after output":                (as_asked(answer(200, PLAIN), stream(CREATED, HEL_LO[0], FAILED)), None, WHOLE, "overloaded",  0),
}  # fmt: skip


def python_responses(gateway, streamed: bool):
    def attempt(outcome, context):
        http = openai.DefaultHttpxClient(verify=context)
        with openai.OpenAI(base_url=gateway.url, api_key=KEY, http_client=http, max_retries=0) as client:
            answer = client.responses.create(model="route", input="hi", stream=streamed)
            if not streamed:
                outcome.text = answer.output_text
                return
            for each in answer:
                if each.type == "response.output_text.delta":
                    outcome.text += each.delta
                elif each.type == "response.failed":  # the provider's own, which is an event like others
                    outcome.error = each.response.error.message

    return deferToThread(using, gateway, attempt)


@pytest.fixture(scope="module")
def responses_used():
    """The client makes half a second of classes at its first answer, whose time would count."""
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=PLAIN))
    with openai.OpenAI(api_key=KEY, base_url="http://h", http_client=httpx.Client(transport=transport)) as client:
        client.responses.create(model="m", input="x")


@MODES
@pytest.mark.usefixtures("responses_used")
@pytest.mark.parametrize("fault", RESPONSES_FAULTS)
@ensureDeferred
async def test_a4c_python_client_of_responses(world, fault, streamed):
    await check(world, python_responses, fault, streamed, RESPONSES_FAULTS)


@pytest.mark.node
@MODES
@pytest.mark.parametrize("fault", RESPONSES_FAULTS)
@ensureDeferred
async def test_a4c_node_client_of_responses(world, node_client, fault, streamed):
    await check(world, node(node_client, responses=True), fault, streamed, RESPONSES_FAULTS)
