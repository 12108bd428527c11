"""What the record of a request says (B9, A5), and what a scrape of many routes costs (D8)."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.task import Clock

from aigw.config import loader
from aigw.routing.cooldown import Cooldowns
from aigw.telemetry.redaction import Redaction
from aigw.telemetry.snapshot import Reloads, Snapshot
from aigw.telemetry.telemetry import Telemetry, log_attempt
from tests.harness import lines_of_the_log
from tests.memory import MemoryGateway
from tests.providers import STREAM_HEAD, chunk, event
from tests.test_cost import WHOLE
from tests.test_tally import attempt, record


def refused(status: int, **error: str) -> bytes:
    body = json.dumps({"error": {"message": "no", **error}}).encode()
    head = b"HTTP/1.1 %d No\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


@pytest.fixture
def written():
    """The lines of the log, as they come."""
    with lines_of_the_log() as lines:
        yield lines


def gateway_of(**more) -> MemoryGateway:
    telemetry = Telemetry(lambda: None, Clock(), Redaction())
    gateway = MemoryGateway(sink=telemetry.record, **more)
    telemetry.use(gateway.config)
    return gateway


def first_fails(gateway: MemoryGateway, answer: bytes, **more) -> bytes:
    """A request that the first provider refuses and the second answers."""
    client = gateway.ask(**more)
    gateway.doors["p1"].wire.say(answer)
    gateway.doors["p2"].wire.say(WHOLE)
    return client.take()


def test_b9_the_line_of_a_request_says_who_asked_for_what_and_who_answered(written):
    gateway = gateway_of()
    assert b"\r\nx-aigw-step: 2\r\n" in first_fails(gateway, refused(429, code="insufficient_quota")).lower()
    (line,) = [each["fields"] for each in written if each["message"] == "Request"]
    assert (line["client_address"], line["requested_model"], line["step"]) == ("127.0.0.1", "route", 2)
    first, second = line["attempts"]
    assert (first["host"], first["path"], first["code"]) == ("p1", "/v1/chat/completions", "insufficient_quota")
    assert (second["host"], second["code"]) == ("p2", None)
    assert line["skipped"] == []


def test_b9_a_step_that_was_passed_over_is_in_the_record_and_in_the_answer(written):
    gateway = gateway_of()
    first_fails(gateway, refused(429))
    client = gateway.ask()
    gateway.doors["p2"].wire.say(WHOLE)
    assert b"\r\nx-aigw-skipped: 1=cooling_down\r\n" in client.take().lower()
    *_, line = [each["fields"] for each in written if each["message"] == "Request"]
    (skipped,) = line["skipped"]
    assert (skipped["step"], skipped["reason"], line["step"]) == (1, "cooling_down", 2)
    assert 0 < skipped["until"] - time.time() <= 11


def test_b9_a_step_of_a_provider_that_refuses_the_key_is_passed_over(written):
    steps = [{"provider": "p1", "model": "a"}, {"provider": "p1", "model": "b"}, {"provider": "p2", "model": "c"}]
    gateway = gateway_of(top={"routes": [{"name": "route", "steps": steps}]})
    assert b"\r\nx-aigw-skipped: 2=key_refused\r\n" in first_fails(gateway, refused(401)).lower()
    *_, line = [each["fields"] for each in written if each["message"] == "Request"]
    assert line["skipped"] == [{"step": 2, "reason": "key_refused", "until": None}]


def test_b9_the_address_of_a_client_can_be_left_out(written):
    first_fails(gateway_of(top={"log": {"client_address": False}}), refused(500))
    *_, line = [each["fields"] for each in written if each["message"] == "Request"]
    assert line["client_address"] is None


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, "INFO"),
        ({"status": 404, "outcome": "error", "error": "model_not_found"}, "INFO"),
        ({"status": 499, "outcome": "client_gone"}, "INFO"),
        ({"status": 200, "outcome": "draining"}, "INFO"),
        ({"status": 503, "outcome": "error", "error": "draining"}, "INFO"),
        ({"status": 502, "outcome": "error", "error": "all_steps_failed"}, "WARN"),
        ({"status": 504, "outcome": "error", "error": "deadline_exceeded"}, "WARN"),
        ({"status": 200, "outcome": "stream_truncated"}, "WARN"),
        ({"status": 200, "outcome": "answer_timeout"}, "WARN"),
    ],
)
def test_b9_the_level_of_a_line_says_whether_somebody_should_look(written, changes, level):
    Telemetry(lambda: None, Clock(), Redaction()).record(record(**changes))
    assert [line["level"] for line in written] == [level]


@pytest.mark.parametrize(("status", "level"), [(401, "ERROR"), (500, "WARN"), (None, "WARN")])
def test_b9_a_refused_key_is_an_error_and_any_other_failure_a_warning(written, status, level):
    log_attempt("id", "r", attempt(outcome="refused", status=status))
    assert [line["level"] for line in written] == [level]


def test_b9_a_cut_stream_is_one_warning(written):
    gateway = gateway_of()
    gateway.ask(stream=True)
    wire = gateway.doors["p1"].wire
    wire.say(STREAM_HEAD + chunk(event({"content": "a"})))
    wire.loseConnection()
    assert [(line["level"], line["message"]) for line in written] == [("WARN", "Request")]


def test_f6_a_client_is_told_neither_host_nor_code_of_an_attempt():
    gateway = gateway_of(steps=1)
    client = gateway.ask()
    gateway.doors["p1"].wire.say(refused(500, code="secret_code"))
    told = json.loads(client.take().partition(b"\r\n\r\n")[2])["error"]["attempts"][0]
    assert {*told} == {"step", "provider", "model", "status", "outcome", "duration_ms", "message"}


# A scrape


def many(routes: int) -> Telemetry:
    """What sees a gateway with so many routes."""
    steps = [{"provider": "p", "model": "m1"}, {"provider": "q", "model": "m2"}]
    tree = {
        "api_key": "k" * 30,
        "providers": [{"name": name, "base_url": "http://x/v1", "api_key": f"key-of-{name}-12345"} for name in "pq"],
        "routes": [{"name": f"dynamic/route-{number}", "steps": steps} for number in range(routes)],
    }
    config = loader.build(tree, {}, Path("/"))
    health = Cooldowns(time.monotonic)

    def look() -> Snapshot:
        return Snapshot(
            config=config, now=0.0, stopping=False, in_flight={}, connections=1, refused=0, refused_keys=0, lag=0.0,
            certificate_expires=None, reloads=Reloads(), cooldown_left=health.cooldown_left, cools_down=health.cools_down,
        )  # fmt: skip

    telemetry = Telemetry(look, reactor, Redaction(config.secrets))
    telemetry.use(config)
    return telemetry


def lines_of(telemetry: Telemetry) -> list[str]:
    pieces, _ = telemetry.metrics.scrape("")
    return [line for line in b"".join(pieces).decode().splitlines() if line[0] != "#"]


def test_d8_what_was_never_used_has_no_series_but_those_that_alerts_need():
    """It was 100 for each route of two steps."""
    few, more = lines_of(many(100)), lines_of(many(200))
    assert (len(more) - len(few)) / 100 <= 10
    assert not [line for line in more if "_bucket" in line and 'route="other"' not in line]


@ensureDeferred
async def test_d8_a_scrape_of_2000_routes_does_not_hold_up_the_loop(warm_reactor):
    """It was 1.5 s and more. What is made on the loop is measured, and the longest piece that is made in the thread."""
    telemetry = many(2000)
    for name in telemetry.counters.routes:
        for stream in (False, True):
            telemetry.counters.count(record(route=name, stream=stream, ttft=0.1))
    begun = time.thread_time()
    made = telemetry.scrape("")
    assert time.thread_time() - begun < 0.1
    body, _ = await made
    assert b"".join(body).count(b"\n") > 90_000
    pieces, _ = telemetry.metrics.scrape("")
    longest = 0.0
    begun = time.thread_time()
    for _ in pieces:
        longest = max(longest, time.thread_time() - begun)
        begun = time.thread_time()
    assert longest < 0.1
