"""This machine's processes: where they run, what they cost, and what the machine is."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

_CPU_CLOCK = 2  # of a process: all its threads, those that have ended too (clock_getcpuclockid(3))


class Cores(NamedTuple):
    """Which core runs what: who is measured has one for itself, provider and clients share the rest."""

    subject: int
    provider: int
    client: int

    @classmethod
    def of(cls, allowed: Iterable[int]) -> Cores:
        """Of two cores or more; with one, everything is on it and times say nothing."""
        cores = sorted(allowed)
        return cls(cores[0], cores[1 % len(cores)], cores[2 % len(cores)] if len(cores) > 2 else cores[-1])


class Process:
    """One process that is ours to start and to end, pinned to a core; its output goes to a file."""

    def __init__(
        self,
        command: Sequence[str | Path],
        core: int,
        log: Path,
        environ: dict[str, str] | None = None,
        passed: socket.socket | None = None,
        also: Path | None = None,
        patience: float = 5.0,
    ) -> None:
        """``passed`` is a listening socket that it gets as systemd would pass it; ``also`` its own log file;
        ``patience`` the seconds that it has to end."""
        self._patience = patience
        self._logs = [log, also] if also else [log]
        environ = {**os.environ, **(environ or {})}
        argv = [str(word) for word in command]
        descriptors = []
        if passed is not None:
            environ |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "https"}
            descriptors = [passed.fileno()]
            adopt = f'exec 3<&{passed.fileno()}; LISTEN_PID=$$ exec "$@"'
            argv = ["bash", "-c", adopt, "bash", *argv]
        with log.open("ab") as out:
            self._popen = subprocess.Popen(
                ["taskset", "-c", str(core), *argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=environ,
                pass_fds=descriptors,
                start_new_session=True,  # ^C is ours, we end them
            )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(self._patience)

    @property
    def pids(self) -> list[int]:
        """It and its descendants."""
        return list(_family(self._popen.pid))

    def wait_until(self, ready: Callable[[], bool], seconds: float = 90.0) -> None:
        """Raises RuntimeError with the end of its output where it is not ready in time, or has ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self._popen.poll() is None:
            with contextlib.suppress(OSError):
                if ready():
                    return
            time.sleep(0.1)
        said = "\n".join(each.read_text(errors="replace")[-2000:] for each in self._logs if each.exists())
        raise RuntimeError(f"{self._logs[0].stem} did not start:\n{said}")

    def cpu_seconds(self) -> float:
        """What it has used so far, in user and kernel mode."""
        return sum(map(cpu_of, self.pids))

    def clients(self, port: int) -> int:
        """How many established connections to a port on loopback it has."""
        lines = [line.split() for line in _text("/proc/net/tcp").splitlines()[1:]]
        ours = {f"socket:[{each[9]}]" for each in lines if each[1].endswith(f":{port:04X}") and each[3] == "01"}
        return sum(len(ours.intersection(_files(pid))) for pid in self.pids)

    def rss_mb(self, peak: bool = False) -> float:
        """Its memory now, or its peak since ``forget_peak``."""
        field = "VmHWM" if peak else "VmRSS"
        return sum(status_kb(_text(f"/proc/{pid}/status"), field) for pid in self.pids) / 1024

    def forget_peak(self) -> None:
        """The peak is from now on."""
        for pid in self.pids:
            with contextlib.suppress(OSError):  # ours to ask, but the kernel may be built without
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def settle(self, seconds: float = 15.0) -> None:
        """Wait until it has nothing left to do, but no longer than ``seconds``."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            before = self.cpu_seconds()
            time.sleep(0.25)
            if self.cpu_seconds() - before <= 0.02:
                return


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # it has ended
        return ""


def _files(pid: int) -> list[str]:
    """What it has open."""
    found = []
    for each in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # it has closed it
            found.append(os.readlink(f"/proc/{pid}/fd/{each}"))
    return found


def _family(pid: int) -> Iterator[int]:
    yield pid
    for child in _text(f"/proc/{pid}/task/{pid}/children").split():
        yield from _family(int(child))


def cpu_of(pid: int) -> float:
    """The CPU seconds of a process, exact where /proc/PID/stat counts ticks of 10 ms; 0 of one that has ended."""
    try:
        return time.clock_gettime((~pid << 3) | _CPU_CLOCK)
    except OSError:
        return 0.0


def status_kb(status: str, field: str) -> float:
    """A size in /proc/PID/status."""
    for line in status.splitlines():
        if line.startswith(field + ":"):
            return float(line.split()[1])
    return 0.0


def free_port() -> int:
    """One that nobody listens on now, in either family."""
    both = socket.has_dualstack_ipv6()
    with socket.create_server(
        ("", 0), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
    ) as probe:
        port: int = probe.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    """Whether somebody listens there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def raise_file_limit(wanted: int) -> int:
    """As many open files as are allowed, for us and whom we start; gives their number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limits in ((max(wanted, hard), max(wanted, hard)), (hard, hard)):
        with contextlib.suppress(ValueError, OSError):  # root may go over the hard limit, elsewhere than in a container
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            break
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def description() -> str:
    """One line on the machine and its software."""
    model = next(
        (line.split(":")[1].strip() for line in _text("/proc/cpuinfo").splitlines() if "model name" in line), ""
    )
    system = next(
        (line.split("=")[1].strip('"') for line in _text("/etc/os-release").splitlines() if "PRETTY_NAME" in line), ""
    )
    return f"{model or platform.machine()}, {os.cpu_count()} cores; {system}, {interpreter()}"


def interpreter() -> str:
    """Which Python ran, and how it was built: builds of one version differ."""
    configured = sysconfig.get_config_var("CONFIG_ARGS") or ""
    flags = [name for name in ("--enable-optimizations", "--with-lto") if name in configured]
    level = re.findall(r"-O\w", sysconfig.get_config_var("OPT") or "")
    built = " ".join([platform.python_compiler(), *level[-1:], *(flags or ["without --enable-optimizations"])])
    name = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{name} ({os.path.realpath(sys.executable)}: {built})"


def load() -> str:
    """How busy others kept it before we began: figures taken on a busy machine are worse, times most of all."""
    return f"Load of the minute before: {os.getloadavg()[0]:.1f}."
