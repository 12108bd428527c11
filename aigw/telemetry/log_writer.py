"""A log that never blocks the event loop: lines are queued, and a thread writes them.

A pipe may be full because its reader has stopped; a disk may hang or be full. Then lines wait in a bounded queue. Lines
that do not fit are dropped and counted. When lines can be written again, one line reports how many were dropped.
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
from typing import Protocol

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

    def __init__(self, write: Write, room: int = ROOM) -> None:
        """``write`` is called in the thread only, and may block there."""
        self.notice: Callable[[int], str] = lambda count: f"{count} lines were dropped\n"
        self.dropped = 0
        self._write = write
        self._room = room
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

    def call(self, act: Callable[[], object]) -> None:
        """Call ``act`` in the thread after the queued lines are written. A signal handler may call this."""
        self._wake.put(act)

    def finish(self) -> None:
        """Prepare for the end of the process: from now on ``write`` waits for its line, FINISH_SECONDS in all."""
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
        while True:
            with self._lock:
                lines, size, missing = self._lines, self._bytes, self._missing
                self._lines, self._bytes, self._missing = [], 0, 0
                if not lines and not missing:
                    self._idle = True
                    return
            most = select.PIPE_BUF if size < BEHIND else BEHIND
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
        while done < len(chunk):
            try:
                done += self._write(chunk[done:])
            except OSError:  # a full disk, a closed pipe, a closed terminal
                break
        if done:
            self._inside_a_line = not chunk.endswith(b"\n", 0, done)
        return chunk.count(b"\n", max(done, len(begin)))


def _chunks(lines: list[bytes], most: int) -> Iterator[bytes]:
    """Join lines to chunks of at most ``most`` bytes; a longer line is a chunk of its own.

    A pipe takes PIPE_BUF bytes in one piece, also while other processes write to it.
    """
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
    """Write to an open file, also to one that another process has made non-blocking."""

    def write(data: bytes) -> int:
        while True:
            try:
                return os.write(fd, data)
            except BlockingIOError:
                wait_until_writable(fd)

    return write


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
