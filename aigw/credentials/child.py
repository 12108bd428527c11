"""One run of a command: without a shell, in a session of its own, with nothing of the gateway's but its output pipes.

It is started and read in a thread, because Twisted's own processes cannot be ended together with their children: a
program that is a script around another one would leave that behind when it is killed.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads

from aigw.key_forms import SHORTEST
from aigw.secret import KeySearch, Secret

MOST_OUTPUT = 64 * 1024  # bytes
MOST_ERROR = 4 * 1024
POLL_SECONDS = 0.05  # a child of the command may keep the pipes open when the command has ended
_OF_THE_GATEWAY = frozenset(
    "LISTEN_FDS LISTEN_FDNAMES LISTEN_PID NOTIFY_SOCKET WATCHDOG_PID WATCHDOG_USEC MAINPID "
    "OTEL_EXPORTER_OTLP_HEADERS OTEL_EXPORTER_OTLP_TRACES_HEADERS".split()
)
_NEEDED = frozenset(["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"])  # to reach an issuer, with a password or without


class Printed(NamedTuple):
    """What a run gave: ``problem`` is why it is worth nothing, None if it ended well."""

    out: bytes
    error: bytes = b""
    problem: str | None = None


def run(reactor: IReactorFromThreads, command: Sequence[str], environ: Mapping[str, str]) -> Deferred[Printed]:
    """Run the command. Cancelling ends it, and the processes that it has started."""
    child = _Child(reactor, command, environ)
    threading.Thread(target=child.run, name="key command", daemon=True).start()
    return child.ended


def environment(environ: Mapping[str, str], keys: Iterable[Secret]) -> dict[str, str]:
    """The gateway's environment for a command, without the variables that hold one of its keys, or are systemd's.

    Those that name a proxy stay, although they may hold its password.
    """
    keys = list(keys)
    search = KeySearch(key for key in keys if len(key) >= SHORTEST)
    return {
        name: value
        for name, value in environ.items()
        if name.upper() in _NEEDED
        or (
            name not in _OF_THE_GATEWAY
            and search.hide(value) is value
            and not any(key.matches(value.encode(errors="surrogateescape")) for key in keys)
        )
    }


class _Child:
    def __init__(self, reactor: IReactorFromThreads, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self.ended: Deferred[Printed] = Deferred(lambda _: self._end())
        self._reactor = reactor
        self._command = command
        self._environ = environ
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_over = False

    def run(self) -> None:
        """Start it, read what it prints, and report that in the reactor's thread."""
        try:
            printed = self._printed()
        except (OSError, ValueError) as error:
            printed = Printed(b"", b"", f"cannot be started: {getattr(error, 'strerror', None) or 'a wrong argument'}")
        self._reactor.callFromThread(self._report, printed)

    def _printed(self) -> Printed:
        with self._lock:
            if self._is_over:
                return Printed(b"")
            self._process = process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(self._environ),
                close_fds=True,
                start_new_session=True,
            )
        with process:
            assert process.stdout is not None
            assert process.stderr is not None
            out, error = bytearray(), bytearray()
            limits = {process.stdout.fileno(): (out, MOST_OUTPUT), process.stderr.fileno(): (error, MOST_ERROR)}
            with selectors.DefaultSelector() as selector:
                for descriptor in limits:
                    os.set_blocking(descriptor, False)
                    selector.register(descriptor, selectors.EVENT_READ)
                while selector.get_map() and not self._is_over:
                    has_ended = self._poll() is not None
                    ready = selector.select(0 if has_ended else POLL_SECONDS)
                    for key, _ in ready:
                        kept, most = limits[key.fd]
                        data = os.read(key.fd, 65536)
                        if not data:
                            selector.unregister(key.fd)
                        kept += data[: most + 1 - len(kept)]
                    if len(out) > MOST_OUTPUT:
                        self._end()
                        return Printed(b"", bytes(error), f"printed more than {MOST_OUTPUT} bytes")
                    if has_ended and not ready:
                        break
            while self._poll() is None and not self._is_over:
                time.sleep(POLL_SECONDS)
            status = process.wait()
        return Printed(bytes(out), bytes(error[:MOST_ERROR]), _problem(status))

    def _poll(self) -> int | None:
        with self._lock:
            return self._process.poll() if self._process else None

    def _end(self) -> None:
        """End the command with all processes of its session that have not left its group."""
        self._is_over = True
        with self._lock:
            if self._process is not None and self._process.returncode is None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def _report(self, printed: Printed) -> None:
        if not self.ended.called:
            self.ended.callback(printed)


def _problem(status: int) -> str | None:
    if status < 0:
        return f"was ended by signal {-status}"
    return f"ended with exit status {status}" if status else None
