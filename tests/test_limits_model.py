"""L1 to L5, E9: random requests of several callers, random providers, reloads and clocks; nothing leaks, all sums agree."""

from __future__ import annotations

import random
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone, ConnectionLost

from aigw.access.admission import Admission
from aigw.access.claim import Claim
from aigw.access.ledger import Ledger, LimitReached
from aigw.accounting.line import decode, line_of
from aigw.config import loader
from aigw.config.model import Config
from aigw.server import api
from aigw.settings.callers import PICO
from tests.harness import HELLO, request
from tests.memory import Wire
from tests.providers import DONE, LAST_CHUNK, ROLE, STREAM_HEAD, chunk, event, head
from tests.test_accounts import MESSAGE, TEXT, Book, begun, ended, whole
from tests.test_keys import ALICE, BOB

CAROL = "aigw_" + "c" * 40
CALLERS = {"alice": ALICE, "bob": BOB, "carol": CAROL}
NOW = 1_790_000_000.0
ALWAYS = {"usd": 900_000_000, "per": "year"}  # in all configurations, so that every request is in its sum


class CheckedLedger(Ledger):
    """No admission may pass a limit."""

    def admit(self, claim: Claim) -> LimitReached | None:
        reached = super().admit(claim)
        for account in claim.accounts if reached is None else ():
            counts = self.counts_of(account)
            assert account.concurrency is None or counts.running <= account.concurrency
            if account.tokens is not None and claim.tokens:
                assert counts.tokens.spent + counts.tokens.reserved <= account.tokens.limit
            if account.requests is not None:
                assert counts.requests.used <= account.requests.limit + 1e-3
            for budget in account.budgets:
                used = counts.of(budget).spent + counts.of(budget).reserved
                assert used <= budget.limit
        return reached


