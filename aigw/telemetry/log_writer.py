"""A log that blocks nobody: lines are queued, and a thread of their own writes them.

Whoever reads the log may stop reading (a full pipe), the disk may hang or be full. Then lines wait in a bounded queue;
what does not fit is dropped and counted, and one line says how many as soon as lines can be written again.
"""

from __future__ import annotations

import os
import select
import syslog
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue

ROOM = 4 * 1024 * 1024  # bytes that wait; as many again may be in the middle of being written
GATHER_SECONDS = 0.02  # for which the thread waits for more lines: waking it for each would cost more than the line
BEHIND = (
    64 * 1024
)  # so much waits: larger pieces, as each costs a turn of the interpreter's lock, up to 5 ms under load
FINISH_SECONDS = 2.0  # for which the end of the process waits for a reader

Write = Callable[[bytes], int]  # writes the beginning of what it is given, and says how many bytes that was


class LogWriter:
    """A file for lines. ``dropped`` is how many were dropped since the start.

    ``write`` may be called from every thread, from signal handlers and destructors: Twisted logs in all of them.
    """

    def __init__(self, write: Write, room: int = ROOM) -> None:
        """``write`` is called in the thread only, and may block there."""
        self.notice: Callable[[int], str] = lambda count: f"{count} lines were dropped\n"
        self.dropped = 0
        self._write = write
        self._room = room
        self._lock = threading.RLock()
        self._lines: list[bytes] = []
        self._bytes = 0
        self._missing = 0  # lines that found no room behind those in ``_lines``
        self._unreported = 0  # lines that are lost, with no notice of them written yet
        self._asleep = True
        self._wake: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._end: float | None = None
        self._inside_a_line = False

    def write(self, line: str) -> None:
        """Queue a line, which ends with a line feed, or drop it. Blocks only once ``finish`` was called."""
        data = line.encode(errors="replace")
        size = len(data)
        with self._lock:
            if self._missing or self._bytes + size > self._room:  # once one is missing the next would be out of order
                self._missing += 1
                self.dropped += 1
            else:
                self._lines.append(data)
                self._bytes += size
            asleep, self._asleep = self._asleep, False
        if asleep:
            self._wake.put(None)
        if self._end is not None and threading.current_thread() is not self._thread:
            self._wait()

    def flush(self) -> None:
        """The thread does that."""

    def start(self) -> None:
        """Begin to write. A process that forks does so before, for a thread stays behind in the parent."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="log", daemon=True)
            thread.start()
            self._thread = thread

    def call(self, act: Callable[[], object]) -> None:
        """Call ``act`` in the thread, when what is queued is written; a signal handler may ask for it."""
        self._wake.put(act)

    def finish(self) -> None:
        """The end of the process: from now on ``write`` waits until its line is written, FINISH_SECONDS in all."""
        if self._end is None:
            self._end = time.monotonic() + FINISH_SECONDS
        try:
            self.start()
        except RuntimeError:  # the interpreter is shutting down, and lets no thread begin
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
        while True:
            with self._lock:
                lines, size, missing = self._lines, self._bytes, self._missing
                self._lines, self._bytes, self._missing = [], 0, 0
                if not lines and not missing:
                    self._asleep = True
                    return
            most = select.PIPE_BUF if size < BEHIND else BEHIND
            chunks = _chunks(lines, most)
            failed = sum(self._failed(chunk) if self._reported() else chunk.count(b"\n") for chunk in chunks)
            with self._lock:
                self.dropped += failed
            self._unreported += failed + missing
            self._reported()

    def _reported(self) -> bool:
        """Write how many lines are lost, if any are; whether that could be written."""
        if self._unreported and not self._failed(self.notice(self._unreported).encode()):
            self._unreported = 0
        return not self._unreported

    def _failed(self, chunk: bytes) -> int:
        """Write whole lines; gives how many of them could not be written."""
        begin = b"\n" if self._inside_a_line else b""
        chunk, done = begin + chunk, 0
        while done < len(chunk):
            try:
                done += self._write(chunk[done:])
            except OSError:  # a full disk, a reader that is gone, a terminal that is closed
                break
        if done:
            self._inside_a_line = not chunk.endswith(b"\n", 0, done)
        return chunk.count(b"\n", max(done, len(begin)))


def _chunks(lines: list[bytes], most: int) -> Iterator[bytes]:
    """Lines together, at most so many bytes. PIPE_BUF a pipe takes in one piece, whoever else writes to it."""
    chunk: list[bytes] = []
    size = 0
    for line in lines:
        if chunk and size + len(line) > most:
            yield b"".join(chunk)
            chunk, size = [], 0
        chunk.append(line)
        size += len(line)
    if chunk:
        yield b"".join(chunk)


def to_descriptor(fd: int) -> Write:
    """Write to an open file. It may be one that does not block, for whoever shares it may have made it so."""

    def write(data: bytes) -> int:
        while True:
            try:
                return os.write(fd, data)
            except BlockingIOError:
                wait_until_writable(fd)

    return write


def wait_until_writable(fd: int) -> None:
    """Return when the file takes more."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()


def to_syslog(name: str) -> Write:
    """Write to the system's log, under that name."""
    syslog.openlog(name, syslog.LOG_PID, syslog.LOG_DAEMON)

    def write(data: bytes) -> int:
        for line in data.decode(errors="replace").splitlines():
            if line:
                syslog.syslog(line)
        return len(data)

    return write
