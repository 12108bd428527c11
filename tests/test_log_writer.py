"""The log blocks nobody (B9): a reader that stops, a full disk, a file that is moved. Nothing is lost but what is counted."""

from __future__ import annotations

import errno
import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from aigw.log_output import log_writer
from aigw.log_output.log_file import LogFile
from aigw.log_output.log_writer import LogWriter, to_descriptor
from tests import fork_server
from tests.properties import times
from tests.test_daemon import CONFIG, KEYS, Daemon, twistd, wait_until

LINE = "a line of some 100 characters, as they are written for each request, with its number at the end: {:05d}\n"


@pytest.fixture
def pipe():
    """Both ends; the reading one is closed last."""
    reading, writing = os.pipe()
    yield reading, writing
    os.close(writing)
    os.close(reading)


def read_all(fd: int, until: str, seconds: float = 10.0) -> list[str]:
    """The lines that come, up to one that holds ``until``."""
    data, end = b"", time.monotonic() + seconds
    while until.encode() not in data or not data.endswith(b"\n"):
        ready, _, _ = select.select([fd], [], [], max(0, end - time.monotonic()))
        assert ready, f"no {until!r} in the last of {data[-300:]!r}"
        read = os.read(fd, 65536)
        assert read, f"the daemon has ended: {data[-300:]!r}"
        data += read
    return data.decode().splitlines(keepends=True)


class Broken:
    """A disk that takes so many bytes more, then none."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.written = b""

    def write(self, data: bytes) -> int:
        taken = data[: self.room]
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(taken)
        self.written += taken
        return len(taken)


# The queue


def test_b9_who_writes_does_not_wait_for_who_reads(pipe):
    """Every line comes, or is counted in the very place where it is missing."""
    reading, writing = pipe
    writer = LogWriter(to_descriptor(writing), room=200_000)
    writer.start()
    slowest = 0.0
    for number in range(10_000):
        begun = time.perf_counter()
        writer.write(LINE.format(number))
        slowest = max(slowest, time.perf_counter() - begun)
    assert slowest < 0.5
    assert 0 < writer.dropped < 10_000
    number = dropped = 0
    while number < 10_000:
        for line in read_all(reading, "\n"):
            if "were dropped" in line:
                dropped += int(line.split()[0])
                number += int(line.split()[0])
            else:
                assert line == LINE.format(number)
                number += 1
    assert dropped == writer.dropped
    writer.write("and then\n")
    assert read_all(reading, "then") == ["and then\n"]


def test_b9_lines_come_in_order_and_each_in_one_piece(pipe):
    """A pipe that others share takes up to PIPE_BUF bytes in one piece."""
    reading, writing = pipe
    pieces = []
    to_pipe = to_descriptor(writing)

    def write(data: bytes) -> int:
        pieces.append(data)
        return to_pipe(data)

    writer = LogWriter(write)
    lines = [LINE.format(number) for number in range(200)] + ["long " * 3000 + "\n", "last\n"]
    for line in lines:
        writer.write(line)
    writer.start()
    assert read_all(reading, "last") == lines
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert len(pieces) < 20
    assert all(len(piece) <= select.PIPE_BUF or piece.count(b"\n") == 1 for piece in pieces)


def test_b9_a_log_that_is_behind_is_written_in_larger_pieces():
    """Each piece waits for the interpreter's lock: with small ones a busy gateway never caught up."""
    pieces = []
    done = threading.Event()

    def write(data: bytes) -> int:
        pieces.append(data)
        if data.endswith(b"last\n"):
            done.set()
        return len(data)

    writer = LogWriter(write)
    lines = [LINE.format(number) for number in range(20_000)] + ["last\n"]
    for line in lines:
        writer.write(line)
    writer.start()
    assert done.wait(10)
    assert b"".join(pieces).decode() == "".join(lines)
    assert len(pieces) <= len(b"".join(pieces)) // 60_000 + 1


