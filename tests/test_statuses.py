"""F3-F5, F7: what a status of a provider means, and which refusal the client gets as it is; through the whole gateway."""

from __future__ import annotations

import json

import pytest

from aigw.config.model import Provider, Step
from aigw.routing.cooldown import Cooldowns, CooldownsByEndpoint
from tests.harness import HELLO, request
from tests.memory import MemoryGateway, Wire, body_of, error_of
from tests.providers import completion, head

GOOD = head(Content_Length=str(len(completion()))) + completion()
EMBEDDING = b'{"data":[{"embedding":[1.0]}]}'


def status(code: int, body: bytes = b"{}", **headers: str) -> bytes:
    return head(code, Content_Length=str(len(body)), **headers) + body


def refusal(code: int, words: str, **headers: str) -> bytes:
    return status(code, json.dumps({"error": {"message": words}}).encode(), **headers)


def ask(world: MemoryGateway, **answers: bytes) -> bytes:
    """One request, what each provider says to it, and what the client gets."""
    client = world.ask()
    for name, said in answers.items():
        if b"POST" in (world.doors[name].wires[-1:] or [Wire()])[0].take():
            world.doors[name].wire.say(said)
    return client.take()


def rests(world: MemoryGateway, number: int = 1) -> float | None:
    step = world.config.routes["route"].steps[number - 1]
    return world.health.cooldown_left(step)


# Part of F3: a cooldown is one of provider, model and endpoint


def test_f3_a_cooldown_at_one_endpoint_is_none_at_another():
    """A local server gives 501 to embeddings, which it does not have; its chat works."""
    world = MemoryGateway()
    for _ in range(3):
        client = world.open()
        client.say(request({"model": "route", "input": "x"}, "/v1/embeddings"))
        world.doors["p1"].wire.say(status(501))
        world.doors["p2"].wire.say(status(200, EMBEDDING))
        assert b" 200 " in client.take()
    assert world.failed[-1].rests_s == 60
    assert rests(world) == 60, "which the pages show"
    told = ask(world, p1=GOOD)
    assert b"x-aigw-provider: p1" in told.lower()
    client = world.open()
    client.say(request({"model": "route", "input": "x"}, "/v1/embeddings"))
    world.doors["p2"].wire.say(status(200, EMBEDDING))
    assert b"x-aigw-provider: p2" in client.take().lower(), "a good chat says nothing of embeddings"


def test_f3_a_reload_forgets_the_cooldowns_of_each_endpoint():
    health = CooldownsByEndpoint(lambda: 0.0)
    kept, gone = [
        Step(n, Provider(f"p{n}", "http://p/v1", None, {}, None), "m", 300, 10, 120, 60, 0, None) for n in (1, 2)
    ]
    for step in (kept, gone):
        health.at("a").cool_down(step, 5, False)
        health.at("b").cool_down(step, 9, False)
    health.forget_all_but(iter([kept]))
    assert (health.cooldown_left(kept), health.cooldown_left(gone)) == (9, None)


# 402 and 403


@pytest.mark.parametrize("code", [402, 403])
def test_f3_f4_a_402_or_403_is_for_this_request(code):
    steps = [{"provider": "p1", "model": "a"}, {"provider": "p1", "model": "b"}, {"provider": "p2", "model": "c"}]
    world = MemoryGateway(top={"routes": [{"name": "route", "steps": steps}]})
    client = world.ask()
    world.doors["p1"].wire.say(status(code))
    world.doors["p1"].wire.say(GOOD)
    assert b"x-aigw-model: b" in client.take().lower(), "the provider's other model is tried"
    assert rests(world) is None


def test_f3_three_402_or_403_in_a_row_cool_a_step_down():
    world = MemoryGateway()
    for code in (403, 402, 403):
        assert rests(world) is None
        ask(world, p1=status(code), p2=GOOD)
    assert rests(world) == 60
    assert [each.rests_s for each in world.failed] == [None, None, 60]


@pytest.mark.parametrize("between", [GOOD, status(400), status(500)])
def test_f3_an_answer_between_them_is_the_end_of_the_row(between):
    world = MemoryGateway()
    for said in (status(403), status(403), between, status(403), status(403)):
        ask(world, p1=said, p2=GOOD)
    assert rests(world) is None


@pytest.mark.parametrize("code", [402, 403, 503, 529, 408])
def test_f3_retry_after_is_how_long_a_step_cools_down(code):
    world = MemoryGateway()
    ask(world, p1=status(code, Retry_After="25"), p2=GOOD)
    assert rests(world) == 25
    world.clock.advance(25)
    ask(world, p1=GOOD)
    assert rests(world) is None


def test_f3_without_retry_after_a_503_is_a_failure_like_others():
    world = MemoryGateway()
    for retry_after in ({}, {"Retry_After": "0"}, {}):
        assert rests(world) is None
        ask(world, p1=status(503, **retry_after), p2=GOOD)
    assert rests(world) == 60


@pytest.mark.parametrize("code", [408, 424, 499])
def test_f3_these_4xx_are_failures_of_the_provider(code):
    world = MemoryGateway()
    for _ in range(3):
        assert rests(world) is None
        ask(world, p1=status(code), p2=GOOD)
    assert rests(world) == 60


