"""L: the limits of callers: requests, slots, tokens and budgets, alone in one process."""

from __future__ import annotations

import json
import random
import re
from datetime import datetime
from zoneinfo import ZoneInfo

import msgspec
import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock

from aigw.access.admission import MOST_WAITING, Admission
from aigw.access.claim import Claim
from aigw.access.errors import RateLimited
from aigw.access.ledger import Ledger
from aigw.access.limits import RequestCount, end_of_period
from aigw.accounting.accounts import Accounts
from aigw.server import api
from aigw.settings.callers import PICO, Account, Budgeted
from aigw.settings.limit_values import Rate
from aigw.telemetry.counters import Counters
from tests.harness import HELLO, request
from tests.memory import MemoryGateway, Wire, body_of, error_of
from tests.providers import LAST_CHUNK, STREAM_HEAD, chunk, event
from tests.test_cost import CHUNK, WHOLE
from tests.test_keys import ALICE, BOB, named

NOW = 1_790_000_000.0
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}"
STREAM_END = chunk(event({}, "stop")) + chunk(b"data: [DONE]\n\n") + LAST_CHUNK


class LimitedGateway(MemoryGateway):
    """``alice`` has the limits; ``bob`` has those of ``keys``."""

    def __init__(
        self, *more: dict, steps: int = 1, top: dict | None = None, accounts=None, route: dict | None = None, **limits
    ) -> None:
        keys = [named("alice", ALICE, **limits), *more]
        super().__init__(steps=steps, top={"keys": keys, **(top or {})}, **(route or {}))
        self.wall = NOW
        self.ledger = Ledger(self.clock.seconds, lambda: self.wall)
        self.admission = Admission(self.ledger, self.clock, lambda: self.wall)
        self.counters = Counters()
        self.use(self.config, accounts)

    def use(self, config, accounts=None) -> None:
        self.config = config
        self.counters.keep(config.routes.values())
        self.counters.keep_accounts(config.callers, False, accounts is not None)
        self.site.resource = api.tree(
            config, self.gateway, self._record, None, self.admission, accounts, counters=self.counters
        )

    def _record(self, record) -> None:
        self.records.append(record)
        self.counters.count(record)

    def send(self, body: dict | None = None, key: str = ALICE, path: str = "/v1/chat/completions", **more) -> Wire:
        """A client that has sent a request."""
        client = self.open()
        method = "GET" if body is None and not more else "POST"
        sent = None if method == "GET" else {**HELLO, **(body or {}), **more}
        client.say(request(sent, path, method, {"Authorization": f"Bearer {key}"}))
        return client

    def answer(self, data: bytes = WHOLE) -> int:
        """Answer what the provider has been asked; gives how many requests that were."""
        asked = [wire for wire in self.doors["p1"].wires if not wire.disconnected and wire.take()]
        for wire in asked:
            wire.say(data)
        return len(asked)

    def ask(self, body: dict | None = None, **more) -> bytes:
        client = self.send(body or {"user": "u"}, **more)
        self.answer()
        return client.take()

    def account(self, name: str = "key alice") -> Account:
        return next(each for caller in self.config.callers for each in caller.accounts if each.name == name)

    def usage(self, name: str = "key alice") -> dict:
        """What was used since the start, and what is left."""
        counted = self.counters.callers["alice"]
        counted = counted if name.startswith("key ") else counted.group
        return {**counted.shown(), **self.ledger.usage_of(self.account(name))}

    def is_idle(self) -> bool:
        """Nothing is reserved and no slot is taken."""
        counts = [self.ledger._counts[name] for name in self.ledger._counts]
        return all(
            each.running == 0 and each.tokens.reserved == 0 and not any(b.reserved for b in each.budgets.values())
            for each in counts
        )


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def header(answer: bytes, name: str) -> str | None:
    found = re.search(rf"(?im)^{name}: (.*?)\r$", answer.partition(b"\r\n\r\n")[0].decode() + "\r\n")
    return found[1] if found else None


# Requests: GCRA


def test_l1_a_burst_of_the_limit_passes_then_one_each_interval():
    count, rate = RequestCount(), Rate(7, 60.0)
    passed = 0
    for now in [0.0] * 20:
        if count.has_room(rate, now):
            count.used += 1
            passed += 1
    assert passed == 7
    assert count.seconds_to_room(rate) == pytest.approx(60 / 7)
    assert not count.has_room(rate, 60 / 7 - 0.01)
    assert count.has_room(rate, 60 / 7)


def test_l1_another_limit_keeps_the_count():
    count = RequestCount()
    count.used, count.at = 6.0, 0.0
    assert not count.has_room(Rate(6, 60.0), 0.0)
    assert count.has_room(Rate(7, 60.0), 0.0)
    assert not count.has_room(Rate(5, 60.0), 0.0)


def test_l1_a_slower_limit_finds_the_requests_that_the_faster_one_has_forgotten_soon():
    """The time from which no request counts any more is another one under another limit."""
    now = [100.0]
    ledger = Ledger(lambda: now[0], lambda: NOW)
    fast, slow = (Account(name="key a", requests=Rate(limit, 60.0)) for limit in (6000, 2))
    for _ in range(2):
        assert ledger.admit(Claim((fast,))) is None
    now[0] += 0.005
    reached = ledger.admit(Claim((slow,)))
    assert reached is not None
    assert reached.kind == "requests"
    now[0] += 30
    assert ledger.admit(Claim((slow,))) is None
    assert ledger.admit(Claim((slow,))) is not None


