"""C and E: what people see of the keys: the status page, the metrics, ``--check-config``, and warnings before a key ends."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import msgspec
from pytest_twisted import ensureDeferred

from aigw.commands.describe import described
from aigw.settings.callers import expiry_warnings
from tests.harness import HELLO, request, until
from tests.memory import body_of
from tests.test_accounts import USAGE, Book, drained, gone, whole
from tests.test_keys import ADMIN, ALICE, BOB, build, named, sha, write
from tests.test_limits import status

TEAM = {"name": "team-a", "tokens": "200k/m", "budget": [{"usd": 10, "per": "day"}]}
NOW = 1_800_000_000.0


def soon(days: float) -> str:
    return f"{datetime.now(timezone.utc) + timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}"


def seen(book: Book) -> list[dict]:
    (shown,) = drained(book.telemetry.status())
    return json.loads(shown)["callers"]


def book_of(tmp_path, **more) -> Book:
    book = Book(tmp_path, top={"groups": [TEAM], "keys": [
        named("alice", ALICE, requests="2/m", group="team-a", expires="2027-01-31"), named("bob", BOB),
    ]}, **more)  # fmt: skip
    plain = book.snapshot
    book.telemetry.metrics._take_snapshot = book.telemetry._take_snapshot = lambda: msgspec.structs.replace(
        plain(), limits_of=book.ledger.usage_of
    )
    return book


def send(book: Book, key: str) -> bytes:
    client = book.world.open()
    client.say(request(HELLO, "/v1/chat/completions", "POST", {"Authorization": f"Bearer {key}"}))
    if "p1" in book.world.doors and book.world.doors["p1"].wires:
        wire = book.door("p1")
        if not wire.disconnected and wire.take():
            wire.say(whole(USAGE))
    return client.take()


def test_e9_l5_page_and_metrics_show_by_key_what_is_left_and_what_was_refused(tmp_path):
    book = book_of(tmp_path)
    answers = [status(send(book, key)) for key in (ALICE, ALICE, ALICE, BOB)]
    assert answers == [200, 200, 429, 200]
    default, alice, bob = seen(book)
    assert (default["name"], default["requests"], default["limits"]) == ("default", 0, [])
    assert (alice["name"], alice["requests"], alice["refused"], alice["cost_usd"]) == ("alice", 3, 1, 0.005)
    assert (sum(alice["tokens"].values()), sum(bob["tokens"].values())) == (2100, 1050)
    own, team = alice["limits"]
    assert (own["key"], own["limits"]["requests"]["remaining"]) == ("alice", 0)
    assert (team["group"], team["limits"]["tokens"]["remaining"]) == ("team-a", 197900)
    assert team["limits"]["budget"][0]["remaining"] == 9.995
    account = book.world.config.callers[1].accounts[1]
    assert book.ledger.usage_of(account)["limits"] == team["limits"], "one number is shown and enforced"
    metrics = book.metrics
    assert metrics['aigw_caller_requests_refused_total{caller="alice"}'] == 1
    assert metrics['aigw_caller_requests_refused_total{caller="bob"}'] == 0
    assert metrics['aigw_caller_key_expiry_timestamp_seconds{caller="alice"}'] == 1801440000
    assert {name: n for name, n in metrics.items() if name.startswith("aigw_limit")} == {
        'aigw_limit{caller="alice",limit="requests"}': 2,
        'aigw_limit{group="team-a",limit="tokens"}': 200000,
        'aigw_limit{group="team-a",limit="usd per day"}': 10,
        'aigw_limit_remaining{caller="alice",limit="requests"}': 0,
        'aigw_limit_remaining{group="team-a",limit="tokens"}': 197900,
        'aigw_limit_remaining{group="team-a",limit="usd per day"}': 9.995,
    }


def test_l5_a_refusal_by_the_limit_of_the_group_is_one_of_the_key_too(tmp_path):
    """The page said one, and ``GET /v1/usage`` none."""
    book = Book(tmp_path, top={"groups": [{"name": "team", "requests": "1/m"}], "keys": [
        named("alice", ALICE, tokens="200k/m", group="team"), named("bob", BOB, requests="60/m", group="team"),
    ]})  # fmt: skip
    assert [status(send(book, key)) for key in (ALICE, ALICE, BOB)] == [200, 429, 429]
    assert [each["refused"] for each in seen(book)] == [0, 1, 1]
    used = [each for key in (ALICE, BOB) for each in usage(book, key)]
    assert [(each["requests"], each["refused"]) for each in used] == [(2, 1), (3, 2), (1, 1), (3, 2)]


def usage(book: Book, key: str) -> list[dict]:
    client = book.world.open()
    client.say(request(None, "/v1/usage", "GET", {"Authorization": f"Bearer {key}"}))
    return json.loads(body_of(client.take()))["data"]


def test_e9_a_refusal_of_a_provider_is_none_of_a_limit(tmp_path):
    book = book_of(tmp_path)
    client = book.world.open()
    client.say(request(HELLO, "/v1/chat/completions", "POST", {"Authorization": f"Bearer {BOB}"}))
    error = b'{"error":{"message":"slow","code":"rate_limit_exceeded"}}'
    for name in ("p1", "p2"):
        if name in book.world.doors and book.world.doors[name].wires:
            book.door(name).say(
                b"HTTP/1.1 429 Too Many\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (len(error), error)
            )
    gone(client)
    assert [each["refused"] for each in seen(book)] == [0, 0, 0]


def test_e9_e10_keys_alone_are_counted_too_and_nothing_is_charged(tmp_path):
    book = Book(tmp_path, None, usage=False, top={"keys": [named("alice", ALICE)]})
    assert status(send(book, ALICE)) == 200
    assert book.records[-1].charges == ()
    (default, alice) = seen(book)
    assert (default["requests"], alice["requests"], alice["cost_usd"]) == (0, 1, None)
    assert (alice["tokens"]["input"], alice["tokens"]["cache_read"], alice["tokens"]["output"]) == (600, 400, 50)
    assert book.metrics['aigw_caller_tokens_total{caller="alice",type="input"}'] == 600


def test_c12_check_config_shows_keys_with_limits_and_ends_and_no_secret(tmp_path):
    write(tmp_path / "keys.yaml", named("bob", BOB, disabled=True))
    config = build(
        named("alice", ALICE, requests="60/m", concurrency=4, wait="10s", routes=["rou*"], expires="2027-01-31", group="team-a",
              tags=["staff"]),
        {"name": "alice", "key": "${ALICE_KEY}", "not_after": "2027-01-31T18:00:00Z"},
        groups=[TEAM], admin_key="${ADMIN_KEY}", keys_file=str(tmp_path / "keys.yaml"), unknown_price=1,
        environ={"ALICE_KEY": "alice-key-0000000001", "ADMIN_KEY": ADMIN},
    )  # fmt: skip
    text = described(config, [])
    assert [
        line for line in text.splitlines() if "key" in line.split()[0] or line[0] == "g" or line[:5] == "  key"
    ] == [
        "key alice: routes rou*, requests 60/m, concurrency 4, wait 10s, assume 1000, group team-a, tags staff",
        "  key_sha256, keys[0] (until 2027-02-01 00:00 UTC)",
        "  key from ${ALICE_KEY}, keys[1] (until 2027-01-31 18:00 UTC)",
        "key bob: all routes",
        f"  key_sha256, keys[0] of {tmp_path}/keys.yaml (disabled)",
        "key admin: admin_key from ${ADMIN_KEY}, opens the pages and sends no request",
        "group team-a: tokens 200000/m, budget 10 USD per day (UTC)",
    ]
    assert not [each for each in (ALICE, BOB, ADMIN, "alice-key-0000000001", sha(ALICE), sha(BOB)) if each in text]


def test_c11_a_key_that_ends_within_14_days_is_a_warning():
    config = build(
        named("alice", ALICE, expires="2027-01-31"), named("bob", BOB, not_after="2027-01-20T00:00:00Z"),
        named("carol", "aigw_" + "c" * 40, expires="2027-01-01", disabled=True),
    )  # fmt: skip
    ends = 1801440000.0  # 2027-02-01
    assert expiry_warnings(config.callers, ends - 40 * 86400) == []
    assert expiry_warnings(config.callers, ends - 2.5 * 86400) == [
        "the key of 'bob' has expired and is refused (key_sha256, keys[1]); replace it, or remove the entry",
        "the key of 'alice' expires in 2.5 days (key_sha256, keys[0]); replace it, or remove the entry",
    ]


def test_c11_many_keys_that_end_are_21_lines():
    config = build(*[named(f"k{n}", f"aigw_{n:040}", expires="2027-01-31") for n in range(50)])
    *_, last = found = expiry_warnings(config.callers, 1801440000.0)
    assert (len(found), last) == (21, "30 more keys have expired or expire soon")


@ensureDeferred
async def test_c11_the_log_warns_at_the_start_at_a_reload_of_the_keys_and_each_day(world):
    path = world.folder / "keys.yaml"
    write(path, named("alice", ALICE, expires=soon(3.5)), named("bob", BOB))
    gateway = world.gateway(world.provider(), top={"keys_file": str(path)})

    def warned(name: str) -> int:
        return sum(f"The key of '{name}' expires in " in line for line in world.log)

    assert (warned("alice"), warned("bob")) == (1, 0)
    assert any("the key of 'alice' expires in 3." in each for each in gateway.service.warnings())
    write(path, named("alice", ALICE), named("bob", BOB, expires=soon(7.5), routes=["rout"]))
    await until(lambda: warned("bob"), 3)
    assert warned("alice") == 1
    assert any("'rout' is the name of no route" in line for line in world.log), "the warnings are those of the new file"
    gateway.service._runtime.warn_of_expiry()  # what the timer of a day calls
    assert (warned("alice"), warned("bob")) == (1, 2)
