"""The interface to systemd: readiness, the watchdog, credentials, the journal.

Without systemd it does nothing. https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

MAX_STATUS = 1000


class Notify:
    """sd_notify: one datagram a message, to the socket that ``NOTIFY_SOCKET`` names, if any."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name

    def ready(self, status: str) -> None:
        """The gateway has started, or has reloaded."""
        self._send("READY=1", _status(status))

    def reloading(self) -> None:
        """A reload begins; ``ready`` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """The gateway is stopping."""
        self._send("STOPPING=1", _status(status))

    def alive(self) -> None:
        """Notify the watchdog."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto("\n".join(lines).encode(errors="replace"), self._address)
        except OSError:
            pass  # without a reader the message is lost, and the gateway continues


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())[:MAX_STATUS]


def watchdog_seconds(environ: Mapping[str, str], pid: int) -> float | None:
    """The time within which this process must notify the watchdog; None without a watchdog."""
    micros = environ.get("WATCHDOG_USEC", "")
    if not micros.isdecimal() or environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    return int(micros) / 1_000_000 or None


class Environment(Mapping[str, str]):
    """The environment, then systemd's credentials: ``NAME``, or ``keys_NAME`` for a credential of a folder.

    https://systemd.io/CREDENTIALS/
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._folder = environ.get("CREDENTIALS_DIRECTORY")

    def __getitem__(self, name: str) -> str:
        if name in self._environ or not self._folder or "/" in name:
            return self._environ[name]
        for file in (Path(self._folder, name), Path(self._folder, f"keys_{name}")):
            try:
                return file.read_text().strip()
            except (OSError, UnicodeDecodeError):
                continue
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._environ)

    def __len__(self) -> int:
        return len(self._environ)
