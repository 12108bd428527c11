"""F8: a second attempt beside a slow one. One coherent answer, not a byte of the loser, and no provider asked twice as much."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.defer import ensureDeferred as ensured
from twisted.internet.error import ConnectionLost
from twisted.internet.task import deferLater

from tests.harness import HELLO, contents, request, until
from tests.memory import MemoryGateway, Wire, body_of
from tests.providers import (
    COMMENT,
    DONE,
    ROLE,
    STREAM_HEAD,
    begin_stream,
    chunk,
    completion,
    event,
    hang,
    head,
    later,
    stream,
    whole_stream,
)

ALWAYS = {"after": "1s", "share": "100%"}
REFUSAL = b'{"error": {"message": "overloaded", "code": "busy"}}'
KINDS = ("slow", "fails", "breaks", "never")


def stream_of(text: str) -> bytes:
    return whole_stream([ROLE, event({"content": text}), event(finish_reason="stop"), DONE])


def refused(status: int = 503, body: bytes = REFUSAL) -> bytes:
    return head(status, Content_Length=str(len(body))) + body


def plain(text: str) -> bytes:
    body = completion(text)
    return head(Content_Length=str(len(body))) + body


def asked(world: MemoryGateway) -> set[str]:
    """The providers that got a request."""
    return {name for name, door in world.doors.items() if door.wires}


class Scripted:
    """What a provider does with a request, some seconds after it arrived."""

    def __init__(self, kind: str, text: str, seconds: float) -> None:
        self.kind, self.text, self.seconds = kind, text, seconds
        self.begun = chunk(event({"content": self.text}))

    def play(self, world: MemoryGateway, wire: Wire) -> None:
        at = world.clock.callLater
        if self.kind == "slow":
            at(self.seconds, wire.say, stream_of(self.text))
        elif self.kind == "fails":
            at(self.seconds, wire.say, refused())
        elif self.kind == "breaks":
            at(self.seconds, wire.say, STREAM_HEAD + chunk(ROLE) + self.begun)
            at(self.seconds + 0.1, wire.lost, ConnectionLost())


def outcomes(record) -> list[tuple[int, str]]:
    return [(attempt.step, attempt.outcome) for attempt in record.attempts]


def first_to_answer(first: str, second: str) -> str:
    """Who wins: the first answers after 3 s, the second 1 s after it was sent at 1 s."""
    answers = ("slow", "breaks")
    return "p2" if second in answers else "p1" if first in answers else ""


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_f8_the_grid_of_what_two_providers_do(first, second):
    """The first one's doing comes after 3 s, the second one's after 2. The third answers at once."""
    world = MemoryGateway(steps=3, hedge=ALWAYS, timeout=20)
    client = world.ask(stream=True)
    Scripted(first, "from one", 3).play(world, world.doors["p1"].wire)
    world.clock.advance(0.9)
    assert "p2" not in asked(world)
    world.clock.advance(0.1)
    Scripted(second, "from two", 1).play(world, world.doors["p2"].wire)
    assert "p3" not in asked(world)
    world.clock.advance(2.5)
    winner = first_to_answer(first, second)
    if not winner:  # both fail in the end, and the request goes on to the third
        if "never" in (first, second):
            assert "p3" not in asked(world)
            world.clock.advance(20)
        world.doors["p3"].wire.say(stream_of("from three"))
        winner = "p3"
    told = client.take()
    assert told.startswith(b"HTTP/1.1 200 ")
    assert f"x-aigw-provider: {winner}\r\n".encode() in told.lower()
    assert [b"from one" in told, b"from two" in told, b"from three" in told] == [
        winner == "p1",
        winner == "p2",
        winner == "p3",
    ]
    kind = {"p1": first, "p2": second, "p3": "slow"}[winner]
    assert (b"stream_reset" in told) == (kind == "breaks")
    assert (DONE in told) == (kind == "slow")
    (record,) = world.records
    assert record.attempts[-1].step == int(winner[1])
    assert record.attempts[-1].outcome == ("ok" if kind == "slow" else "stream_reset")
    assert record.hedge == {"p1": "lost", "p2": "won", "p3": "no_answer"}[winner]
    for name in asked(world):
        door = world.doors[name]
        assert len(door.wires) == 1
        if name != winner and {"p1": first, "p2": second}[name] != "fails":  # a whole refusal leaves its connection
            assert door.wire.disconnected, "the loser's connection is closed"
    world.clock.advance(100)
    assert client.take() == b""
    assert world.timers() == []


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("winner", [1, 2])
def test_f8_the_loser_is_closed_at_once_and_neither_strikes_nor_counts(winner, streamed):
    world = MemoryGateway(hedge=ALWAYS, timeout=20)
    for _ in range(5):
        client = world.ask(stream=streamed)
        world.clock.advance(1)
        wires = {number: world.doors[f"p{number}"].wire for number in (1, 2)}
        assert not any(wire.disconnected for wire in wires.values())
        wires[winner].say((stream_of if streamed else plain)("it won"))
        assert wires[3 - winner].aborted
        assert b"it won" in client.take()
    assert [outcomes(record) for record in world.records] == [[(3 - winner, "lost_race"), (winner, "ok")]] * 5
    for record in world.records:
        assert record.hedge == ("lost" if winner == 1 else "won")
        assert [attempt.duration_ms for attempt in record.attempts] == ([0, 1000] if winner == 1 else [1000, 0])
        assert abs(record.overhead) < 0.01, "the time of both together is a provider's, once"
    assert not world.failed
    assert [world.health.cooldown_left(step) for step in world.config.routes["route"].steps] == [None, None]


def test_f8_a_strike_of_before_is_not_forgiven_by_a_lost_race():
    world = MemoryGateway(hedge=ALWAYS, timeout=20)
    for lost in (False, False, True, False):
        world.ask()
        if lost:
            world.clock.advance(1)
        else:
            world.doors["p1"].wire.say(refused())
        world.doors["p2"].wire.say(plain("two"))
    assert world.health.cooldown_left(world.config.routes["route"].steps[0]) == 60


def test_f8_a_failure_before_after_is_an_ordinary_fallback():
    world = MemoryGateway(steps=3, hedge=ALWAYS)
    client = world.ask()
    world.clock.advance(0.5)
    world.doors["p1"].wire.say(refused())
    world.clock.advance(0.9)
    assert "p3" not in asked(world)
    world.doors["p2"].wire.say(plain("two"))
    assert b"two" in client.take()
    assert [outcomes(record) for record in world.records] == [[(1, "refused"), (2, "ok")]]
    assert world.records[0].hedge is None
    world.clock.advance(10)
    assert "p3" not in asked(world)


def test_f8_after_a_fallback_the_next_attempt_is_hedged():
    world = MemoryGateway(steps=3, hedge=ALWAYS)
    client = world.ask()
    world.doors["p1"].wire.say(refused())
    world.clock.advance(1)
    world.doors["p3"].wire.say(plain("three"))
    assert b"three" in client.take()
    assert outcomes(world.records[0]) == [(1, "refused"), (2, "lost_race"), (3, "ok")]


def test_f8_one_hedge_a_request_and_at_most_two_at_once():
    world = MemoryGateway(steps=4, hedge=ALWAYS, timeout=60)
    client = world.ask()
    world.clock.advance(1)
    world.clock.advance(10)
    assert "p3" not in asked(world)
    world.doors["p1"].wire.say(refused())
    world.doors["p2"].wire.say(refused())
    world.clock.advance(10)
    assert "p4" not in asked(world), "it had its hedge"
    world.doors["p3"].wire.say(plain("three"))
    assert b"three" in client.take()
    assert outcomes(world.records[0]) == [(1, "refused"), (2, "refused"), (3, "ok")]
    assert world.records[0].hedge == "no_answer"


def test_f8_the_next_step_that_does_not_cool_down_is_the_second():
    world = MemoryGateway(steps=3, hedge=ALWAYS)
    second = world.config.routes["route"].steps[1]
    world.gateway.cooldowns["chat/completions"].cool_down(second, 60, False)
    client = world.ask()
    world.clock.advance(1)
    assert "p2" not in asked(world)
    world.doors["p3"].wire.say(plain("three"))
    told = client.take().lower()
    assert b"x-aigw-skipped: 2=cooling_down" in told
    assert b"x-aigw-attempts: 2\r\n" in told


def test_f8_without_such_a_step_there_is_no_hedge():
    world = MemoryGateway(hedge=ALWAYS)
    second = world.config.routes["route"].steps[1]
    world.gateway.cooldowns["chat/completions"].cool_down(second, 60, False)
    client = world.ask()
    world.clock.advance(2)
    assert "p2" not in asked(world)
    world.doors["p1"].wire.say(plain("one"))
    told = client.take()
    assert b"one" in told
    assert b"x-aigw-skipped" not in told.lower()
    assert world.records[0].hedge is None


def test_f8_a_hedge_that_probes_a_step_and_loses_leaves_it_to_the_next():
    world = MemoryGateway(hedge=ALWAYS)
    second = world.config.routes["route"].steps[1]
    cooldowns = world.gateway.cooldowns["chat/completions"]
    cooldowns.cool_down(second, 5, False)
    world.clock.advance(6)
    world.ask()
    world.clock.advance(1)
    world.doors["p1"].wire.say(plain("one"))
    assert world.doors["p2"].wire.aborted
    assert cooldowns.begin(second), "the next one probes"


NEVER = [{"previous_response_id": "r"}, {"store": True}, {"background": True}, {"conversation": "c"}]


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
@pytest.mark.parametrize("more", NEVER, ids=lambda more: next(iter(more)))
def test_f8_a_request_that_uses_state_of_a_provider_is_never_hedged(more, path):
    world = MemoryGateway(hedge=ALWAYS)
    client = world.open()
    client.say(request({**HELLO, "input": "hi", **more}, f"/v1/{path}"))
    world.clock.advance(5)
    assert asked(world) == {"p1"}


@pytest.mark.parametrize("more", [{"store": False}, {"previous_response_id": None, "background": False, "store": None}])
def test_f8_what_is_off_or_null_uses_none(more):
    world = MemoryGateway(hedge=ALWAYS)
    client = world.open()
    client.say(request({**HELLO, "input": "hi", **more}, "/v1/responses"))
    world.clock.advance(1)
    assert asked(world) == {"p1", "p2"}


@pytest.mark.parametrize(("size", "hedged"), [(1024 * 1024 - 200, True), (1024 * 1024 + 1, False)])
def test_f8_a_body_over_1_mib_is_never_hedged(size, hedged):
    world = MemoryGateway(hedge=ALWAYS)
    body = json.dumps({**HELLO, "x": ""}).encode()
    world.open().say(request(body[:-2] + b"x" * (size - len(body)) + b'"}'))
    for _ in range(20):
        world.turns()
    world.clock.advance(1.5)
    assert ("p2" in asked(world)) == hedged


def test_f8_the_first_of_two_that_refuses_by_stop_on_ends_the_race():
    world = MemoryGateway(hedge=ALWAYS, stop_on=[400])
    client = world.ask()
    world.clock.advance(1)
    world.doors["p2"].wire.say(refused(400))
    assert client.take().startswith(b"HTTP/1.1 400 ")
    assert world.doors["p1"].wire.aborted
    assert outcomes(world.records[0]) == [(1, "lost_race"), (2, "refused")]


def test_f8_a_key_that_one_of_two_refuses_does_not_end_the_other():
    world = MemoryGateway(hedge=ALWAYS)
    client = world.ask()
    world.clock.advance(1)
    world.doors["p2"].wire.say(refused(401))
    world.doors["p1"].wire.say(plain("one"))
    assert b"one" in client.take()
    assert outcomes(world.records[0]) == [(2, "refused"), (1, "ok")]


def test_f8_f7_if_both_refuse_the_client_gets_the_first_steps_refusal():
    world = MemoryGateway(hedge=ALWAYS, when_refused="pass_on")
    client = world.ask()
    world.clock.advance(1)
    world.doors["p2"].wire.say(refused(400, b'{"error": {"message": "from two"}}'))
    world.doors["p1"].wire.say(refused(400, b'{"error": {"message": "from one"}}'))
    assert b"from one" in client.take()


def test_f8_f2_the_first_of_two_that_fails_is_not_repeated_and_the_last_is():
    steps = [{"provider": name, "model": "m", "retries": 1} for name in ("p1", "p2")]
    world = MemoryGateway(top={"routes": [{"name": "route", "steps": steps, "hedge": ALWAYS, "timeout": 60}]})
    client = world.ask()
    world.clock.advance(1)
    world.doors["p1"].wire.say(refused())
    world.clock.advance(5)
    assert world.doors["p1"].wire.take().count(b"POST") == 1
    world.doors["p2"].wire.take()
    world.doors["p2"].wire.say(refused())
    world.clock.advance(1)
    assert world.doors["p2"].wire.take().count(b"POST") == 1, "it is repeated"
    world.doors["p2"].wire.say(plain("two"))
    assert b"two" in client.take()
    assert outcomes(world.records[0]) == [(1, "refused"), (2, "refused"), (2, "ok")]


def test_f8_t1_the_deadline_ends_both():
    world = MemoryGateway(hedge=ALWAYS, deadline=5, timeout=60)
    client = world.ask()
    world.clock.advance(5)
    assert client.take().startswith(b"HTTP/1.1 504 ")
    assert [wire.aborted for door in world.doors.values() for wire in door.wires] == [True, True]
    assert outcomes(world.records[0]) == [(1, "timeout"), (2, "timeout")]
    client.abortConnection()
    assert world.timers() == []


@pytest.mark.parametrize("after", [2, 5])
def test_f8_a_hedge_that_is_due_at_the_deadline_does_not_start(after):
    world = MemoryGateway(hedge={"after": after, "share": "100%"}, deadline=after, timeout=60)
    client = world.ask()
    world.clock.advance(after)
    assert client.take().startswith(b"HTTP/1.1 504 ")
    assert "p2" not in asked(world)


def test_f8_t4_a_client_that_leaves_ends_both():
    world = MemoryGateway(hedge=ALWAYS)
    client = world.ask()
    world.clock.advance(1)
    client.abortConnection()
    assert [wire.aborted for door in world.doors.values() for wire in door.wires] == [True, True]
    (record,) = world.records
    assert (record.status, record.hedge) == (499, "no_answer")
    assert outcomes(record) == [(1, "client_gone"), (2, "client_gone")]
    assert world.timers() == []


def test_f8_t4_a_client_that_leaves_while_the_second_connects_ends_both():
    world = MemoryGateway(hedge=ALWAYS)
    client = world.ask()
    cancelled: list = []
    world.doors["p2"].opens = Deferred(cancelled.append)
    world.clock.advance(1)
    client.abortConnection()
    assert cancelled
    assert world.doors["p1"].wire.aborted
    assert world.timers() == []


def test_f8_d2_the_end_of_a_drain_ends_both():
    world = MemoryGateway(hedge=ALWAYS)
    client = world.ask()
    world.clock.advance(1)
    (exchange,) = world.gateway.running
    exchange.interrupt()
    assert client.take().startswith(b"HTTP/1.1 503 ")
    assert outcomes(world.records[0]) == [(1, "draining"), (2, "draining")]
    assert all(door.wire.aborted for door in world.doors.values())


def test_f8_t5_after_a_freeze_what_has_arrived_is_read_before_a_hedge_starts():
    world = MemoryGateway(hedge=ALWAYS)
    client = world.ask()
    world.clock.jump(30)
    world.doors["p1"].wire.say(plain("one"))
    assert b"one" in client.take()
    world.clock.advance(10)
    assert "p2" not in asked(world)


def test_f8_each_provider_gets_its_own_request_and_key():
    world = MemoryGateway(hedge=ALWAYS)
    world.ask(temperature=0.5)
    world.clock.advance(1)
    sent = [world.doors[name].wire.take() for name in ("p1", "p2")]
    assert [json.loads(body_of(each))["model"] for each in sent] == ["model-of-p1", "model-of-p2"]
    assert [b"key-of-p1" in each for each in sent] == [True, False]
    assert [json.loads(body_of(each))["temperature"] for each in sent] == [0.5, 0.5]


def test_f8_a_route_without_hedge_has_no_second_attempt():
    world = MemoryGateway()
    world.ask()
    world.clock.advance(100)
    assert asked(world) == {"p1"}


# On real sockets


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("phase", ["connecting", "waiting", "held"])
@ensureDeferred
async def test_f8_the_losers_connection_is_closed_within_100_ms(world, phase, tls):
    behaviour = {"connecting": hang, "waiting": hang, "held": begin_stream(COMMENT, ROLE)}[phase]
    first, second = world.provider(behaviour, tls=tls), world.provider()
    if phase == "connecting":
        first.tls = True  # to a port that answers no handshake, or not over TLS
    gateway = world.gateway(first, second, hedge={"after": 0.2, "share": "100%"})
    got = gateway.ask(stream=True)
    asking = ensured(got)
    await until(lambda: first.connections)
    begun: list[float] = []
    closed: list[float] = []
    first.connections[0].closed.addCallback(lambda _: closed.append(reactor.seconds()))
    answer = await asking
    begun.append(reactor.seconds())
    assert (answer.headers["x-aigw-provider"], contents(answer.body)) == ("p2", "hello")
    await until(lambda: closed, 1.0)
    assert closed[0] - begun[0] < 0.1
    await until(lambda: world.records)
    assert [attempt["outcome"] for attempt in world.records[0]["attempts"]] == ["lost_race", "ok"]
    assert world.records[0]["hedge"] == "won"
    assert not [line for line in world.log if "Step failed" in line]


@pytest.mark.slow
@ensureDeferred
async def test_f8_with_5_percent_of_answers_slow_by_10_s_in_real_time(world):
    """400 requests at 40 a second: the 99th percentile of the time to the first token is below 1.5 s."""
    number = itertools.count()
    late = slow_ones(0.05, 400, 7)
    first = world.provider(lambda c: later(stream(), 10.0 if next(number) in late else 0.1)(c))
    second = world.provider(later(stream(), 0.1))
    gateway = world.gateway(first, second, hedge={"after": "1s", "share": "6%"}, timeout=30)
    asked = []
    for _ in range(400):
        asked.append(ensured(gateway.ask(stream=True)))
        await deferLater(reactor, 0.025)
    for each in asked:
        assert contents((await each).body) == "hello"
    await until(lambda: len(world.records) == 400)
    first_tokens = sorted(record["ttft_ms"] for record in world.records)
    assert first_tokens[395] < 1500
    assert len(second.requests) <= 24
    assert len(late) == 20


# How many


def slow_ones(share: float, of: int, seed: int) -> set[int]:
    return set(random.Random(seed).sample(range(of), round(of * share)))


@pytest.mark.parametrize("share", ["5%", "10%"])
def test_f8_with_5_percent_of_answers_slow_by_10_s_99_of_100_begin_within_1_5_s(share):
    world = MemoryGateway(hedge={"after": "1s", "share": share}, timeout=60)
    slow = slow_ones(0.05, 1000, 14)
    for number in range(1000):
        client = world.ask(stream=True)
        wire = world.doors["p1"].wire
        if number in slow:
            world.clock.advance(1)
            if "p2" in asked(world) and not world.doors["p2"].wire.disconnected and world.doors["p2"].wire.take():
                world.clock.advance(0.2)
                world.doors["p2"].wire.say(stream_of("two"))
            else:
                world.clock.advance(9.2)
                wire.say(stream_of("one"))
        else:
            world.clock.advance(0.2)
            wire.say(stream_of("one"))
        assert DONE in client.take()
        client.abortConnection()
    first_tokens = sorted(record.ttft for record in world.records)
    assert len(first_tokens) == 1000
    assert first_tokens[989] < 1.5
    seconds = sum(attempt.step == 2 for record in world.records for attempt in record.attempts)
    assert seconds <= 1000 * float(share[:-1]) / 100


@pytest.mark.parametrize(("share", "percent"), [("5%", 5), ("1%", 1), ("0.5%", 0.5), ("30%", 30), ("100%", 100)])
def test_f8_at_full_overload_hedges_stop_at_the_share(share, percent):
    world = MemoryGateway(
        steps=3, hedge={"after": "1s", "share": share}, timeout=60, top={"limits": {"connections": 5000}}
    )
    for _ in range(400):
        world.ask()
        world.clock.advance(0.01)
    world.clock.advance(2)
    assert len(world.doors["p1"].wires) == 400
    assert len(world.doors["p2"].wires) <= max(1, 400 * percent / 100)
    assert "p3" not in asked(world)
    assert len(world.doors["p2"].wires) >= min(400 * percent / 100, 10)


def test_f8_a_quiet_time_saves_no_more_than_10_hedges():
    world = MemoryGateway(hedge={"after": "1s", "share": "5%"}, timeout=60)
    for _ in range(1000):
        client = world.ask()
        world.doors["p1"].wire.say(plain("one"))
        client.abortConnection()
    for _ in range(100):
        world.ask()
    world.clock.advance(1)
    assert len(world.doors["p2"].wires) == 10
    assert sum(record.hedge is not None for record in world.records) == 0


def test_f8_a_hedge_without_share_left_is_recorded():
    world = MemoryGateway(hedge={"after": "1s", "share": "1%"}, timeout=60)
    for _ in range(2):
        client = world.ask()
        world.clock.advance(1)
        world.doors["p1"].wire.say(plain("one"))
        assert b"one" in client.take()
    assert [record.hedge for record in world.records] == ["lost", "over_share"]
