"""What is counted of each record, for how long, and what a reload leaves of it."""

from __future__ import annotations

import msgspec
import pytest

from aigw.config.model import Provider, Route, Step
from aigw.telemetry.counters import Counters, Histogram
from aigw.telemetry.last_hour import FAILURES, Hour
from aigw.telemetry.logs import FIELDS
from aigw.telemetry.record import (
    AttemptRecord,
    Record,
    Skipped,
    attempt_for_client,
    attempt_for_log,
    for_log,
    host_and_path,
    names_for,
    requested,
    short_word,
)


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
def counters():
    counters = Counters()
    counters.keep([route()])
    return counters


def test_a_request_is_counted_where_it_belongs(counters):
    counters.count(record(attempt(1, "refused", 50, status=429, rests_s=7, message="answered 429"), attempt(2)))
    counters.count(record(stream=True, ttft=0.05))
    counters.count(record(attempt(1, "client_gone"), status=499, outcome="client_gone"))
    counted = counters.routes["r"]
    assert {key: n for key, n in counted.requests.items() if n} == {
        (200, False, "ok"): 1,
        (200, True, "ok"): 1,
        (499, False, "client_gone"): 1,
    }
    assert counted.fallbacks == 1
    assert counted.duration[False].counts[4] == 2
    assert sum(counted.first_token.counts) == 1
    assert sum(counted.overhead.counts) == 3
    first, second = counted.steps.values()
    assert {name: n for name, n in first.attempts.items() if n} == {"refused": 1, "ok": 1, "client_gone": 1}
    assert first.why == "answered 429"
    assert second.attempts["ok"] == 1


def test_retries_of_a_step_are_no_fallbacks(counters):
    counters.count(record(attempt(1, "broken"), attempt(1, "broken"), attempt(2)))
    assert counters.routes["r"].fallbacks == 1


def test_tokens_are_those_of_the_step_that_answered(counters):
    usage = {"prompt_tokens": 5, "completion_tokens": 6, "cached_tokens": 2, "total_tokens": 11}
    counters.count(record(attempt(1, "broken"), attempt(2), usage=usage))
    first, second = counters.routes["r"].steps.values()
    assert set(first.tokens.values()) == {0}
    assert second.tokens == {"prompt": 5, "completion": 6, "cached": 2, "reasoning": 0}


def test_a_hundred_thousand_unknown_names_are_one(counters):
    for number in range(100_000):
        counters.count(record(route=None, status=404, outcome="error", attempts=(), error=f"model-{number}"))
    counters.count(record(route="gone", status=404, outcome="error", attempts=()))
    assert list(counters.routes) == ["r"]
    assert counters.other.requests[404, False, "error"] == 100_001
    assert not counters.failures


def test_a_route_that_is_called_other_has_a_series_with_those_that_name_none(counters):
    counters.keep([route("other")])
    counters.count(record(route=None, attempts=(), status=404, outcome="error"))
    counters.count(record(route="other"))
    assert counters.other is counters.routes["other"]
    assert (counters.other.requests[404, False, "error"], counters.other.requests[200, False, "ok"]) == (1, 1)


def test_a_reload_keeps_what_stays_and_drops_what_goes(counters):
    counters.count(record())
    before = counters.routes["r"]
    counters.keep([route("r", ("a", "m1"), ("c", "m3")), route("new")])
    assert counters.routes["r"] is before
    assert [(key, step.attempts["ok"]) for key, step in before.steps.items()] == [
        ((1, "a", "m1"), 1),
        ((2, "c", "m3"), 0),
    ]
    counters.count(record(attempt(2)))  # began before the reload: its step is no more
    assert list(before.steps) == [(1, "a", "m1"), (2, "c", "m3")]
    counters.keep([route("new")])
    counters.count(record())
    assert list(counters.routes) == ["new"]
    assert counters.other.requests[200, False, "ok"] == 1


