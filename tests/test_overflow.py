"""F9: a refusal that the client acts on, and the words by which one for length is known."""

from __future__ import annotations

import json

import pytest

from aigw.protocols.context_overflow import PHRASES, STATUSES, is_context_overflow
from aigw.protocols.refusals import read_refusal
from tests.harness import request
from tests.memory import MemoryGateway, body_of
from tests.providers import head
from tests.test_messages import PLAIN

ASKED = {
    "/v1/messages": {"model": "route", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]},
    "/v1/messages/count_tokens": {"model": "route", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/responses": {"model": "route", "input": "hi"},
    "/v1/responses/compact": {"model": "route", "input": "hi"},
    "/v1/chat/completions": {"model": "route", "messages": [{"role": "user", "content": "hi"}]},
}
AGENTS = [path for path in ASKED if path != "/v1/chat/completions"]


def error(message: str, **more) -> bytes:
    return json.dumps({"type": "error", "error": {"message": message, **more}}).encode()


# What the servers send, each as its documentation, its source or a report of a user has it.
TOO_LONG = {
    "OpenAI": (400, error("This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.", code="context_length_exceeded")),
    "OpenAI, responses": (400, error("Your input exceeds the context window of this model. Please adjust your input and try again.")),
    "OpenAI, limit": (400, error("Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300000 tokens.")),
    "Anthropic": (400, error("prompt is too long: 210000 tokens > 200000 maximum", type="invalid_request_error")),
    "Anthropic, max_tokens": (400, error("input length and `max_tokens` exceed context limit: 199211 + 20000 > 200000, decrease input length or `max_tokens` and try again")),
    "Anthropic, bytes": (413, error("Request exceeds the maximum size", type="request_too_large")),
    "Google Gemini": (400, error("The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).", status="INVALID_ARGUMENT")),
    "Google Gemini, older": (400, error("The input token count exceeds the maximum number of tokens allowed 1048576.")),
    "Groq": (413, error("Request too large for model `x` in organization `y` on tokens per minute (TPM): Limit 6000, Requested 9000", type="tokens", code="rate_limit_exceeded")),
    "Cerebras": (400, b'{"message": "Please reduce the length of the messages or completion. Current length is 9000 while limit is 8192", "code": "context_length_exceeded"}'),
    "Mistral": (400, b'{"object": "error", "message": "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length", "code": 3051}'),
    "OpenRouter": (400, error("This endpoint's maximum context length is 131072 tokens. However, you requested about 150000 tokens.", code=400)),
    "DeepSeek": (400, error("This model's maximum context length is 65536 tokens. However, you requested 70000 tokens")),
    "vLLM": (400, b'{"object": "error", "message": "This model\'s maximum context length is 4096 tokens. However, your request has 5000 input tokens.", "code": 400}'),
    "vLLM, prompt": (400, error("The decoder prompt (length 40000) is longer than the maximum model length of 32768. Make sure that `max_model_len` is no smaller.")),
    "SGLang": (400, error("The input (40000 tokens) is longer than the model's context length (32768 tokens).")),
    "llama.cpp": (400, error("request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it", type="exceed_context_size_error")),
    "Ollama": (400, b'{"error": "the input length exceeds the context length"}'),
    "LM Studio": (400, error("The number of tokens to keep from the initial prompt is greater than the context length. Try to load the model with a larger context length")),
    "xAI": (400, b'{"code": "Client specified an invalid argument", "error": "This model\'s maximum prompt length is 131072 but the request contains 140000 tokens."}'),
    "Together": (422, error("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193. Given: 9000 `inputs` tokens and 512 `max_new_tokens`")),
    "TGI": (422, b'{"error": "Input validation error: `inputs` must have less than 4096 tokens. Given: 5000", "error_type": "validation"}'),
    "Fireworks": (400, error("The prompt is too long: 140000, model maximum context length: 131072")),
    "Amazon Bedrock": (400, b'{"message": "Input is too long for requested model."}'),
    "Cohere": (400, b'{"message": "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 5000."}'),
    "Moonshot": (400, error("Invalid request: Your request exceeded model token limit: 131072 (requested: 140000)")),
    "MiniMax": (400, error("invalid params, context window exceeds limit (2013)")),
    "Alibaba": (400, error("<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 129024]")),
    "z.ai": (400, error("Prompt exceeds max length", code="1261")),
}  # fmt: skip
OTHERS = {
    "max_tokens": (400, error("max_tokens: 64000 > 8192, which is the maximum allowed number of output tokens")),
    "a parameter": (400, error("Unsupported parameter: 'temperature'")),
    "no model": (404, error("model: claude-x not found", type="not_found_error")),
    "a rate limit": (429, error("Request too large for gpt-x on tokens per min (TPM): Limit 30000, Requested 40000.")),
    "500": (500, error("prompt is too long: 210000 tokens > 200000 maximum")),
    "nothing": (413, b""),
    "nginx": (413, b"<html><head><title>413 Request Entity Too Large</title></head></html>"),
}
LONG = TOO_LONG["Anthropic"]


