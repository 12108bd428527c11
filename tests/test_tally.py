"""What is counted of each record, for how long, and what a reload leaves of it."""

from __future__ import annotations

import msgspec
import pytest

from aigw.config.model import Provider, Route, Step
from aigw.telemetry.counters import Counters, Histogram
from aigw.telemetry.last_hour import FAILURES, Hour
from aigw.telemetry.record import AttemptRecord, Record


def route(name="r", *steps):
    steps = steps or (("a", "m1"), ("b", "m2"))
    return Route(
        name,
        tuple(
            Step(number, Provider(provider, "http://x", None, {}, None), model, 30, 10, 120, 60, 0, None)
            for number, (provider, model) in enumerate(steps, 1)
        ),
        None,
        frozenset(),
    )


def attempt(step=1, outcome="ok", took=100, **more):
    provider, model = {1: ("a", "m1"), 2: ("b", "m2"), 3: ("c", "m3")}[step]
    return AttemptRecord(step, provider, model, outcome, more.pop("status", 200), took, more.pop("message", ""), **more)


def record(*attempts, **more):
    fields = dict(
        request_id="id", caller="default", method="POST", path="/v1/chat/completions", route="r", provider="a", model="m1",
        stream=False, attempts=attempts or (attempt(),), status=200, outcome="ok", error=None, ttft_ms=None, duration_ms=200,
        bytes_in=1, bytes_out=1, usage={}, started=1000.0, ended=1000.2, ttft=None, overhead=0.002,
    )  # fmt: skip
    return Record(**{**fields, **more})


@pytest.fixture
def tally():
    tally = Counters()
    tally.keep([route()])
    return tally


def test_a_request_is_counted_where_it_belongs(tally):
    tally.count(record(attempt(1, "refused", 50, status=429, rests_s=7, message="answered 429"), attempt(2)))
    tally.count(record(stream=True, ttft=0.05))
    tally.count(record(attempt(1, "client_gone"), status=499, outcome="client_gone"))
    counted = tally.routes["r"]
    assert {key: n for key, n in counted.requests.items() if n} == {(200, False): 1, (200, True): 1, (499, False): 1}
    assert counted.fallbacks == 1
    assert counted.duration[False].counts[4] == 2
    assert sum(counted.first_token.counts) == 1
    assert sum(counted.overhead.counts) == 3
    first, second = counted.steps.values()
    assert {name: n for name, n in first.attempts.items() if n} == {"refused": 1, "ok": 1, "client_gone": 1}
    assert first.why == "answered 429"
    assert second.attempts["ok"] == 1


def test_retries_of_a_step_are_no_fallbacks(tally):
    tally.count(record(attempt(1, "broken"), attempt(1, "broken"), attempt(2)))
    assert tally.routes["r"].fallbacks == 1


def test_tokens_are_those_of_the_step_that_answered(tally):
    usage = {"prompt_tokens": 5, "completion_tokens": 6, "cached_tokens": 2, "total_tokens": 11}
    tally.count(record(attempt(1, "broken"), attempt(2), usage=usage))
    first, second = tally.routes["r"].steps.values()
    assert set(first.tokens.values()) == {0}
    assert second.tokens == {"prompt": 5, "completion": 6, "cached": 2, "reasoning": 0}


def test_a_hundred_thousand_unknown_names_are_one(tally):
    for number in range(100_000):
        tally.count(record(route=None, status=404, attempts=(), error=f"model-{number}"))
    tally.count(record(route="gone", status=404, attempts=()))
    assert list(tally.routes) == ["r"]
    assert tally.other.requests[404, False] == 100_001
    assert not tally.failures


def test_a_route_that_is_called_other_has_a_series_with_those_that_name_none(tally):
    tally.keep([route("other")])
    tally.count(record(route=None, attempts=(), status=404))
    tally.count(record(route="other"))
    assert tally.other is tally.routes["other"]
    assert (tally.other.requests[404, False], tally.other.requests[200, False]) == (1, 1)


def test_a_reload_keeps_what_stays_and_drops_what_goes(tally):
    tally.count(record())
    before = tally.routes["r"]
    tally.keep([route("r", ("a", "m1"), ("c", "m3")), route("new")])
    assert tally.routes["r"] is before
    assert [(key, step.attempts["ok"]) for key, step in before.steps.items()] == [
        ((1, "a", "m1"), 1),
        ((2, "c", "m3"), 0),
    ]
    tally.count(record(attempt(2)))  # began before the reload: its step is no more
    assert list(before.steps) == [(1, "a", "m1"), (2, "c", "m3")]
    tally.keep([route("new")])
    tally.count(record())
    assert list(tally.routes) == ["new"]
    assert tally.other.requests[200, False] == 1


def test_the_failures_of_late_are_bounded_and_say_what_happened(tally):
    for number in range(FAILURES):
        tally.count(record(attempt(1, "timeout", message=f"{number}", status=None), attempt(2)))
    tally.count(record(attempt(2, "broken"), status=502, outcome="error", error="all_steps_failed"))
    assert len(tally.failures) == FAILURES
    *_, last_attempt, request = tally.failures
    assert (last_attempt.step, last_attempt.outcome) == (2, "broken")
    assert (request.step, request.outcome, request.status) == (None, "all_steps_failed", 502)


def test_the_hour_forgets():
    hour = Hour()
    hour.at(0).ok += 1
    hour.at(59.9).ok += 1
    hour.at(3599).failed += 1
    minutes = list(hour.until(3599))
    assert [minutes[0].ok, minutes[-1].failed, sum(each is not None for each in minutes)] == [2, 1, 2]
    hour.at(3600).ok += 5
    assert [each and each.ok for each in hour.until(3600)][-2:] == [0, 5]
    assert list(hour.until(100_000)) == [None] * 60


def test_the_hour_of_a_step_has_its_own_time_to_the_first_token(tally):
    """What the steps before it lost is not its doing."""
    tally.count(
        record(attempt(1, "timeout", 1000), attempt(2, took=300), stream=True, started=0.0, ended=1.3, ttft=1.1)
    )
    _, second = tally.routes["r"].steps.values()
    minute = second.hour.at(1.3)
    assert (minute.ok, minute.streams) == (1, 1)
    assert minute.first == pytest.approx(0.1)


@pytest.mark.parametrize(("value", "at"), [(0.0, 0), (1.0, 0), (1.1, 1), (2.0, 1), (9.0, 2)])
def test_a_histogram_has_le_for_its_bounds(value, at):
    histogram = Histogram((1.0, 2.0))
    histogram.observe(value)
    assert histogram.counts == [int(index == at) for index in range(3)]
    assert histogram.sum == value


def test_the_log_line_of_a_request_has_no_more_than_before():
    """What only metrics need is no field of the log."""
    from aigw.telemetry.logs import FIELDS

    ours = {"started", "ended", "ttft", "overhead", "trace"}
    assert ours.isdisjoint(FIELDS)
    assert {*msgspec.structs.asdict(record())} - {"request_id"} - ours <= FIELDS