def test_f3_a_429_rests_as_its_body_asks():
    body = {
        "error": {"code": 429, "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37s"}]}
    }
    world = MemoryGateway()
    ask(world, p1=status(429, json.dumps(body).encode()), p2=GOOD)
    assert rests(world) == 37


def test_f3_a_probe_that_a_403_answers_ends_a_rest_after_failures_and_not_one_after_403s():
    step = Step(1, Provider("p", "http://p/v1", None, {}, None), "m", 300, 10, 120, 60, 0, None)
    now = 0.0
    health = Cooldowns(lambda: now)
    for _ in range(3):
        health.failed(step, False)
    now = 60.0
    health.refused(step, health.begin(step))
    assert health.cooldown_left(step) is None, "the provider is there"
    for _ in range(2):
        health.refused(step, False)
    assert health.cooldown_left(step) == 60, "and that one was the first of three"
    now = 120.0
    health.refused(step, health.begin(step))
    assert health.cooldown_left(step) == 60


# F5: a refusal that is passed on


@pytest.mark.parametrize(
    ("stop_on", "said"),
    [
        (403, status(403, b'{"error": {"message": "flagged"}}')),
        ("content_filter", status(403, b'{"error": {"code": "content_filter"}}')),
        ("content_filter", status(500, b'{"error": {"code": "content_filter"}}')),
        (429, status(429, Retry_After="30")),
        (503, status(503, Retry_After="30")),
        (402, status(402, Retry_After="30")),
    ],
)
def test_f5_a_refusal_that_is_passed_on_never_cools_the_step_down(stop_on, said):
    """The same flagged prompt must not pass at the second step only because it was sent four times."""
    world = MemoryGateway(stop_on=[stop_on])
    for _ in range(4):
        told = ask(world, p1=said, p2=GOOD)
        assert not told.startswith(b"HTTP/1.1 200 ")
        assert rests(world) is None
    assert "p2" not in world.doors or not world.doors["p2"].wires
    assert [each.rests_s for each in world.failed] == [None] * 4


def test_f5_b9_one_that_repeats_a_key_is_not_passed_on_and_so_it_counts():
    world = MemoryGateway(stop_on=[429])
    ask(world, p1=status(429, b'{"error": {"message": "key-of-p1"}}', Retry_After="30"), p2=GOOD)
    assert rests(world) == 30


# F6: the message


def test_f6_the_message_names_each_provider_with_its_reason_the_most_telling_first():
    world = MemoryGateway(3)
    told = ask(
        world,
        p1=refusal(401, "Incorrect API key provided: key-of-p1"),
        p2=status(500),
        p3=refusal(400, "This model's maximum context length is 8192 tokens."),
    )
    error = error_of(told)
    assert error["message"] == (
        "No step of the route gave an answer: p3 (answered 400: This model's maximum context length is 8192 tokens.), "
        "p1 (answered 401: Incorrect API key provided: ***), p2 (answered 500)"
    )
    assert [each["step"] for each in error["attempts"]] == [1, 2, 3]


def test_f6_the_message_is_bounded_and_names_each_of_many_providers():
    names = [f"p{n}" for n in range(1, 21)]
    world = MemoryGateway(20)
    told = ask(world, **{name: refusal(400, f"{name}-says " + "long " * 1000) for name in names})
    message = error_of(told)["message"]
    assert len(message) <= 1000
    assert [name for name in names if f"{name} (answered 400: " not in message] == []


def test_f6_a_deadline_that_passed_has_the_reasons_too():
    world = MemoryGateway(deadline=5)
    client = world.ask()
    world.doors["p1"].wire.say(refusal(400, "too long"))
    world.clock.advance(6)
    told = client.take()
    assert told.startswith(b"HTTP/1.1 504 ")
    assert "p1 (answered 400: too long), p2 (deadline limit of 5 s passed)" in error_of(told)["message"]


# F7: when_refused

LONG = b'{ "error": {"message": "too long", "code": "context_length_exceeded"} }'


def test_f7_report_is_the_default():
    assert ask(MemoryGateway(), p1=status(400, LONG), p2=status(400)).startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize("where", ["route", "top"])
@pytest.mark.parametrize("code", [400, 404, 409, 413, 415, 422])
def test_f7_pass_on_gives_the_first_step_s_refusal_if_all_steps_refused_the_request(where, code):
    setting = {"when_refused": "pass_on"}
    world = MemoryGateway(**setting) if where == "route" else MemoryGateway(top=setting)
    told = ask(world, p1=status(code, LONG, OpenAI_Processing_Ms="5"), p2=status(422))
    assert told.startswith(b"HTTP/1.1 %d " % code)
    assert body_of(told) == LONG
    assert b"openai-processing-ms: 5" in told.lower()
    assert b"x-aigw-provider: p1" in told.lower()
    assert b"x-aigw-attempts: 2" in told.lower()
    (record,) = world.records
    assert (record.status, record.outcome, record.provider) == (code, "error", "p1")