def test_l1_a_request_that_a_group_refused_leaves_no_room_for_more_than_the_limit():
    """What its key gave is given back, at a moment when nothing else was under way."""
    now = [100.0]
    ledger = Ledger(lambda: now[0], lambda: NOW)
    own, team = Account(name="key a", requests=Rate(3, 60.0)), Account(name="group b", concurrency=1)
    assert ledger.admit(Claim((team,))) is None
    for _ in range(5):
        now[0] += 7
        assert ledger.admit(Claim((own, team))) is not None
    assert [ledger.admit(Claim((own,))) is None for _ in range(4)] == [True, True, True, False]


def test_l1_200_requests_at_once_against_a_limit_of_10():
    gateway = LimitedGateway(requests="10/m")
    clients = [gateway.send(user="u") for _ in range(200)]
    assert gateway.answer() == 10
    answers = [client.take() for client in clients]
    assert sorted(map(status, answers)) == [200] * 10 + [429] * 190
    gateway.clock.advance(6.0)
    assert status(gateway.ask()) == 200
    assert status(gateway.ask()) == 429
    assert gateway.is_idle()


def test_l1_what_a_provider_refuses_counts_and_what_the_gateway_limits_does_not():
    gateway = LimitedGateway(requests="2/m")
    client = gateway.send(user="u")
    gateway.answer(REFUSED)
    assert status(client.take()) == 502
    assert status(gateway.ask(messages=[])) == 400, "a malformed request counts too"
    for _ in range(50):
        assert status(gateway.ask()) == 429
    gateway.clock.advance(30.0)
    assert status(gateway.ask()) == 200


@pytest.mark.parametrize("path", ["/v1/models", "/v1/usage", "/v1/models/route"])
def test_l1_lists_and_usage_do_not_count(path):
    gateway = LimitedGateway(requests="1/m")
    for _ in range(3):
        assert status(gateway.send(path=path).take()) == 200
    assert status(gateway.ask()) == 200


@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/v1/responses/input_tokens"])
def test_l1_counting_tokens_does_not_count(path):
    gateway = LimitedGateway(requests="1/m", tokens="1/m")
    for _ in range(3):
        client = gateway.send(path=path, user="u")
        gateway.answer(b'HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{"input_tokens":1}')
        assert status(client.take()) == 200
    assert gateway.ledger._counts == {}


def test_l1_a_key_without_limits_passes_nothing():
    gateway = LimitedGateway(named("bob", BOB))
    gateway.ledger.admit = gateway.ledger.settle = None
    assert status(gateway.ask(key=BOB)) == 200
    assert header(gateway.ask(key=BOB), "x-ratelimit-limit-requests") is None


# Concurrency


def test_l2_a_slot_is_taken_from_admission_to_the_last_byte():
    gateway = LimitedGateway(concurrency=2)
    one, two = gateway.send(stream=True), gateway.send(user="u")
    assert status(gateway.send(user="u").take()) == 429
    for wire in gateway.doors["p1"].wires:
        wire.take()
    gateway.doors["p1"].wires[0].say(STREAM_HEAD + CHUNK)
    assert status(gateway.send(user="u").take()) == 429
    gateway.doors["p1"].wires[0].say(STREAM_END)
    assert b"[DONE]" in one.take()
    three = gateway.send(user="u")
    assert gateway.answer() == 1
    assert status(three.take()) == 200
    two.lost(ConnectionError())
    assert gateway.is_idle()


def leave_before_head(gateway, client):
    client.lost(ConnectionError())


def leave_after_head(gateway, client):
    gateway.answer(STREAM_HEAD + CHUNK)
    client.lost(ConnectionError())


def break_off(gateway, client):
    gateway.answer(STREAM_HEAD + CHUNK)
    gateway.doors["p1"].wire.lost(ConnectionError())


def fail(gateway, client):
    gateway.answer(REFUSED)


def go_silent(gateway, client):
    gateway.answer(STREAM_HEAD + CHUNK)
    gateway.clock.advance(200)


def time_out(gateway, client):
    gateway.clock.advance(400)


def interrupt(gateway, client):
    gateway.answer(STREAM_HEAD + CHUNK)
    for exchange in list(gateway.gateway.running):
        exchange.interrupt()


def interrupt_early(gateway, client):
    for exchange in list(gateway.gateway.running):
        exchange.interrupt()


def finish(gateway, client):
    gateway.answer(STREAM_HEAD + CHUNK + STREAM_END)


@pytest.mark.parametrize("route", [{}, {"hold": "whole"}, {"keepalive": "1s"}], ids=["plain", "held", "kept alive"])
@pytest.mark.parametrize(
    "exit_by",
    [leave_before_head, leave_after_head, break_off, fail, go_silent, time_out, interrupt, interrupt_early, finish],
)
def test_l2_a_slot_and_a_reservation_are_freed_on_every_exit(exit_by, route):
    gateway = LimitedGateway(concurrency=1, tokens="100k/m", budget=[{"tokens": "1M", "per": "day"}], route=route)
    client = gateway.send(stream=True)
    assert gateway.usage()["running"] == 1
    exit_by(gateway, client)
    assert gateway.is_idle()
    assert gateway.usage()["tokens"] > 0 or exit_by is fail
    assert len(gateway.records) == 1


def test_l2_a_slot_is_freed_when_the_gateway_has_a_fault(monkeypatch, failures):
    gateway = LimitedGateway(concurrency=1)

    def fault(*_):
        raise RuntimeError

    monkeypatch.setattr(gateway.gateway, "serve", fault)
    assert status(gateway.send(user="u").take()) == 500
    assert gateway.is_idle()
    failures.clear()


