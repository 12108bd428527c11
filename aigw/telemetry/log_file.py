"""The log in a file: appended to, rotated by size or on demand, and opened anew where somebody else has moved it."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from aigw.telemetry.log_writer import wait_until_writable

MAX_BYTES = 100_000_000
KEPT = 10
MODE = 0o640
# Appending, each write goes to the end of the file, wherever a `copytruncate` has put that.
FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_NONBLOCK


class LogFile:
    """``path``, and the files before it as ``path.1`` (the newest) to ``path.10``."""

    def __init__(self, path: str, max_bytes: int = MAX_BYTES, kept: int = KEPT) -> None:
        """Raises OSError if it cannot be opened."""
        self.path = os.path.abspath(path)  # twistd may change the directory
        self._max_bytes = max_bytes
        self._kept = kept
        self._fd = os.open(self.path, FLAGS, MODE)

    def write(self, data: bytes) -> int:
        """Write the beginning of ``data``; gives how many bytes that was. Raises OSError."""
        now = os.fstat(self._fd)
        if stat.S_ISREG(now.st_mode) and now.st_size >= self._max_bytes:
            self.rotate()
        while True:
            try:
                return os.write(self._fd, data)
            except BlockingIOError:  # a named pipe that nobody reads just now
                wait_until_writable(self._fd)

    def rotate(self) -> None:
        """Go on with a new file at ``path``. If it still leads to ours, ours is renamed first.

        If no file can be opened there the old one is written to as before.
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
        """Write no more."""
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