def test_f7_if_all_were_429_the_client_gets_that():
    world = MemoryGateway(when_refused="pass_on")
    told = ask(world, p1=status(429, LONG, Retry_After="7"), p2=status(429, Retry_After="3"))
    assert told.startswith(b"HTTP/1.1 429 ")
    assert b"\r\nretry-after: 7\r\n" in told.lower()
    assert rests(world) == 7


@pytest.mark.parametrize("other", [401, 402, 403, 408, 429, 500])
def test_f7_any_other_failure_among_them_is_our_report(other):
    for answers in ({"p1": status(400, LONG), "p2": status(other)}, {"p1": status(other), "p2": status(400, LONG)}):
        assert ask(MemoryGateway(when_refused="pass_on"), **answers).startswith(b"HTTP/1.1 502 ")


def test_f7_b9_a_refusal_that_cannot_be_passed_on_leaves_it_to_the_next_step_s():
    for unfit in (status(400, b'{"error": {"message": "key-of-p1"}}'), status(400, b"x" * 70_000)):
        told = ask(MemoryGateway(when_refused="pass_on"), p1=unfit, p2=status(422, LONG))
        assert told.startswith(b"HTTP/1.1 422 ")
        assert body_of(told) == LONG
        assert b"x-aigw-provider: p2" in told.lower()


def test_f7_of_a_step_that_was_repeated_it_is_the_last_refusal():
    steps = [{"provider": "p1", "model": "a", "retries": 1}, {"provider": "p2", "model": "b"}]
    world = MemoryGateway(top={"routes": [{"name": "route", "steps": steps, "when_refused": "pass_on"}]})
    client = world.ask()
    world.doors["p1"].wire.say(status(429, Retry_After="9"))
    world.clock.advance(9)
    world.doors["p1"].wire.say(status(429, Retry_After="4"))
    world.doors["p2"].wire.say(status(429))
    assert b"\r\nretry-after: 4\r\n" in client.take().lower()


def test_f7_a_deadline_that_ended_no_attempt_changes_nothing():
    steps = [{"provider": "p1", "model": "a"}, {"provider": "p2", "model": "b"}]
    world = MemoryGateway(top={"routes": [{"name": "route", "steps": steps, "when_refused": "pass_on", "deadline": 5}]})
    client = world.ask()
    world.clock.rightNow += 6  # the loop was busy: its timer comes later
    world.doors["p1"].wire.say(status(400, LONG))
    assert client.take().startswith(b"HTTP/1.1 400 ")


# B8: what was dropped is told

TOOLS = {"tools": [{"type": "function"}], "tool_choice": "auto"}
SCHEMA = {"type": "json_schema", "name": "x", "schema": {}}


def with_resolution(resolution: str) -> MemoryGateway:
    steps = [{"provider": "p1", "model": "a"}, {"provider": "p2", "model": "b", "conflict_resolution": resolution}]
    return MemoryGateway(top={"routes": [{"name": "route", "steps": steps}]})


@pytest.mark.parametrize(
    ("resolution", "dropped"), [("tools", ["response_format"]), ("format", ["tools", "tool_choice"])]
)
def test_b8_the_answer_and_the_record_name_what_the_step_did_not_get(resolution, dropped):
    world = with_resolution(resolution)
    client = world.ask({**HELLO, **TOOLS, "response_format": {"type": "json_object"}})
    world.doors["p1"].wire.say(status(400))
    world.doors["p2"].wire.say(GOOD)
    assert f"\r\nx-aigw-dropped: {', '.join(dropped)}\r\n".encode() in client.take().lower()
    assert list(world.records[0].dropped) == dropped


def test_b8_nothing_is_named_where_the_answering_step_got_all():
    world = with_resolution("tools")
    client = world.ask({**HELLO, **TOOLS, "response_format": {"type": "json_object"}})
    world.doors["p1"].wire.say(GOOD)
    assert b"x-aigw-dropped" not in client.take().lower()
    assert world.records[0].dropped == ()


# R3, A5


def test_r3_embeddings_have_no_streams():
    world = MemoryGateway()
    client = world.open()
    client.say(request({"model": "route", "input": "x", "stream": True}, "/v1/embeddings"))
    assert json.loads(body_of(world.doors["p1"].wire.take()))["stream"] is True, "R1: the body is the client's"
    world.doors["p1"].wire.say(status(200, EMBEDDING))
    told = client.take()
    assert told.startswith(b"HTTP/1.1 200 ")
    assert body_of(told) == EMBEDDING
    assert b"event-stream" not in told
    assert world.records[0].stream is False


def test_a5_an_answer_without_a_content_type_gets_one():
    world = MemoryGateway()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(completion()), completion())
    told = ask(world, p1=answer)
    assert b"\r\ncontent-type: application/json\r\n" in told.lower()
    assert body_of(told) == completion()


def test_a5_the_content_type_of_a_provider_is_kept():
    told = ask(MemoryGateway(), p1=head(Content_Type="text/json", Content_Length=str(len(completion()))) + completion())
    assert told.lower().count(b"content-type") == 1
    assert b"\r\ncontent-type: text/json\r\n" in told.lower()
