"""The reason of a refusal, and the pause that it asks for, in the shapes of real providers.

Each body is written by hand after the provider's documentation or after what its server sends.
"""

from __future__ import annotations

import json
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigw.protocols.refusals import Refusal, asks_for_tls, pause, read_refusal, reason_in
from tests.memory import MemoryGateway, error_of
from tests.providers import head

#   provider                    body                                   the reason arrives            codes and types                        the pause
BODIES: dict[str, tuple[str, str, tuple[str, ...], float | None]] = {
    "OpenAI, 429": (
        """{"error": {"message": "Rate limit reached for gpt-5 in organization org-x on tokens per min (TPM): Limit 30000, Used 29000, Requested 2000. Please try again in 2s. Visit https://platform.openai.com/account/rate-limits to learn more.", "type": "tokens", "param": null, "code": "rate_limit_exceeded"}}""",
        "Rate limit reached for gpt-5", ("rate_limit_exceeded", "tokens"), 2,
    ),
    "OpenAI, 400": (
        """{"error": {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.", "type": "invalid_request_error", "param": "max_tokens", "code": "unsupported_parameter"}}""",
        "Unsupported parameter: 'max_tokens'", ("unsupported_parameter", "invalid_request_error"), None,
    ),
    "Azure OpenAI, the content filter": (
        """{"error": {"message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.", "type": null, "param": "prompt", "code": "content_filter", "status": 400, "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"jailbreak": {"filtered": true, "detected": true}}}}}""",
        "The response was filtered", ("content_filter",), None,
    ),
    "Azure OpenAI, 429": (
        """{"error": {"code": "429", "message": "Requests to the ChatCompletions_Create Operation have exceeded call rate limit of your current pricing tier. Please retry after 26 seconds. Please go here: https://aka.ms/oai/quotaincrease"}}""",
        "Requests to the ChatCompletions_Create", ("429",), 26,
    ),
    "Anthropic's OpenAI endpoint": (
        """{"error": {"code": "invalid_request_error", "message": "max_tokens: 99999999 > 64000, which is the maximum allowed", "type": "invalid_request_error", "param": null}}""",
        "max_tokens: 99999999", ("invalid_request_error",), None,
    ),
    "Anthropic, overloaded": (
        """{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}, "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy"}""",
        "Overloaded", ("overloaded_error",), None,
    ),
    "Gemini, an array with RetryInfo": (
        """[{"error": {"code": 429, "message": "You exceeded your current quota, please check your plan and billing details.", "status": "RESOURCE_EXHAUSTED", "details": [
            {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests", "quotaValue": "20"}]},
            {"@type": "type.googleapis.com/google.rpc.Help", "links": [{"description": "Learn more", "url": "https://ai.google.dev/gemini-api/docs/rate-limits"}]},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "17s"}]}}]""",
        "You exceeded your current quota", ("RESOURCE_EXHAUSTED",), 17,
    ),
    "Groq, 429": (
        """{"error": {"message": "Rate limit reached for model `llama-3.3-70b-versatile` in organization `org_x` on tokens per day (TPD): Limit 100000, Used 99900, Requested 400. Please try again in 2m59.56s.", "type": "tokens", "code": "rate_limit_exceeded"}}""",
        "Rate limit reached for model", ("rate_limit_exceeded", "tokens"), 179.56,
    ),
    "Mistral, 401": ("""{"detail": "Unauthorized"}""", "Unauthorized", (), None),
    "Mistral, 422": (
        """{"object": "error", "message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "logit_bias"], "msg": "Extra inputs are not permitted", "input": {}}]}, "type": "invalid_request_error", "param": null, "code": null}""",
        "body.logit_bias: Extra inputs are not permitted", ("extra_forbidden", "invalid_request_error"), None,
    ),
    "OpenRouter, its provider's reason": (
        """{"error": {"message": "Provider returned error", "code": 429, "metadata": {"raw": "qwen/qwen3-32b:free is temporarily rate-limited upstream. Please retry shortly.", "provider_name": "Chutes"}}, "user_id": "user_x"}""",
        "Provider returned error: qwen/qwen3-32b:free is temporarily rate-limited", (), None,
    ),
    "OpenRouter, JSON within": (
        """{"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": "{\\"error\\":{\\"message\\":\\"context is too long\\"}}", "provider_name": "X"}}}""",
        "Provider returned error: context is too long", (), None,
    ),
    "Cerebras": (
        """{"message": "Tokens per minute limit exceeded - too many tokens processed.", "type": "too_many_tokens_error", "param": "quota", "code": "token_quota_exceeded"}""",
        "Tokens per minute limit exceeded", ("token_quota_exceeded", "too_many_tokens_error"), None,
    ),
    "vLLM": (
        """{"object": "error", "message": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.", "type": "BadRequestError", "param": null, "code": 400}""",
        "This model's maximum context length", ("BadRequestError",), None,
    ),
    "vLLM, newer": (
        """{"error": {"message": "The model `x` does not exist.", "type": "NotFoundError", "param": null, "code": 404}}""",
        "The model `x` does not exist.", ("NotFoundError",), None,
    ),
    "Ollama's own API": ("""{"error": "model 'qwen9' not found"}""", "model 'qwen9' not found", (), None),
    "llama.cpp": (
        """{"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}""",
        "Loading model", ("unavailable_error",), None,
    ),
    "llama.cpp, as a stream": (
        """error: {"code": 400, "message": "the request exceeds the available context size", "type": "exceed_context_size_error"}\n\n""",
        "the request exceeds", ("exceed_context_size_error",), None,
    ),
    "MiniMax": (
        """{"id": "", "choices": null, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}""",
        "insufficient balance", (), None,
    ),
    "an event stream": (
        """event: error\ndata: {"error": {"message": "no such model", "type": "invalid_request_error"}}\n\ndata: [DONE]\n\n""",
        "no such model", ("invalid_request_error",), None,
    ),
    "an event stream behind a comment": (""": processing\n\ndata: {"detail": "too busy"}\n\n""", "too busy", (), None),
    "Cloudflare": (
        """{"result": null, "success": false, "errors": [{"code": 10000, "message": "Authentication error"}], "messages": []}""",
        "Authentication error", (), None,
    ),
    "FastAPI": (
        """{"detail": [{"loc": ["body", "model"], "msg": "field required", "type": "value_error.missing"}]}""",
        "body.model: field required", ("value_error.missing",), None,
    ),
    "an error within an error": (
        """{"error": {"error": {"message": "deep", "code": "deep_code"}}}""", "deep", ("deep_code",), None,
    ),
    "JSON within a message": (
        """{"error": {"message": "{\\"error\\": {\\"message\\": \\"API key not valid.\\", \\"status\\": \\"INVALID_ARGUMENT\\"}}", "code": "400"}}""",
        "API key not valid.", ("400",), None,
    ),
    "Spring, a status in words beside the message": (
        """{"timestamp": "2026-11-01", "status": 404, "error": "Not Found", "message": "No static resource v1", "path": "/v1"}""",
        "No static resource v1", (), None,
    ),
    "RFC 9457": (
        """{"type": "https://example.com/probs/out-of-credit", "title": "No credit", "status": 403, "detail": "Your balance is 30."}""",
        "Your balance is 30.", ("https://example.com/probs/out-of-credit",), None,
    ),
    "code and message": ("""{"code": 10013, "message": "model is offline"}""", "model is offline", (), None),
    "JSON lines": ("""{"error": "first"}\n{"error": "second"}\n""", "first", (), None),
    "a mere string": ('"Unauthorized"', "Unauthorized", (), None),
    "plain text": ("upstream connect error or\n disconnect", "upstream connect error or disconnect", (), None),
    "a page": ("<html><head><title>502 Bad Gateway</title></head></html>", "502 Bad Gateway", (), None),
    "a number": ("404", "404", (), None),
}  # fmt: skip


