"""A log that never blocks the event loop: lines are queued and written without waiting, or by a thread.

A pipe may be full because its reader has stopped; a disk may hang or be full. Then lines wait in a bounded queue. Lines
that do not fit are dropped and counted. When lines can be written again, one line reports how many were dropped.

Where a write can be tried without waiting (``without_waiting``) the lines of one turn of the reactor are
written at its end. What cannot be written so is left to the thread, which may wait.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import syslog
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Protocol

from aigw.pieces import joined

ROOM = 4 * 1024 * 1024  # bytes in the queue; the thread may hold as many again that it is writing
GATHER_SECONDS = 0.02  # the thread waits so long for more lines: waking it for each line would cost more than the line
# If so many bytes wait, the pieces are larger: each piece waits for the interpreter's lock, up to 5 ms under load.
BEHIND = 64 * 1024
FINISH_SECONDS = 2.0  # the end of the process waits so long for a reader

Write = Callable[[bytes], int]  # writes the beginning of the bytes, and returns how many were written


class LineFile(Protocol):
    """The methods of a text file that a log needs."""

    def write(self, line: str, /) -> object:
        """Write a line, which ends with a line feed."""

    def flush(self) -> object:
        """See TextIO."""


class LogWriter:
    """A file for lines. ``dropped`` counts the lines that were dropped since the start.

    ``write`` may be called from every thread, from signal handlers and destructors: Twisted logs in all of them.
    ``notice`` makes the line that reports so many dropped lines.
    """

    def __init__(self, write: Write, room: int = ROOM, is_file: bool = False) -> None:
        """``write`` is called in the thread only, and may block there.

        ``is_file``: it writes to a file on a disk, which takes a piece of any size as a whole.
        """
        self.notice: Callable[[int], str] = lambda count: f"{count} lines were dropped\n"
        self.dropped = 0
        self._write = write
        self._room = room
        self._most = BEHIND if is_file else select.PIPE_BUF  # bytes of a piece
        self._lock = threading.RLock()
        self._lines: list[bytes] = []
        self._bytes = 0
        self._missing = 0  # lines dropped since ``_lines`` was full
        self._unreported = 0  # lines that were dropped and not reported yet
        self._idle = True
        self._wake: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._end: float | None = None
        self._inside_a_line = False
        self._has_begun = False  # the first of ``_lines`` is the rest of a line
        self._writing = threading.Lock()  # held from when lines are taken from the queue until they are written
        self._try: Write | None = None
        self._later: Callable[[Callable[[], object]], object] | None = None
        self._loop = 0  # the thread of the reactor

    def write(self, line: str) -> None:
        """Queue a line, which ends with a line feed, or drop it. Blocks only after ``finish`` was called."""
        self.write_bytes(line.encode(errors="replace"))

    def write_bytes(self, data: bytes) -> None:
        """See ``write``."""
        size = len(data)
        with self._lock:
            # After a dropped line the next ones are dropped too, so that the order is kept.
            if self._missing or self._bytes + size > self._room:
                self._missing += 1
                self.dropped += 1
            else:
                self._lines.append(data)
                self._bytes += size
            idle, self._idle = self._idle, False
        if idle:
            if self._later is not None and threading.get_ident() == self._loop:
                self._later(self.write_now)
            else:
                self._wake.put(None)
        if self._end is not None and threading.current_thread() is not self._thread:
            self._wait()

    def flush(self) -> None:
        """Do nothing. The thread writes the lines."""

    def start(self) -> None:
        """Start the thread. A process that forks must fork before, because threads are not copied to the child."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="log", daemon=True)
            thread.start()
            self._thread = thread

    def write_each_turn(self, attempt: Write, later: Callable[[Callable[[], object]], object]) -> None:
        """Write the lines that this thread, the reactor's, logs in one turn at once.

        ``attempt`` writes as much as is possible without waiting and raises BlockingIOError if that is nothing.
        ``later`` calls a function in the reactor's next round of timed calls, which is before it waits for events.
        """
        self._loop, self._try, self._later = threading.get_ident(), attempt, later

    def write_now(self) -> None:
        """Write the queued lines without waiting, or leave them to the thread."""
        if self._try is None or not self._writing.acquire(blocking=False):
            self._wake.put(None)
            return
        try:
            with self._lock:
                lines, self._lines, self._bytes = self._lines, [], 0
                is_usual = not (self._missing or self._unreported or self._inside_a_line)
            left = self._attempt(lines) if is_usual else lines
            size = sum(map(len, left))
            with self._lock:
                self._lines = [*left, *self._lines]
                self._bytes += size
                self._idle = is_idle = not self._lines and not self._missing
        finally:
            self._writing.release()
        if not is_idle:
            self._wake.put(None)

    def _attempt(self, lines: list[bytes]) -> list[bytes]:
        """Write what can be written without waiting. Returns what is left."""
        chunks = [*_chunks(lines, select.PIPE_BUF)]
        for number, chunk in enumerate(chunks):
            try:
                done = self._try(chunk) if self._try is not None else 0
            except OSError:  # it would block, or fails: the thread counts what is lost
                done = 0
            if done:
                self._has_begun = not chunk.endswith(b"\n", 0, done)
            if done < len(chunk):
                return [chunk[done:], *chunks[number + 1 :]]
        return []

    def call(self, act: Callable[[], object]) -> None:
        """Call ``act`` in the thread after the queued lines are written. A signal handler may call this."""
        self._wake.put(act)

    def finish(self) -> None:
        """Prepare for the end of the process: from now on ``write`` waits for its line, FINISH_SECONDS in all."""
        self._later = None
        if self._end is None:
            self._end = time.monotonic() + FINISH_SECONDS
        try:
            self.start()
        except RuntimeError:  # the interpreter is shutting down and starts no thread
            self._write_all()
            return
        self._wait()

    def _wait(self) -> None:
        written = threading.Event()
        self._wake.put(written.set)
        written.wait(max(0.0, (self._end or 0.0) - time.monotonic()))

    # In the thread

    def _run(self) -> None:
        while True:
            act = self._wake.get()
            if act is None:
                with suppress(Empty):
                    act = self._wake.get(timeout=GATHER_SECONDS)
            self._write_all()
            if act is not None:
                act()

    def _write_all(self) -> None:
        with self._writing:
            self._write_queued()

    def _write_queued(self) -> None:
        while True:
            with self._lock:
                lines, size, missing = self._lines, self._bytes, self._missing
                self._lines, self._bytes, self._missing = [], 0, 0
                if not lines and not missing:
                    self._idle = True
                    return
            most = self._most if size < BEHIND else BEHIND
            chunks = _chunks(lines, most)
            failed = sum(self._failed(chunk) if self._reported() else chunk.count(b"\n") for chunk in chunks)
            with self._lock:
                self.dropped += failed
            self._unreported += failed + missing
            self._reported()

    def _reported(self) -> bool:
        """Report dropped lines, if there are any. Returns whether none is left to report."""
        if self._unreported and not self._failed(self.notice(self._unreported).encode()):
            self._unreported = 0
        return not self._unreported

    def _failed(self, chunk: bytes) -> int:
        """Write whole lines. Returns how many of them could not be written."""
        begin = b"\n" if self._inside_a_line else b""
        chunk, done = begin + chunk, 0
        has_begun, self._has_begun = self._has_begun, False
        while done < len(chunk):
            try:
                done += self._write(chunk[done:])
            except OSError:  # a full disk, a closed pipe, a closed terminal
                break
        if done or has_begun:
            self._inside_a_line = not chunk.endswith(b"\n", 0, done)
        return chunk.count(b"\n", max(done, len(begin)))