def test_b9_a_file_on_a_disk_takes_large_pieces(tmp_path, log):
    """Only a pipe needs small ones."""
    pieces: list[bytes] = []
    writer = LogWriter(lambda data: pieces.append(data) or len(data), is_file=True)
    lines = [LINE.format(number) for number in range(200)]
    for line in lines:
        writer.write(line)
    writer.finish()
    assert [piece.decode() for piece in pieces] == ["".join(lines)]
    os.mkfifo(tmp_path / "fifo")
    reading = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    assert [log(name).is_on_disk for name in ("gateway.log", "fifo")] == [True, False]
    os.close(reading)


def test_b9_a_pipe_that_another_process_made_non_blocking_loses_nothing(pipe):
    """Whoever shares a terminal or a pipe may set O_NONBLOCK on it; Node does."""
    reading, writing = pipe
    os.set_blocking(writing, False)
    writer = LogWriter(to_descriptor(writing))
    writer.start()
    lines = [LINE.format(number) for number in range(5000)]
    for line in lines:
        writer.write(line)
    writer.write("last\n")
    assert read_all(reading, "last")[:-1] == lines
    assert writer.dropped == 0


def test_b9_a_line_that_was_cut_by_a_full_disk_spoils_no_other():
    disk = Broken(room=250)
    writer = LogWriter(disk.write)
    for number in range(5):
        writer.write(LINE.format(number))
    writer.finish()
    assert disk.written.count(b"\n") == 2
    disk.room = 10_000
    writer.write("again\n")
    writer.finish()
    *_, cut, notice, again = disk.written.decode().splitlines()
    assert (len(cut), notice, again) == (250 % len(LINE.format(0)), "3 lines were dropped", "again")
    assert writer.dropped == 3


def test_b9_a_disk_that_stays_full_costs_no_memory_and_no_time():
    writer = LogWriter(Broken(room=0).write)
    writer.start()
    for number in range(20_000):
        writer.write(LINE.format(number))
    begun = time.process_time()
    writer.finish()
    writer.finish()
    assert writer.dropped == 20_000
    assert time.process_time() - begun < 1.0


def test_b9_the_end_waits_for_a_reader_no_longer_than_it_says(pipe, monkeypatch):
    monkeypatch.setattr(log_writer, "FINISH_SECONDS", 0.3)
    writer = LogWriter(to_descriptor(pipe[1]))
    for number in range(2000):
        writer.write(LINE.format(number))
    begun = time.monotonic()
    writer.finish()
    for number in range(100):
        writer.write(LINE.format(number))
    assert 0.2 < time.monotonic() - begun < 2
    read_all(pipe[0], "00099")  # so that the thread ends its write before the pipe is closed


def test_b9_what_is_written_after_the_end_was_announced_is_there_at_once():
    disk = Broken(room=10_000)
    writer = LogWriter(disk.write)
    writer.finish()
    writer.write("Server Shut Down.\n")
    assert disk.written == b"Server Shut Down.\n"


