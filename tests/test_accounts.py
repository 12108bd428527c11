"""E5 to E10: what requests are charged, and that the file, the metrics and the page have one sum."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from aigw.access.admission import Admission
from aigw.access.ledger import Ledger
from aigw.accounting import price_file
from aigw.accounting.accounts import Accounts
from aigw.accounting.line import decode, line_of
from aigw.accounting.price_file import PriceFile
from aigw.server import api
from aigw.settings.callers import PICO
from aigw.telemetry import logs
from aigw.telemetry.record import Record, RecordBuilder, for_log
from aigw.telemetry.redaction import Redaction
from aigw.telemetry.snapshot import Reloads, Snapshot
from aigw.telemetry.telemetry import Telemetry
from tests.harness import AUTH, HELLO, KEY, request, until
from tests.memory import MemoryGateway, Wire
from tests.providers import DONE, LAST_CHUNK, ROLE, STREAM_HEAD, answer, chunk, completion, event, head
from tests.test_tally import record

KEY_OF_ALICE = "aigw_0123456789abcdef0123456789abcdef01234567"
PRICES = """
p1:
  model-of-p1: {input: 2.5, output: 10, cache_read: 1.25}
  model-1: {input: 1, output: 1}
p2:
  model-of-p2: {input: 3, output: 15, cache_read: 0.3, cache_write: 3.75}
