"""L10 to L16: the scripts in a real Redis, at times that the test gives (pytest -m valkey; Debian: redis-server)."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from aigw.settings.callers import Account, Budgeted
from aigw.settings.limit_values import Rate
from aigw.store import script_parts, scripts
from aigw.store.script_parts import AGAIN, FIRST, ONCE
from aigw.store.stored_accounts import Described, numbers_in

pytestmark = [pytest.mark.valkey, pytest.mark.skipif(not shutil.which("redis-server"), reason="needs redis-server")]
WALL = time.time()
NAMES = (f"key {number}" for number in itertools.count())


class Server:
    """A Redis on a socket of its own; ``call`` sends one command, and gives its answer, or raises its error."""

    def __init__(self, *more: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="aigw-redis"))
        path = self.folder / "s"
        own = ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(self.folder), *more]
        self.process = subprocess.Popen(["redis-server", *own], stdout=subprocess.DEVNULL)
        end = time.monotonic() + 10
        self.socket = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.01)  # a poll of another process, within a bound
        self.file = self.socket.makefile("rb")

    def call(self, *words: str):
        data = [word.encode() for word in words]
        self.socket.sendall(b"*%d\r\n" % len(data) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in data))
        return self._answer()

    def _answer(self):
        line = self.file.readline().decode().rstrip("\r\n")
        kind, rest = line[0], line[1:]
        if kind == "-":
            raise RuntimeError(rest)
        if kind == "$":
            return None if rest == "-1" else self.file.read(int(rest) + 2)[:-2].decode()
        if kind == "*":
            return [self._answer() for _ in range(int(rest))]
        return int(rest) if kind == ":" else rest

    def close(self) -> None:
        self.file.close()
        self.socket.close()
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def server():
    running = Server()
    yield running
    running.close()


class Store:
    """Runs the scripts for one account at ``now``, in seconds."""

    def __init__(self, server, **limits) -> None:
        self.server, self.now, self.limits = server, 1_000_000.0, limits
        self.account = Account(name=next(NAMES), **limits)
        self.described = Described(lambda: WALL)

    def run(self, script: str, before=(), after=(), counted: bool = True) -> str:
        whole, part = divmod(round(self.now * 1e6), 1_000_000)
        script = script.replace("local time = redis.call('TIME')", f"local time = {{{whole}, {part}}}")
        keys, described = self.described.of((self.account,))
        described = described if counted else described[1:]
        return self.server.call("EVAL", script, str(len(keys)), *keys, *before, *described, *after)

    def admit(self, lease: str, tokens: int = 0, money: int = 0) -> str:
        numbers = numbers_in(self.run(scripts.ADMIT, (lease, str(tokens), str(money), "14000")))
        return ["admitted", "requests", "tokens", "concurrency", "budget"][round(numbers[0])]

    def settle(self, lease: str, tokens: int = 0, money: int = 0, taken: int = 0, how: str = FIRST) -> None:
        self.run(scripts.SETTLE, (lease, str(tokens), str(money), str(taken), how))

    def renew(self, *leases: str) -> None:
        self.run(scripts.RENEW, ("14000",), leases)

    def usage(self) -> dict:
        return self.described.shown(self.account, numbers_in(self.run(scripts.USAGE, counted=False)))

    def sums(self) -> tuple:
        """Tokens that were used; spent and reserved of the window, and of the budget."""
        shown = self.usage()
        window = shown["limits"].get("tokens", {"spent": 0, "reserved": 0})
        budget = shown["limits"].get("budget", [{"spent": 0, "reserved": 0}])[0]
        return shown["tokens"], window["spent"], window["reserved"], budget["spent"], budget["reserved"]


DAY = (Budgeted("tokens per day", 1000, False, "day", "UTC"),)
WINDOW = Rate(1000, 600.0)


def test_l14_a_lease_that_lapses_is_charged_what_it_had_reserved_and_its_slot_is_free(server):
    store = Store(server, tokens=WINDOW, budgets=DAY, concurrency=1)
    assert store.admit("a", 100) == "admitted"
    assert store.admit("b", 100) == "concurrency"
    store.now += 13.9
    assert store.admit("b", 100) == "concurrency"
    assert store.sums() == (0, 0, 100, 0, 100)
    store.now += 0.2
    assert store.sums() == (100, 100, 0, 100, 0)
    assert store.admit("b", 100) == "admitted"
    assert store.sums() == (100, 100, 100, 100, 100)
    assert (store.usage()["requests"], store.usage()["running"]) == (1, 1)


def test_l14_a_lease_is_charged_however_long_nobody_looks(server):
    store = Store(server, budgets=DAY)
    store.admit("a", 100)
    keys = store.described.of((store.account,))[0]
    assert all(server.call("PTTL", key) > 3600_000 for key in keys[:2])
    store.now += 7200
    assert store.sums() == (100, 0, 0, 100, 0)


def test_l14_a_gateway_that_was_only_away_is_charged_once(server):
    store = Store(server, tokens=WINDOW, budgets=DAY, concurrency=5)
    for lease in "abc":
        store.admit(lease, 100)
    store.now += 20
    assert store.sums() == (300, 300, 0, 300, 0)
    store.renew("a|100|0", "b|100|0")
    assert store.sums() == (100, 100, 200, 100, 200)
    assert store.usage()["running"] == 2
    store.settle("a|100|0", 7)
    store.settle("c|100|0", 8)
    assert store.sums() == (15, 15, 100, 15, 100)
    store.now += 20
    assert store.sums() == (115, 115, 0, 115, 0)
    store.settle("b|100|0", 9, how=AGAIN)
    assert store.sums() == (24, 24, 0, 24, 0)
    assert store.usage()["running"] == 0


def test_l14_what_lapsed_in_a_window_or_period_that_is_over_is_not_taken_out_of_the_next_one(server):
    store = Store(server, tokens=Rate(1000, 60.0), budgets=DAY)
    store.admit("a", 100)
    store.now += 20
    assert store.sums() == (100, 100, 0, 100, 0)
    store.now += 100
    store.described = Described(lambda: WALL + 86400)
    store.admit("b", 50)
    store.settle("a|100|0", 7)
    assert store.sums() == (7, 7, 50, 7, 50)


@pytest.mark.parametrize("unit", ["tokens", "usd"])
def test_l14_money_is_charged_too(server, unit):
    store = Store(server, budgets=(Budgeted(f"{unit} per day", 10**15, unit == "usd", "day", "UTC"),))
    store.admit("a", 100, 5_000_000_000_000)
    store.now += 20
    shown = store.usage()
    assert shown["cost_usd"] == 5.0
    assert shown["limits"]["budget"][0]["spent"] == (5.0 if unit == "usd" else 100)
    store.settle("a|100|5000000000000", 3, 1_000_000_000_000)
    shown = store.usage()
    assert (shown["cost_usd"], shown["tokens"]) == (1.0, 3)
    assert shown["limits"]["budget"][0]["spent"] == (1.0 if unit == "usd" else 3)


def test_l15_a_settlement_whose_answer_was_lost_is_charged_once(server):
    store = Store(server, tokens=WINDOW, budgets=DAY, concurrency=5)
    store.admit("a", 100)
    store.settle("a|100|0", 7)
    for _ in range(3):
        store.settle("a|100|0", 7, how=AGAIN)
    assert store.sums() == (7, 7, 0, 7, 0)
    for _ in range(3):
        store.settle("used1|0|0", 5, taken=2, how=ONCE)
    assert store.sums() == (12, 12, 0, 12, 0)
    assert store.usage()["requests"] == 3


def test_l15_a_settlement_that_did_not_run_is_charged_by_the_next_one(server):
    store = Store(server, tokens=WINDOW)
    store.admit("a", 100)
    store.settle("a|100|0", 7, how=AGAIN)
    assert store.sums() == (7, 7, 0, 0, 0)


def test_l15_scripts_that_run_after_they_were_given_up_change_nothing(server):
    store = Store(server, tokens=WINDOW, budgets=DAY, concurrency=2)
    store.settle("a|100|0", 0, how=AGAIN)  # it was admitted locally meanwhile, and charged
    store.settle("used1|0|0", 9, taken=1, how=ONCE)
    store.admit("a", 100)
    assert store.usage()["running"] == 1
    store.now += 15
    assert store.sums() == (9, 9, 0, 9, 0)
    assert store.usage()["running"] == 0
    store.admit("b", 100)
    store.settle("b|100|0", 7, how=AGAIN)
    store.settle("b|100|0", 7)
    store.renew("b|100|0")
    assert store.sums() == (16, 16, 0, 16, 0)
    assert store.usage()["running"] == 0


def test_l15_a_store_that_was_emptied_is_charged_once_too(server):
    store = Store(server, tokens=WINDOW)
    store.settle("a|100|0", 7, how=ONCE)
    store.settle("a|100|0", 7, how=ONCE)
    store.settle("b|100|0", 7)  # it was emptied while it could be used
    assert store.sums() == (14, 14, 0, 0, 0)


def test_l14_what_is_remembered_ends_within_an_hour_of_the_first_one(server):
    store = Store(server, tokens=WINDOW)
    over = store.described.of((store.account,))[0][2]
    for number in range(3):
        store.admit(f"a{number}", 1)
        store.now += 20
        store.usage()
    assert server.call("HLEN", over) == 3
    assert 0 < server.call("PTTL", over) <= 3600_000
    server.call("PEXPIRE", over, "5000")
    store.admit("b", 1)
    store.now += 20
    store.usage()
    assert server.call("PTTL", over) <= 5000


def test_l14_no_script_frees_more_than_1000_leases(server):
    store = Store(server, budgets=DAY)
    for number in range(1500):
        store.admit(f"a{number}", 0)
    store.now += 20
    assert store.usage()["running"] == 500
    assert store.usage()["running"] == 0


def test_l16_a_clock_that_is_set_back_an_hour_loses_no_window(server):
    store = Store(server, tokens=Rate(1000, 60.0), requests=Rate(10, 60.0), concurrency=1)
    for number in range(10):
        assert store.admit(f"a{number}", 90) == "admitted"
        store.settle(f"a{number}|90|0", 90)
    store.now -= 3600
    assert store.usage()["limits"]["tokens"]["spent"] == 900
    assert store.admit("b", 200) == "tokens"
    assert store.admit("c", 50) == "requests"
    store.now += 6.1
    assert store.admit("c", 50) == "admitted", "a request has drained, not an hour later"
    store.now += 6.1
    assert store.admit("d", 0) == "concurrency"
    store.now += 14
    assert store.admit("d", 50) == "admitted", "the lease has lapsed"
    assert store.usage()["limits"]["tokens"]["spent"] == 950
    store.now += 40
    assert store.admit("e", 900) == "admitted", "the window has its length, and no more"


def test_l16_a_lease_of_the_time_before_lapses_in_time(server):
    store = Store(server, concurrency=1, requests=Rate(100, 1.0))
    store.admit("a")
    store.now -= 3600
    assert store.admit("b") == "concurrency"
    store.now += 14.1
    assert store.admit("b") == "admitted"


def test_l16_a_shorter_window_keeps_what_is_spent(server):
    store = Store(server, tokens=Rate(1000, 3600.0))
    store.settle("a|0|0", 900)
    store.account = Account(name=store.account.name, tokens=Rate(1000, 60.0))
    assert store.admit("b", 200) == "tokens"


def test_l10_all_keys_of_a_script_are_in_one_slot_of_a_cluster():
    running = Server("--cluster-enabled", "yes")
    try:
        running.call("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        end = time.monotonic() + 10
        while "cluster_state:ok" not in running.call("CLUSTER", "INFO"):
            assert time.monotonic() < end
            time.sleep(0.05)  # a poll of another process, within a bound
        store = Store(running, tokens=WINDOW, budgets=DAY, concurrency=1)
        for name in ("key a", "group a b", "key {x}y", "key }{", "key é{}"):
            store.account = Account(name=name, **store.limits)
            assert store.admit("a", 10) == "admitted"
            store.renew("a|10|0")
            store.now += 20
            store.settle("a|10|0", 5)
            assert store.usage()["tokens"] == 5
        keys = store.described.of((store.account,))[0]
        assert running.call("EVAL", scripts.REFUSE, "1", keys[0]) == "0"
        assert running.call("EVAL", scripts.PROBE, "2", "aigw:{limits}:probe", "aigw:{limits}:epoch")
        slots = {running.call("CLUSTER", "KEYSLOT", key) for key in running.call("KEYS", "*")}
        assert len(slots) == 1
    finally:
        running.close()


def test_l11_a_probe_uses_every_command_of_the_scripts(server):
    used = set(re.findall(r"redis\.call\('(\w+)'", "".join([script_parts.COMMON, *map(str, vars(scripts).values())])))
    probed = set(re.findall(r"redis\.call\('(\w+)'", scripts.PROBE))
    assert used - probed == set()
    first = server.call("EVAL", scripts.PROBE, "2", "aigw:{limits}:probe", "aigw:{limits}:epoch")
    assert server.call("EVAL", scripts.PROBE, "2", "aigw:{limits}:probe", "aigw:{limits}:epoch") == first
    server.call("FLUSHALL")
    assert server.call("EVAL", scripts.PROBE, "2", "aigw:{limits}:probe", "aigw:{limits}:epoch") != first
    assert os.path.isdir(server.folder)


def test_l5_a_refusal_counts_for_the_key_and_for_its_group(server):
    """As it does without a store."""
    key, group = Store(server), Store(server, requests=Rate(1, 60.0))
    both = key.account, group.account
    for lease in ("a", "b"):
        keys, described = key.described.of(both)
        server.call("EVAL", scripts.ADMIT, str(len(keys)), *keys, lease, "0", "0", "14000", *described)
    used = []
    for account in both:
        keys, described = key.described.of((account,))
        answer = server.call("EVAL", scripts.USAGE, str(len(keys)), *keys, *described[1:])
        used.append(key.described.shown(account, numbers_in(answer)))
    assert [(each["requests"], each["refused"], each["running"]) for each in used] == [(1, 1, 1), (1, 1, 1)]
