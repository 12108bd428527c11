"""A Debian that boots: a root file system by debootstrap, made once, and systemd-nspawn to start it, each time afresh.

Needs root, and the packages debootstrap and systemd-container. The machine has a network of its own with nothing but
loopback; a client that is to reach it runs in that network (`Machine.client`), with the programs of the host.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

SUITE = "bookworm"
PACKAGES = (
    "systemd systemd-sysv dbus python3 python3-venv curl openssl openssh-server sudo procps iproute2 ca-certificates"
).split()
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
CLONE_NEWNET = 0x40000000


def missing() -> str | None:
    """What this host lacks for it, None if nothing."""
    if os.geteuid() != 0:
        return "needs root"
    absent = [tool for tool in ("debootstrap", "systemd-nspawn", "nsenter", "ssh") if not shutil.which(tool)]
    return (
        f"needs {', '.join(absent)}: apt-get install debootstrap systemd-container openssh-client" if absent else None
    )


def root_file_system() -> Path:
    """A Debian, from the cache or made now, in about a minute."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "ai-gateway-tests")
    wanted = hashlib.sha256(" ".join([SUITE, *PACKAGES]).encode()).hexdigest()[:10]
    made = cache / f"{SUITE}-{wanted}"
    if not made.exists():
        cache.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".new-", dir=cache))
        try:
            include = f"--include={','.join(PACKAGES)}"
            with (folder / "log").open("wb") as log:
                command = ["debootstrap", "--variant=minbase", include, SUITE, folder / "root"]
                subprocess.run(command, check=True, stdout=log, stderr=log, timeout=900)
            (folder / "root").rename(made)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return made


def patient(seconds: float) -> float:
    """A bound for what is done within ``seconds`` where no core is busy: longer while others use the cores."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Machine:
    """One that is running. What is written to it is gone when it stops."""

    def __init__(self, folder: Path) -> None:
        """``folder`` gets its console's output."""
        self.console = folder / "console.log"
        name = f"aigw-{os.getpid()}"
        command = ["systemd-nspawn", "--boot", "--quiet", "--register=no", "--keep-unit", "--private-network"]
        command += [
            "--volatile=overlay",
            f"--directory={root_file_system()}",
            f"--machine={name}",
            f"--hostname={name}",
        ]
        with self.console.open("wb") as log:
            self._nspawn = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self.leader = self._wait_for_leader()
            self.wait_for(lambda: self.run("systemctl", "is-system-running", check=False).stdout.strip() in BOOTED, 90)
        except BaseException:
            self.stop()
            raise

    def run(self, *command: str | Path, check: bool = True, timeout: float = 120, input: str | None = None):
        """A command in the machine, as root; ``check`` shows what it said where it fails."""
        enter = ["nsenter", f"--target={self.leader}", "--all", "--", *map(str, command)]
        done = subprocess.run(
            enter, env=ENVIRONMENT, capture_output=True, text=True, timeout=patient(timeout), input=input, check=False
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def sh(self, script: str, **more) -> str:
        """A shell script in the machine; what it printed."""
        return self.run("sh", "-c", script, **more).stdout.strip()

    def client(self, *command: str | Path) -> list[str]:
        """The command line of a program of the host that is to run in the machine's network."""
        return ["nsenter", f"--target={self.leader}", "--net", "--", *map(str, command)]

    def write(self, path: str, text: str, mode: str = "0644", owner: str = "root:root") -> None:
        """A file in the machine."""
        folder = os.path.dirname(path)
        self.sh(f"mkdir -p {folder} && cat > {path} && chmod {mode} {path} && chown {owner} {path}", input=text)

    def put(self, source: Path, path: str) -> None:
        """A file of the host into the machine."""
        enter = ["nsenter", f"--target={self.leader}", "--all", "--", "sh", "-c", f"cat > {path}"]
        with source.open("rb") as file:
            subprocess.run(enter, env=ENVIRONMENT, stdin=file, check=True, timeout=patient(60))

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def journal(self, unit: str, *arguments: str) -> str:
        """What a unit logged."""
        return self.run("journalctl", "-q", "--no-pager", "-o", "cat", "-u", unit, *arguments).stdout

    def wait_for(self, condition, seconds: float, every: float = 0.1) -> float:
        """How long it took; other processes are asked, so they are polled, within a bound."""
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < patient(seconds), f"waited {seconds} s in vain"
            assert self._nspawn.poll() is None, self.console.read_text(errors="replace")
            time.sleep(every)
        return time.monotonic() - started

    def stop(self) -> None:
        """Halt, or be made to."""
        if self._nspawn.poll() is None:
            self._nspawn.send_signal(signal.SIGTERM)
            try:
                self._nspawn.wait(60)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()

    def _wait_for_leader(self) -> int:
        """The machine's process 1, by its number here."""
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children")
        end = time.monotonic() + 30
        while time.monotonic() < end:
            assert self._nspawn.poll() is None, self.console.read_text(errors="replace")
            for child in children.read_text().split():
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
            time.sleep(0.05)
        raise AssertionError("systemd-nspawn started nothing")


BOOTED = ("running", "degraded")


class Forward:
    """A port of the host's loopback that leads to one of the machine's, for clients that need the host's network too."""

    def __init__(self, machine: Machine, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))  # of the host's network, whoever accepts from it
        self.port = self._listener.getsockname()[1]
        self._ready = threading.Event()
        threading.Thread(target=self._serve, args=(machine.leader,), daemon=True).start()
        assert self._ready.wait(5)

    def close(self) -> None:
        """No new connections."""
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts

    def _serve(self, leader: int) -> None:
        with open(f"/proc/{leader}/ns/net", "rb") as network:  # only this thread moves there
            assert ctypes.CDLL(None, use_errno=True).setns(network.fileno(), CLONE_NEWNET) == 0
        self._ready.set()
        with self._listener:
            while True:
                try:
                    here, _ = self._listener.accept()
                except OSError:
                    return
                threading.Thread(target=self._lead, args=(here,), daemon=True).start()  # it inherits the network

    def _lead(self, here: socket.socket) -> None:
        with here, socket.create_connection(("127.0.0.1", self._target)) as there:
            back = threading.Thread(target=_pump, args=(there, here), daemon=True)
            back.start()
            _pump(here, there)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