def test_l2_an_abandoned_body_takes_no_slot():
    gateway = LimitedGateway(concurrency=1)
    client = gateway.open()
    client.say(request({**HELLO}, headers={"Authorization": f"Bearer {ALICE}"})[:-5])
    client.lost(ConnectionError())
    assert status(gateway.ask()) == 200


def test_l2_a_hedge_needs_no_second_slot():
    gateway = LimitedGateway(steps=2, concurrency=1, route={"hedge": {"after": "1s", "share": "100%"}})
    client = gateway.send(user="u")
    gateway.clock.advance(1.5)
    assert len(gateway.doors["p2"].wires) == 1
    gateway.doors["p2"].wire.say(WHOLE)
    assert status(client.take()) == 200
    assert gateway.is_idle()
    (record,) = gateway.records
    assert [each.outcome for each in record.attempts] == ["lost_race", "ok"]
    assert record.estimated, "the one that lost has no usage, and is charged its prompt"
    assert gateway.usage()["tokens"] > 72


def test_l2_requests_wait_for_a_slot_in_their_order():
    gateway = LimitedGateway(concurrency=1, wait="10s")
    clients = [gateway.send(user=f"u{n}") for n in range(4)]
    for client in clients:
        (asked,) = [wire for wire in gateway.doors["p1"].wires if wire.value()]
        asked.take()
        asked.say(WHOLE)
        assert status(client.take()) == 200
    assert gateway.is_idle()


def test_l2_the_wait_has_an_end_and_its_length_a_bound():
    gateway = LimitedGateway(concurrency=1, wait="10s")
    first = gateway.send(user="u")
    waiting = [gateway.send(user="u") for _ in range(MOST_WAITING + 5)]
    assert [status(client.take()) for client in waiting[MOST_WAITING:]] == [429] * 5
    gateway.clock.advance(9.9)
    assert not any(client.value() for client in waiting[:MOST_WAITING])
    gateway.clock.advance(0.2)
    assert {status(client.take()) for client in waiting[:MOST_WAITING]} == {429}
    gateway.answer()
    assert status(first.take()) == 200
    assert status(gateway.ask()) == 200
    assert gateway.is_idle()


def test_l2_a_client_that_leaves_leaves_the_queue_at_once():
    gateway = LimitedGateway(concurrency=1, wait="10s")
    first, second, third = (gateway.send(user="u") for _ in range(3))
    second.lost(ConnectionError())
    gateway.answer()
    assert status(first.take()) == 200
    assert gateway.answer() == 1
    assert status(third.take()) == 200
    assert [each.status for each in gateway.records] == [499, 200, 200]
    assert gateway.is_idle()
    assert not gateway.admission.queues


def test_l2_a_group_shares_its_slots_and_a_slot_of_it_wakes_any_of_its_keys():
    gateway = LimitedGateway(
        named("bob", BOB, group="team"), top={"groups": [{"name": "team", "concurrency": 1}], "defaults": {"wait": "5s"}},
        group="team", concurrency=1,
    )  # fmt: skip
    one, two = gateway.send(user="u"), gateway.send(user="u", key=BOB)
    assert not two.value()
    gateway.answer()
    assert (status(one.take()), gateway.answer(), status(two.take())) == (200, 1, 200)


def test_l2_a_request_that_lacks_another_slot_too_does_not_hold_up_those_behind_it():
    gateway = LimitedGateway(
        named("bob", BOB, group="team"), top={"groups": [{"name": "team", "concurrency": 2}], "defaults": {"wait": "9s"}},
        group="team", concurrency=1,
    )  # fmt: skip
    running = [gateway.send(user="u"), gateway.send(user="u", key=BOB)]
    waiting = [gateway.send(user="u"), gateway.send(user="u", key=BOB)]
    first, second = gateway.doors["p1"].wires
    assert first.take()
    assert second.take()
    second.say(WHOLE)
    assert (status(running[1].take()), gateway.answer(), status(waiting[1].take())) == (200, 1, 200)
    first.say(WHOLE)
    assert (status(running[0].take()), gateway.answer(), status(waiting[0].take())) == (200, 1, 200)
    assert gateway.is_idle()
    assert not gateway.admission.queues


def test_l2_l5_new_limits_hold_for_the_requests_that_wait():
    gateway = LimitedGateway(concurrency=1, wait="9s")
    clients = [gateway.send(user="u") for _ in range(6)]
    more = LimitedGateway(concurrency=4, wait="9s").config
    gateway.admission.use(more)
    gateway.use(more)
    assert gateway.answer() == 4
    assert gateway.answer() == 2
    assert {status(client.take()) for client in clients} == {200}
    assert gateway.is_idle()


def test_l2_a_queue_whose_requests_end_at_once_is_no_recursion():
    gateway = LimitedGateway(concurrency=1, wait="9s")
    gone = "model-that-is-gone"
    clients = [gateway.send(user="u")] + [gateway.send(model=gone) for _ in range(MOST_WAITING)]
    assert gateway.answer() == 1
    assert status(clients[0].take()) == 200
    assert [status(client.take()) for client in clients[1:]] == [404] * MOST_WAITING
    assert gateway.is_idle()
    assert not gateway.admission.queues


