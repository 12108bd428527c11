"""D5 in the small: what a daemon that runs for a year owes its operator."""

from __future__ import annotations

import json
import socket
import subprocess
import time

import pytest
from twisted.internet.task import Clock
from twisted.logger import Logger, LogPublisher
from twisted.python.failure import Failure

from aigw.daemon.watchdog import CHECK_SECONDS, WARN_EVERY, Watchdog
from aigw.log_output.duplicates import MAX_KINDS, WINDOW_SECONDS, DuplicateFilter
from aigw.telemetry import logs
from aigw.telemetry.logs import JsonLines
from tests.test_daemon import Daemon, twistd

# The pulse


class Late(Clock):
    """A Clock whose calls may come late."""

    def late(self, seconds: float) -> None:
        self.rightNow += seconds
        self.advance(0)


@pytest.fixture
def warned(monkeypatch):
    lines: list[dict] = []
    monkeypatch.setattr(logs, "warn", lambda message, **fields: lines.append({"message": message, **fields}))
    return lines


def test_d5_lag_is_measured_and_warned_about_at_most_every_10_s(warned):
    clock = Late()
    pulse = Watchdog(clock, lambda: None, float("inf"))
    pulse.start()
    clock.advance(CHECK_SECONDS)
    assert (pulse.lag, warned) == (0.0, [])
    clock.late(CHECK_SECONDS + 0.15)
    assert pulse.lag == pytest.approx(0.15)
    assert not warned
    clock.late(CHECK_SECONDS + 0.3)
    assert warned == [{"message": "The event loop was blocked", "lag_ms": 300}]
    clock.late(CHECK_SECONDS + 2.0)
    clock.late(CHECK_SECONDS + 0.5)
    assert len(warned) == 1
    clock.pump([CHECK_SECONDS] * int(WARN_EVERY / CHECK_SECONDS))
    assert [line["lag_ms"] for line in warned] == [300, 2000], "the worst that was not told yet"
    pulse.stop()
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize("seconds", [0.5, 1.0, 6.67])
def test_d3_the_watchdog_is_fed_in_time(seconds):
    clock, fed = Clock(), []
    Watchdog(clock, lambda: fed.append(clock.seconds()), seconds).start()
    clock.pump([0.01] * 3000)
    assert max(b - a for a, b in zip([0.0, *fed], fed, strict=False)) <= seconds + 0.02
    assert len(fed) <= 30 / seconds * 2 + 1


# Floods


def test_equal_failures_are_counted_not_repeated():
    seconds = [0.0]
    flood = DuplicateFilter(lambda: seconds[0])
    assert [flood.admit("a") for _ in range(5)] == [0, None, None, None, None]
    assert flood.admit("b") == 0
    seconds[0] = WINDOW_SECONDS
    assert [flood.admit("a"), flood.admit("a"), flood.admit("b")] == [4, None, 0]


def test_a_flood_of_different_failures_takes_no_memory():
    flood = DuplicateFilter(lambda: 0.0)
    for number in range(MAX_KINDS * 10):
        assert flood.admit(number) == 0
    assert len(flood._kinds) == MAX_KINDS


def test_a_traceback_that_comes_again_is_one_line(monkeypatch):
    lines: list[dict] = []

    class File:
        write = staticmethod(lambda line: lines.append(json.loads(line)))
        flush = staticmethod(lambda: None)

    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = Logger(observer=LogPublisher(JsonLines(File())))

    def fail(value) -> None:
        try:
            raise ValueError(value)
        except ValueError:
            log.failure("Oops", failure=Failure())

    for number in range(1000):
        fail(number)  # whatever its words
    log.failure("Oops", failure=Failure(ValueError("from another place")))
    now[0] += WINDOW_SECONDS
    fail(1)
    assert [line["fields"].get("repeats") for line in lines] == [None, None, 999]
    assert all("ValueError" in line["fields"]["traceback"] for line in lines)


# The clock


WALL = """
import os, time
real = time.time
time.time = lambda: real() + float(open(os.environ["OFFSET"]).read() or 0)
"""


@pytest.mark.parametrize("offset", [-86400, 86400], ids=["back", "forth"])
def test_a_jump_of_the_wall_clock_moves_no_timer(tmp_path, offset):
    """Twisted's timers go by the wall clock: set back, the idle limit would not fire for a day; set forth, at once."""
    (tmp_path / "offset").write_text("0")

    class Jumpy(Daemon):
        def start(self, args, **more):
            more["env"]["OFFSET"] = str(tmp_path / "offset")
            args[2] = WALL + args[2]
            return subprocess.Popen(args, **more)

    config = """
api_key: a-key-of-the-gateway
listen: ["tcp:0:interface=127.0.0.1"]
providers: [{name: a, base_url: "http://127.0.0.1:1/v1"}, {name: hole, base_url: "http://127.0.0.1:%d/v1"}]
routes: [{name: r, steps: [{provider: hole, model: m, timeout: 2s}, {provider: a, model: m}]}]
"""
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen()
        with Jumpy(tmp_path, config=config % hole.getsockname()[1]) as daemon:
            body = b'{"model": "r", "messages": [{"role": "user", "content": "x"}]}'
            asked = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Api-Key: a-key-of-the-gateway\r\n"
            with socket.create_connection(daemon.address(), 5) as client:
                client.settimeout(6)
                client.sendall(asked + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
                provider, _ = hole.accept()
                (tmp_path / "offset").write_text(str(offset))
                began = time.monotonic()
                assert client.recv(4096).startswith(b"HTTP/1.1 502")
                assert 1.0 < time.monotonic() - began < 3.0
                provider.close()
            first = daemon.wait_for("Request")["attempts"][0]
            assert (first["outcome"], 1900 < first["duration_ms"] < 2600) == ("timeout", True)


def test_what_is_there_after_the_start_is_frozen(tmp_path):
    """Each collection of garbage looks only at what requests made."""
    command = twistd(tmp_path)
    asked = "; import gc, os; from twisted.internet import reactor; from aigw import tap\n"
    asked += "reactor.callWhenRunning(lambda: reactor.callLater(0.1, lambda: (os.write(1, b'%d' % gc.get_freeze_count()), reactor.stop())))\n"
    command["args"][2] = command["args"][2].replace("; run()", asked + "run()")
    done = subprocess.run(**command, capture_output=True, timeout=20, check=False)
    assert int(done.stdout) > 50_000
