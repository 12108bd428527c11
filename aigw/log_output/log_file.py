"""The log in a file. The file is rotated by size or on demand, and opened again if another program has moved it."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from aigw.log_output.log_stream import is_on_disk
from aigw.log_output.log_writer import wait_until_writable

MAX_BYTES = 100_000_000
KEPT = 10
MODE = 0o640
# O_APPEND: each write goes to the end of the file, also after logrotate's `copytruncate` has shortened it.
FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_NONBLOCK


class LogFile:
    """The log at ``path``; the older files are ``path.1`` (the newest of them) to ``path.10``."""

    def __init__(self, path: str, max_bytes: int = MAX_BYTES, kept: int = KEPT) -> None:
        """Rotates at ``max_bytes`` and keeps ``kept`` older files. Raises OSError if the file cannot be opened."""
        self.path = os.path.abspath(path)  # twistd may change the directory
        self._max_bytes = max_bytes
        self._kept = kept
        self._fd = os.open(self.path, FLAGS, MODE)
        self.is_on_disk = is_on_disk(self._fd)  # not a named pipe

    def write(self, data: bytes) -> int:
        """Write the beginning of ``data``. Returns how many bytes were written. Raises OSError."""
        now = os.fstat(self._fd)
        if stat.S_ISREG(now.st_mode) and now.st_size >= self._max_bytes:
            self.rotate()
        while True:
            try:
                return os.write(self._fd, data)
            except BlockingIOError:  # a named pipe that is full
                wait_until_writable(self._fd)

    def rotate(self) -> None:
        """Continue in a new file at ``path``. If the open file is still at ``path``, it is renamed first.

        If no new file can be opened, the log continues in the old one.
        """
        ours = os.fstat(self._fd)
        with suppress(OSError):
            moved = not self._is_at_path(ours)
            if not moved:
                if not stat.S_ISREG(ours.st_mode):
                    return
                self._shift()
            fd = os.open(self.path, FLAGS, MODE)
            if not moved:
                os.fchmod(fd, stat.S_IMODE(ours.st_mode))
            os.dup2(fd, self._fd, inheritable=False)
            os.close(fd)

    def close(self) -> None:
        """Close the file; nothing can be written after that."""
        os.close(self._fd)

    def _is_at_path(self, ours: os.stat_result) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), ours)
        except FileNotFoundError:
            return False

    def _shift(self) -> None:
        for number in range(self._kept - 1, 0, -1):
            with suppress(FileNotFoundError):
                os.replace(f"{self.path}.{number}", f"{self.path}.{number + 1}")
        os.replace(self.path, f"{self.path}.1")
