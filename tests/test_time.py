"""T1, T2, T3: the limits, on a clock that the test turns."""

from __future__ import annotations

import gc

import pytest
from twisted.internet.defer import Deferred

from aigw.protocols.endpoint import Call
from aigw.upstream.attempt import Attempt
from tests.memory import MemoryGateway, error_of
from tests.providers import COMMENT, LAST_CHUNK, ROLE, STREAM, STREAM_HEAD, chunk, completion, event, head

HEL = event({"content": "hel"})
PLAIN = head(Content_Length=str(len(completion()))) + completion()
LIMITS = {"connect_timeout": 3, "timeout": 30, "idle_timeout": 7}

#   phase, what the provider has said by then, and the limit that ends it (plain, streamed)
PHASES = {
    "nothing":             (b"",                                        "answer limit of 30 s passed", "first output limit of 30 s passed"),
    "half a head":         (STREAM_HEAD[:20],                           "answer limit of 30 s passed", "first output limit of 30 s passed"),
    "a head":              (STREAM_HEAD,                                "answer limit of 30 s passed", "first output limit of 30 s passed"),
    "comments and a role": (STREAM_HEAD + chunk(COMMENT) + chunk(ROLE), "answer limit of 30 s passed", "first output limit of 30 s passed"),
    "half a body":         (PLAIN[:-5],                                 "answer limit of 30 s passed", None),
}  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("phase", PHASES)
def test_t1_a_stuck_step_ends_at_its_limit_and_the_next_begins(phase, streamed):
    said, *messages = PHASES[phase]
    if messages[streamed] is None:
        return
    world = MemoryGateway(**LIMITS)
    world.ask(stream=streamed)
    world.doors["p1"].wire.say(said)

    world.clock.advance(29.9)
    assert not world.doors["p2"].wires
    world.clock.advance(0.2)

    assert world.doors["p1"].wire.aborted
    assert world.doors["p2"].wire.take().startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert [(each.outcome, each.message) for each in world.failed] == [("timeout", messages[streamed])]


def test_t1_connect_timeout_covers_all_of_connecting():
    world = MemoryGateway(**LIMITS)
    cancelled = []
    world.doors["p1"].opens = Deferred(cancelled.append)
    world.ask()
    world.clock.advance(2.9)
    assert not world.doors["p2"].wires
    world.clock.advance(0.2)
    assert cancelled
    assert world.doors["p2"].wires
    assert world.failed[0].message == "connect limit of 3 s passed"


def test_t1_step_over_route_over_default():
    step = {"provider": "p1", "model": "m", "timeout": 5}
    top = {
        "default_timeout": 100,
        "routes": [{"name": "route", "timeout": 50, "steps": [step, {**step, "provider": "p2"}]}],
    }
    del top["routes"][0]["steps"][1]["timeout"]
    world = MemoryGateway(3, top=top)
    world.ask()
    world.clock.advance(5)
    world.clock.advance(50)
    assert [each.message for each in world.failed] == ["answer limit of 5 s passed", "answer limit of 50 s passed"]


def test_t2_a_healthy_stream_outlives_its_timeout():
    world = MemoryGateway(**LIMITS)
    client = world.ask(stream=True)
    provider = world.doors["p1"].wire
    provider.say(STREAM_HEAD + chunk(HEL))
    for _ in range(40):
        world.clock.advance(5)
        provider.say(chunk(HEL))
    provider.say(b"".join(map(chunk, STREAM)) + LAST_CHUNK)
    assert client.take().endswith(b"0\r\n\r\n")
    assert world.records[0].outcome == "ok"
    assert world.records[0].duration_ms == 200_000


def test_t1_comments_do_not_keep_a_silent_stream_alive():
    world = MemoryGateway(**LIMITS)
    client = world.ask(stream=True)
    provider = world.doors["p1"].wire
    provider.say(STREAM_HEAD + chunk(HEL))
    for _ in range(6):
        world.clock.advance(1)
        provider.say(chunk(COMMENT))
    assert not provider.aborted
    world.clock.advance(1.1)
    assert provider.aborted
    assert b'"code":"stream_idle_timeout"' in client.take()


def test_t1_half_a_comment_at_a_time_does_not_either():
    world = MemoryGateway(**LIMITS)
    world.ask(stream=True)
    provider = world.doors["p1"].wire
    provider.say(STREAM_HEAD + chunk(HEL))
    for piece in (b":", b" keep", b"-alive", b"\n", b"\n", b":"):
        world.clock.advance(1.2)
        provider.say(chunk(piece))
    assert provider.aborted


def test_t1_the_silence_of_a_paused_stream_is_the_client_s():
    world = MemoryGateway(**LIMITS)
    client = world.ask(stream=True)
    provider = world.doors["p1"].wire
    provider.say(STREAM_HEAD + chunk(HEL))
    client.producer.pauseProducing()
    assert provider.producerState == "paused"
    world.clock.advance(59)
    assert not provider.aborted
    client.producer.resumeProducing()
    assert provider.producerState == "producing"
    world.clock.advance(6.9)
    assert not provider.aborted
    world.clock.advance(7)
    assert provider.aborted