def test_b9_where_no_thread_can_begin_any_more_the_lines_are_written_all_the_same(monkeypatch):
    def refuse(_: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    disk = Broken(room=10_000)
    writer = LogWriter(disk.write)
    writer.write("why it did not start\n")
    writer.finish()
    assert disk.written == b"why it did not start\n"


def test_b9_a_signal_handler_that_logs_while_a_line_is_logged_blocks_nothing():
    """Twisted logs in its handler of SIGTERM."""
    written = []
    writer = LogWriter(lambda data: written.append(data) or len(data), room=100_000_000)
    writer.start()
    before = signal.signal(signal.SIGALRM, lambda *_: writer.write("from the handler\n"))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for number in range(50_000):
            writer.write(LINE.format(number))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    writer.finish()
    lines = b"".join(written).decode().splitlines(keepends=True)
    assert [line for line in lines if "handler" not in line] == [LINE.format(number) for number in range(50_000)]
    assert "from the handler\n" in lines


# The file


@pytest.fixture
def log(tmp_path):
    """A LogFile of a folder of its own."""
    files = []

    def make(name="gateway.log", **more):
        files.append(LogFile(str(tmp_path / name), **more))
        return files[-1]

    yield make
    for file in files:
        file.close()


def test_b9_a_file_that_was_renamed_is_opened_anew_and_not_rotated_again(tmp_path, log):
    file = log()
    file.write(b"one\n")
    (tmp_path / "gateway.log").rename(tmp_path / "gateway.log.1")
    file.write(b"two\n")  # it is still that file, until the signal comes
    file.rotate()
    file.write(b"three\n")
    assert contents(tmp_path) == {"gateway.log": "three\n", "gateway.log.1": "one\ntwo\n"}


def test_b9_a_file_that_logrotate_has_made_is_taken_with_its_mode(tmp_path, log):
    """Its `create` makes the new file before the signal comes."""
    file = log()
    file.write(b"one\n")
    (tmp_path / "gateway.log").rename(tmp_path / "gateway.log.1")
    (tmp_path / "gateway.log").touch(mode=0o600)
    file.rotate()
    file.write(b"two\n")
    assert contents(tmp_path) == {"gateway.log": "two\n", "gateway.log.1": "one\n"}
    assert (tmp_path / "gateway.log").stat().st_mode & 0o777 == 0o600


def test_b9_a_file_that_is_where_it_was_is_rotated_on_demand_and_by_size(tmp_path, log):
    file = log(max_bytes=10, kept=2)
    (tmp_path / "gateway.log").chmod(0o604)
    for line in (b"one\n", b"two\n", b"3\n", b"four\n"):
        file.write(line)
    assert contents(tmp_path) == {"gateway.log": "four\n", "gateway.log.1": "one\ntwo\n3\n"}
    file.rotate()
    file.write(b"five\n")
    file.rotate()
    assert contents(tmp_path) == {"gateway.log": "", "gateway.log.1": "five\n", "gateway.log.2": "four\n"}
    assert (tmp_path / "gateway.log").stat().st_mode & 0o777 == 0o604


def test_b9_a_file_that_was_copied_and_truncated_begins_anew(tmp_path, log):
    file = log()
    file.write(b"one\n")
    shutil.copy(tmp_path / "gateway.log", tmp_path / "copy")
    os.truncate(tmp_path / "gateway.log", 0)
    file.write(b"two\n")
    assert contents(tmp_path) == {"gateway.log": "two\n", "copy": "one\n"}


def test_b9_where_no_new_file_can_be_made_the_old_one_is_written_to(tmp_path, log):
    (tmp_path / "sub").mkdir()
    file = log("sub/gateway.log")
    (tmp_path / "sub").rename(tmp_path / "gone")
    file.rotate()
    file.write(b"one\n")
    assert (tmp_path / "gone" / "gateway.log").read_text() == "one\n"


def test_b9_a_log_is_no_file_for_everybody(tmp_path, log):
    before = os.umask(0o022)
    try:
        log()
    finally:
        os.umask(before)
    assert (tmp_path / "gateway.log").stat().st_mode & 0o777 == 0o640


def test_b9_a_named_pipe_or_a_device_may_be_the_log_and_is_never_renamed(tmp_path, log):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device"):
        log("fifo")
    reading = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    file = log("fifo")
    file.write(b"one\n")
    file.rotate()
    file.write(b"two\n")
    assert os.read(reading, 100) == b"one\ntwo\n"
    os.close(reading)
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


# The daemon


class Piped:
    """A daemon whose standard error is a pipe, which the test reads or not."""

    def __init__(self, folder: Path, config: str = CONFIG) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        config = config.replace("tcp:0:", f"tcp:{self.port}:")
        command = twistd(folder, config=config)
        self.fd, theirs = os.pipe()
        with (folder / "out").open("w") as out, open(theirs, "w") as err:
            files = (out.fileno(), err.fileno())
            self.process = fork_server.Forked(["twistd", *command["args"][3:]], folder, command["env"], files)

    def ask(self, times: int, path: str = "/v1/chat/completions") -> float:
        """Ask so many times on one connection; gives the seconds that the slowest answer took."""
        body = json.dumps({"model": "r", "messages": [{"role": "user", "content": "hi"}]})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        slowest = 0.0
        for _ in range(times):
            begun = time.monotonic()
            connection.request("POST", path, body, {"X-Api-Key": KEYS["GATEWAY_API_KEY"]})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 502
            slowest = max(slowest, time.monotonic() - begun)
        connection.close()
        return slowest

    def get(self, path: str) -> tuple[int, str, float]:
        """The status, the body and the seconds that it took."""
        begun = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", path, headers={"X-Api-Key": KEYS["GATEWAY_API_KEY"]})
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, body, time.monotonic() - begun

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


STEPS = 12
LONG = f"a{'x' * 200}"  # long names make long lines, so that fewer requests fill the queue
MANY_STEPS = (
    CONFIG.replace("{name: a,", f"{{name: {LONG},")
    .replace(
        "[{provider: a, model: m, timeout: 90s}]",
        str([{"provider": LONG, "model": f"m{n}-{LONG}"} for n in range(STEPS)]),
    )
    .replace("providers:", "cooldown: 0\nproviders:")
)


@pytest.fixture
def unread(tmp_path, times):
    """A daemon after so many requests, with a standard error that nobody has read since it started."""
    with Piped(tmp_path, MANY_STEPS) as daemon:
        read_all(daemon.fd, '"The gateway has started"')
        daemon.slowest = daemon.ask(times)
        yield daemon


@pytest.mark.parametrize("times", [450])
def test_b9_a_standard_error_that_nobody_reads_stops_nothing_and_each_line_is_read_or_counted(unread, times):
    """It stopped every request, and SIGTERM too, when the pipe's 64 KiB were full."""
    assert unread.slowest < 5
    status, _, seconds = unread.get("/health")
    assert status == 200
    assert seconds < 1
    status, metrics, _ = unread.get("/metrics")
    (dropped,) = [
        int(float(line.split()[1])) for line in metrics.splitlines() if line.startswith("aigw_log_lines_dropped_total")
    ]
    assert dropped > 0
    lines = [json.loads(line) for line in read_all(unread.fd, "Log lines were dropped")]
    unread.ask(1)
    lines += [json.loads(line) for line in read_all(unread.fd, '"Request"')]
    notices = [line for line in lines if line["message"].startswith("Log lines were dropped")]
    ours = [line for line in lines if line["message"] == "Request" or line["message"].startswith("Step failed")]
    logged = (times + 1) * (STEPS + 1)
    assert [(line["level"], line["fields"]["dropped"]) for line in notices] == [("WARN", dropped)]
    assert logged <= len(ours) + dropped <= logged + 5  # "The event loop was blocked" may be among those dropped
    unread.process.terminate()
    read_all(unread.fd, "Server Shut Down")
    assert unread.process.wait(10) == -signal.SIGTERM


@times(40, 450)  # after 8 the pipe is full, after 400 the queue behind it
def test_b9_d2_a_standard_error_that_nobody_reads_does_not_hold_up_a_stop(unread):
    begun = time.monotonic()
    unread.process.terminate()
    assert unread.process.wait(10) == -signal.SIGTERM
    assert time.monotonic() - begun < 6


def test_b9_the_last_lines_reach_a_pipe_that_is_read(tmp_path):
    with Piped(tmp_path) as daemon:
        read_all(daemon.fd, '"The gateway has started"')
        daemon.process.terminate()
        messages = [json.loads(line)["message"] for line in read_all(daemon.fd, "Server Shut Down")]
        assert messages[-2:] == ["Main loop terminated.", "Server Shut Down."]


def logged(*files: Path) -> list[dict]:
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def requests_in(lines: list[dict]) -> int:
    return sum(line["message"] == "Request" for line in lines)


def asking(daemon: Daemon) -> tuple[threading.Thread, threading.Event, list[int]]:
    """Requests in a thread until the event is set, and how many there were."""
    address, stop, count = daemon.address(), threading.Event(), [0]

    def run() -> None:
        connection = http.client.HTTPConnection(*address, timeout=10)
        body = json.dumps({"model": "r", "messages": [{"role": "user", "content": "hi"}]})
        while not stop.is_set():
            connection.request("POST", "/v1/chat/completions", body, {"X-Api-Key": KEYS["GATEWAY_API_KEY"]})
            connection.getresponse().read()
            count[0] += 1
        connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread, stop, count


def test_b9_a_log_that_is_renamed_under_load_loses_no_line(tmp_path):
    """logrotate's way: rename, then SIGUSR1, as often as it likes."""
    log = tmp_path / "gateway.log"
    with Daemon(tmp_path, before=["--logfile", "gateway.log"], log=log) as daemon:
        thread, stop, count = asking(daemon)
        for number in range(5):
            so_far = count[0]
            wait_until(lambda so_far=so_far: count[0] > so_far + 20)
            log.rename(tmp_path / f"old-{number}")
            daemon.process.send_signal(signal.SIGUSR1)
            wait_until(log.exists)
        stop.set()
        thread.join()
        daemon.stop()
    lines = logged(*(tmp_path / f"old-{number}" for number in range(5)), log)
    assert requests_in(lines) == count[0] > 100
    assert lines[-1]["message"] == "Server Shut Down."


def test_b9_a_log_that_is_copied_and_truncated_under_load_has_whole_lines(tmp_path):
    """What is written between copy and truncation is lost by logrotate's own word; no NUL byte and no half line is left."""
    log = tmp_path / "gateway.log"
    with Daemon(tmp_path, before=["--logfile", "gateway.log"], log=log) as daemon:
        thread, stop, count = asking(daemon)
        for number in range(5):
            so_far = count[0]
            wait_until(lambda so_far=so_far: count[0] > so_far + 20)
            daemon.process.send_signal(signal.SIGSTOP)  # so that nothing is written between the two
            wait_until(
                lambda: "T" in Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            )
            shutil.copy(log, tmp_path / f"old-{number}")
            os.truncate(log, 0)
            daemon.process.send_signal(signal.SIGCONT)
        stop.set()
        thread.join()
        daemon.stop()
    lines = logged(*(tmp_path / f"old-{number}" for number in range(5)), log)
    assert requests_in(lines) == count[0] > 100


def test_b9_sigusr1_rotates_a_log_that_is_where_it_was(tmp_path):
    log = tmp_path / "gateway.log"
    with Daemon(tmp_path, before=["--logfile", "gateway.log"], log=log) as daemon:
        daemon.wait_for("The gateway has started")
        daemon.process.send_signal(signal.SIGUSR1)
        wait_until((tmp_path / "gateway.log.1").exists)
        daemon.stop()
    assert logged(log)[-1]["message"] == "Server Shut Down."
    assert "The gateway has started" in {line["message"] for line in logged(tmp_path / "gateway.log.1")}


@pytest.mark.parametrize("arguments", [(), ("--demo",)], ids=["daemon", "demo"])
@pytest.mark.parametrize("sent", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_that_means_nothing_in_the_foreground_does_not_end_it(tmp_path, arguments, sent):
    with Daemon(tmp_path, *arguments, config=None if arguments else CONFIG) as daemon:
        daemon.wait_for("The gateway has started")
        daemon.process.send_signal(sent)
        assert daemon.stop() == -signal.SIGTERM


def test_b9_a_daemon_in_the_background_logs_from_its_first_line_to_its_last(tmp_path):
    """It forks after it has begun to log; a thread of before would have stayed in the parent."""
    command = twistd(tmp_path)
    command["args"] = [*command["args"][:3], "--pidfile=a.pid", "--logfile=a.log", "aigw"]
    subprocess.run(**command, timeout=20, check=True)
    log = tmp_path / "a.log"
    wait_until(lambda: log.exists() and '"The gateway has started"' in log.read_text())
    os.kill(int((tmp_path / "a.pid").read_text()), signal.SIGTERM)
    wait_until(lambda: "Server Shut Down" in log.read_text())
    messages = [line["message"] for line in logged(log)]
    assert len(messages) == len(set(messages)), "each once"
    assert messages[0].startswith("twistd ")
