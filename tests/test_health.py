"""F2-F5: resting, repeating and stopping, on a clock that the test turns."""

from __future__ import annotations

import email.utils
import json
import time

import pytest

from aigw.config.model import Provider, Step
from aigw.errors import UpstreamBroken, UpstreamRefused, UpstreamTimeout, UpstreamUnreachable
from aigw.proxy.passed_refusals import stops
from aigw.routing.cooldown import Cooldowns
from aigw.routing.retry_policy import Verdict, decide, retry_delay
from aigw.secret import KeySearch
from tests.memory import MemoryGateway, body_of, error_of
from tests.providers import completion, head

GOOD = head(Content_Length=str(len(completion()))) + completion()


def status(code: int, body: bytes = b"{}", **headers: str) -> bytes:
    return head(code, Content_Length=str(len(body)), **headers) + body


def step(number: int = 1, cooldown: float = 60) -> Step:
    provider = Provider(f"p{number}", "http://p/v1", None, {}, None)
    return Step(number, provider, "m", 300, 10, 120, cooldown, 0, None)


class Steps:
    """Three steps and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.health = Cooldowns(lambda: self.now)
        self.steps = [step(1), step(2), step(3)]

    @property
    def order(self) -> list[int]:
        return [each.number for each in self.health.order(self.steps)]


def test_f3_a_resting_step_is_tried_last_and_the_soonest_to_wake_first_among_them():
    s = Steps()
    s.health.cool_down(s.steps[0], 30, False)
    assert s.order == [2, 3, 1]
    s.health.cool_down(s.steps[1], 20, False)
    assert s.order == [3, 2, 1]
    s.health.cool_down(s.steps[2], 40, False)
    assert s.order == [2, 1, 3]
    s.now = 20
    assert s.order == [2, 1, 3]
    assert [s.health.cooldown_left(each) for each in s.steps] == [10, None, 20]
    s.now = 40
    assert s.order == [1, 2, 3]


def test_f3_three_failures_in_a_row_or_two_timeouts_in_a_row():
    s = Steps()
    first, second, third = s.steps
    for what in ("failed", "failed", "timed_out", "failed", "failed"):
        getattr(s.health, what)(first, False)
    assert s.health.cooldown_left(first) is None
    s.health.succeeded(first)
    for _ in range(3):
        assert s.health.cooldown_left(first) is None
        s.health.failed(first, False)
    assert s.health.cooldown_left(first) == 60
    for _ in range(2):
        assert s.health.cooldown_left(second) is None
        s.health.timed_out(second, False)
    assert s.health.cooldown_left(second) == 60
    for what in ("failed", "failed", "answered", "failed", "failed", "abandoned"):
        getattr(s.health, what)(third, False)
    assert s.health.cooldown_left(third) is None, "a 400 between them is an answer"
    s.health.failed(third, False)
    assert s.health.cooldown_left(third) == 60, "a client that left is no word on it"


def test_f3_success_ends_a_rest():
    s = Steps()
    s.health.cool_down(s.steps[0], 30, False)
    s.health.succeeded(s.steps[0])
    assert s.order == [1, 2, 3]


def test_f3_a_rest_is_at_most_ten_minutes_and_a_shorter_one_does_not_end_it():
    s = Steps()
    s.health.cool_down(s.steps[0], 100_000, False)
    assert s.health.cooldown_left(s.steps[0]) == 600
    s.health.cool_down(s.steps[0], 1, False)
    assert s.health.cooldown_left(s.steps[0]) == 600


def test_f3_a_step_that_rests_already_wakes_no_later_because_it_was_tried_all_the_same():
    s = Steps()
    first = s.steps[0]
    for _ in range(3):
        s.health.failed(first, False)
    s.now = 40
    s.health.failed(first, s.health.begin(first))
    assert s.health.cooldown_left(first) == 20


def test_f3_cooldown_0_turns_it_off_and_does_not_touch_the_rest_of_others():
    """The state is that of provider and model, which another route may use with a cooldown."""
    s = Steps()
    tireless = step(1, cooldown=0)
    for _ in range(5):
        s.health.failed(tireless, s.health.begin(tireless))
        s.health.timed_out(tireless, s.health.begin(tireless))
        s.health.cool_down(tireless, 30, s.health.begin(tireless))
    assert s.health.cooldown_left(tireless) is None
    s.health.cool_down(s.steps[0], 30, False)
    s.now = 30
    s.health.cool_down(tireless, 30, s.health.begin(tireless))
    assert s.order == [1, 2, 3]
    assert s.health.begin(s.steps[0])


def test_f3_one_probe_at_a_time_when_a_rest_ends():
    s = Steps()
    first = s.steps[0]
    s.health.cool_down(first, 30, False)
    s.now = 30
    assert s.order == [1, 2, 3]
    probe = s.health.begin(first)
    assert probe
    assert s.order == [2, 3, 1], "it rests for all others while it is probed"
    assert not s.health.begin(first), "and whoever tries it all the same is no probe"
    s.health.abandoned(first, False)
    s.health.answered(first, False)
    s.health.failed(first, False)
    assert s.order == [2, 3, 1], "what began before the rest says nothing about the probe"
    s.health.abandoned(first, probe)
    assert s.order == [1, 2, 3], "the probe's client left: somebody else may probe"
    s.health.failed(first, s.health.begin(first))
    assert s.health.cooldown_left(first) == 60, "a probe that fails is enough"
    s.now = 90
    s.health.answered(first, s.health.begin(first))
    assert s.order == [1, 2, 3]
    assert not s.health.begin(first), "a probe that is answered, be it with 400, ends the rest"


#   what happened                                    what follows
JUDGED = {
    "429":              (UpstreamRefused(429),                   Verdict(cooldown=10, repeatable=True)),
    "429, wait 3 s":    (UpstreamRefused(429, retry_after=3),    Verdict(cooldown=3, repeatable=True)),
    "429, wait 0":      (UpstreamRefused(429, retry_after=0),    Verdict(cooldown=0, repeatable=True)),
    "401":              (UpstreamRefused(401),                   Verdict(cooldown=60, key_refused=True)),
    "402":              (UpstreamRefused(402),                   Verdict(strike="refusal")),
    "403":              (UpstreamRefused(403),                   Verdict(strike="refusal")),
    "403, wait 9 s":    (UpstreamRefused(403, retry_after=9),    Verdict(strike="refusal", cooldown=9)),
    "400":              (UpstreamRefused(400),                   Verdict(strike="alive")),
    "404":              (UpstreamRefused(404),                   Verdict(strike="alive")),
    "413":              (UpstreamRefused(413),                   Verdict(strike="alive")),
    "422":              (UpstreamRefused(422),                   Verdict(strike="alive")),
    "302":              (UpstreamRefused(302),                   Verdict(strike="alive")),
    "408":              (UpstreamRefused(408),                   Verdict(strike="failure", repeatable=True)),
    "424":              (UpstreamRefused(424),                   Verdict(strike="failure", repeatable=True)),
    "499":              (UpstreamRefused(499),                   Verdict(strike="failure", repeatable=True)),
    "409":              (UpstreamRefused(409),                   Verdict(strike="alive", repeatable=True)),
    "425":              (UpstreamRefused(425),                   Verdict(strike="alive", repeatable=True)),
    "500":              (UpstreamRefused(500),                   Verdict(strike="failure", repeatable=True)),
    "503, wait 7 s":    (UpstreamRefused(503, retry_after=7),    Verdict(strike="failure", cooldown=7, repeatable=True)),
    "529":              (UpstreamRefused(529),                   Verdict(strike="failure", repeatable=True)),
    "unreachable":      (UpstreamUnreachable("x"),               Verdict(strike="failure", repeatable=True)),
    "broken":           (UpstreamBroken("x"),                    Verdict(strike="failure", repeatable=True)),
    "timeout":          (UpstreamTimeout("answer", 1),           Verdict(strike="timeout")),
    "deadline":         (UpstreamTimeout("deadline", 1),         Verdict()),
}  # fmt: skip


@pytest.mark.parametrize("case", JUDGED)
def test_f2_f3_f4_what_follows_from_a_failure(case):
    failure, verdict = JUDGED[case]
    assert decide(failure) == verdict


@pytest.mark.parametrize(
    ("failure", "final"),
    [
        (UpstreamRefused(400, body=b"x"), True),
        (UpstreamRefused(413, body=b"x"), False),
        (UpstreamRefused(403, body=b"x", words=["content_filter"]), True),
        (UpstreamRefused(500, body=b"x", words=["other", "content_filter"]), True),
        (UpstreamRefused(400, body=None), False),
        (UpstreamBroken("content_filter"), False),
        (UpstreamRefused(302, body=b"x", words=["content_filter"]), False),
        (UpstreamRefused(401, body=b"x", words=["content_filter"]), False),
    ],
)
def test_f5_stop_on(failure, final):
    assert stops(failure, {"400", "content_filter"}, KeySearch([])) is final


def test_f2_the_pause_before_a_repetition_grows_has_jitter_and_obeys_the_provider():
    broken = UpstreamBroken("x")
    assert [retry_delay(broken, tries, lambda: 1.0) for tries in range(1, 7)] == [0.5, 1, 2, 4, 8, 8]
    assert retry_delay(broken, 3, lambda: 0.0) == 1
    assert retry_delay(UpstreamRefused(429, retry_after=7), 1, lambda: 1.0) == 7
    assert retry_delay(UpstreamRefused(429, retry_after=0), 2, lambda: 1.0) == 1


# The same, through the gateway


def test_f3_a_resting_step_costs_no_network_call():
    world = MemoryGateway()
    world.ask()
    world.doors["p1"].wire.say(status(429, Retry_After="30"))
    world.doors["p2"].wire.say(GOOD)
    assert world.failed[0].rests_s == 30
    for _ in range(3):
        client = world.ask()
        world.doors["p2"].wire.say(GOOD)
        assert b"x-aigw-attempts: 1" in client.take().lower()
    assert len(world.doors["p1"].wires) == 1
    world.clock.advance(31)
    world.ask()
    assert len(world.doors["p1"].wires) == 2


RETRY_AFTERS = {
    "seconds": {"Retry_After": "7"},
    "HTTP-date": {"Retry_After": "now + 7"},
    "milliseconds": {"Retry_After_Ms": "6500", "Retry_After": "500"},
    "none": {},
    "nonsense": {"Retry_After": "soon"},
    "too long": {"Retry_After": "99999999"},
}


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [("seconds", 7), ("HTTP-date", 7), ("milliseconds", 7), ("none", 10), ("nonsense", 10), ("too long", 600)],
)
def test_f3_the_three_forms_of_retry_after(kind, seconds):
    world = MemoryGateway()
    world.ask()
    date = email.utils.formatdate(time.time() + 7.5, usegmt=True)
    written = {name: value.replace("now + 7", date) for name, value in RETRY_AFTERS[kind].items()}
    world.doors["p1"].wire.say(status(429, **written))
    assert abs(world.failed[0].rests_s - seconds) <= 1


def test_f6_all_failed_says_when_the_first_step_wakes():
    world = MemoryGateway()
    client = world.ask()
    world.doors["p1"].wire.say(status(429, Retry_After="30"))
    world.clock.advance(4)
    world.doors["p2"].wire.say(status(401))
    told = client.take()
    assert b"\r\nretry-after: 26\r\n" in told.lower()
    assert b"x-should-retry" not in told.lower()
    assert [each.rests_s for each in world.failed] == [30, 60]
    assert [each["status"] for each in error_of(told)["attempts"]] == [429, 401]


def test_f3_if_every_step_rests_the_one_that_wakes_soonest_is_tried_first():
    world = MemoryGateway()
    world.ask()
    world.doors["p1"].wire.say(status(429, Retry_After="30"))
    world.doors["p2"].wire.say(status(429, Retry_After="20"))
    client = world.ask()
    world.doors["p2"].wire.say(GOOD)
    assert b"x-aigw-provider: p2" in client.take().lower()


def test_f4_a_refused_key_skips_the_other_steps_of_that_provider():
    steps = [{"provider": "p1", "model": "a"}, {"provider": "p1", "model": "b"}, {"provider": "p2", "model": "c"}]
    world = MemoryGateway(top={"routes": [{"name": "route", "steps": steps}]})
    client = world.ask()
    world.doors["p1"].wire.say(status(401))
    world.doors["p2"].wire.say(GOOD)
    assert b"x-aigw-provider: p2" in client.take().lower()
    assert [each.model for each in world.records[0].attempts] == ["a", "c"]


def test_f5_a_refusal_in_stop_on_is_the_client_s_as_the_provider_sent_it():
    body = b'{ "error": {"message": "no", "code": "content_filter"} }'
    world = MemoryGateway(stop_on=["content_filter"])
    client = world.ask()
    world.doors["p1"].wire.say(status(400, body, OpenAI_Processing_Ms="5", Server="x"))
    told = client.take()
    assert told.startswith(b"HTTP/1.1 400 ")
    assert body_of(told) == body
    assert b"openai-processing-ms: 5" in told.lower()
    assert b"x-aigw-provider: p1" in told.lower()
    assert not world.doors["p2"].wires
    assert (world.records[0].status, [each.outcome for each in world.records[0].attempts]) == (400, ["refused"])


def with_retries(retries: int, **route) -> MemoryGateway:
    steps = [{"provider": "p1", "model": "a", "retries": retries}, {"provider": "p2", "model": "b"}]
    return MemoryGateway(top={"routes": [{"name": "route", "steps": steps, **route}]})


def test_f2_without_retries_each_step_is_tried_once():
    world = MemoryGateway()
    world.ask()
    world.doors["p1"].wire.say(status(500))
    assert len(world.doors["p1"].wires) == 1
    assert world.doors["p2"].wires


def test_f2_retries_repeat_the_step_with_a_growing_pause():
    world = with_retries(2)
    client = world.ask()
    door = world.doors["p1"]
    door.wire.say(status(503))
    assert door.wire.take().count(b"POST") == 1
    world.clock.advance(0.5)
    assert door.wire.take().count(b"POST") == 1
    door.wire.say(status(408))
    world.clock.advance(0.99)
    assert door.wire.take().count(b"POST") == 0
    world.clock.advance(0.01)
    assert door.wire.take().count(b"POST") == 1
    door.wire.say(status(500))
    assert world.doors["p2"].wire.take().count(b"POST") == 1
    world.doors["p2"].wire.say(GOOD)
    assert b"x-aigw-attempts: 4" in client.take().lower()
    assert [(each.step, each.status) for each in world.records[0].attempts] == [(1, 503), (1, 408), (1, 500), (2, 200)]


@pytest.mark.parametrize("code", [400, 401, 404, 422])
def test_f2_what_repeating_cannot_help_is_not_repeated(code):
    world = with_retries(3)
    world.ask()
    world.doors["p1"].wire.say(status(code))
    assert world.doors["p2"].wires


def test_f2_a_timeout_is_not_repeated():
    world = with_retries(3, timeout=5)
    world.ask()
    world.clock.advance(5)
    assert world.doors["p2"].wires


def test_f2_retry_after_beyond_the_step_s_remaining_time_means_next_step():
    world = with_retries(3, timeout=5)
    world.ask()
    world.clock.advance(2)
    world.doors["p1"].wire.say(status(429, Retry_After="4"))
    assert world.doors["p2"].wires
    world = with_retries(3, timeout=5)
    world.ask()
    world.clock.advance(2)
    world.doors["p1"].wire.take()
    world.doors["p1"].wire.say(status(429, Retry_After="2"))
    assert not world.doors["p2"].wires
    world.clock.advance(2)
    assert world.doors["p1"].wire.take().count(b"POST") == 1
    world.clock.advance(1)
    assert world.failed[-1].message == "answer limit of 1 s passed"


def test_f2_t3_a_retry_never_outlives_the_deadline():
    world = with_retries(5, deadline=3)
    client = world.ask()
    world.doors["p1"].wire.say(status(429, Retry_After="3"))
    assert world.doors["p2"].wires, "waiting that long would be past the deadline"
    world.clock.advance(3)
    assert client.take().startswith(b"HTTP/1.1 504 ")
    assert len(world.doors["p1"].wires) == 1


def test_f2_t4_a_client_that_leaves_in_the_pause_ends_it():
    world = with_retries(1)
    client = world.ask()
    world.doors["p1"].wire.say(status(500))
    world.doors["p1"].wire.take()
    client.abortConnection()
    world.clock.advance(1)
    assert world.doors["p1"].wire.take() == b""
    assert [record.status for record in world.records] == [499]


def test_f3_only_the_probe_calls_a_step_whose_rest_is_over():
    world = MemoryGateway()
    world.ask()
    world.doors["p1"].wire.say(status(429, Retry_After="30"))
    world.doors["p2"].wire.say(GOOD)
    world.clock.advance(30)
    world.ask()
    assert len(world.doors["p1"].wires) == 2
    world.ask()
    assert len(world.doors["p1"].wires) == 2
    world.doors["p1"].wire.say(GOOD)
    assert json.loads(body_of(world.doors["p2"].wire.take()))
    world.ask()
    assert world.doors["p1"].wire.take().count(b"POST") == 2


def test_f3_a_probe_whose_client_leaves_is_over():
    world = MemoryGateway()
    world.ask()
    world.doors["p1"].wire.say(status(429, Retry_After="30"))
    world.doors["p2"].wire.say(GOOD)
    world.clock.advance(30)
    world.ask().abortConnection()
    world.ask()
    assert len(world.doors["p1"].wires) == 3


def test_f3_the_order_is_that_of_the_moment_not_of_the_request_s_start():
    """A waits on p1; meanwhile p2 is put to rest by B: when A goes on, it goes to p3."""
    world = MemoryGateway(3)
    world.ask()
    first = world.doors["p1"].wire
    world.ask()
    world.doors["p1"].wire.say(status(500))
    world.doors["p2"].wire.say(status(429, Retry_After="100"))
    world.doors["p3"].wire.say(GOOD)
    first.say(status(400))
    assert len(world.doors["p2"].wires) == 1
    assert world.doors["p3"].wire.take().count(b"POST") == 2


def test_f3_requests_that_wait_elsewhere_do_not_all_become_probes():
    world = MemoryGateway(3)
    world.ask()
    world.doors["p1"].wire.say(status(500))
    world.doors["p2"].wire.say(status(429, Retry_After="10"))
    world.doors["p3"].wire.say(GOOD)
    for _ in range(5):
        world.ask()
    waiting = world.doors["p1"].wires[-5:]
    world.clock.advance(10)
    probes = len(world.doors["p2"].wires)
    for wire in waiting:
        wire.say(status(400))
    assert len(world.doors["p2"].wires) == probes + 1


def test_f5_the_count_of_attempts_of_a_refusal_that_is_passed_on():
    world = MemoryGateway(stop_on=[400])
    client = world.ask()
    world.doors["p1"].wire.say(status(400))
    assert b"x-aigw-attempts: 1" in client.take().lower()


def test_f5_b9_a_refusal_that_repeats_our_key_is_not_passed_on():
    world = MemoryGateway(stop_on=[400])
    client = world.ask()
    world.doors["p1"].wire.say(status(400, b'{"error": {"message": "bad key-of-p1"}}'))
    world.doors["p2"].wire.say(GOOD)
    assert b"key-of-p1" not in client.take()
    assert world.records[0].provider == "p2"


def test_f3_a_compressed_refusal_keeps_its_status_and_its_retry_after():
    world = MemoryGateway()
    world.ask()
    world.doors["p1"].wire.say(status(429, b"\x1f\x8b\x00", Content_Encoding="gzip", Retry_After="30"))
    assert [(each.outcome, each.status, each.rests_s) for each in world.failed] == [("refused", 429, 30)]


def test_f6_there_is_no_retry_after_where_repeating_is_useless():
    world = MemoryGateway()
    client = world.ask()
    world.doors["p1"].wire.say(status(401))
    world.doors["p2"].wire.say(status(403))
    told = client.take().lower()
    assert b"x-should-retry: false" in told
    assert b"retry-after" not in told


def test_b7_an_exception_where_a_connection_should_begin_falls_through(monkeypatch):
    """No thread for a look-up, no socket: the next step is tried, and the first is not lost for ever."""
    world = MemoryGateway()

    def refuse(factory):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(world.doors["p1"], "connect", refuse)
    client = world.ask()
    world.doors["p2"].wire.say(GOOD)
    assert b"x-aigw-provider: p2" in client.take().lower()
    assert [each.outcome for each in world.failed] == ["unreachable"]
    world.clock.advance(100)
    monkeypatch.undo()
    world.ask()
    assert world.doors["p1"].wires
