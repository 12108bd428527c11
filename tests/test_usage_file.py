"""E7 and E8: the file with one line for each request, and the report that reads it."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import resource
import subprocess
import sys
import threading
import time
from decimal import Decimal
from pathlib import Path

import pytest

from aigw.accounting import usage_file
from aigw.accounting.line import decode, moment
from aigw.accounting.report import ReportError, as_csv, as_table, columns, files_of, print_report, read, since
from aigw.accounting.usage_file import UsageFile
from tests import fork_server
from tests.harness import lines_of_the_log

ROOT = Path(__file__).parent.parent
NOON = 1_800_014_400.0  # 2027-01-15, 12:00 UTC
DAY = 86_400
LINE = '{"time":"2027-01-15T12:00:00.000Z","caller":"default"}\n'


class Wall:
    now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall():
    return Wall()


@pytest.fixture
def file(tmp_path, wall):
    made = UsageFile(wall)
    made.use(str(tmp_path / "usage.jsonl"), True)
    made.start()
    yield made
    made.finish()


def written(file: UsageFile) -> None:
    """Waits until the lines so far are written."""
    done = threading.Event()
    file._writer.call(done.set)
    assert done.wait(5)


def put(file: UsageFile, *lines: str) -> None:
    for line in lines or (LINE,):
        file.write(line)
    written(file)


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_e7_each_day_has_a_file_of_its_own(file, wall, tmp_path):
    put(file, "1\n")
    wall.now += DAY
    put(file, "2\n", "3\n")
    wall.now += 3 * DAY
    put(file, "4\n")
    assert names(tmp_path) == ["usage.jsonl", "usage.jsonl.2027-01-15", "usage.jsonl.2027-01-16"]
    assert (tmp_path / "usage.jsonl.2027-01-16").read_text() == "2\n3\n"
    assert (tmp_path / "usage.jsonl").read_text() == "4\n"
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in names(tmp_path)} == {0o600}


def test_e7_the_file_of_an_earlier_run_is_renamed_by_its_day(file, wall, tmp_path):
    path = tmp_path / "usage.jsonl"
    path.write_text("old\n")
    os.utime(path, (NOON - 2 * DAY, NOON - 2 * DAY))
    put(file)
    assert (tmp_path / "usage.jsonl.2027-01-13").read_text() == "old\n"


def test_e7_no_file_is_overwritten(file, wall, tmp_path):
    (tmp_path / "usage.jsonl.2027-01-15").write_text("earlier\n")
    put(file, "1\n")
    wall.now += DAY
    put(file, "2\n")
    assert (tmp_path / "usage.jsonl.2027-01-15").read_text() == "earlier\n"
    assert (tmp_path / "usage.jsonl.2027-01-15.1").read_text() == "1\n"


def test_e7_a_clock_that_is_set_back_begins_no_new_day(file, wall, tmp_path):
    put(file, "1\n")
    wall.now -= 2 * DAY
    put(file, "2\n")
    wall.now += 2 * DAY
    put(file, "3\n")
    assert names(tmp_path) == ["usage.jsonl"]


def test_e7_without_rotate_there_is_one_file(file, wall, tmp_path):
    file.use(str(tmp_path / "usage.jsonl"), False)
    put(file, "1\n")
    wall.now += DAY
    put(file, "2\n")
    assert names(tmp_path) == ["usage.jsonl"]


def test_e7_a_file_that_was_moved_is_opened_anew(file, tmp_path):
    put(file, "1\n")
    (tmp_path / "usage.jsonl").rename(tmp_path / "usage.jsonl.1")
    put(file, "2\n")
    assert ((tmp_path / "usage.jsonl.1").read_text(), (tmp_path / "usage.jsonl").read_text()) == ("1\n", "2\n")


def test_e7_a_reload_changes_the_file(file, tmp_path):
    put(file, "1\n")
    file.use(str(tmp_path / "other.jsonl"), False)
    put(file, "2\n")
    file.leave()
    written(file)
    assert file._fd == -1
    put(file, "3\n")
    assert (tmp_path / "other.jsonl").read_text() == "2\n3\n"


def test_e7_half_a_line_of_a_process_that_was_killed_stays_alone(file, tmp_path):
    (tmp_path / "usage.jsonl").write_text('{"time": "20')
    os.utime(tmp_path / "usage.jsonl", (NOON, NOON))
    put(file)
    assert (tmp_path / "usage.jsonl").read_text() == '{"time": "20\n' + LINE


def test_e7_two_processes_rename_a_file_once(tmp_path, wall):
    """Each opens what the other has made, and no line is lost."""
    files = [UsageFile(wall) for _ in range(2)]
    for each in files:
        each.use(str(tmp_path / "usage.jsonl"), True)
        each.start()
    for _ in range(4):
        for number, each in enumerate(files):
            put(each, f"{number}\n")
            os.utime(tmp_path / "usage.jsonl", (wall.now, wall.now))
        wall.now += DAY
    found = [(tmp_path / name).read_text() for name in names(tmp_path)]
    assert len(found) == 4
    assert sorted("".join(found).split()) == ["0"] * 4 + ["1"] * 4
    for each in files:
        each.finish()


def test_e7_a_full_disk_is_one_line_of_the_log_and_no_line_is_lost(file, tmp_path, monkeypatch):
    full, tried = threading.Event(), threading.Semaphore(0)
    full.set()
    real = os.write

    def write(fd: int, data: bytes) -> int:
        if full.is_set() and fd == file._fd:
            tried.release()
            if data.startswith(b"1"):
                return real(fd, data[:3])  # the disk has room for half a line
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(usage_file.os, "write", write)
    monkeypatch.setattr(usage_file, "AGAIN_SECONDS", 0.001)
    with lines_of_the_log() as lines:
        file.write("1234567\n")
        file.write("abc\n")
        for _ in range(5):
            assert tried.acquire(timeout=5)
        full.clear()
        written(file)
    assert (tmp_path / "usage.jsonl").read_text() == "1234567\nabc\n"
    (line,) = lines
    assert line["level"] == "ERROR"
    assert "cannot write the file of usage" in line["message"]
    assert "No space left on device" in line["message"]
    assert file.lost == 0


def test_e7_what_does_not_fit_in_memory_is_counted_and_reported(tmp_path, wall, monkeypatch):
    monkeypatch.setattr(usage_file, "AGAIN_SECONDS", 0.001)
    file = UsageFile(wall)
    folder = tmp_path / "later"
    file.use(str(folder / "usage.jsonl"), True)
    with lines_of_the_log() as lines:
        file.start()
        for number in range(20):
            file.write(f'{{"time": "2027", "request_id": "{number}", "x": "{"x" * 1_000_000}"}}\n')
        deadline = time.monotonic() + 10
        while not lines and time.monotonic() < deadline:
            time.sleep(0.001)
        folder.mkdir()
        while not file.lost or not any(folder.iterdir()) or '"lost"' not in (folder / "usage.jsonl").read_text():
            assert time.monotonic() < deadline
            put(file, LINE)
        file.finish()
    assert len(lines) == 1
    found = [decode(line) for line in (folder / "usage.jsonl").read_bytes().splitlines()]
    assert sum(each.lost or 0 for each in found) == file.lost > 0


def test_e7_what_is_no_file_is_reported(file, tmp_path, monkeypatch):
    monkeypatch.setattr(usage_file, "AGAIN_SECONDS", 0.001)
    (tmp_path / "usage.jsonl").mkdir()
    with lines_of_the_log() as lines:
        file.write(LINE)
        file.finish()
    assert [line["level"] for line in lines] == ["ERROR"]


# The report


def line(seconds: float = NOON, caller: str = "alice", cost: object = 0.25, **more) -> str:
    shape = {
        "time": moment(seconds), "request_id": "x", "caller": caller, "session": None, "route": "chat", "provider": "p",
        "model": "m", "endpoint": "/v1/chat/completions", "status": 200, "outcome": "ok", "tokens": {"input": 10, "output": 2},
        "cost": cost, "estimated": False,
    }  # fmt: skip
    return json.dumps({**shape, **more}) + "\n"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "usage.jsonl"
    other = [
        {"provider": "q", "model": "n", "tokens": {"input": 7}, "cost": 0.1},
        {"provider": "p", "model": "m", "tokens": {"input": 3}, "cost": 0.15},
    ]
    path.write_text(
        line()
        + line(caller="bob", cost=None)
        + line(caller="bob", estimated=True, attempts=other)
        + '{"time": "2027-01-15T13:00:00.000Z", "lost": 4}\n\n{"time": "20'
    )
    os.utime(path, (NOON, NOON))
    (tmp_path / "usage.jsonl.2027-01-14").write_text(line(NOON - DAY, cost=1, status=502))
    os.utime(tmp_path / "usage.jsonl.2027-01-14", (NOON - DAY, NOON - DAY))
    with gzip.open(tmp_path / "usage.jsonl.2027-01-01.1.gz", "wb") as file:
        file.write(line(NOON - 14 * DAY, cost=2, model="old").encode())
    os.utime(tmp_path / "usage.jsonl.2027-01-01.1.gz", (NOON - 14 * DAY, NOON - 14 * DAY))
    (tmp_path / "usage.jsonl.bak").write_text(line(cost=100))
    return str(path)


def report_of(path: str, by: str = "key", begin: str | None = None) -> dict[tuple[str, ...], tuple[int, Decimal]]:
    earliest = since(begin, NOON + 60) if begin else 0.0
    found = read(files_of(path, earliest), columns(by), earliest)
    return {names: (each.requests, each.cost) for names, each in found.groups.items()}


def test_e8_the_files_of_all_days_are_read(path):
    assert report_of(path) == {("alice",): (3, Decimal("3.25")), ("bob",): (2, Decimal("0.25"))}


@pytest.mark.parametrize(
    ("begin", "requests"),
    [
        ("12h", 1),
        ("2d", 2),
        ("3w", 3),
        ("2027-01-15", 1),
        ("2027-01-14T12:00", 2),
        ("2027-01-14T12:00:01Z", 1),
        ("30m", 1),
    ],
)
def test_e8_since_leaves_out_what_is_older(path, begin, requests):
    assert report_of(path, begin=begin)["alice",][0] == requests


def test_e8_each_attempt_is_counted_with_its_provider_and_model(path):
    assert report_of(path, "provider,model") == {
        ("p", "m"): (4, Decimal("1.4")), ("q", "n"): (0, Decimal("0.1")), ("p", "old"): (1, Decimal(2)),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("status", {("200",), ("502",)}),
        ("day", {("2027-01-15",), ("2027-01-14",), ("2027-01-01",)}),
        ("key,route", {("alice", "chat"), ("bob", "chat")}),
        ("session", {("-",)}),
    ],
)
def test_e8_groups(path, by, groups):
    assert set(report_of(path, by)) == groups


def shown(path: str, by: str = "key", begin: str | None = None, is_csv: bool = False) -> tuple[list[str], list[str]]:
    out, warned = io.StringIO(), io.StringIO()
    print_report(path, by, begin, NOON + 60, is_csv, out, warned)
    return out.getvalue().splitlines(), warned.getvalue().splitlines()


def test_e8_the_table_has_a_total_and_what_is_missing_is_told(path):
    lines, warned = shown(path)
    assert [each.split() for each in lines] == [
        "key requests input output cache_read cache_write reasoning cost_usd unpriced estimated".split(),
        "alice 3 30 6 0 0 0 3.25 0 0".split(),
        "bob 2 20 2 0 0 0 0.25 1 1".split(),
        "total 5 50 8 0 0 0 3.50 1 1".split(),
    ]
    assert [each.partition(" ")[0] for each in warned] == ["1", "4"]


def test_e8_csv(path):
    lines, _ = shown(path, "key,model", is_csv=True)
    assert lines[:2] == [
        "key,model,requests,input,output,cache_read,cache_write,reasoning,cost_usd,unpriced,estimated",
        "alice,old,1,10,2,0,0,0,2,0,0",
    ]


@pytest.mark.parametrize(
    "broken",
    [
        '"cost":"NaN"',
        '"cost":"sNaN"',
        '"cost":"Infinity"',
        '"cost":-1',
        '"cost":1e999999',
        '"tokens":{"input":-5}',
        '"attempts":[{"provider":"p","model":"m","cost":"NaN"}]',
        '"lost":-5',
    ],
)
def test_e8_an_amount_that_is_none_is_a_broken_line(path, broken):
    written = '{"time":"2027-01-15T10:00:00.000Z","caller":"alice",' + broken + "}\n"
    Path(path).write_text(written + '{"time":"2027-01-15T10:00:00.000Z","caller":"alice","cost":1.5}\n')
    os.utime(path, (NOON, NOON))
    lines, warned = shown(path, begin="12h")
    assert lines[1].split() == "alice 1 0 0 0 0 0 1.5 0 0".split()
    assert warned[0].startswith("1 line(s) could not be read")


@pytest.mark.parametrize("session", ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)"])
def test_e8_no_cell_of_the_csv_is_a_formula(path, session):
    Path(path).write_text(line(session=session))
    os.utime(path, (NOON, NOON))
    assert shown(path, "session", begin="12h", is_csv=True)[0][1].startswith(f"'{session},")


def test_e8_a_name_cannot_control_the_terminal(path, tmp_path):
    Path(path).write_text(line(caller="a\x1b[2Jb"))
    os.utime(path, (NOON, NOON))
    assert shown(path, begin="12h")[0][1].startswith("a?[2Jb ")


@pytest.mark.parametrize(
    ("by", "begin", "reason"),
    [
        ("keys", None, "--by: 'keys' is unknown; write one or more of key, route"),
        ("key,key", None, "written twice"),
        ("", None, "--by: '' is unknown"),
        ("key", "soon", "--since: 'soon' is no time; write 7d"),
        ("key", "2027-13-45", "is no time"),
        ("key", "-1d", "is no time"),
    ],
)
def test_e8_a_wrong_option_is_named(path, by, begin, reason):
    with pytest.raises(ReportError, match=reason):
        print_report(path, by, begin, NOON, False, io.StringIO(), io.StringIO())


def test_e8_a_file_that_is_missing_or_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ReportError, match="there is no file"):
        files_of(str(tmp_path / "usage.jsonl"), 0)
    (tmp_path / "usage.jsonl.1.gz").write_bytes(b"\x1f\x8b\x08 no")
    with pytest.raises(ReportError, match="cannot be read"):
        report_of(str(tmp_path / "usage.jsonl"))


@pytest.mark.parametrize("broken", [b"{}\n", b"[]\n", b"\xff\xfe\n", b'{"time": 1}\n', b"x" * 3_000_000 + b"\n", b'{"time": "2027", "cost": "x"}\n', b'{"time":"2027","tokens":{"input":1.5}}\n'])  # fmt: skip
def test_e8_a_line_that_is_none_is_counted_and_the_rest_is_read(tmp_path, broken):
    (tmp_path / "usage.jsonl").write_bytes(broken + line().encode())
    lines, (warned,) = shown(str(tmp_path / "usage.jsonl"))
    assert lines[1].split()[:2] == ["alice", "1"]
    assert "could not be read" in warned


def test_e8_too_many_groups_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("aigw.accounting.report.MAX_GROUPS", 3)
    (tmp_path / "usage.jsonl").write_text("".join(line(session=str(n)) for n in range(5)))
    with pytest.raises(ReportError, match="write fewer names"):
        report_of(str(tmp_path / "usage.jsonl"), "session")


def test_e8_the_sum_of_many_small_amounts_is_exact(tmp_path):
    (tmp_path / "usage.jsonl").write_text(line(cost=0.0000001) * 1000)
    found = read([str(tmp_path / "usage.jsonl")], ("key",), 0.0)
    assert found.groups["alice",].cost == Decimal("0.0001")
    assert (
        as_csv(found, ("key",)).splitlines()[1].split(",")[7]
        == as_table(found, ("key",)).splitlines()[1].split()[7]
        == "0.0001000"
    )


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return fork_server.run(["aigw", "usage", *options], folder, {**os.environ, "PYTHONPATH": str(ROOT)})


def test_e8_the_command_needs_no_key(tmp_path):
    """The configuration names variables that are not set where an administrator looks at the accounts."""
    (tmp_path / "config.yaml").write_text("api_key: ${NOT_SET_HERE}\nusage: {file: usage.jsonl}\n")
    got = run(tmp_path)
    assert (got.returncode, got.stdout) == (1, "")
    assert "there is no file" in got.stderr
    (tmp_path / "usage.jsonl").write_text(line())
    got = run(tmp_path, "--by", "key,route", "--csv")
    assert (got.returncode, got.stdout.splitlines()[1]) == (0, "alice,chat,1,10,2,0,0,0,0.25,0,0")
    got = run(tmp_path, "--by", "nothing")
    assert (got.returncode, "is unknown" in got.stderr) == (64, True)
    (tmp_path / "config.yaml").write_text("api_key: x\n")
    got = run(tmp_path)
    assert (got.returncode, "names no file of usage" in got.stderr) == (78, True)


@pytest.mark.slow
def test_e8_a_million_lines_are_read_in_bounded_memory(tmp_path, capsys):
    with (tmp_path / "usage.jsonl").open("w") as file:
        for number in range(1_000_000):
            file.write(line(caller=f"k{number % 100}", cost=0.0001))
    begun, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = read([str(tmp_path / "usage.jsonl")], ("key", "route", "model"), 0.0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert sum(each.cost for each in found.groups.values()) == 100
    assert sum(each.requests for each in found.groups.values()) == 1_000_000
    assert grown < 10 * 1024
    with capsys.disabled():
        print(f" [{time.process_time() - begun:.0f} s of CPU, {grown} KiB more]", end="")


def test_e7_a_folder_that_is_missing_is_a_mistake(tmp_path):
    text = "api_key: 0123456789abcdef0123456789\nusage:\n  file: no/usage.jsonl\nproviders: [{name: p, base_url: http://127.0.0.1:9/v1}]\nroutes: [{name: r, steps: [{provider: p, model: m}]}]\n"
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "config.yaml").chmod(0o600)
    done = subprocess.run([sys.executable, "-m", "aigw", "check"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 78
    assert "config.yaml, line 3: usage.file: there is no folder" in done.stderr