"""
USAGE = {
    "prompt_tokens": 1000,
    "completion_tokens": 50,
    "total_tokens": 1050,
    "prompt_tokens_details": {"cached_tokens": 400},
}
ON_P1, ON_P2 = Decimal("0.0025"), Decimal("0.00267")  # 600 * 3 + 400 * 0.3 + 50 * 15 = 1800 + 120 + 750


class Book:
    """A gateway in memory that keeps accounts; ``lines`` are those of its file."""

    def __init__(self, folder: Path, prices: str | None = PRICES, usage: bool = True, **more: Any) -> None:
        (folder / "prices.yaml").write_text(prices or "")
        top = more.pop("top", {})
        if prices is not None:
            top["prices"] = str(folder / "prices.yaml")
        if usage:
            top["usage"] = {"file": str(folder / "usage.jsonl")}
        self.accounts = Accounts(Clock(), lambda: 1_800_000_000.25)  # type: ignore[arg-type]
        self.telemetry = Telemetry(self.snapshot, Clock(), Redaction(), None, self.accounts)  # type: ignore[arg-type]
        self.records: list[Record] = []
        self.lines: list[dict[str, Any]] = []
        keeps = self.accounts if prices is not None or usage else None
        self.world = MemoryGateway(sink=self._record, accounts=keeps, top=top, **more)
        self.ledger = Ledger(self.world.clock.seconds, lambda: 1_800_000_000.25)
        admission = Admission(self.ledger, self.world.clock, lambda: 1_800_000_000.25)
        config, gateway = self.world.config, self.world.gateway
        self.world.site.resource = api.tree(
            config, gateway, self._record, None, admission, keeps, counters=self.telemetry.counters
        )
        self.telemetry.use(config)
        if usage:
            self.telemetry._write_line = lambda each: self.lines.append(json.loads(line_of(each, 1_800_000_000.25)))

    def _record(self, record: Record) -> None:
        self.records.append(record)
        self.telemetry.record(record)

    def snapshot(self) -> Snapshot:
        health = self.world.health
        return Snapshot(
            config=self.world.config, now=0.0, stopping=False, in_flight={}, connections=1, refused=0, refused_keys=0, lag=0.0,
            certificate_expires=None, reloads=Reloads(), cooldown_left=health.cooldown_left, cools_down=health.cools_down,
        )  # fmt: skip

    def door(self, name: str) -> Wire:
        return self.world.doors[name].wire

    @property
    def metrics(self) -> dict[str, float]:
        pieces, _ = self.telemetry.metrics.scrape("")
        lines = [line for line in b"".join(pieces).decode().splitlines() if line[0] != "#"]
        return {name: float(number) for name, _, number in (line.rpartition(" ") for line in lines)}


def whole(usage: Any = None, **more: Any) -> bytes:
    body = json.dumps({**json.loads(completion()), "usage": usage, **more}).encode()
    return head(Content_Length=str(len(body))) + body


def part(kind: str, **more: Any) -> bytes:
    return chunk(b"event: %s\ndata: %s\n\n" % (kind.encode(), json.dumps({"type": kind, **more}).encode()))


def begun(usage: Any) -> bytes:
    message = {"id": "m", "type": "message", "role": "assistant", "content": [], "usage": usage}
    return STREAM_HEAD + part("message_start", message=message)


TEXT = part("content_block_delta", index=0, delta={"type": "text_delta", "text": "words"})
MESSAGE = {"model": "route", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}


def ended(usage: Any) -> bytes:
    return part("message_delta", delta={"stop_reason": "end_turn"}, usage=usage) + part("message_stop") + LAST_CHUNK


def post(book: Book, path: str, body: Any) -> Wire:
    client = book.world.open()
    client.say(request(body, f"/v1/{path}"))
    return client


def gone(client: Wire) -> None:
    client.lost(ConnectionDone())


def test_e6_the_line_of_a_request_and_its_record_have_tokens_and_cost(tmp_path):
    book = Book(tmp_path)
    book.world.ask()
    book.door("p1").say(whole(USAGE))
    (made,), (line,) = book.records, book.lines
    assert (made.cost, made.estimated) == (ON_P1, False)
    assert line == {
        "time": "2027-01-15T08:00:00.250Z", "request_id": made.request_id, "caller": "default", "session": None,
        "route": "route", "provider": "p1", "model": "model-of-p1", "endpoint": "/v1/chat/completions", "status": 200,
        "outcome": "ok", "tokens": {"input": 600, "output": 50, "cache_read": 400}, "cost": 0.0025, "estimated": False,
    }  # fmt: skip
    assert for_log(made)["cost"] == 0.0025
    assert "estimated" not in for_log(made)


RESPONSE = {"id": "r", "object": "response", "status": "completed", "output": [{"type": "message"}]}
OF_RESPONSES = {
    "input_tokens": 1000,
    "input_tokens_details": {"cached_tokens": 400},
    "output_tokens": 50,
    "total_tokens": 1050,
}
IMAGE = {"created": 1, "data": [{"b64_json": "AA=="}]}


@pytest.mark.parametrize(
    ("path", "body", "answered", "tokens"),
    [
        ("responses", {"model": "route", "input": "hi"}, {**RESPONSE, "usage": OF_RESPONSES}, (600, 50, 400, 0)),
        ("messages", MESSAGE, {"type": "message", "content": [{"type": "text", "text": "x"}], "usage": {"input_tokens": 9, "output_tokens": 3, "cache_read_input_tokens": 7, "cache_creation_input_tokens": 5}}, (9, 3, 7, 5)),
        ("embeddings", {"model": "route", "input": "hi"}, {"data": [{"embedding": [1]}], "usage": {"prompt_tokens": 8, "total_tokens": 8}}, (8, 0, 0, 0)),
        ("rerank", {"model": "route", "query": "q", "documents": ["a"]}, {"results": [{"index": 0}], "usage": {"total_tokens": 11}}, (11, 0, 0, 0)),
        ("images/generations", {"model": "route", "prompt": "x"}, {**IMAGE, "usage": {"input_tokens": 5, "output_tokens": 4160, "total_tokens": 4165}}, (5, 4160, 0, 0)),
        ("completions", {"model": "route", "prompt": "x"}, {"choices": [{"text": "x"}], "usage": {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}}, (2, 1, 0, 0)),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)  # fmt: skip
def test_e5_every_endpoint_that_reports_tokens_is_charged(tmp_path, path, body, answered, tokens):
    book = Book(tmp_path)
    post(book, path, body)
    data = json.dumps(answered).encode()
    book.door("p1").say(head(Content_Length=str(len(data))) + data)
    (line,) = book.lines
    assert tuple(line["tokens"].get(kind, 0) for kind in ("input", "output", "cache_read", "cache_write")) == tokens
    assert line["cost"] > 0


@pytest.mark.parametrize(
    ("path", "answered"),
    [
        ("responses/input_tokens", {"object": "response.input_tokens", "input_tokens": 11}),
        ("messages/count_tokens", {"input_tokens": 11}),
    ],
)
def test_e5_a_count_of_tokens_is_not_charged(tmp_path, path, answered):
    book = Book(tmp_path)
    post(book, path, {**MESSAGE, "input": "hi"})
    data = json.dumps(answered).encode()
    book.door("p1").say(head(Content_Length=str(len(data))) + data)
    assert [(line["status"], line["tokens"], line["cost"]) for line in book.lines] == [(200, {}, 0)]
    assert not book.telemetry.counters.unpriced


def test_e5_a_stored_response_is_charged_once(tmp_path):
    book = Book(tmp_path)
    data = json.dumps({**RESPONSE, "usage": OF_RESPONSES}).encode()
    post(book, "responses", {"model": "route", "input": "hi"})
    book.door("p1").say(head(Content_Length=str(len(data))) + data)
    client = book.world.open()
    client.say(request(None, "/v1/responses/r", "GET"))
    book.door("p1").say(head(Content_Length=str(len(data))) + data)
    assert b" 200 " in client.take()
    assert [line["cost"] for line in book.lines] == [0.0025, 0]


def test_e5_a_stream_is_charged_by_its_last_usage(tmp_path):
    book = Book(tmp_path)
    book.world.ask(stream=True)
    events = [
        ROLE,
        event({"content": "a"}),
        event(finish_reason="stop"),
        b'data: {"choices":[],"usage":%s}\n\n' % json.dumps(USAGE).encode(),
        DONE,
    ]
    book.door("p1").say(STREAM_HEAD + b"".join(map(chunk, events)) + LAST_CHUNK)
    assert [line["cost"] for line in book.lines] == [0.0025]


def test_e5_a_stream_of_a_client_that_left_is_charged_what_was_reported(tmp_path):
    book = Book(tmp_path)
    client = post(book, "messages", {**MESSAGE, "stream": True})
    book.door("p1").say(begun({"input_tokens": 100, "output_tokens": 1}) + TEXT)
    gone(client)
    (line,) = book.lines
    assert (line["status"], line["tokens"], line["cost"]) == (499, {"input": 100, "output": 1}, 0.00026)


@pytest.mark.parametrize("reason", ["is no answer", "breaks before its output"])
def test_e5_an_attempt_that_failed_is_charged_what_it_reported(tmp_path, reason):
    book = Book(tmp_path)
    if reason == "is no answer":
        book.world.ask()
        book.door("p1").say(whole(USAGE, choices=[]))
        book.door("p2").say(whole(USAGE))
    else:
        usage = {"input_tokens": 600, "output_tokens": 50, "cache_read_input_tokens": 400}
        post(book, "messages", {**MESSAGE, "stream": True})
        book.door("p1").say(begun(usage))
        book.door("p1").loseConnection()
        book.door("p2").say(begun(usage) + TEXT + ended({"output_tokens": 50}))
    (line,) = book.lines
    tokens = {"input": 600, "output": 50, "cache_read": 400}
    assert (line["provider"], line["tokens"]) == ("p2", {"input": 1200, "output": 100, "cache_read": 800})
    assert Decimal(str(line["cost"])) == ON_P1 + ON_P2
    assert line["attempts"] == [
        {"provider": "p1", "model": "model-of-p1", "tokens": tokens, "cost": 0.0025},
        {"provider": "p2", "model": "model-of-p2", "tokens": tokens, "cost": 0.00267},
    ]


def test_e5_an_answer_without_output_is_charged_what_it_reported(tmp_path):
    """Its usage is in the read that shows the failure."""
    book = Book(tmp_path, steps=1)
    book.world.ask(stream=True)
    last = b'data: {"choices":[],"usage":%s}\n\n' % json.dumps(USAGE).encode()
    book.door("p1").say(STREAM_HEAD + b"".join(map(chunk, [ROLE, last, DONE])) + LAST_CHUNK)
    (line,) = book.lines
    assert (line["status"], line["provider"], line["cost"]) == (502, "p1", 0.0025)


def test_e5_a_retry_is_charged_and_so_is_what_it_repeats(tmp_path):
    book = Book(
        tmp_path,
        top={"routes": [{"name": "route", "steps": [{"provider": "p1", "model": "model-of-p1", "retries": 1}]}]},
    )
    book.world.ask()
    book.door("p1").say(whole(USAGE, choices=[]))
    book.world.clock.advance(30)
    book.door("p1").say(whole(USAGE))
    (line,) = book.lines
    assert Decimal(str(line["cost"])) == 2 * ON_P1
    assert len(line["attempts"]) == 2


def test_e5_both_attempts_of_a_hedged_request_are_charged(tmp_path):
    book = Book(tmp_path, hedge={"after": "1s", "share": "100%"})
    usage = {"input_tokens": 600, "output_tokens": 50, "cache_read_input_tokens": 400}
    post(book, "messages", {**MESSAGE, "stream": True})
    book.door("p1").say(begun(usage))
    book.world.clock.advance(1)
    book.door("p2").say(begun(usage) + TEXT + ended({"output_tokens": 50}))
    (made,), (line,) = book.records, book.lines
    assert (made.hedge, line["provider"]) == ("won", "p2")
    assert Decimal(str(line["cost"])) == ON_P1 + ON_P2
    assert [each["provider"] for each in line["attempts"]] == ["p1", "p2"]


def test_e3_what_the_provider_reports_counts_more_than_the_price(tmp_path):
    book = Book(tmp_path)
    book.world.ask()
    book.door("p1").say(whole({**USAGE, "cost": 0.000123}))
    assert [line["cost"] for line in book.lines] == [0.000123]


@pytest.mark.parametrize("answered", [whole(USAGE), whole(None)], ids=["no price", "no usage"])
def test_e4_an_unknown_cost_is_null_and_is_counted(tmp_path, answered):
    book = Book(tmp_path, "" if answered == whole(USAGE) else PRICES)
    book.world.ask()
    book.door("p1").say(answered)
    assert [line["cost"] for line in book.lines] == [None]
    assert book.metrics['aigw_unpriced_requests_total{provider="p1",model="model-of-p1"}'] == 1
    assert "cost" not in for_log(book.records[0])


def test_e4_without_prices_no_cost_is_missed(tmp_path):
    book = Book(tmp_path, None)
    book.world.ask()
    book.door("p1").say(whole(USAGE))
    assert [line["cost"] for line in book.lines] == [None]
    assert not [name for name in book.metrics if name.startswith("aigw_unpriced")]


def test_e6_a_request_that_no_provider_answered_costs_nothing(tmp_path):
    book = Book(tmp_path)
    book.world.ask(model="nothing")
    assert [(line["status"], line["route"], line["cost"]) for line in book.lines] == [(404, None, 0)]


def test_e7_a_request_of_nobody_who_is_known_has_no_line(tmp_path):
    """Or anyone could fill the disk."""
    accounts, written = Accounts(Clock()), []  # type: ignore[arg-type]
    accounts._file = type("File", (), {"write": staticmethod(written.append)})()
    accounts.write(record(caller=""))
    assert written == []
    accounts.write(record())
    assert decode(written[0].encode()).caller == "default"


def test_e9_metrics_and_page_have_requests_tokens_and_cost_by_caller(tmp_path):
    book = Book(tmp_path)
    for _ in range(3):
        book.world.ask()
        book.door("p1").say(whole(USAGE))
    assert {name: n for name, n in book.metrics.items() if name.startswith(("aigw_caller", "aigw_unpriced"))} == {
        'aigw_caller_requests_total{caller="default"}': 3,
        'aigw_caller_requests_refused_total{caller="default"}': 0,
        'aigw_caller_tokens_total{caller="default",type="input"}': 1800,
        'aigw_caller_tokens_total{caller="default",type="output"}': 150,
        'aigw_caller_tokens_total{caller="default",type="cache_read"}': 1200,
        'aigw_caller_tokens_total{caller="default",type="cache_write"}': 0,
        'aigw_caller_tokens_total{caller="default",type="reasoning"}': 0,
        'aigw_caller_cost_usd_total{caller="default"}': 0.0075,
    }
    status = book.telemetry.status()
    try:
        while True:
            next(status)
    except StopIteration as stop:
        (caller,) = json.loads(stop.value)["callers"]
    assert (caller["name"], caller["requests"], caller["cost_usd"]) == ("default", 3, 0.0075)


def test_e10_without_the_settings_no_byte_changes(tmp_path):
    book = Book(tmp_path, None, usage=False)
    book.world.ask()
    book.door("p1").say(whole({**USAGE, "cost": 1.5}))
    (made,) = book.records
    assert (made.charges, made.cost, made.session) == ((), None, None)
    assert {"cost", "session", "estimated"}.isdisjoint(for_log(made))
    assert made.usage == {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050, "cached_tokens": 400}
    assert not [name for name in book.metrics if "caller" in name or "unpriced" in name or "usage" in name]
    (shown,) = list(drained(book.telemetry.status()))
    assert "callers" not in json.loads(shown)


def drained(steps):
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            yield stop.value
            return


def test_e6_a_session_is_in_the_file_alone_bounded_and_printable(tmp_path):
    book = Book(tmp_path)
    for pricing, session in ((book.accounts, "a?" + "b" * 126), (None, None)):
        builder = RecordBuilder("id", "POST", "/v1/x", 0.0, seconds=lambda: 0.0, pricing=pricing)
        builder.session = "a\n" + "b" * 5000
        made = builder.record(200)
        assert "session" not in for_log(made)
        assert json.loads(line_of(made, 0.0))["session"] == session


def test_e6_the_log_has_the_cost_as_a_number(tmp_path):
    lines: list[dict] = []

    class File:
        write = staticmethod(lambda line: lines.append(json.loads(line)))
        flush = staticmethod(lambda: None)

    observer = logs.JsonLines(File())
    globalLogPublisher.addObserver(observer)
    try:
        book = Book(tmp_path)
        book.world.ask()
        book.door("p1").say(whole(USAGE))
    finally:
        globalLogPublisher.removeObserver(observer)
    assert [line["fields"]["cost"] for line in lines if line["message"] == "Request"] == [0.0025]


# The sum of all


class Truth:
    """Plays requests of every kind, and adds up what the providers reported in them."""

    def __init__(self, book: Book, seed: int, auth: dict[str, str]) -> None:
        self.book = book
        self.auth = auth
        self.random = random.Random(seed)
        self.cost = Decimal(0)
        self.tokens: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()

    def usage(self, provider: str) -> dict[str, Any]:
        """Of a plain answer; it is charged."""
        fresh, cached, made = (self.random.randrange(10_000) for _ in range(3))
        usage = {
            "prompt_tokens": fresh + cached,
            "completion_tokens": made,
            "total_tokens": fresh + cached + made,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        self.tokens.update(input=fresh, cache_read=cached, output=made)
        if self.random.random() < 0.2:
            own = Decimal(self.random.randrange(10**9)) / 10**9
            self.cost += own
            return {**usage, "cost": float(own)}
        self.cost += self.price(provider, fresh, made, cached)
        return usage

    def message(self, provider: str, made: int) -> dict[str, Any]:
        """Of the beginning of a message; ``made`` is what it will report in the end, or has reported."""
        fresh, cached = self.random.randrange(10_000), self.random.randrange(10_000)
        self.tokens.update(input=fresh, cache_read=cached, output=made)
        self.cost += self.price(provider, fresh, made, cached)
        return {"input_tokens": fresh, "output_tokens": 1, "cache_read_input_tokens": cached}

    def price(self, provider: str, fresh: int, made: int, cached: int) -> Decimal:
        of = {"p1": ("2.5", "10", "1.25"), "p2": ("3", "15", "0.3")}[provider]
        return sum(Decimal(n) * Decimal(price) for n, price in zip((fresh, made, cached), of, strict=True)) / 1_000_000

    def ask(self, body: Any = HELLO, path: str = "chat/completions", **more: Any) -> Wire:
        client = self.book.world.open()
        client.say(request({**body, **more}, f"/v1/{path}", headers=self.auth))
        return client

    def play(self) -> None:
        kind = self.random.choice([name for name in dir(self) if name.startswith("a_")])
        self.kinds[kind] += 1
        client = getattr(self, kind)()
        gone(client)

    def a_plain_one(self) -> Wire:
        client = self.ask()
        self.book.door("p1").say(whole(self.usage("p1")))
        return client

    def a_stream(self) -> Wire:
        client = self.ask(stream=True)
        events = [ROLE, event({"content": "a"}), event(finish_reason="stop", usage=self.usage("p1")), DONE]
        self.book.door("p1").say(STREAM_HEAD + b"".join(map(chunk, events)) + LAST_CHUNK)
        return client

    def a_client_that_leaves_a_stream(self) -> Wire:
        client = self.ask(MESSAGE, "messages", stream=True)
        self.book.door("p1").say(begun(self.message("p1", 1)) + TEXT)
        return client

    def a_client_that_leaves_before_the_answer(self) -> Wire:
        return self.ask()

    def a_second_step(self) -> Wire:
        client = self.ask()
        self.book.door("p1").say(whole(self.usage("p1"), choices=[]))
        self.book.door("p2").say(whole(self.usage("p2")))
        return client

    def a_repeated_step(self) -> Wire:
        client = self.ask()
        self.book.door("p1").say(head(400, Content_Length="2") + b"{}")
        self.book.door("p2").say(head(500, Content_Length="2") + b"{}")
        self.book.world.clock.advance(5)
        self.book.door("p2").say(whole(self.usage("p2")))
        return client

    def a_hedge(self) -> Wire:
        client = self.ask(MESSAGE, "messages", stream=True)
        self.book.door("p1").say(begun(self.message("p1", 1)))
        self.book.world.clock.advance(1)
        self.book.door("p2").say(begun(self.message("p2", 70)) + TEXT + ended({"output_tokens": 70}))
        return client

    def a_broken_stream(self) -> Wire:
        client = self.ask(MESSAGE, "messages", stream=True)
        self.book.door("p1").say(begun(self.message("p1", 1)) + TEXT)
        self.book.door("p1").loseConnection()
        return client


LIMITED = {
    "name": "alice",
    "key": KEY_OF_ALICE,
    "budget": [{"usd": 1_000_000, "per": "year"}, {"tokens": 10**12, "per": "year"}],
}


def played(tmp_path: Path, requests: int, key: str = KEY) -> None:
    steps = [{"provider": "p1", "model": "model-of-p1"}, {"provider": "p2", "model": "model-of-p2", "retries": 2}]
    routes = [{"name": "route", "steps": steps, "hedge": {"after": "1s", "share": "100%"}, "cooldown": 0}]
    book = Book(tmp_path, top={"routes": routes, "keys": [LIMITED]})
    ledger, books = Decimal(0), Counter[str]()
    by_model: Counter[str] = Counter()

    def note(each: Record) -> None:
        nonlocal ledger
        line = decode(line_of(each, 0.0).encode())
        ledger += line.cost or 0
        books.update(line.tokens)
        by_model.update({part.model: part.tokens.get("output", 0) for part in line.attempts})

    book.telemetry._write_line = note
    truth = Truth(book, requests, {"Authorization": f"Bearer {key}"})
    for number in range(requests):
        truth.play()
        book.records.clear()
        if number % 500 == 0:
            book.world.clock.advance(100)
    counted = book.telemetry.counters.callers["default" if key == KEY else "alice"]
    assert ledger == counted.cost
    assert +books == +Counter(counted.tokens)
    if key == KEY:
        assert ledger == truth.cost
        assert +books == +truth.tokens
    else:  # what was not reported is estimated
        assert ledger > truth.cost
        assert min((+books - +truth.tokens).values()) > 0
        (account,) = next(each.accounts for each in book.world.config.callers if each.name == "alice")
        usd, tokens = (book.ledger.counts_of(account).of(budget) for budget in account.budgets)
        assert (usd.reserved, tokens.reserved) == (0, 0)
        assert Decimal(usd.spent) / PICO == ledger
        assert tokens.spent == books.total()
    assert counted.requests == requests == truth.kinds.total()
    assert len(truth.kinds) == 8
    assert by_model["model-of-p2"] > 0
    name = "default" if key == KEY else "alice"
    assert abs(book.metrics[f'aigw_caller_cost_usd_total{{caller="{name}"}}'] - float(ledger)) < 1e-9 * requests


KEYS = pytest.mark.parametrize("key", [KEY, KEY_OF_ALICE], ids=["without limits", "with budgets"])


@KEYS
def test_e9_ledger_metrics_and_budget_are_one_sum(tmp_path, key):
    played(tmp_path, 400, key)


@pytest.mark.slow
@KEYS
def test_e9_ledger_metrics_and_budget_are_one_sum_of_100000_requests(tmp_path, capsys, key):
    begun_at = time.process_time()
    played(tmp_path, 100_000, key)
    with capsys.disabled():
        print(f" [100,000 requests, {time.process_time() - begun_at:.0f} s of CPU]", end="")


# A daemon


@ensureDeferred
async def test_e7_a_gateway_writes_the_file_and_takes_new_prices_without_a_reload(world):
    prices, usage = world.folder / "prices.yaml", world.folder / "usage.jsonl"
    prices.write_text("p1: {model-1: {input: 1, output: 1}}")
    top = {"prices": "prices.yaml", "usage": {"file": "usage.jsonl", "rotate": "day"}}
    gateway = world.gateway(world.provider(answer()), top=top)
    await gateway.ask()
    await until(lambda: usage.exists() and usage.read_bytes().endswith(b"\n"))
    assert usage.stat().st_mode & 0o777 == 0o600
    (world.folder / "new.yaml").write_text("p1: {model-1: {input: 1000, output: 1000}}")
    (world.folder / "new.yaml").rename(prices)
    await until(lambda: any("has taken new prices, for 1 models" in line for line in world.log))
    await gateway.ask()
    await until(lambda: usage.read_bytes().count(b"\n") == 2)
    prices.write_text("p1: {model-1: {input: x}}")
    await until(lambda: any("did not take the new prices" in line for line in world.log))
    await gateway.ask()
    await until(lambda: usage.read_bytes().count(b"\n") == 3)
    lines = [decode(line) for line in usage.read_bytes().splitlines()]
    assert [line.cost for line in lines] == [Decimal("0.000007"), Decimal("0.007"), Decimal("0.007")]
    assert [line.request_id for line in lines] == [each["request_id"] for each in world.records]
    page = await gateway.get("/status.json", AUTH)
    assert page.json["callers"][0]["requests"] == 3
    usage.rename(world.folder / "moved.jsonl")
    await gateway.ask({**HELLO})
    await until(lambda: usage.exists() and usage.read_bytes().count(b"\n") == 1)


def test_e1_after_a_fault_in_the_file_of_prices_the_next_change_is_checked(monkeypatch):
    """Its text may hold what no check foresaw."""

    def fails(path: str) -> None:
        raise ValueError("unforeseen")

    class NoThreads(PriceFile):
        def _in_thread(self, call, path):
            return maybeDeferred(call, path)

    states = iter([(0, 0, 1), (0, 0, 1), (0, 0, 2), (0, 0, 2)])
    monkeypatch.setattr(price_file, "_state_of", lambda path: next(states, (0, 0, 2)))
    monkeypatch.setattr(price_file, "load_prices", fails)
    clock, taken = Clock(), []
    checked = NoThreads(clock, taken.append)  # type: ignore[arg-type]
    checked.use("prices.yaml")
    checked.start()
    clock.pump([0.5] * 2)
    monkeypatch.setattr(price_file, "load_prices", lambda path: ("prices", []))
    clock.pump([0.5] * 2)
    assert taken == ["prices"]
    checked.stop()


def test_e4_an_unknown_price_is_assumed_and_counted(tmp_path):
    book = Book(tmp_path, "", top={"unknown_price": 10})
    book.world.ask()
    book.door("p1").say(whole(USAGE))
    (line,) = book.lines
    assert (line["cost"], line["estimated"]) == (0.0105, True)
    assert book.metrics['aigw_unpriced_requests_total{provider="p1",model="model-of-p1"}'] == 1


@pytest.mark.parametrize("name", ["route", "alias", "any-model"])
def test_e5_a_budget_in_usd_is_reserved_at_the_dearest_step(tmp_path, name):
    """One request at a time passes where two would pass the limit, by whichever name it finds the route."""
    budget = [{"usd": 0.02, "per": "day"}]
    steps = [{"provider": p, "model": f"model-of-{p}"} for p in ("p1", "p2")]
    route = {"name": "route", "also": ["alias", "any-*"], "steps": steps}
    book = Book(tmp_path, top={"keys": [{**LIMITED, "budget": budget}], "routes": [route]})
    clients = [book.world.open() for _ in range(3)]
    for client in clients:
        body = {**HELLO, "model": name, "max_tokens": 1000}
        client.say(request(body, headers={"Authorization": f"Bearer {KEY_OF_ALICE}"}))
    statuses = [client.take()[9:12] for client in clients]
    assert statuses == [b"", b"429", b"429"]  # the first one has 1000 * 15 / 1M and a little reserved
    book.door("p1").say(whole(USAGE))
    (account,) = next(each.accounts for each in book.world.config.callers if each.name == "alice")
    found = book.ledger.counts_of(account).of(account.budgets[0])
    assert (Decimal(found.spent) / PICO, found.reserved) == (ON_P1, 0)


@ensureDeferred
async def test_e4_new_prices_that_a_budget_misses_are_not_taken(world):
    (world.folder / "prices.yaml").write_text("p1: {model-1: {input: 1, output: 1}}")
    gateway = world.gateway(world.provider(answer()), top={"prices": "prices.yaml", "keys": [LIMITED]})
    (world.folder / "prices.yaml").write_text("p1: {other: {input: 1, output: 1}}")
    await until(lambda: any("budgets need those that are missing" in line for line in world.log))
    assert gateway.service._telemetry._accounts.prices.of("p1", "model-1") is not None
