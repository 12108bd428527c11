"""The log lines of one turn of the reactor (G3, B9) are one write, made before the reactor waits again."""

from __future__ import annotations

import os
import select
import socket
import threading

import pytest

from aigw.log_output.log_writer import LogWriter, to_descriptor, without_waiting
from tests import fork_server
from tests.test_log_writer import LINE, pipe, read_all

assert pipe  # a fixture

PROGRAM = """
import os, sys
from twisted.internet import reactor
from twisted.logger import globalLogBeginner
from aigw.telemetry import logs
globalLogBeginner.beginLoggingTo([logs.json_lines()], redirectStandardIO=False)
def turn():
    logs.info("before"); logs.info("the end")
    reactor.callLater(0, then)
def then():
    ACT
reactor.callWhenRunning(lambda: reactor.callLater(0.05, turn))
reactor.run()
"""


class Turns:
    """The reactor: what is to be called in its next round."""

    def __init__(self) -> None:
        self.calls = []

    def end(self) -> None:
        calls = self.calls[:]
        self.calls.clear()
        for call in calls:
            call()


@pytest.fixture
def turns():
    return Turns()


def begin(writing: int, turns: Turns, write=None) -> tuple[LogWriter, list[bytes]]:
    """A writer, and the pieces that it has written in the reactor's thread."""
    writer, pieces = LogWriter(write or to_descriptor(writing)), []
    writer.start()
    attempt = without_waiting(writing)
    assert attempt is not None

    def counted(data: bytes) -> int:
        done = attempt(data)
        pieces.append(data[:done])
        return done

    writer.write_each_turn(counted, turns.calls.append)
    return writer, pieces


@pytest.fixture(params=["pipe", "socket"])
def ends(request, pipe):
    """The two file descriptors: for reading and for writing."""
    if request.param == "pipe":
        yield pipe
        return
    one, two = socket.socketpair()
    with one, two:
        yield one.fileno(), two.fileno()


def test_g3_the_lines_of_a_turn_are_one_write(ends, turns):
    reading, writing = ends
    writer, pieces = begin(writing, turns)
    for turn in range(3):
        lines = [LINE.format(number) for number in range(5)]
        for line in lines:
            writer.write(line)
        assert len(turns.calls) == 1
        assert len(pieces) == turn
        turns.end()
        assert read_all(reading, LINE.format(4)) == lines
        assert len(pieces) == turn + 1
    assert os.get_blocking(writing)  # whoever shares the file sees no change


def test_g3_b9_what_is_not_taken_is_left_to_the_thread_in_order(ends, turns):
    reading, writing = ends
    writer, _ = begin(writing, turns)
    for number in range(9000):
        writer.write(LINE.format(number))
        if number % 7 == 0:
            turns.end()  # does not wait: nobody reads
    writer.write("long " * 5000 + "\n")
    turns.end()
    writer.write("last\n")
    turns.end()
    expected = [*(LINE.format(number) for number in range(9000)), "long " * 5000 + "\n", "last\n"]
    assert read_all(reading, "last") == expected
    assert writer.dropped == 0
    writer.write("and then\n")
    turns.end()
    assert read_all(reading, "then") == ["and then\n"]


def test_g3_a_line_of_another_thread_needs_no_turn(pipe, turns):
    reading, writing = pipe
    writer, _ = begin(writing, turns)
    thread = threading.Thread(target=writer.write, args=["from a thread\n"])
    thread.start()
    thread.join()
    assert not turns.calls
    assert read_all(reading, "thread") == ["from a thread\n"]


def test_g3_lines_of_several_threads_and_turns_lose_nothing(pipe, turns):
    reading, writing = pipe
    writer, _ = begin(writing, turns)
    threads = [
        threading.Thread(target=lambda name=name: [writer.write(f"{name} {n:04d}\n") for n in range(500)])
        for name in "ab"
    ]
    for thread in threads:
        thread.start()
    for number in range(500):
        writer.write(f"c {number:04d}\n")
        turns.end()
    for thread in threads:
        thread.join()
    writer.finish()
    lines = read_all(reading, "c 0499")
    while len(lines) < 1500:
        lines += read_all(reading, "0499")
    for name in "abc":
        assert [line for line in lines if line[0] == name] == [f"{name} {n:04d}\n" for n in range(500)]


def test_g3_the_end_writes_what_waits_for_its_turn(pipe, turns):
    reading, writing = pipe
    writer, _ = begin(writing, turns)
    writer.write("logged\n")
    writer.finish()
    assert select.select([reading], [], [], 0)[0]
    assert os.read(reading, 100) == b"logged\n"
    writer.write("later\n")
    assert os.read(reading, 100) == b"later\n"
    turns.end()


def test_g3_a_write_that_fails_is_counted_by_the_thread(turns):
    reading, writing = os.pipe()
    writer, _ = begin(writing, turns)
    os.close(reading)
    writer.write("nobody reads\n")
    turns.end()
    writer.finish()
    assert writer.dropped == 1
    os.close(writing)


def test_g3_b9_a_line_that_was_begun_and_cannot_be_ended_is_a_line_of_its_own(turns):
    written, fails = [], True

    def by_the_thread(data: bytes) -> int:
        if fails:
            raise BrokenPipeError
        written.append(data)
        return len(data)

    def a_part(data: bytes) -> int:
        written.append(data[:5])
        return 5

    writer = LogWriter(by_the_thread)
    writer.start()
    writer.write_each_turn(a_part, turns.calls.append)
    writer.write("0123456789\n")
    turns.end()
    done = threading.Event()
    writer.call(done.set)
    assert done.wait(5)
    fails = False
    writer.finish()
    writer.write("next\n")
    assert b"".join(written).splitlines() == [b"01234", b"1 lines were dropped", b"next"]


def test_g3_a_disk_is_written_by_the_thread_only(tmp_path):
    """A write to a disk may wait, and nothing shows it before."""
    with open(tmp_path / "log", "wb") as file:
        assert without_waiting(file.fileno()) is None


@pytest.mark.parametrize(
    ("act", "last"),
    [
        ("os._exit(3)", "the end"),  # in the turn after
        ("os.abort()", "the end"),
        ("reactor.stop()", "the end"),
        ("logs.error('an error'); os._exit(3)", "an error"),  # in the same turn
        ("logs.info('in the last turn'); reactor.stop()", "in the last turn"),
        ("logs.info('in the last turn'); reactor.crash()", "in the last turn"),
    ],
)
def test_g3_an_end_of_any_kind_loses_nothing_of_the_turns_before(act, last):
    reading, writing = os.pipe()
    process = fork_server.Forked(["python", "-c", PROGRAM.replace("ACT", act)], ".", dict(os.environ), (1, writing))
    os.close(writing)
    with os.fdopen(reading) as stderr:
        lines = stderr.read().splitlines()
    process.wait(30)
    messages = [line for line in lines if '"message"' in line]
    assert '"before"' in messages[0]
    assert any(f'"{last}"' in line for line in messages)