def _chunks(lines: list[bytes], most: int) -> Iterable[bytes]:
    """See ``joined``. A pipe takes PIPE_BUF bytes in one piece, also while other processes write to it."""
    if lines and sum(map(len, lines)) <= most:  # mostly all fit into one
        return [b"".join(lines)]
    return joined(lines, most)


def to_descriptor(fd: int) -> Write:
    """Write to an open file, also to one that another process has made non-blocking."""

    def write(data: bytes) -> int:
        while True:
            try:
                return os.write(fd, data)
            except BlockingIOError:
                wait_until_writable(fd)

    return write


def without_waiting(fd: int) -> Write | None:
    """Writes to an open pipe or socket as much as is possible without waiting; None where only a thread can write.

    The file itself stays as it is, because other processes may share it. A write to a disk may always wait.
    """
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):
            connected = socket.socket(fileno=os.dup(fd))
            return lambda data: connected.send(data, socket.MSG_DONTWAIT)
        if stat.S_ISFIFO(mode):  # opened once more, so that only this description of it does not block
            own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            return lambda data: os.write(own, data)
    except OSError:  # no /proc, or the pipe belongs to another user
        pass
    return None


def wait_until_writable(fd: int) -> None:
    """Block until the file takes more bytes."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()


def to_syslog(name: str) -> Write:
    """Write to the system's log (syslog), under the name ``name``."""
    syslog.openlog(name, syslog.LOG_PID, syslog.LOG_DAEMON)

    def write(data: bytes) -> int:
        for line in data.decode(errors="replace").splitlines():
            if line:
                syslog.syslog(line)
        return len(data)

    return write
