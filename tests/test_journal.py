"""L9: the budgets of a process are there again after a restart, also after a kill."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread

from aigw.access import journal
from aigw.access.claim import Claim
from aigw.access.journal import Journal
from aigw.access.journaled_ledger import JournaledLedger
from aigw.access.limits import WindowCount
from aigw.access.other_journals import OtherJournals
from aigw.config import loader
from aigw.store.shared_store import SharedStore
from tests import fork_server
from tests.harness import lines_of_the_log, until
from tests.providers import answer, begin_stream, event

ROOT = Path(__file__).parent.parent
KEY = "aigw_0123456789abcdef0123456789abcdef01234567"
LATER = time.time() + 100_000


def config_of(folder: Path, **more):
    (folder / "state").mkdir(exist_ok=True)
    budget = [{"tokens": "1M", "per": "year"}, {"tokens": "9k", "per": "hour"}]
    tree = {
        "api_key": "a-key-of-the-gateway-for-tests",
        "providers": [{"name": "p", "base_url": "http://p/v1"}],
        "routes": [{"name": "r", "steps": [{"provider": "p", "model": "m"}]}],
        "keys": [{"name": "alice", "key": KEY, "budget": budget}],
        "state": "state",
        **more,
    }
    return loader.build(tree, {}, folder)


def ledger_of(config, now: float | None = None) -> JournaledLedger:
    made = JournaledLedger(time.monotonic, time.time if now is None else lambda: now)
    made.use(config)
    made.start()
    return made


def account_in(config):
    return next(caller.accounts[0] for caller in config.callers if caller.name == "alice")


def spent(ledger: JournaledLedger, config) -> list[int]:
    account = account_in(config)
    return [ledger.counts_of(account).of(budget).spent for budget in account.budgets]


def use(ledger: JournaledLedger, config, tokens: int, settled: bool = True) -> None:
    claim = Claim((account_in(config),), 100)
    assert ledger.admit(claim) is None
    if settled:
        ledger.settle(claim, tokens)


def test_l9_budgets_are_there_again_after_a_restart(tmp_path):
    config = config_of(tmp_path)
    first = ledger_of(config)
    for _ in range(5):
        use(first, config, 70)
    first.finish()
    second = ledger_of(config)
    assert spent(second, config) == [350, 350]
    use(second, config, 1)
    second.finish()
    third = ledger_of(config)
    assert spent(third, config) == [351, 351]
    third.finish()
    assert (tmp_path / "state" / "budgets.journal").stat().st_mode & 0o777 == 0o600


def test_l9_a_request_that_ran_at_the_kill_is_charged_what_it_had_reserved(tmp_path):
    config = config_of(tmp_path)
    first = ledger_of(config)
    use(first, config, 70)
    use(first, config, 0, settled=False)
    first.finish()  # all that a kill leaves: what was written
    second = ledger_of(config)
    assert spent(second, config) == [170, 170]
    second.finish()


def test_l9_a_period_that_is_over_is_not_restored(tmp_path):
    config = config_of(tmp_path)
    first = ledger_of(config)
    use(first, config, 70)
    first.finish()
    second = ledger_of(config, time.time() + 3700)
    assert spent(second, config) == [70, 0]
    second.finish()


def test_l9_a_broken_line_is_left_out(tmp_path):
    config = config_of(tmp_path)
    first = ledger_of(config)
    use(first, config, 70)
    first.finish()
    path = tmp_path / "state" / "budgets.journal"
    path.write_bytes(b"\xff\n{}\n[1]\n" + path.read_bytes() + b'["key alice","tokens ye')
    second = ledger_of(config)
    assert spent(second, config) == [70, 70]
    use(second, config, 5)
    second.finish()
    third = ledger_of(config)
    assert spent(third, config) == [75, 75]
    third.finish()


def test_l9_several_processes_have_a_file_each(tmp_path):
    config = config_of(tmp_path)
    ledgers = [ledger_of(config) for _ in range(3)]
    for number, each in enumerate(ledgers, 1):
        use(each, config, number)
    for each in ledgers:
        each.finish()
    names = {each.name for each in (tmp_path / "state").iterdir() if each.suffix == ".journal"}
    assert names == {"budgets.journal", "budgets-2.journal", "budgets-3.journal"}
    again = ledger_of(config)
    assert spent(again, config) == [6, 6], "what all of them spent"
    again.finish()


def test_l9_a_period_that_no_calendar_has_is_not_restored(tmp_path):
    config = config_of(tmp_path)
    line = ["key alice", "tokens per year", time.time() + 90_000_000_000, 999_999, 0]
    (tmp_path / "state" / "budgets.journal").write_text(json.dumps(line) + "\n")
    made = ledger_of(config)
    assert spent(made, config) == [0, 0]
    use(made, config, 5)
    assert made.usage_of(account_in(config))["limits"]["budget"][0]["resets_at"] < time.time() + 367 * 86_400
    made.finish()


def test_l9_another_folder_takes_nothing_back_that_was_spent(tmp_path):
    (tmp_path / "other").mkdir()
    made = ledger_of(config_of(tmp_path))
    use(made, config_of(tmp_path), 70)
    other = config_of(tmp_path, state="other")
    made.use(other)
    use(made, other, 5)
    made.use(config_of(tmp_path))
    assert spent(made, other) == [75, 75]
    made.finish()


def test_l9_a_folder_that_cannot_be_synced_leaks_no_file(tmp_path, monkeypatch):
    sync = os.fsync

    def fails(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(22, "Invalid argument")
        sync(fd)

    monkeypatch.setattr(journal, "AGAIN_SECONDS", 0.001)
    monkeypatch.setattr(os, "fsync", fails)
    before = len(os.listdir("/proc/self/fd"))
    config = config_of(tmp_path)
    with lines_of_the_log() as lines:
        made = ledger_of(config)
        for number in range(5):
            use(made, config, number)
        made.finish()
    assert not lines
    assert len(os.listdir("/proc/self/fd")) == before
    again = ledger_of(config)
    assert spent(again, config) == [10, 10]
    again.finish()


@pytest.mark.parametrize("why", ["too many", "no locks"])
def test_l9_a_process_that_can_have_no_file_of_its_own_writes_none_and_says_what_to_do(tmp_path, monkeypatch, why):
    """Two processes that write one file lose what the other one wrote."""
    config = config_of(tmp_path)
    first = ledger_of(config)
    use(first, config, 3)
    if why == "too many":
        monkeypatch.setattr(journal, "MOST_PROCESSES", 1)
    else:
        monkeypatch.setattr(journal.fcntl, "flock", lambda *_: fails_with(errno.ENOLCK))
    with lines_of_the_log() as lines:
        second = ledger_of(config)
    (line,) = lines
    assert ("1 other processes use it" if why == "too many" else "cannot be locked (No locks available)") in line[
        "message"
    ]
    assert line["message"].endswith("Give this process another folder in `state`")
    other = os.open("/dev/null", os.O_RDONLY)  # gets the number of the lock that was given up
    use(second, config, 5)
    assert spent(second, config)[0] >= 5
    for each in (second, first):
        each.finish()
    os.close(other)
    monkeypatch.undo()
    assert {each.name for each in (tmp_path / "state").iterdir() if each.suffix == ".journal"} == {"budgets.journal"}
    again = ledger_of(config)
    assert spent(again, config) == [3, 3]
    again.finish()


def fails_with(number: int) -> None:
    raise OSError(number, os.strerror(number))


def test_l9_the_file_is_made_anew_when_it_is_large(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "SMALL", 2000)
    made = Journal(str(tmp_path))
    made.load()
    made.start()
    count = WindowCount()
    count.ends = LATER
    largest = 0
    for number in range(400):
        count.spent = number
        made.note("key alice", "tokens year", count)
        deadline = time.monotonic() + 5
        while made._changed and time.monotonic() < deadline:
            time.sleep(0.0002)
        with contextlib.suppress(FileNotFoundError):
            largest = max(largest, (tmp_path / "budgets.journal").stat().st_size)
    made.finish()
    assert 500 < largest < 2200
    again = Journal(str(tmp_path))
    assert again.load()["key alice", "tokens year"][1] == 399
    os.close(again._lock)


def test_l9_a_disk_that_is_full_or_missing_is_one_line_of_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "AGAIN_SECONDS", 0.001)
    made = Journal(str(tmp_path / "later"))
    with lines_of_the_log() as lines:
        made.load()
        made.start()
        count = WindowCount()
        count.ends, count.spent = LATER, 5
        made.note("key alice", "tokens year", count)
        deadline = time.monotonic() + 5
        while not lines and time.monotonic() < deadline:
            time.sleep(0.001)
        (tmp_path / "later").mkdir()
        count.spent = 6
        made.note("key alice", "tokens year", count)
        while not (tmp_path / "later" / "budgets.journal").exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        made.finish()
    assert len(lines) == 1
    assert "cannot keep the budgets" in lines[0]["message"]
    again = Journal(str(tmp_path / "later"))
    assert again.load()["key alice", "tokens year"][1] == 6
    os.close(again._lock)


def test_l9_notes_of_many_turns_are_all_written(tmp_path):
    """The thread takes states while more of them come."""
    made = Journal(str(tmp_path))
    made.load()
    made.start()
    for number in range(20_000):
        count = WindowCount()
        count.ends, count.spent = LATER, number
        made.note(f"key {number % 50}", "tokens year", count)
    made.finish()
    again = Journal(str(tmp_path))
    assert {state[1] for state in again.load().values()} == set(range(19_950, 20_000))
    os.close(again._lock)


def test_l9_without_budgets_or_a_folder_nothing_is_opened(tmp_path):
    for config in (
        config_of(tmp_path, keys=[{"name": "alice", "key": KEY, "requests": "5/m"}]),
        config_of(tmp_path, state=None),
    ):
        made = ledger_of(config)
        assert made.note is None
        made.finish()
    assert list((tmp_path / "state").iterdir()) == []
    assert not [each for each in threading.enumerate() if each.name == "budgets"]


def test_l9_systemd_names_the_folder(tmp_path):
    tree = {
        "api_key": "a-key-of-the-gateway-for-tests",
        "providers": [{"name": "p", "base_url": "http://p/v1"}],
        "routes": [{"name": "r", "steps": [{"provider": "p", "model": "m"}]}],
    }
    assert loader.build(tree, {"STATE_DIRECTORY": "/var/lib/ai-gateway"}, tmp_path).state == "/var/lib/ai-gateway"
    assert loader.build({**tree, "state": "here"}, {"STATE_DIRECTORY": "/x"}, tmp_path).state == str(tmp_path / "here")
    assert loader.build(tree, {}, tmp_path).state is None


# Several processes


def followed(ledger: JournaledLedger, config, wanted: list[int]) -> None:
    """Each count is the sum within a moment."""
    deadline = time.monotonic() + 5
    account = account_in(config)
    while True:
        ledger.follow()
        counts = [ledger.counts_of(account).of(budget) for budget in account.budgets]
        found = [count.spent + count.reserved for count in counts]
        if found == wanted:
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.01)


def test_l17_processes_with_one_folder_count_together(tmp_path):
    config = config_of(tmp_path)
    first = ledger_of(config)
    use(first, config, 70)
    running = Claim((account_in(config),), 100)
    first.admit(running)
    deadline = time.monotonic() + 5
    while first._journal._changed and time.monotonic() < deadline:
        time.sleep(0.001)
    second = ledger_of(config)
    followed(second, config, [170, 170])
    use(second, config, 5)
    first.settle(running, 30)
    followed(first, config, [105, 105])
    followed(second, config, [105, 105])
    first.finish()  # it has drained
    third = ledger_of(config)  # has the file of the first one
    assert spent(third, config) == [105, 105]
    use(third, config, 1)
    followed(second, config, [106, 106])
    for _ in range(3):
        second.follow()
        third.follow()
    for each in (second, third):
        assert spent(each, config) == [106, 106]
        each.finish()
    for _ in range(3):
        again = ledger_of(config)
        assert spent(again, config) == [106, 106]
        again.finish()


def test_l17_a_budget_that_all_of_them_have_spent_is_refused_by_each(tmp_path):
    config = config_of(tmp_path)
    first, second = ledger_of(config), ledger_of(config)
    use(first, config, 8000)
    followed(second, config, [8000, 8000])
    reached = second.admit(Claim((account_in(config),), 1500))
    assert (reached.kind, reached.budget.per, reached.used) == ("budget", "hour", 8000)
    for each in (first, second):
        each.finish()


def test_l17_what_others_spent_in_a_period_that_is_over_is_not_counted_in_the_next_one(tmp_path):
    config, now = config_of(tmp_path), [time.time()]
    first = ledger_of(config)
    use(first, config, 70)
    first.finish()
    os.rename(tmp_path / "state" / "budgets.journal", tmp_path / "state" / "budgets-2.journal")
    second = JournaledLedger(lambda: now[0], lambda: now[0])
    second.use(config)
    second.start()
    assert spent(second, config) == [70, 70]
    use(second, config, 5)
    now[0] += 3600
    use(second, config, 3)
    assert spent(second, config) == [78, 3]
    second.follow()
    second.finish()
    lines = [json.loads(line) for line in (tmp_path / "state" / "budgets.journal").read_text().splitlines()]
    assert {line[1]: line[3] for line in lines} == {"tokens per year": 8, "tokens per hour": 3}, "its own alone"


def test_l17_news_of_a_period_that_ended_before_they_were_taken_do_not_count_in_the_next_one(tmp_path):
    """The thread reads, and the event loop adds what was read up to half a second later."""
    config, now = config_of(tmp_path), [time.time()]
    second = JournaledLedger(lambda: now[0], lambda: now[0])
    second.use(config)
    second.start()
    use(second, config, 5)
    first = ledger_of(config)
    use(first, config, 70)
    deadline = time.monotonic() + 5
    while not second._journal._news and time.monotonic() < deadline:
        time.sleep(0.01)
    now[0] += 3600
    use(second, config, 3)
    second.follow()
    assert spent(second, config) == [78, 3]
    for each in (first, second):
        each.finish()


def test_l17_a_file_that_is_removed_is_not_counted_any_more(tmp_path):
    config = config_of(tmp_path)
    first = ledger_of(config)
    use(first, config, 70)
    first.finish()
    os.rename(tmp_path / "state" / "budgets.journal", tmp_path / "state" / "budgets-2.journal")
    second = ledger_of(config)
    use(second, config, 5)
    assert spent(second, config) == [75, 75]
    os.unlink(tmp_path / "state" / "budgets-2.journal")
    followed(second, config, [5, 5])
    second.finish()


def test_l17_another_folder_has_other_processes(tmp_path):
    (tmp_path / "other").mkdir()
    config, other = config_of(tmp_path), config_of(tmp_path, state="other")
    for each, tokens in ((config, 70), (other, 7)):
        made = ledger_of(each)
        use(made, each, tokens)
        made.finish()
        os.rename(Path(each.state) / "budgets.journal", Path(each.state) / "budgets-2.journal")
    made = ledger_of(config)
    use(made, config, 5)
    made.use(other)
    assert spent(made, config) == [12, 12]
    made.use(config)
    assert spent(made, config) == [75, 75]
    made.finish()


def test_l17_a_file_that_is_being_written_is_read_as_far_as_it_is_whole(tmp_path):
    path = tmp_path / "budgets.journal"
    line = json.dumps(["key alice", "tokens", LATER, 5, 1]) + "\n"
    others = OtherJournals(str(tmp_path), "budgets-2.journal")
    key = ("key alice", "tokens")
    assert not others.read()
    path.write_text(line + line[:10])
    assert others.read()
    assert others.sums(time.time()) == {key: (LATER, 6)}
    assert not others.read()
    with path.open("a") as file:
        file.write(line.replace("5, 1", "7, 1")[10:])
    assert others.read()
    assert others.sums(time.time()) == {key: (LATER, 8)}
    (tmp_path / "new").write_text(line.replace("5, 1", "9, 0"))
    os.rename(tmp_path / "new", path)
    assert others.read()
    assert others.sums(time.time()) == {key: (LATER, 9)}
    assert others.sums(LATER + 1) == {}


def test_l17_a_loop_follows_while_there_is_a_journal_and_no_longer(tmp_path):
    clock = Clock()
    store = SharedStore(clock, time.monotonic, time.time)
    store.use(config_of(tmp_path, state=None))
    store.start()
    assert not clock.getDelayedCalls()
    config = config_of(tmp_path)
    store.use(config)
    other = ledger_of(config)
    use(other, config, 70)
    deadline = time.monotonic() + 5
    while store.usage_of(account_in(config))["limits"]["budget"][0]["spent"] != 70:
        assert time.monotonic() < deadline
        clock.advance(0.5)
        time.sleep(0.01)
    other.finish()
    store.finish()
    assert not clock.getDelayedCalls()


@pytest.fixture(scope="module")
def forks():
    fork_server.begin()


def start(folder: Path) -> fork_server.Forked:
    log_file = folder / f"{time.monotonic_ns()}.log"
    with log_file.open("wb") as file:
        words = ["aigw", "-c", "config.yaml"]
        daemon = fork_server.Forked(words, folder, dict(os.environ), (1, file.fileno()))
    deadline = time.monotonic() + 60
    while b"The gateway has started" not in log_file.read_bytes():
        assert time.monotonic() < deadline, log_file.read_text()
        time.sleep(0.05)
    return daemon


def curl(port: int, path: str, body: dict | None = None, seconds: float = 5) -> bytes:
    command = [
        "curl",
        "-sN",
        "--max-time",
        str(seconds),
        f"http://127.0.0.1:{port}{path}",
        "-H",
        f"Authorization: Bearer {KEY}",
    ]
    if body is not None:
        command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    return subprocess.run(command, capture_output=True, check=False).stdout


@ensureDeferred
async def test_l9_kill_9_in_mid_stream_leaves_the_budget_within_one_request(forks, world, tmp_path):
    (world.folder / "state").mkdir()
    provider = world.provider(*[answer()] * 3, begin_stream(event({"content": "a"})))
    port = world.gateway(provider).port + 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tree = {
        "api_key": "a-key-of-the-gateway-for-tests",
        "listen": [f"tcp:{port}:interface=127.0.0.1"],
        "providers": [{"name": "p", "base_url": world.base_url(provider)}],
        "routes": [{"name": "r", "steps": [{"provider": "p", "model": "m"}]}],
        "keys": [{"name": "alice", "key": KEY, "budget": [{"tokens": "1M", "per": "year"}], "assume": 50}],
        "state": "state",
    }
    (world.folder / "config.yaml").write_text(json.dumps(tree))
    (world.folder / "config.yaml").chmod(0o600)
    daemon = await deferToThread(start, world.folder)
    try:
        hello = {"model": "r", "messages": [{"role": "user", "content": "hi"}]}
        for _ in range(3):
            assert b"choices" in await deferToThread(curl, port, "/v1/chat/completions", hello)
        streaming = deferToThread(curl, port, "/v1/chat/completions", {**hello, "stream": True})
        await until(lambda: len(provider.requests) == 4)
        await deferLater(reactor, 0.1)
        os.kill(daemon.pid, signal.SIGKILL)
        await deferToThread(daemon.wait)
        await streaming
        daemon = await deferToThread(start, world.folder)
        usage = json.loads(await deferToThread(curl, port, "/v1/usage"))
        (budget,) = usage["data"][0]["limits"]["budget"]
        assert 21 < budget["spent"] <= 21 + 50 + 40  # three of 7 tokens, and what the fourth one had reserved
        assert budget["reserved"] == 0
    finally:
        daemon.kill()
        await deferToThread(daemon.wait)


@ensureDeferred
async def test_l17_a_process_that_starts_while_another_one_drains_has_its_budgets(forks, world, tmp_path):
    """As an upgrade does it: the first one is stopped in a stream, and killed or not; others start meanwhile."""
    (world.folder / "state").mkdir()
    provider = world.provider(answer(), begin_stream(event({"content": "a"})), answer())
    ports, daemons = [], []
    hello = {"model": "r", "messages": [{"role": "user", "content": "hi"}]}

    async def begin() -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
        tree = {
            "api_key": "a-key-of-the-gateway-for-tests",
            "listen": [f"tcp:{ports[-1]}:interface=127.0.0.1"],
            "providers": [{"name": "p", "base_url": world.base_url(provider)}],
            "routes": [{"name": "r", "steps": [{"provider": "p", "model": "m"}]}],
            "keys": [{"name": "alice", "key": KEY, "budget": [{"tokens": 1000, "per": "year"}], "assume": 500}],
            "state": "state",
        }
        (world.folder / "config.yaml").write_text(json.dumps(tree))
        (world.folder / "config.yaml").chmod(0o600)
        daemons.append(await deferToThread(start, world.folder))
        return len(ports) - 1

    async def used(number: int) -> tuple[int, int]:
        """What is spent and reserved in all."""
        usage = json.loads(await deferToThread(curl, ports[number], "/v1/usage"))
        (budget,) = usage["data"][0]["limits"]["budget"]
        return budget["spent"], budget["reserved"]

    async def until_used(number: int, total: int) -> None:
        end = time.monotonic() + 5
        while sum(found := await used(number)) != total:
            assert time.monotonic() < end, found
            await deferLater(reactor, 0.05)

    try:
        first = await begin()
        assert b"choices" in await deferToThread(curl, ports[first], "/v1/chat/completions", hello)
        streaming = deferToThread(curl, ports[first], "/v1/chat/completions", {**hello, "stream": True}, 30)
        await until(lambda: len(provider.requests) == 2)
        reserved = (await used(first))[1]
        assert reserved > 500
        daemons[first].terminate()
        second = await begin()
        assert await used(second) == (7 + reserved, 0), "at its first request"
        refused = await deferToThread(curl, ports[second], "/v1/chat/completions", hello)
        assert b"insufficient_quota" in refused, "507 of 1000 are gone, and it wants more than 500"
        assert daemons[first].poll() is None, "it drains"
        provider.connections[-1].fin()
        await streaming
        await deferToThread(daemons[first].wait)
        end = time.monotonic() + 5
        while sum(charged := await used(second)) == 7 + reserved:
            assert time.monotonic() < end
            await deferLater(reactor, 0.05)
        assert 7 < charged[0] < 7 + reserved, "what the stream used, when it was over"
        third = await begin()
        assert await used(third) == charged
        assert b"choices" in await deferToThread(curl, ports[third], "/v1/chat/completions", hello)
        await until_used(third, charged[0] + 7)
        await until_used(second, charged[0] + 7)
        for number in (second, third):
            daemons[number].kill()
            await deferToThread(daemons[number].wait)
        last = await begin()
        assert await used(last) == (charged[0] + 7, 0)
    finally:
        for daemon in daemons:
            daemon.kill()
            await deferToThread(daemon.wait)