def test_the_failures_of_late_are_bounded_and_say_what_happened(counters):
    for number in range(FAILURES):
        counters.count(record(attempt(1, "timeout", message=f"{number}", status=None), attempt(2)))
    counters.count(record(attempt(2, "broken"), status=502, outcome="error", error="all_steps_failed"))
    assert len(counters.failures) == FAILURES
    *_, last_attempt, request = counters.failures
    assert (last_attempt.attempt.step, last_attempt.outcome) == (2, "broken")
    assert (request.attempt, request.outcome, request.status) == (None, "all_steps_failed", 502)


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


def test_the_hour_of_a_step_has_its_own_time_to_the_first_token(counters):
    """What the steps before it lost is not its doing."""
    counters.count(
        record(attempt(1, "timeout", 1000), attempt(2, took=300), stream=True, started=0.0, ended=1.3, ttft=1.1)
    )
    _, second = counters.routes["r"].steps.values()
    minute = second.hour.at(1.3)
    assert (minute.ok, minute.streams) == (1, 1)
    assert minute.first == pytest.approx(0.1)


@pytest.mark.parametrize(("value", "at"), [(0.0, 0), (1.0, 0), (1.1, 1), (2.0, 1), (9.0, 2)])
def test_a_histogram_has_le_for_its_bounds(value, at):
    histogram = Histogram((1.0, 2.0))
    histogram.observe(value)
    assert histogram.counts == [int(index == at) for index in range(3)]
    assert histogram.sum == value


class Wider(Record, frozen=True, kw_only=True):
    """A record as a later change may make it."""

    secret_note: str = "not for the log"


def test_b9_a_field_that_is_added_to_the_record_is_in_no_log_line_unless_it_is_allowed():
    wider = Wider(**msgspec.structs.asdict(record()))
    assert "secret_note" not in for_log(wider)
    assert "secret_note" not in names_for(Wider, "log")
    assert {"started", "ended", "ttft", "overhead", "trace", "request_id"}.isdisjoint(for_log(record()))
    assert {*for_log(record())} == {*names_for(Record, "log")} - {*names_for(Record, "if set")}
    assert {*names_for(Record, "log")} <= FIELDS
    for whole in (AttemptRecord, Skipped):  # these are logged as they are
        assert names_for(whole, "log") == whole.__struct_fields__


def test_f6_what_a_client_is_told_of_an_attempt_is_a_list_of_its_own():
    told = attempt_for_client(attempt(host="provider.internal", path="/v1", code="x", rests_s=5))
    assert {*told} == {"step", "provider", "model", "outcome", "status", "duration_ms", "message"}
    logged = attempt_for_log(attempt(host="provider.internal", path="/v1", code="x", rests_s=5))
    assert logged == {**told, "host": "provider.internal", "path": "/v1", "code": "x", "rests_s": 5}


@pytest.mark.parametrize(
    ("asked", "logged"), [("a" * 70, "a" * 64), ("a\n\u202eb", "a??b"), ("caf\u00e9/x:free", "caf\u00e9/x:free")]
)
def test_b9_the_model_asked_for_is_64_printable_characters(asked, logged):
    assert requested(asked) == logged


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["insufficient_quota", "x"], "insufficient_quota"),
        (["You exceeded your quota", "rate_limit"], "rate_limit"),
        (["k" * 41], None),
        ([], None),
    ],
)
def test_b9_a_providers_code_is_one_short_word(words, code):
    assert short_word(words) == code


def test_b9_host_and_path_hold_no_credentials():
    assert host_and_path("https://user:pass@api.example:8443/openai/v1", "chat/completions") == (
        "api.example:8443",
        "/openai/v1/chat/completions",
    )


def test_a_model_has_its_own_times_whichever_steps_name_it(counters):
    counters.keep([route("r"), route("s")])
    counters.count(record(attempt(1, took=300)))
    counters.count(record(attempt(1, took=300), route="s", stream=True, started=0.0, ended=1.3, ttft=1.1))
    model = counters.models["a", "m1"]
    assert (sum(model.duration.counts), model.duration.sum) == (2, pytest.approx(0.6))
    assert (sum(model.first_token.counts), model.first_token.sum) == (1, pytest.approx(0.1))
    counters.keep([route("s")])
    assert counters.models["a", "m1"] is model
