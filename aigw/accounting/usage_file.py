"""The file for accounting: whole lines are appended to it by a thread, and each day may have a file of its own.

Several processes may write to one file: lines are appended in whole, and only one of them renames it. A file that
another program has moved is opened anew. While the file cannot be written, lines wait in a bounded queue.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from aigw.accounting.line import lost_line
from aigw.log_output.log_writer import LogWriter
from aigw.settings.quoting import quoted_file
from aigw.telemetry import logs

MODE = 0o600
FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
AGAIN_SECONDS = 1.0  # between two attempts to write
LOG_SECONDS = 60.0  # between two lines of the log about one file


def missing_folder(setting: str, folder: str) -> list[str]:
    """A mistake if there is no such folder, which the ``setting`` needs."""
    return [] if os.path.isdir(folder) else [f"{setting}: there is no folder {quoted_file(folder)}; make it"]


class UsageFile:
    """The lines of one process. ``write`` never blocks; what does not fit into the queue is lost and counted."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        """``wall`` is the clock of the days, in Unix seconds."""
        self._wall = wall
        self._wanted = "", False  # the path, and whether each day has a file
        self._path = ""  # of the open file
        self._fd = -1
        self._day = ""  # of the lines in it
        self._inside_a_line = False
        self._ending = threading.Event()
        self._logged = -LOG_SECONDS
        self._writer = LogWriter(self._append)
        self._writer.notice = lambda count: lost_line(count, wall())
        self.write = self._writer.write
        self.start = self._writer.start

    @property
    def lost(self) -> int:
        """How many lines could not be written since the start."""
        return self._writer.dropped

    def use(self, path: str, daily: bool) -> None:
        """Write to ``path`` from now on, and with ``daily`` rename the file at the end of each day (UTC)."""
        self._wanted = path, daily

    def leave(self) -> None:
        """Close the file when the lines that wait are written."""
        self._writer.call(self._close)

    def finish(self) -> None:
        """Write what waits, for a few seconds at most; the process ends."""
        self._ending.set()
        self._writer.finish()
        self.leave()

    # In the thread

    def _append(self, data: bytes) -> int:
        """Write the beginning of ``data``, as soon as that is possible."""
        while True:
            try:
                if not self._inside_a_line:
                    self._prepare()
                written = os.write(self._fd, data)
                self._inside_a_line = not data.endswith(b"\n", 0, written)
                return written
            except OSError as error:
                self._report(error)
                if self._ending.wait(AGAIN_SECONDS):
                    raise

    def _prepare(self) -> None:
        """Have the right file open: at the path that is wanted, and of today."""
        path, daily = self._wanted
        if self._fd < 0 or path != self._path or not self._is_at_path():
            self._open(path)
        today = self._today()
        if daily and self._day < today and os.fstat(self._fd).st_size:
            self._rename()
            self._open(path)
        self._day = max(self._day, today)  # a clock that was set back begins no new day

    def _open(self, path: str) -> None:
        fd = os.open(path, FLAGS, MODE)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "it is not a regular file")
        self._close()
        self._fd, self._path = fd, path
        self._day = _day_of(found.st_mtime) if found.st_size else self._today()
        if found.st_size and _last_byte(path) != b"\n":
            os.write(fd, b"\n")  # after the line of a process that was killed

    def _rename(self) -> None:
        """Rename the file of an earlier day, unless another process has done so."""
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        if not self._is_at_path():
            return
        target, number = f"{self._path}.{self._day}", 0
        while os.path.lexists(target):
            number += 1
            target = f"{self._path}.{self._day}.{number}"
        os.rename(self._path, target)

    def _is_at_path(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _today(self) -> str:
        return _day_of(self._wall())

    def _report(self, error: OSError) -> None:
        now = time.monotonic()
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            path = self._wanted[0]
            logs.error(f"The gateway cannot write the file of usage {path}: {error.strerror}; its lines wait in memory")


def _last_byte(path: str) -> bytes:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def _day_of(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