class Model:
    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.wall = NOW
        steps = [{"provider": p, "model": f"model-of-{p}", "retries": self.random.randrange(2)} for p in ("p1", "p2")]
        route: dict[str, Any] = {"name": "route", "also": ["any-*"], "steps": steps, "cooldown": 0, "timeout": "20s"}
        if self.random.random() < 0.5:
            route["hedge"] = {"after": "1s", "share": "100%"}
        if self.random.random() < 0.3:
            route["hold"] = "whole"
        self.top = {"routes": [route], "unknown_price": 2}
        self.book = Book(folder, top={**self.top, **self.limits()})
        self.world = self.book.world
        self.ledger = CheckedLedger(self.world.clock.seconds, lambda: self.wall)
        self.admission = Admission(self.ledger, self.world.clock, lambda: self.wall)
        self.lines: list[Any] = []
        self.book.telemetry._write_line = lambda each: self.lines.append(decode(line_of(each, 0.0).encode()))
        self.clients: list[Wire] = []
        self.config: Config = self.world.config
        self.use(self.config)

    def use(self, config: Config) -> None:
        self.config = config
        self.admission.use(config)
        sink = self.book._record
        self.world.site.resource = api.tree(
            config, self.world.gateway, sink, None, self.admission, pricing=self.book.accounts
        )

    def limits(self) -> dict[str, Any]:
        def some() -> dict[str, Any]:
            pick = self.random.choice
            tight = [{"tokens": pick([300, 5000, 100_000]), "per": pick(["hour", "day"])}] if pick([0, 0, 1]) else []
            found: dict[str, Any] = {"budget": [ALWAYS, *tight]}
            found |= {"requests": pick(["3/s", "20/m", "500/h"])} if pick([0, 1]) else {}
            found |= {"tokens": pick(["500/s", "3k/m", "200k/h"])} if pick([0, 1]) else {}
            return found | ({"concurrency": pick([1, 2, 5])} if pick([0, 1]) else {})

        wait = {"wait": self.random.choice(["1s", "4s"])} if self.random.random() < 0.7 else {}
        keys = [
            {"name": name, "key": key, "assume": 40, **some(), **wait, **({} if name == "carol" else {"group": "team"})}
            for name, key in CALLERS.items()
        ]
        return {"keys": keys, "groups": [{"name": "team", **some()}]}

    # What happens

    def a_request(self) -> None:
        pick = self.random.choice
        body: Any = pick([HELLO, MESSAGE])
        path = "/v1/messages" if body is MESSAGE else "/v1/chat/completions"
        body = {**body, "stream": pick([True, False]), "model": pick(["route", "route", "any-x", "gone"])}
        if pick([0, 1]):
            body["max_tokens"] = pick([1, 50, 400, 10**7])
        if pick([0] * 9 + [1]):
            body["messages"] = "wrong"
        client = self.world.open()
        client.say(request(body, path, headers={"Authorization": f"Bearer {pick([*CALLERS.values()])}"}))
        self.clients.append(client)

    def an_answer(self) -> None:
        pick = self.random.choice
        wires = [wire for door in self.world.doors.values() for wire in door.wires if not wire.disconnected]
        if not wires:
            return
        wire = pick(wires)
        asked, wire.begun = wire.take(), getattr(wire, "begun", "")
        usage = pick(
            [
                None,
                {
                    "prompt_tokens": 30,
                    "completion_tokens": 7,
                    "total_tokens": 37,
                    "cost": pick([0.5, "NaN", -1, 1e300]),
                },
            ]
        )
        if asked:
            wire.begun = "messages" if b"/messages " in asked else "chat"
            if b'"stream": true' not in asked and b'"stream":true' not in asked:
                wire.begun = ""
                text = {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "a"}]}
                wire.say(
                    pick(
                        [
                            whole(usage, **text),
                            whole(usage, **text),
                            head(500, Content_Length="2") + b"{}",
                            head(429, Content_Length="2") + b"{}",
                        ]
                    )
                )
            elif wire.begun == "messages":
                wire.say(begun({"input_tokens": 9, "output_tokens": 1}) + TEXT)
            else:
                wire.say(STREAM_HEAD + chunk(ROLE) + chunk(event({"content": "a"})))
        elif wire.begun:
            end = pick([0, 0, 1, 1, 2, 3])
            if end == 1:
                chat = chunk(event(finish_reason="stop", usage=usage)) + chunk(DONE) + LAST_CHUNK
                wire.say(ended({"output_tokens": 12}) if wire.begun == "messages" else chat)
                wire.begun = ""
            elif end == 2:
                wire.lost(ConnectionLost())
            elif end == 3:
                wire.say(b"zz\r\nno chunk\r\n")
            else:
                wire.say(TEXT if wire.begun == "messages" else chunk(event({"content": "b"})))

    def a_client_that_leaves(self) -> None:
        if self.clients:
            self.clients.pop(self.random.randrange(len(self.clients))).lost(ConnectionDone())

    def some_time(self) -> None:
        seconds = self.random.choice([0.01, 0.3, 1.1, 30])
        self.world.clock.advance(seconds)
        self.wall += seconds

    def a_jump_of_the_wall_clock(self) -> None:
        self.wall += self.random.choice([3600, -3600, 90_000])

    def a_reload(self) -> None:
        written = {"providers": [{"name": p, "base_url": f"http://{p}/v1"} for p in ("p1", "p2")], "api_key": "k" * 30}
        self.use(loader.build({**written, **self.top, **self.limits()}, {}, Path("/nonexistent")))

    def an_interrupt(self) -> None:
        if self.random.random() < 0.1:
            for exchange in [*self.world.gateway.running]:
                exchange.interrupt()

    ACTIONS = [a_request] * 8 + [an_answer] * 8 + [a_client_that_leaves] * 2 + [some_time] * 4 + [
        a_jump_of_the_wall_clock, a_reload, an_interrupt,
    ]  # fmt: skip

    def play(self, steps: int) -> None:
        for _ in range(steps):
            self.random.choice(self.ACTIONS)(self)
        while self.clients:
            self.a_client_that_leaves()
        self.world.clock.advance(30)

    def check(self) -> None:
        assert not self.admission.queues
        spent, tokens = Counter[str](), Counter[str]()
        team = {"alice", "bob"}
        for line in self.lines:
            cost = sum((part.cost or Decimal(0) for part in line.attempts), Decimal(0)) if line.attempts else line.cost
            assert cost == line.cost
            for name in (f"key {line.caller}", *(["group team"] if line.caller in team else [])):
                spent[name] += round((line.cost or 0) * PICO)
                tokens[name] += sum(line.tokens.values())
        for name, counts in self.ledger._counts.items():
            assert (counts.running, counts.tokens.reserved) == (0, 0), name
            assert [each.reserved for each in counts.budgets.values()] == [0] * len(counts.budgets)
            assert spent[name] == counts.budgets["usd per year"].spent
        counters = self.book.telemetry.counters
        for kind, counted_by_name in (("key", counters.callers), ("group", counters.groups)):
            for name, counted in counted_by_name.items():
                assert counted.cost * PICO == spent[f"{kind} {name}"]
                assert sum(counted.tokens.values()) == tokens[f"{kind} {name}"]
        assert not any(record.status == 500 for record in self.book.records)


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 12))])
def test_l1_to_l5_nothing_leaks_and_all_sums_agree(tmp_path, seed):
    model = Model(tmp_path, seed)
    model.play(250)
    model.check()
    assert len(model.lines) > 30