def test_l2_a_store_elsewhere_may_take_its_time():
    from twisted.internet.defer import Deferred

    asked: list = []

    class Slow(Ledger):
        def admit(self, claim):
            done = Deferred()
            asked.append((done, super().admit(claim)))
            return done

    clock = Clock()
    admission = Admission(Slow(clock.seconds, lambda: NOW), clock)
    account = Account(name="key a", concurrency=1)
    first, second = Claim((account,)), Claim((account,))
    admitted: list = []
    for claim in (first, second):
        admission.ask(claim, 5.0).addCallback(lambda _, claim=claim: admitted.append(claim))
    for done, result in list(asked):
        done.callback(result)
    assert admitted == [first]
    admission.end(first, 0)
    done, result = asked[-1]
    done.callback(result)
    assert admitted == [first, second]
    admission.end(second, 0)
    third = admission.ask(Claim((account,)), 0.0)
    third.addErrback(lambda failure: failure.trap(CancelledError))
    third.cancel()


# Tokens: reserve, then settle


def test_l3_five_streams_at_once_do_not_pass_the_limit():
    """What a rival let through: 663 tokens of a limit of 100 a minute."""
    gateway = LimitedGateway(tokens="100/m")
    clients = [gateway.send(stream=True, max_tokens=60) for _ in range(5)]
    answers = [client.take() for client in clients]
    assert [status(each) for each in answers] == [0, 429, 429, 429, 429]
    usage = chunk(event({}, "stop", usage={"prompt_tokens": 20, "completion_tokens": 60, "total_tokens": 80}))
    gateway.answer(STREAM_HEAD + CHUNK + usage + chunk(b"data: [DONE]\n\n") + LAST_CHUNK)
    assert gateway.usage()["tokens"] == 80
    assert gateway.usage()["limits"]["tokens"]["remaining"] == 20
    assert status(gateway.send(max_tokens=60, user="u").take()) == 429
    gateway.clock.advance(60)
    assert gateway.usage()["limits"]["tokens"]["remaining"] == 100


