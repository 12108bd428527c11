"""C17, L19, E11: what keys and limits cost a request, that 10,000 keys load quickly, and that all counts are one."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from aigw.access.claim import Claim
from aigw.access.keys import Keys
from aigw.access.ledger import Ledger
from aigw.config import loader
from aigw.protocols.charges import charged_tokens
from aigw.server import api
from aigw.settings.callers import Account, Budgeted
from aigw.straight import path as straight
from aigw.telemetry import logs
from aigw.telemetry.redaction import Redaction
from aigw.telemetry.telemetry import Telemetry
from tests.harness import HELLO, KEY, request
from tests.memory import MemoryGateway, body_of
from tests.providers import STREAM_HEAD
from tests.test_accounts import Book, gone
from tests.test_cost import CHUNK, WHOLE, Nowhere, asked_and_answered, calls
from tests.test_keys import ALICE, BOB, named, sha
from tests.test_names import memory

MANY = 10_000
LIMITS = {
    "requests": "100k/m",
    "tokens": "2000M/m",
    "concurrency": 100,
    "budget": [{"tokens": "5000M", "per": "month"}],
}
KEYS = [f"aigw_{number:040d}" for number in range(MANY)]


def counted_calls(keys: list[str], is_straight: bool, **limits) -> tuple[int, int]:
    """What a request of the last of these keys calls, else one of ``api_key``."""
    named_keys = [named(f"k{number}", key) for number, key in enumerate(keys)]
    top = {"keys": named_keys, "defaults": limits} if keys else {}
    lines = logs.JsonLines(Nowhere())
    globalLogPublisher.addObserver(lines)
    try:
        telemetry = Telemetry(lambda: None, Clock(), lines.redaction)
        with patch.object(straight, "IS_ON", is_straight):
            gateway = MemoryGateway(top=top, sink=telemetry.record)
        telemetry.use(gateway.config)
        lines.redaction.use(gateway.config.secrets, gateway.config.has_hashed_keys)
        key = keys[-1] if keys else KEY
        sent = request(HELLO, headers={"Authorization": f"Bearer {key}"})
        client = gateway.open()
        for _ in range(3):
            assert asked_and_answered(gateway, client, sent).startswith(b"HTTP/1.1 200 ")
        return min(calls(lambda: asked_and_answered(gateway, client, sent)) for _ in range(3))  # a second may begin
    finally:
        globalLogPublisher.removeObserver(lines)


@pytest.mark.parametrize("is_straight", [False, True], ids=["long way", "straight path"])
def test_l19_ten_thousand_keys_with_all_limits_cost_few_more_calls(capsys, is_straight):
    without, few = counted_calls([], is_straight), counted_calls(KEYS[:2], is_straight, **LIMITS)
    keyed, limited = counted_calls(KEYS, is_straight), counted_calls(KEYS, is_straight, **LIMITS)
    with capsys.disabled():
        print(f" [calls without keys {without}, with 10,000 {keyed}, with all limits {limited}]", end="")
    assert all(abs(one - other) <= 2 for one, other in zip(limited, few, strict=True)), "10,000 keys cost what two cost"
    assert keyed[0] <= without[0] + 1
    assert limited[0] <= without[0] + (8 if is_straight else 15)  # the long way makes a claim for each request
    assert sum(limited) <= sum(without) + (8 if is_straight else 20)


def test_l19_more_budgets_cost_an_admission_and_a_settlement_nothing():
    """All that count tokens grow by the same amounts, so they have one total."""

    def used(*budgets: Budgeted) -> tuple[int, int]:
        ledger, account = Ledger(lambda: 5.0, lambda: 5.0), Account(name="key a", budgets=budgets)

        def one() -> None:
            claim = Claim((account,), 10)
            assert ledger.admit(claim) is None
            ledger.settle(claim, 7)

        one()
        counted = calls(one)
        assert [ledger.counts_of(account).of(each).spent for each in budgets] == [14] * len(budgets)
        return counted

    periods = ("hour", "day", "week", "month", "year")
    budgets = [Budgeted(f"tokens per {per}", 10**6, False, per, "UTC") for per in periods]
    assert used(*budgets) == used(budgets[0])


# The key of a connection


def answered(gateway: MemoryGateway, client, **headers: str) -> int:
    client.say(request(None, "/v1/models", "GET", {name.replace("_", "-"): value for name, value in headers.items()}))
    return int(client.take().split(b" ", 2)[1])


def test_c17_a_connection_keeps_its_caller_for_the_same_header_only():
    gateway = MemoryGateway(top={"keys": [named("alice", ALICE), named("bob", BOB)]})
    client = gateway.open()
    for key, expected in ((ALICE, "alice"), (ALICE, "alice"), (BOB, "bob"), (KEY, None), (ALICE, "alice")):
        assert answered(gateway, client, Authorization=f"Bearer {key}") == 200
        recognized = channel_of(client).recognized
        assert (recognized and recognized[2].name) == expected
    assert answered(gateway, client, Authorization=f"Bearer {ALICE}", Api_Key=BOB) == 400
    assert answered(gateway, gateway.open(), Authorization=f"Bearer {ALICE}") == 200


def test_c17_a_connection_that_is_known_still_refuses_a_wrong_key_of_one_byte_in_two_headers():
    """Python has one object for all equal bytes of length 1, so the two headers were taken for none."""
    gateway = MemoryGateway(top={"keys": [named("alice", ALICE)]})
    client = gateway.open()
    assert answered(gateway, client, Authorization=f"Bearer {ALICE}") == 200
    assert answered(gateway, client, Authorization=f"Bearer {ALICE}", X_Api_Key="x", Api_Key="x") == 401


@pytest.mark.parametrize("other", ["wrong", ALICE[:-1], ALICE + "a", ""])
def test_c17_another_header_is_looked_up_anew(other):
    gateway = MemoryGateway(top={"keys": [named("alice", ALICE)]})
    client = gateway.open()
    assert answered(gateway, client, Authorization=f"Bearer {ALICE}") == 200
    assert answered(gateway, client, Authorization=f"Bearer {other}") == 401


def test_c17_a_reload_drops_what_a_connection_keeps():
    gateway = MemoryGateway(top={"keys": [named("alice", ALICE), named("bob", BOB)]})
    client = gateway.open()
    assert answered(gateway, client, Authorization=f"Bearer {ALICE}") == 200
    config = msgspec.structs.replace(
        gateway.config, callers=tuple(each for each in gateway.config.callers if each.name != "alice")
    )
    gateway.site.resource = api.tree(config, gateway.gateway, gateway.records.append)
    assert answered(gateway, client, Authorization=f"Bearer {ALICE}") == 401


def test_c17_a_key_that_ends_is_not_kept():
    gateway = MemoryGateway(top={"keys": [named("alice", ALICE, expires="2100-01-01")]})
    client = gateway.open()
    assert answered(gateway, client, Authorization=f"Bearer {ALICE}") == 200
    assert channel_of(client).recognized is None
    gateway.site.resource.keys._now = lambda: 5e9
    assert answered(gateway, client, Authorization=f"Bearer {ALICE}") == 401


def channel_of(client):
    (channel,) = [each for each in client.protocol.__dict__.values() if hasattr(each, "recognized")] or [
        client.protocol
    ]
    return channel


# One count


def usage(book: Book, key: str) -> dict:
    client = book.world.open()
    client.say(request(None, "/v1/usage", "GET", {"Authorization": f"Bearer {key}"}))
    return json.loads(body_of(client.take()))


def ask(book: Book, key: str, **more):
    client = book.world.open()
    client.say(request({**HELLO, **more}, headers={"Authorization": f"Bearer {key}"}))
    book.door("p1").take()
    return client


def test_e11_usage_without_limits_has_the_name_and_what_is_counted(tmp_path):
    book = Book(tmp_path, None, usage=False, top={"keys": [named("alice", ALICE)]})
    ask(book, ALICE)
    book.door("p1").say(WHOLE)
    assert usage(book, ALICE) == {
        "object": "usage",
        "caller": "alice",
        "data": [{"key": "alice", "requests": 1, "tokens": 72, "cost_usd": None, "refused": 0, "limits": {}}],
    }


@pytest.mark.parametrize("accounts", [False, True], ids=["limits alone", "with a file of usage"])
def test_e11_usage_metrics_and_limits_are_one_number_if_a_client_leaves_too(tmp_path, accounts):
    keys = [named("alice", ALICE, tokens="100k/m", group="team"), named("bob", BOB, group="team")]
    top = {"groups": [{"name": "team", "tokens": "200k/m"}], "keys": keys}
    book = Book(tmp_path, None, usage=accounts, top=top)
    for key in (ALICE, BOB):
        ask(book, key)
        book.door("p1").say(WHOLE)
    gone(ask(book, ALICE))
    client = ask(book, ALICE, stream=True)
    book.door("p1").say(STREAM_HEAD + CHUNK * 3)
    gone(client)
    own, team = usage(book, ALICE)["data"]
    assert own["tokens"] == own["limits"]["tokens"]["spent"] > 72
    assert team["tokens"] == team["limits"]["tokens"]["spent"] == own["tokens"] + 72
    kinds = [n for name, n in book.metrics.items() if name.startswith('aigw_caller_tokens_total{caller="alice"')]
    assert sum(kinds) == own["tokens"]
    assert (own["requests"], team["requests"]) == (3, 4)


@pytest.mark.parametrize("counts", [(10, 20), (10, 0), (0, 0), (0, 5)])
def test_e2_the_short_way_for_the_commonest_usage_gives_what_the_long_one_gives(counts):
    given, made = counts
    common = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
    assert charged_tokens(common) == charged_tokens({**common, "cached_tokens": 0})


# Loading


def _line(kind: str, number: int) -> str:
    random = hashlib.sha256(b"%d" % number).hexdigest()
    return {"hash": f"key_sha256: {random}", "own form": f"key: aigw_{random[:40]}", "other form": f"key: sk-{random}"}[
        kind
    ]


@pytest.mark.parametrize("kind", ["hash", "own form", "other form"])
def test_c18_ten_thousand_keys_load_in_bounded_time_and_memory(tmp_path, kind):
    path = tmp_path / "config.yaml"
    lines = [f"- {{name: k{number}, {_line(kind, number)}}}" for number in range(MANY)]
    provider = "providers: [{name: p1, base_url: http://p1/v1}]"
    route = "routes: [{name: r, steps: [{provider: p1, model: m}]}]"
    Path(path).write_text("\n".join([f"api_key: {KEY}", provider, route, "keys:", *lines]))
    path.chmod(0o600)
    before, begun = memory(), time.process_time()
    config = loader.load(path, {})
    redaction = Redaction()
    redaction.use(config.secrets, config.has_hashed_keys)
    keys = Keys(config.callers)
    assert time.process_time() - begun < 8
    assert memory() - before < 150
    last = {"own form": "aigw_" + sha("9999")[:40], "other form": "sk-" + sha("9999")}
    if kind in last:
        assert keys.authenticate(None, b"Bearer " + last[kind].encode()).name == "k9999"
        assert redaction.hide(f"a key {last[kind]} in a line") == "a key *** in a line"