@pytest.mark.parametrize("provider", BODIES)
def test_f6_the_reason_its_words_and_its_pause_arrive(provider):
    body, reason, words, seconds = BODIES[provider]
    refusal = read_refusal(body.encode())
    assert (refusal.reason or "").startswith(reason)
    assert refusal.words == words
    assert refusal.pause == (seconds if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("provider", BODIES)
def test_f6_the_reason_reaches_the_client(provider):
    body, reason, *_ = BODIES[provider]
    world = MemoryGateway(1)
    client = world.ask()
    sent = body.encode()
    world.doors["p1"].wire.say(head(418, Content_Length=str(len(sent))) + sent)
    assert reason[:200] in error_of(client.take())["attempts"][0]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{}", b"[]", b"null", b'{"error": null}', b'{"error": {}}', b"\x1f\x8b\x08", b"<html>", b"[[[[[[[[[[1]",
        b"[" * 60_000, b'{"error":' * 9_000 + b"1" + b"}" * 9_000, b"\xff\xfe", b'{"message": 3}', b'{"errors": {"a": 1}}',
    ],
)  # fmt: skip
def test_f6_what_says_nothing_has_no_reason_and_does_no_harm(body):
    assert read_refusal(body).reason is None


def test_f6_a_reason_can_be_encoded_and_a_long_list_is_bounded():
    assert read_refusal(b'{"error": "\\ud83d!"}').reason == "?!"
    many = [{"msg": f"mistake {number}"} for number in range(100)]
    assert read_refusal(json.dumps({"detail": many}).encode()).reason == "mistake 0; mistake 1; mistake 2"
    assert reason_in({"error": {"message": "as an object"}}) == "as an object"


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from("error errors detail message msg code type details retryDelay retry_after metadata raw loc".split()), inner
    ),
    max_leaves=30,
)  # fmt: skip


@given(json_values)
def test_f6_no_shape_of_json_is_too_odd(value):
    refusal = read_refusal(json.dumps(value).encode())
    assert refusal.reason is None or refusal.reason.encode()
    assert refusal.pause is None or 0 <= refusal.pause < float("inf")


@given(st.binary())
def test_f6_no_bytes_are_too_odd(body):
    read_refusal(body)


# F3: the pause

NOW = time.time()


@pytest.mark.parametrize(
    ("headers", "named", "seconds"),
    [
        ({b"retry-after-ms": b"1500", b"retry-after": b"9"}, 17, 1.5),
        ({b"retry-after": b"9"}, 17, 9),
        ({b"retry-after": formatdate(NOW + 7, usegmt=True).encode()}, 17, 7),
        ({b"retry-after": formatdate(NOW - 7, usegmt=True).encode()}, 17, 0),
        ({b"retry-after-ms": b"soon", b"retry-after": b"9"}, 17, 9),
        ({b"retry-after": b"soon"}, 17, 17),
        ({b"retry-after": b"-5"}, 17, 17),
        ({b"retry-after": b"nan"}, 17, 17),
        ({b"retry-after": b"inf"}, None, None),
        ({b"retry-after": b"0"}, 17, 0),
        ({}, 17, 17),
        ({}, None, None),
    ],
)
def test_f3_headers_go_before_the_body(headers, named, seconds):
    assert pause(headers.get, Refusal(pause=named), NOW) == (None if seconds is None else pytest.approx(seconds, abs=1))


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({"error": {"details": [{"retryDelay": "17s"}]}}, 17),
        ({"error": {"details": [{"retryDelay": "0.5s"}, 3, None]}}, 0.5),
        ({"error": {"details": [{"retryDelay": "1m30s"}]}}, 90),
        ({"error": {"details": {"retryDelay": "17s"}}}, None),
        ({"error": {"message": "x", "retry_after": 12.5}}, 12.5),
        ({"error": {"message": "x", "retry_after_ms": 250}}, 0.25),
        ({"error": {"message": "x", "retry_after": "3 seconds"}}, 3),
        ({"error": {"message": "x", "retry_after": True}}, None),
        ({"error": {"message": "x", "retry_after": -1}}, None),
        ({"error": {"message": "x", "retry_after": 1e400}}, None),
        ({"error": {"message": "Please try again in 345ms."}}, 0.345),
        ({"error": {"message": "Please try again in 6m0s."}}, 360),
        ({"error": {"message": "Retry after 1 minute."}}, 60),
        ({"error": {"message": "Please try again in a moment."}}, None),
        ({"error": {"message": "try again in 5 steps"}}, None),
    ],
)
def test_f3_the_pause_that_a_body_names(body, seconds):
    found = read_refusal(json.dumps(body).encode()).pause
    assert found == (seconds if seconds is None else pytest.approx(seconds))


def test_f3_a_step_rests_for_the_pause_that_a_body_names():
    world = MemoryGateway()
    world.ask()
    body = BODIES["Gemini, an array with RetryInfo"][0].encode()
    world.doors["p1"].wire.say(head(429, Content_Length=str(len(body))) + body)
    assert world.failed[0].rests_s == 17


@pytest.mark.parametrize(
    "body",
    [
        b"<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head>",
        b"Client sent an HTTP request to an HTTPS server.\n",
        b"Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />",
        b"Bad Request\r\nThis combination of host and port requires TLS.\r\n",
        b'{"error": {"message": "This is an HTTPS port; write an address that begins with https:// instead of http://."}}',
    ],
)
def test_b7_the_words_of_a_tls_port_that_was_sent_plain_http(body):
    assert asks_for_tls(body)
    world = MemoryGateway(1)
    world.ask()
    world.doors["p1"].wire.say(head(400, Content_Length=str(len(body))) + body)
    assert world.failed[0].message == "answered 400: the port expects TLS; does base_url need https://?"
