"""What a record says of the end of a request: who ended it, and what the time was spent on."""

from __future__ import annotations

import pytest

from aigw.daemon.drain import Drain
from aigw.telemetry.counters import Counters
from tests.harness import HELLO, request
from tests.memory import MemoryGateway, error_of
from tests.providers import ROLE, STREAM, STREAM_HEAD, chunk, head

DRAIN_SECONDS = 30.0


def refusal(status: int, **headers: str) -> bytes:
    return head(status, Content_Length="2", **headers) + b"{}"


def drain(gateway: MemoryGateway) -> Drain:
    draining = Drain(gateway.site, gateway.gateway.running, gateway.clock, DRAIN_SECONDS)
    draining.begin()
    return draining


def counted(gateway: MemoryGateway) -> Counters:
    counters = Counters()
    counters.keep(gateway.config.routes.values())
    for record in gateway.records:
        counters.count(record)
    return counters


@pytest.mark.parametrize("end", ["the client leaves", "the gateway stops", "the pause is over"])
def test_f2_a_pause_before_a_retry_counts_as_waiting_for_just_as_long_as_it_was(end):
    steps = [{"provider": "p1", "model": "m", "retries": 1}]
    gateway = MemoryGateway(steps=1, top={"routes": [{"name": "route", "steps": steps}]})
    client = gateway.ask()
    gateway.clock.advance(1)
    gateway.doors["p1"].wire.say(refusal(500, retry_after="20"))
    gateway.clock.advance(3)
    if end == "the client leaves":
        client.abortConnection()
    elif end == "the gateway stops":
        drain(gateway).give_up()
    else:
        gateway.clock.advance(17)
        gateway.doors["p1"].wire.say(refusal(500))
    (record,) = gateway.records
    assert record.overhead == pytest.approx(0.0)
    assert record.ended - record.started == pytest.approx(21 if end == "the pause is over" else 4)
    assert counted(gateway).routes["route"].overhead.sum >= -1e-9


# D2: a drain


@pytest.mark.parametrize("given_up", [False, True], ids=["the time is over", "a second signal"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "large answer"])
def test_d2_a_drain_in_the_middle_of_an_answer_is_not_the_provider_s_fault(given_up, stream):
    gateway = MemoryGateway()
    client = gateway.ask(stream=stream)
    provider = gateway.doors["p1"].wire
    if stream:
        provider.say(STREAM_HEAD + chunk(ROLE) + chunk(STREAM[1]))
    else:
        provider.say(head(Content_Length="3000000") + b"x" * 2_000_000)
    assert client.take().startswith(b"HTTP/1.1 200 ")
    draining = drain(gateway)
    if given_up:
        draining.give_up()
    else:
        gateway.clock.advance(DRAIN_SECONDS)
    (record,) = gateway.records
    (attempt,) = record.attempts
    assert (record.status, record.outcome, attempt.outcome, attempt.status) == (200, "draining", "draining", 200)
    assert (b'"code":"stream_truncated"' in client.take()) == stream, "the client's code stays"
    assert not gateway.failed, "no line says that the step failed"
    counters = counted(gateway)
    (step, _) = counters.routes["route"].steps.values()
    assert {name: n for name, n in step.attempts.items() if n} == {"draining": 1}
    assert step.answers is None
    assert not counters.failures
    assert gateway.health.cooldown_left(gateway.config.routes["route"].steps[0]) is None


def test_d2_a_stream_that_breaks_during_a_drain_is_still_the_provider_s_fault():
    gateway = MemoryGateway()
    gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    provider.say(STREAM_HEAD + chunk(ROLE) + chunk(STREAM[1]))
    drain(gateway)
    provider.loseConnection()
    assert (gateway.records[0].outcome, gateway.records[0].attempts[0].outcome) == ("stream_truncated",) * 2


def test_d2_giving_up_on_a_client_that_still_sends_is_recorded_as_draining():
    gateway = MemoryGateway()
    client = gateway.open()
    client.say(request(HELLO)[:-5])
    drain(gateway).give_up()
    assert client.disconnected
    (record,) = gateway.records
    assert (record.status, record.outcome, record.error) == (503, "error", "draining")
    assert error_of(client.take())["code"] == "draining"
    assert not gateway.timers()


# 499


def test_f5_a_provider_s_499_that_is_passed_on_is_no_client_that_left():
    gateway = MemoryGateway(stop_on=[499])
    client = gateway.ask()
    gateway.doors["p1"].wire.say(refusal(499))
    assert client.take().startswith(b"HTTP/1.1 499 ")
    (record,) = gateway.records
    assert (record.status, record.outcome, record.attempts[0].outcome) == (499, "error", "refused")
    client.loseConnection()
    assert len(gateway.records) == 1


@pytest.mark.parametrize("phase", ["sending", "waiting", "reading"])
def test_t4_a_client_that_leaves_is_recorded_so_in_each_phase(phase):
    gateway = MemoryGateway()
    client = gateway.open()
    client.say(request({**HELLO, "stream": True})[: -5 if phase == "sending" else None])
    if phase == "reading":
        gateway.doors["p1"].wire.say(STREAM_HEAD + chunk(ROLE) + chunk(STREAM[1]))
    client.abortConnection()
    (record,) = gateway.records
    assert (record.status, record.outcome) == (499, "client_gone")