@pytest.mark.parametrize(
    ("members", "output"),
    [
        ({"max_tokens": 60}, 60),
        ({"max_completion_tokens": 61}, 61),
        ({"max_output_tokens": 62}, 62),
        ({"max_tokens": 1, "max_completion_tokens": 500}, 500),
        ({"max_tokens": 60, "n": 3}, 180),
        ({"max_tokens": 60.0}, 60),
        ({"max_tokens": None}, 1000),
        ({"max_tokens": "60"}, 1000),
        ({"max_tokens": -5}, 1000),
        ({}, 1000),
    ],
)
def test_l3_what_is_reserved(members, output):
    gateway = LimitedGateway(tokens="100k/m")
    gateway.send(**members, user="u")
    size = len(json.dumps({**HELLO, **members, "user": "u"}))
    assert gateway.usage()["limits"]["tokens"]["reserved"] == -(-size // 4) + output
    gateway.answer()
    assert gateway.usage()["limits"]["tokens"]["spent"] == 72
    assert gateway.is_idle()


def test_l3_assume_is_reserved_where_the_request_does_not_limit_its_answer():
    gateway = LimitedGateway(tokens="100k/m", assume="5k")
    gateway.send(user="u")
    assert 5000 < gateway.usage()["limits"]["tokens"]["reserved"] < 5100


def test_l3_a_stream_without_usage_is_charged_an_estimate_and_never_nothing():
    gateway = LimitedGateway(tokens="100k/m")
    client = gateway.send(stream=True)
    gateway.answer(STREAM_HEAD + CHUNK * 50 + STREAM_END)
    assert b"[DONE]" in client.take()
    (record,) = gateway.records
    assert record.estimated
    prompt = -(-len(json.dumps({**HELLO, "stream": True})) // 4)
    assert 50 + prompt <= gateway.usage()["tokens"] <= 53 + prompt, "about one for each event"


def test_l3_a_client_that_leaves_is_charged_an_estimate():
    gateway = LimitedGateway(tokens="100k/m")
    client = gateway.send(stream=True)
    gateway.answer(STREAM_HEAD + CHUNK * 10)
    client.lost(ConnectionError())
    (record,) = gateway.records
    assert (record.status, record.estimated) == (499, True)
    assert gateway.usage()["tokens"] >= 10


USAGE = chunk(event({}, "stop", usage={"prompt_tokens": 20, "completion_tokens": 6, "total_tokens": 26}))
WITHOUT = b'{"choices": [{"message": {"content": "some words"}}]}'
ANSWERS = {
    False: (WHOLE, WHOLE, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(WITHOUT), WITHOUT), REFUSED),
    True: (
        STREAM_HEAD + CHUNK * 3 + USAGE + chunk(b"data: [DONE]\n\n") + LAST_CHUNK,
        STREAM_HEAD + CHUNK * 9 + STREAM_END,
        REFUSED,
    ),
}


@pytest.mark.parametrize("group", [None, "team"])
@pytest.mark.parametrize("seed", range(10))
def test_l1_l3_l6_calls_of_one_connection_are_admitted_and_charged_as_those_of_many(seed, group):
    """A connection uses the claim of its last call once more."""
    chance = random.Random(seed)
    top = {"groups": [{"name": "team", "tokens": chance.choice(["9k/m", "90k/m"]), "requests": "40/m"}]}
    limits = {"requests": "15/m", "tokens": chance.choice(["8k/m", "80k/m"]), "concurrency": 1, "assume": 300}
    limits |= {"budget": [{"tokens": "40k", "per": "hour"}]} | ({"group": group} if group else {})
    both = [LimitedGateway(named("bob", BOB, **limits), top=top, route={"cooldown": 0}, **limits) for _ in range(2)]
    kept, found = both[0].open(), []
    for _ in range(40):
        members = {**HELLO, "max_tokens": 200} if chance.random() < 0.3 else HELLO
        stream = chance.random() < 0.5
        key = ALICE if chance.random() < 0.8 else BOB
        sent = request({**members, "stream": stream}, headers={"Authorization": f"Bearer {key}"})
        answer, seconds = chance.choice(ANSWERS[stream]), chance.choice([0.0, 0.1, 0.5, 2.0])
        if kept.disconnected:
            kept = both[0].open()
        answers, charged = [], []
        for gateway, client in zip(both, (kept, both[1].open()), strict=True):
            client.say(sent)
            gateway.answer(answer)
            answers.append(re.sub(rb"(?i)(x-request-id|date): [^\r]*", b"", client.take()))
            accounts = {each for caller in gateway.config.callers for each in caller.accounts}
            charged.append({each.name: gateway.ledger.usage_of(each) for each in accounts})
            gateway.clock.advance(seconds)
            assert gateway.is_idle()
        assert answers[0] == answers[1]
        assert charged[0] == charged[1]
        found.append(status(answers[0]))
    assert {200, 429} <= set(found)


def test_l3_more_than_was_reserved_is_charged_past_the_limit():
    gateway = LimitedGateway(tokens="2k/m")
    client = gateway.send(user="u")
    body = json.dumps({"choices": [{"message": {"content": "x"}}], "usage": {"total_tokens": 9000}}).encode()
    gateway.answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    assert status(client.take()) == 200
    assert gateway.usage()["limits"]["tokens"] == {
        "limit": 2000, "per_s": 60.0, "spent": 9000, "reserved": 0, "remaining": 0, "reset_s": 60.0
    }  # fmt: skip
    assert status(gateway.ask()) == 429


def test_l3_a_retry_is_charged_for_what_it_used_and_a_refusal_is_not():
    gateway = LimitedGateway(steps=2, tokens="100k/m")
    client = gateway.send(user="u")
    gateway.answer(REFUSED)
    gateway.doors["p2"].wire.say(WHOLE)
    assert status(client.take()) == 200
    assert gateway.usage()["tokens"] == 72
    assert not gateway.records[0].estimated


def test_l3_a_request_larger_than_the_limit_is_never_repeated():
    gateway = LimitedGateway(tokens="100/m")
    answer = gateway.send(max_tokens=500, user="u").take()
    assert status(answer) == 429
    assert header(answer, "x-should-retry") == "false"
    assert header(answer, "retry-after") is None
    assert error_of(answer)["type"] == "tokens"
    assert "larger than the limit" in error_of(answer)["message"]


def test_l3_stored_responses_take_no_tokens():
    gateway = LimitedGateway(tokens="1/m", requests="5/m")
    client = gateway.send(path="/v1/responses/resp_1")
    assert status(client.take()) == 404
    assert gateway.usage()["requests"] == 1


# Budgets


@pytest.mark.parametrize(
    ("per", "zone", "now", "end"),
    [
        ("day", "Europe/Berlin", "2026-03-29T01:30", "2026-03-30T00:00"),  # a day of 23 hours
        ("day", "Europe/Berlin", "2026-10-25T12:00", "2026-10-26T00:00"),  # of 25
        ("month", "America/New_York", "2026-12-31T23:59", "2027-01-01T00:00"),
        ("month", "UTC", "2028-02-29T00:00", "2028-03-01T00:00"),
        ("week", "UTC", "2026-11-29T23:59", "2026-11-30T00:00"),  # a Sunday
        ("week", "UTC", "2026-11-30T00:00", "2026-12-07T00:00"),
        ("year", "Asia/Kolkata", "2026-06-01T00:00", "2027-01-01T00:00"),
        ("hour", "Asia/Kolkata", "2026-06-01T05:30", "2026-06-01T06:30"),
    ],
)
def test_l4_a_budget_has_the_calendar_of_its_zone(per, zone, now, end):
    began, ends = (datetime.fromisoformat(each).replace(tzinfo=ZoneInfo(zone)).timestamp() for each in (now, end))
    assert end_of_period(per, zone, began) == ends


def test_l4_a_budget_is_spent_and_renewed():
    gateway = LimitedGateway(budget=[{"tokens": 1200, "per": "day", "zone": "Europe/Berlin"}])
    assert status(gateway.ask()) == 200
    assert gateway.usage()["limits"]["budget"][0]["spent"] == 72
    for _ in range(2):
        assert status(gateway.ask()) == 200
    answer = gateway.ask()
    assert status(answer) == 429
    error = error_of(answer)
    assert (error["code"], error["type"]) == ("insufficient_quota", "insufficient_quota")
    assert header(answer, "x-should-retry") == "false"
    assert header(answer, "retry-after") is None
    assert "It is renewed on Tuesday, 22 September 2026 at 00:00 (Europe/Berlin)." in error["message"]
    gateway.wall = datetime(2026, 9, 22, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()
    assert status(gateway.ask()) == 200


def test_l4_a_clock_that_is_set_back_loses_no_window():
    gateway = LimitedGateway(budget=[{"tokens": 1200, "per": "hour"}])
    gateway.ask()
    gateway.wall -= 3600
    assert gateway.usage()["limits"]["budget"][0]["spent"] == 72
    gateway.ask()
    assert gateway.usage()["limits"]["budget"][0]["spent"] == 144


def test_l4_a_clock_that_is_set_back_after_a_refusal_by_another_limit_has_begun_a_window():
    """The refusal looks at all limits. What it begins is what the next admission counts with."""
    walls = [NOW]
    ledger = Ledger(lambda: 5.0, lambda: walls[0])
    busy = Account(name="key a", concurrency=1)
    spent = Account(name="group b", budgets=(Budgeted("tokens per hour", 100, False, "hour", "UTC"),))
    assert ledger.admit(Claim((busy,))) is None
    first = Claim((spent,), 100)
    assert ledger.admit(first) is None
    ledger.settle(first, 100)
    walls[0] = end_of_period("hour", "UTC", NOW) + 10
    reached = ledger.admit(Claim((busy, spent), 1))
    assert reached is not None
    assert reached.kind == "concurrency"
    walls[0] -= 60
    assert ledger.admit(Claim((spent,), 100)) is None
    reached = ledger.admit(Claim((spent,), 1))
    assert reached is not None
    assert reached.kind == "budget"


def test_l4_a_clock_that_is_set_forward_is_noticed_within_a_second_and_at_once_if_it_matters():
    steady, walls = [5.0], [NOW]
    ledger = Ledger(lambda: steady[0], lambda: walls[0])
    account = Account(name="key a", budgets=(Budgeted("tokens per hour", 100, False, "hour", "UTC"),))

    def used(tokens: int) -> int:
        claim = Claim((account,), 10)
        assert ledger.admit(claim) is None
        ledger.settle(claim, tokens)
        return ledger.counts_of(account).of(account.budgets[0]).spent

    assert used(20) == 20
    walls[0] += 3600
    steady[0] += 1
    assert used(95) == 95
    walls[0] += 3600
    assert used(95) == 95, "there was no room in the hour before"


def test_l4_an_hour_ends_when_it_ends():
    walls = [end_of_period("hour", "UTC", NOW) - 0.3]
    ledger = Ledger(lambda: walls[0], lambda: walls[0])
    account = Account(name="key a", budgets=(Budgeted("tokens per hour", 100, False, "hour", "UTC"),))
    runs, late = Claim((account,), 10), Claim((account,), 10)
    assert ledger.admit(runs) is None
    ledger.settle(runs, 10)
    assert ledger.admit(late) is None
    walls[0] += 0.4
    ledger.settle(late, 7)
    assert ledger.counts_of(account).of(account.budgets[0]).spent == 7


def test_l4_a_clock_that_was_years_ahead_refuses_nobody_for_years():
    gateway = LimitedGateway(budget=[{"tokens": 1100, "per": "day"}])
    gateway.wall += 9 * 365 * 86_400
    for _ in range(2):
        gateway.ask()
    gateway.wall = NOW
    assert gateway.usage()["limits"]["budget"][0]["spent"] == 144
    refused = error_of(gateway.ask())["message"]
    assert datetime.fromtimestamp(NOW, ZoneInfo("UTC")).strftime("%B %Y") in refused
    gateway.wall += 86_400
    assert status(gateway.ask()) == 200


def test_l4_a_budget_in_dollars_is_of_the_cost_of_each_request():
    budget = [{"usd": 0.5, "per": "month"}]
    accounts = Accounts(Clock())
    gateway = LimitedGateway(budget=budget, accounts=accounts, top={"unknown_price": 1})
    accounts.use(gateway.config)
    body = json.dumps({"choices": [{}], "usage": {"prompt_tokens": 12, "completion_tokens": 60, "cost": 0.2}}).encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    for spent in (0.2, 0.4, 0.6):
        client = gateway.send({"user": "u"})
        gateway.answer(answer)
        assert status(client.take()) == 200
        (shown,) = gateway.usage()["limits"]["budget"]
        assert (shown["unit"], shown["spent"]) == ("usd", spent)
    assert error_of(gateway.ask())["code"] == "insufficient_quota"


def test_l4_the_sum_of_many_is_exact():
    ledger = Ledger(lambda: 0.0, lambda: NOW)
    account = Account(name="key a", budgets=(Budgeted("usd per year", 1000 * PICO, True, "year", "UTC"),))
    for _ in range(100_000):
        claim = Claim((account,))
        ledger.admit(claim)
        ledger.settle(claim, 1, round(0.0000375 * PICO))
    assert ledger.counts_of(account).of(account.budgets[0]).spent == 3_750_000_000_000


def test_l5_a_budget_that_a_reload_brings_counts_what_runs_and_one_that_it_takes_away_still_counts():
    ledger = Ledger(lambda: 0.0, lambda: NOW)
    day, month = (Budgeted(f"tokens per {per}", 1000, False, per, "UTC") for per in ("day", "month"))

    def begun(tokens: int, *budgets: Budgeted) -> Claim:
        claim = Claim((Account(name="key a", budgets=budgets),), tokens)
        assert ledger.admit(claim) is None
        return claim

    def counted() -> list[tuple[int, int]]:
        counts = ledger.counts_of(Account(name="key a"))
        return [(counts.of(each).spent, counts.of(each).reserved) for each in (day, month)]

    first = begun(100, day)
    second = begun(5, day, month)
    assert counted() == [(0, 105), (0, 105)]
    ledger.settle(first, 40)
    ledger.settle(second, 5)
    assert counted() == [(45, 0), (45, 0)]
    ledger.settle(begun(1, month), 7)
    assert counted() == [(52, 0), (52, 0)]
    ledger.settle(begun(1, day, month), 1)
    assert counted() == [(53, 0), (53, 0)]
    full = ledger.admit(Claim((Account(name="key a", budgets=(day, month)),), 948))
    assert full is not None
    assert (full.budget, full.used) == (day, 53)


def test_l5_a_request_of_before_a_reload_that_is_admitted_late_takes_no_charge_from_a_new_budget():
    """Its body came slowly, and its key was known when its head came."""
    ledger = Ledger(lambda: 0.0, lambda: NOW)
    new = Account(name="key a", budgets=(Budgeted("tokens per day", 1000, False, "day", "UTC"),))
    runs = Claim((new,), 100)
    assert ledger.admit(runs) is None
    late = Claim((Account(name="key a"),), 10)
    assert ledger.admit(late) is None
    ledger.settle(runs, 700)
    assert ledger.usage_of(new)["limits"]["budget"][0]["spent"] == 700
    full = ledger.admit(Claim((new,), 400))
    assert full is not None
    assert full.used == 710


def test_l4_what_is_shown_is_what_is_enforced():
    gateway = LimitedGateway(
        named("bob", BOB, group="team"), group="team", requests="60/m",
        top={"groups": [{"name": "team", "tokens": "200k/m", "budget": [{"tokens": "5M", "per": "month"}]}]},
    )  # fmt: skip
    gateway.ask()
    gateway.ask(key=BOB)
    shown = json.loads(body_of(gateway.send(path="/v1/usage").take()))
    assert shown["caller"] == "alice"
    own, team = shown["data"]
    assert (own["key"], own["requests"], own["tokens"], own["refused"]) == ("alice", 1, 72, 0)
    assert own["limits"]["requests"]["remaining"] == 59
    assert (team["group"], team["requests"], team["tokens"]) == ("team", 2, 144)
    assert team["limits"]["tokens"]["spent"] == team["limits"]["budget"][0]["spent"] == 144


def test_l1_a_malformed_request_counts_while_all_slots_are_taken():
    gateway = LimitedGateway(requests="10/h", concurrency=1)
    running = gateway.send({"user": "u"})
    assert status(gateway.send({"messages": []}).take()) == 400
    assert gateway.usage()["limits"]["requests"]["remaining"] == 8
    gateway.answer()
    assert status(running.take()) == 200
    assert gateway.is_idle()


def test_l3_a_look_begins_no_window_and_changes_nothing():
    gateway = LimitedGateway(requests="60/m", tokens="10k/m", budget=[{"tokens": "5M", "per": "day"}])
    assert gateway.usage()["limits"]["tokens"] == {
        "limit": 10000, "per_s": 60.0, "spent": 0, "reserved": 0, "remaining": 10000, "reset_s": 0.0,
    }  # fmt: skip
    assert not gateway.ledger._counts
    gateway.clock.advance(50)
    gateway.ask()
    gateway.clock.advance(50)
    shown = gateway.usage()["limits"]
    assert (shown["tokens"]["spent"], shown["tokens"]["reset_s"], shown["requests"]["remaining"]) == (72, 10.0, 60)
    gateway.clock.advance(10)
    gateway.wall += 86400
    shown = gateway.usage()["limits"]
    assert (shown["tokens"]["spent"], shown["tokens"]["reset_s"], shown["budget"][0]["spent"]) == (0, 0.0, 0)
    assert shown["budget"][0]["resets_at"] > gateway.wall
    assert gateway.ledger.counts_of(gateway.account()).tokens.spent == 72


# Reload


def test_l5_changing_a_limit_keeps_the_count():
    gateway = LimitedGateway(requests="5/m", tokens="10k/m")
    gateway.ask()
    (caller, other) = gateway.config.callers[1], gateway.config.callers[0]
    account = msgspec.structs.replace(caller.accounts[0], requests=Rate(2, 60.0), tokens=Rate(1100, 60.0))
    changed = msgspec.structs.replace(caller, accounts=(account,))
    gateway.use(msgspec.structs.replace(gateway.config, callers=(other, changed)))
    assert gateway.usage()["limits"]["requests"]["remaining"] == 1
    assert gateway.usage()["limits"]["tokens"]["spent"] == 72
    assert status(gateway.send(user="u", max_tokens=1010).take()) == 429


def test_l5_a_request_under_way_at_a_reload_is_settled_by_what_it_took():
    gateway = LimitedGateway(concurrency=1, tokens="10k/m")
    client = gateway.send(user="u")
    caller, other = gateway.config.callers[1], gateway.config.callers[0]
    account = msgspec.structs.replace(caller.accounts[0], tokens=None, requests=Rate(9, 60.0))
    gateway.use(
        msgspec.structs.replace(gateway.config, callers=(other, msgspec.structs.replace(caller, accounts=(account,))))
    )
    gateway.answer()
    assert status(client.take()) == 200
    assert gateway.is_idle()


# Answers


def test_l6_the_answer_to_too_many_requests():
    gateway = LimitedGateway(requests="2/m")
    good = gateway.ask()
    assert [header(good, f"x-ratelimit-{name}-requests") for name in ("limit", "remaining", "reset")] == [
        "2",
        "1",
        "30s",
    ]
    assert header(good, "x-ratelimit-limit-tokens") is None
    gateway.ask()
    gateway.clock.advance(2.7)
    answer = gateway.ask()
    assert status(answer) == 429
    assert header(answer, "retry-after") == "28"
    assert header(answer, "retry-after-ms") == "27300"
    assert header(answer, "x-ratelimit-remaining-requests") == "0"
    assert error_of(answer) == {
        "message": "Rate limit reached for the key 'alice': 2 requests in 60 s. Please try again in 27.3s.",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    (record,) = gateway.records[-1:]
    assert (record.status, record.error, record.outcome, record.attempts) == (429, "rate_limit_exceeded", "error", ())


def test_l6_the_answer_to_too_many_tokens():
    gateway = LimitedGateway(tokens="1080/m")
    answer = gateway.ask()
    assert header(answer, "x-ratelimit-limit-tokens") == "1080"
    assert int(header(answer, "x-ratelimit-remaining-tokens")) < 100
    assert header(answer, "x-ratelimit-reset-tokens") == "1m0s"
    gateway.clock.advance(59.5)
    answer = gateway.ask()
    assert error_of(answer)["type"] == "tokens"
    assert header(answer, "retry-after") == "1"
    assert header(answer, "retry-after-ms") == "500"
    assert "Please try again in 0.5s." in error_of(answer)["message"]


@pytest.mark.parametrize(
    ("own", "of_group", "left"),
    [(("4/m", "9k/m"), ("3/m", "8k/m"), (2, "group")), (("3/m", "8k/m"), ("4/m", "9k/m"), (2, "own"))],
)
def test_l6_a_caller_with_a_group_sees_what_is_left_where_it_is_least(own, of_group, left):
    top = {"groups": [{"name": "team", "requests": of_group[0], "tokens": of_group[1]}]}
    bob = named("bob", BOB, group="team", requests="100/m", tokens="900k/m")
    gateway = LimitedGateway(bob, top=top, group="team", requests=own[0], tokens=own[1])
    for gone in (0, 1):
        answer = gateway.ask()
        assert header(answer, "x-ratelimit-limit-requests") == "3"
        assert header(answer, "x-ratelimit-remaining-requests") == str(left[0] - gone)
        assert header(answer, "x-ratelimit-reset-requests") == ("20s", "40s")[gone]
        assert header(answer, "x-ratelimit-limit-tokens") == "8000"
    gateway.ask(key=BOB)
    answer = gateway.ask()  # the group has had four then
    assert status(answer) == (429 if left[1] == "group" else 200)
    assert header(answer, "x-ratelimit-remaining-requests") == "0"
    assert header(answer, "x-ratelimit-limit-tokens") == "8000"


def test_l6_the_time_to_the_reset_of_tokens_is_in_whole_seconds_and_never_too_short():
    gateway = LimitedGateway(tokens="100k/m")
    for step, shown in ((0, "1m0s"), (0.5, "1m0s"), (0.5, "59s"), (0.001, "59s"), (57.5, "2s"), (0.499, "1s"), (0.5, "500ms"), (0.25, "250ms"), (0.25, "1m0s")):  # fmt: skip
        gateway.clock.advance(step)
        assert header(gateway.ask(), "x-ratelimit-reset-tokens") == shown


def test_l6_each_answer_shows_what_is_left_of_requests_when_it_came():
    gateway = LimitedGateway(requests="3/m", tokens="100k/m")
    steps = (
        (0, "2", "20s"),
        (0, "1", "40s"),
        (10, "0", "50s"),
        (50, "2", "20s"),
        (300, "2", "20s"),
        (0.5, "1", "39.5s"),
    )
    for step, left, reset in steps:
        gateway.clock.advance(step)
        answer = gateway.ask()
        assert [header(answer, f"x-ratelimit-{name}-requests") for name in ("remaining", "reset")] == [left, reset]


@pytest.mark.parametrize(("limits", "kind"), [({"requests": "1/m"}, "rate_limit_error"), ({"budget": [{"tokens": 1100, "per": "day"}]}, "billing_error")])  # fmt: skip
def test_l6_the_answer_in_anthropics_shape(limits, kind):
    gateway = LimitedGateway(**limits)
    body = {"content": [{"type": "text", "text": "x"}], "usage": {"input_tokens": 500, "output_tokens": 500}}
    data = json.dumps(body).encode()
    gateway.send(path="/v1/messages", user="u", max_tokens=1000)
    gateway.answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data))
    answer = gateway.send(path="/v1/messages", user="u", max_tokens=1000).take()
    assert status(answer) == 429
    shown = json.loads(body_of(answer))
    assert (shown["type"], shown["error"]["type"]) == ("error", kind)
    assert (header(answer, "x-should-retry"), header(answer, "retry-after")) == (
        (None, "60") if kind == "rate_limit_error" else ("false", None)
    )


def test_l6_the_limits_of_the_provider_are_under_another_name_if_the_key_has_limits():
    gateway = LimitedGateway(named("bob", BOB), requests="60/m")
    theirs = WHOLE.replace(b"\r\n", b"\r\nX-RateLimit-Remaining-Requests: 77\r\n", 1)
    for key, shown in ((ALICE, ["59", "77"]), (BOB, ["77", None])):
        client = gateway.send(user="u", key=key)
        gateway.answer(theirs)
        answer = client.take()
        names = ("x-ratelimit-remaining-requests", "x-upstream-ratelimit-remaining-requests")
        assert [header(answer, name) for name in names] == shown


def test_l6_a_limit_of_ours_neither_cools_a_step_down_nor_tries_another():
    gateway = LimitedGateway(steps=2, requests="1/m")
    gateway.ask()
    assert status(gateway.ask()) == 429
    assert not gateway.doors["p2"].wires
    assert gateway.health.cooldown_left(gateway.config.routes["route"].steps[0]) is None


def test_l7_no_key_and_no_hash_is_shown():
    gateway = LimitedGateway(requests="1/m", budget=[{"tokens": 1200, "per": "day"}])
    shown = [gateway.ask(), gateway.ask(), gateway.send(path="/v1/usage").take(), gateway.ask(model=ALICE)]
    told = repr((shown, gateway.records, gateway.config))
    assert not [each for each in (ALICE[:20],) if each in repr(shown)]
    from tests.test_keys import sha

    assert sha(ALICE) not in told


def test_l8_the_wait_is_refused_with_the_error_of_the_limit():
    clock = Clock()
    admission = Admission(Ledger(clock.seconds, lambda: NOW), clock)
    account = Account(name="key a", concurrency=1)
    admission.ask(Claim((account,)), 0.0)
    with pytest.raises(RateLimited, match="1 requests at the same time"):
        admission.ask(Claim((account,)), 0.0)