def test_t1_the_limit_of_a_large_plain_answer_is_that_of_the_whole_however_its_client_reads():
    world = MemoryGateway(1, timeout=10)
    client = world.ask()
    provider = world.doors["p1"].wire
    provider.say(head(Content_Length="3000000") + b"x" * 1_100_000)
    for _ in range(2):
        world.clock.advance(4.9)
        client.producer.pauseProducing()
        client.producer.resumeProducing()
    assert not provider.aborted
    world.clock.advance(0.3)
    assert provider.aborted
    assert client.aborted
    assert [(each.status, each.outcome) for each in world.records] == [(200, "answer_timeout")]


def test_t1_the_limit_of_a_large_plain_answer_does_not_begin_anew_while_its_client_pauses():
    world = MemoryGateway(1, timeout=10)
    client = world.ask()
    provider = world.doors["p1"].wire
    provider.say(head(Content_Length="3000000") + b"x" * 1_100_000)
    world.clock.advance(9.9)
    client.producer.pauseProducing()
    world.clock.advance(0.2)  # here it would have passed
    client.producer.resumeProducing()
    assert not provider.aborted
    world.clock.advance(0.2)
    assert provider.aborted


@pytest.mark.parametrize("route", [{}, {"hedge": {"after": 1}}], ids=["alone", "hedge"])
def test_s6_the_prompt_is_let_go_of_when_the_answer_begins(route):
    def held():
        """Whatever holds a prompt, but for what the tests of other files have left."""
        gc.collect()
        all_of_them = [x for x in gc.get_objects() if type(x) is Attempt or (type(x) is Call and x.members)]
        return [each for each in all_of_them if not any(each is other for other in others)]

    others: list = []
    others = held()
    world = MemoryGateway(2, **route)
    client = world.ask(stream=True)
    provider = world.doors["p1"].wire
    world.clock.advance(1)
    assert len(held()) == (3 if route else 2)
    provider.say(STREAM_HEAD + chunk(HEL))
    assert client.take()
    assert not held()


def test_t1_an_answer_that_is_committed_when_its_time_is_already_over():
    """A busy reactor may read before it runs the timer: the answer is cut, and nothing goes on behind it."""
    world = MemoryGateway(1, timeout=10)
    client = world.ask()
    provider = world.doors["p1"].wire
    world.clock.rightNow += 11
    provider.say(head(Content_Length="3000000") + b"x" * 1_100_000)
    world.clock.advance(0)
    assert provider.aborted
    assert client.aborted
    assert [each.outcome for each in world.records] == ["answer_timeout"]


def test_b7_a_refusal_whose_body_stalls_is_a_refusal_two_seconds_later():
    world = MemoryGateway(timeout=300)
    world.ask()
    world.doors["p1"].wire.say(head(500, Content_Length="50") + b'{"error"')
    world.clock.advance(1.9)
    assert not world.doors["p2"].wires
    world.clock.advance(0.2)
    assert world.doors["p2"].wires
    assert world.doors["p1"].wire.aborted
    assert [(each.outcome, each.status) for each in world.failed] == [("refused", 500)]


def test_f1_an_idle_connection_whose_time_is_over_is_never_taken(monkeypatch):
    """On a real socket a connection that was aborted is told so a turn later; until then it must not look idle."""
    world = MemoryGateway(1)
    world.ask()
    first = world.doors["p1"].wire
    first.say(PLAIN)
    monkeypatch.setattr(first, "abortConnection", lambda: None)
    world.clock.advance(4)
    world.ask()
    assert len(world.doors["p1"].wires) == 2
    world.doors["p1"].wire.say(PLAIN)
    assert [each.status for each in world.records] == [200, 200]


def test_t3_past_the_deadline_no_step_starts():
    world = MemoryGateway(3, deadline=40, **LIMITS)
    client = world.ask()
    world.clock.advance(30)
    assert world.doors["p2"].wires
    world.clock.advance(10)
    assert not world.doors["p3"].wires
    told = client.take()
    assert told.startswith(b"HTTP/1.1 504 ")
    assert error_of(told)["code"] == "deadline_exceeded"
    assert [each["message"] for each in error_of(told)["attempts"]] == [
        "answer limit of 30 s passed",
        "deadline limit of 10 s passed",
    ]
    assert world.doors["p2"].wire.aborted


def test_t3_the_deadline_tells_504_even_at_the_last_step():
    world = MemoryGateway(1, deadline=4, **LIMITS)
    client = world.ask()
    world.clock.advance(4)
    assert client.take().startswith(b"HTTP/1.1 504 ")


def test_t3_a_step_that_timed_out_is_not_tried_again():
    world = MemoryGateway(1, **LIMITS)
    world.ask()
    world.clock.advance(30)
    assert len(world.doors["p1"].wires) == 1
    assert world.records[0].status == 502


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_nothing_is_left_behind_after_an_answer(streamed):
    """Only the idle connection's timer and the client's keep-alive remain, and both run out."""
    world = MemoryGateway(**LIMITS)
    client = world.ask(stream=streamed)
    world.doors["p1"].wire.say(STREAM_HEAD + b"".join(map(chunk, STREAM)) + LAST_CHUNK if streamed else PLAIN)
    assert len(world.timers()) == 2
    world.clock.advance(75)
    assert world.doors["p1"].wire.aborted
    assert client.disconnected
    world.clock.advance(60)
    assert world.timers() == []