def known(status: int, body: bytes) -> bool:
    refusal = read_refusal(body)
    return is_context_overflow(status, refusal.words, refusal.reason)


@pytest.mark.parametrize("name", TOO_LONG)
def test_f9_a_refusal_for_length_is_known_by_the_provider_s_words(name):
    status, body = TOO_LONG[name]
    assert known(status, body)
    assert [other for other in (401, 403, 404, 429, 500, 503) if known(other, body)] == []


@pytest.mark.parametrize("name", OTHERS)
def test_f9_other_refusals_are_not(name):
    assert not known(*OTHERS[name])


def test_f9_the_table_is_of_at_least_ten_providers_each_with_an_example():
    assert len(PHRASES) >= 10
    assert {name for name in PHRASES if not any(each.startswith(name) for each in TOO_LONG)} == set()
    assert {400, 413, 422} == STATUSES


def refused(path: str, *answers: tuple[int, bytes], **route) -> tuple[bytes, MemoryGateway]:
    """What the client gets where the steps, one after the other, answer so."""
    world = MemoryGateway(len(answers), **route)
    client = world.open()
    client.say(request(ASKED[path], path))
    for number, (status, body) in enumerate(answers, 1):
        if wires := world.doors.get(f"p{number}") and world.doors[f"p{number}"].wires:
            wires[-1].say(head(status, Content_Length=str(len(body))) + body)
    return client.take(), world


def was_asked(world: MemoryGateway, step: str) -> bool:
    return step in world.doors and bool(world.doors[step].wires)


BAD = (400, error("Unsupported parameter: 'temperature'"))
DOWN = (503, b"{}")
GOOD = (200, PLAIN)


@pytest.mark.parametrize("path", AGENTS)
def test_f9_too_long_is_returned_at_once_and_verbatim(path):
    got, world = refused(path, LONG, GOOD)
    assert got.startswith(b"HTTP/1.1 400 ")
    assert body_of(got) == LONG[1]
    assert not was_asked(world, "p2")
    assert [record.outcome for record in world.records] == ["error"]


def test_f9_elsewhere_the_next_step_is_tried():
    _, world = refused("/v1/chat/completions", LONG, GOOD)
    assert was_asked(world, "p2")


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize(("setting", "asked"), [("next", True), ("return", False)])
def test_f9_on_context_overflow_is_what_the_route_says(path, setting, asked):
    got, world = refused(path, LONG, GOOD, on_context_overflow=setting)
    assert was_asked(world, "p2") is asked
    assert asked or body_of(got) == LONG[1]
    got, world = refused(path, LONG, GOOD, top={"on_context_overflow": setting})
    assert was_asked(world, "p2") is asked


@pytest.mark.parametrize("path", AGENTS)
def test_f7_every_step_s_refusal_is_passed_on_by_default(path):
    got, _ = refused(path, BAD, BAD)
    assert got.startswith(b"HTTP/1.1 400 ")
    assert body_of(got) == BAD[1]
    got, _ = refused(path, BAD, BAD, when_refused="report")
    assert got.startswith(b"HTTP/1.1 502 ")


def test_f7_elsewhere_it_is_reported_by_default():
    got, _ = refused("/v1/chat/completions", BAD, BAD)
    assert got.startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize("path", AGENTS)
@pytest.mark.parametrize("others", [(DOWN, LONG), (LONG, DOWN), (BAD, LONG), (LONG, BAD)])
def test_f9_of_mixed_causes_the_one_for_length_is_passed_on(path, others):
    got, _ = refused(path, *others, on_context_overflow="next")
    assert got.startswith(b"HTTP/1.1 400 ")
    assert body_of(got) == LONG[1]


@pytest.mark.parametrize("path", AGENTS)
@pytest.mark.parametrize("others", [(DOWN, BAD), (BAD, DOWN)])
def test_f9_of_other_mixed_causes_it_is_our_502(path, others):
    got, _ = refused(path, *others)
    assert got.startswith(b"HTTP/1.1 502 ")


def test_f9_a_route_that_reports_says_what_each_step_said():
    got, _ = refused("/v1/messages", DOWN, LONG, on_context_overflow="next", when_refused="report")
    assert got.startswith(b"HTTP/1.1 502 ")


def test_f5_a_refusal_for_length_that_repeats_a_key_is_not_returned():
    body = error("prompt is too long: 3 > 2, key-of-p1")
    _, world = refused("/v1/messages", (400, body), GOOD)
    assert was_asked(world, "p2")
