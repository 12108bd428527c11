"""D5: a daemon after very many mixed requests, with faults, clients that leave, and reloads all the while.

``python -m pytest -m soak``, with ``AIGW_SOAK_REQUESTS=200000`` for a shorter one. Providers and clients are processes
of their own; the daemon is watched from outside, through its log and ``/proc``.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

from tests.harness import KEY
from tests.test_daemon import ROOT, twistd
from tests.test_memory import rss

REQUESTS = int(os.environ.get("AIGW_SOAK_REQUESTS", "1000000"))
# The memory of a process that leaks nothing still rises for so long: 69 MiB at the start, 76 after 65,000 requests, 77
# after 200,000.
WARM_UP = 150_000
HOURS = 2.0
RELOAD_SECONDS = 3.0
SLOPE_KIB = 1024  # for each 100,000 requests
QUIET = {"Request", "Step failed"}


class Daemon:
    """A running one, whose log is read as it is written and counted, for it is far too long to keep."""

    def __init__(self, folder: Path) -> None:
        command = twistd(folder, config=None)
        command.pop("text")
        self.process = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.messages: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.outcomes: Counter[tuple[bytes, bytes]] = Counter()
        self.tracebacks: deque[str] = deque(maxlen=5)
        self.last: dict[str, dict] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            message = re.search(rb'"message":"([A-Za-z ]*)', line)[1].decode()
            if message == "Step failed":
                self.outcomes[re.search(rb'"provider":"(\w+)".*"outcome":"(\w+)"', line).groups()] += 1
            self.messages[message] += 1
            if b'"traceback"' in line or b"Unhandled" in line:
                self.tracebacks.append(line.decode())
            if message == "Request":
                self.statuses[int(re.search(rb'"status":(\d+),"duration_ms":\d+,"skipped"', line)[1])] += 1
            elif message not in QUIET:
                self.last[message] = json.loads(line)["fields"]

    def wait_for(self, message: str, count: int = 1, seconds: float = 20.0) -> dict:
        end = time.monotonic() + seconds
        while self.messages[message] < count:
            assert time.monotonic() < end, f"no {message!r}: {self.messages}"
            assert self.process.poll() is None
            time.sleep(0.01)
        return self.last[message]

    def state(self) -> dict:
        """What the process says that it holds, and what the kernel says."""
        count = self.messages["The gateway reports its state"]
        self.process.send_signal(signal.SIGUSR2)
        said = self.wait_for("The gateway reports its state", count + 1)
        open_files = len(os.listdir(f"/proc/{self.process.pid}/fd"))
        return {**said, "open_files": open_files, "rss_kib": rss(self.process.pid)}

    def settled(self, before: dict, seconds: float = 30.0) -> dict:
        """The state when it is that of ``before``, or the last one seen."""
        end = time.monotonic() + seconds
        while True:
            state = self.state()
            if all(state[name] <= before[name] for name in ("connections", "delayed_calls", "open_files", "in_flight")):
                return state
            if time.monotonic() > end:
                return state
            time.sleep(0.5)

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(20)
        self.process.stderr.close()


class Configurations:
    """Two of them, each with a certificate, and a broken one; ``use`` puts one in place, as a renewal would."""

    def __init__(self, folder: Path, plain: int, secure: int) -> None:
        self._folder = folder
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(folder / "ca.pem"))
        self._pems = [ca.issue_cert("localhost", "127.0.0.2").private_key_and_cert_chain_pem.bytes() for _ in range(2)]
        providers = [
            {"name": "plain", "base_url": f"http://127.0.0.1:{plain}/v1", "api_key": "key-of-plain"},
            {"name": "secure", "base_url": f"https://localhost:{secure}/v1", "ca_file": "providers.pem"},
        ]
        one = {
            "api_key": KEY,
            "listen": ["tcp:0:interface=127.0.0.2", {"endpoint": "tcp:0:interface=127.0.0.1", "insecure": True}],
            "tls": {"cert_file": "tls.pem", "key_file": "tls.pem"},
            "providers": providers,
            "routes": [{"name": "route", "timeout": "500ms", "idle_timeout": "500ms", "cooldown": "1s"}],
            "drain": 1,
        }
        one["routes"][0]["steps"] = [{"provider": "plain", "model": "m"}, {"provider": "secure", "model": "m"}]
        other = json.loads(json.dumps(one))
        other["routes"][0] |= {"deadline": "2s", "cooldown": 0, "stop_on": [400]}
        other["routes"][0]["steps"].reverse()
        other["routes"][0]["steps"][0]["retries"] = 1
        other["providers"][0]["headers"] = {"X-Title": "other"}
        self._texts = [json.dumps(one), json.dumps(other)]

    def use(self, number: int, broken: bool = False) -> None:
        self._replace("tls.pem", self._pems[number % 2])
        self._replace("config.yaml", b"routes: [" if broken else self._texts[number % 2].encode())

    def _replace(self, name: str, data: bytes) -> None:
        new = self._folder / "new"
        new.write_bytes(data)
        new.chmod(0o600)
        new.rename(self._folder / name)


def slope(samples: list[tuple[int, int]]) -> float:
    """The line of least squares through (requests, KiB), as KiB for each 100,000 requests."""
    mean_x = sum(x for x, _ in samples) / len(samples)
    mean_y = sum(y for _, y in samples) / len(samples)
    above = sum((x - mean_x) * (y - mean_y) for x, y in samples)
    return 100_000 * above / sum((x - mean_x) ** 2 for x, _ in samples)


def ports_of(providers: subprocess.Popen) -> tuple[int, int]:
    return tuple(json.loads(providers.stdout.readline()))


@pytest.mark.soak
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look at the open files of the gateway")
def test_d5_nothing_grows(tmp_path, capsys):
    here = {"cwd": ROOT, "text": True, "stdout": subprocess.PIPE}
    with ExitStack() as stack:
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(tmp_path / "providers.pem"))
        certificate = tmp_path / "provider.pem"
        ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(certificate))
        command = [sys.executable, "-m", "tests.soak_providers", str(certificate)]
        providers = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, **here))
        stack.callback(providers.stdin.close)
        configurations = Configurations(tmp_path, *ports_of(providers))
        configurations.use(0)
        daemon = stack.enter_context(Daemon(tmp_path))
        daemon.wait_for("The gateway has started")
        plain, secure = listening(daemon)

        def run(requests: int, watch) -> Counter:
            command = [sys.executable, "-m", "tests.soak_clients", str(plain), str(secure), str(tmp_path / "ca.pem")]
            clients = stack.enter_context(subprocess.Popen([*command, str(requests)], **here))
            stack.callback(clients.terminate)
            told = {"outcomes": {}}
            for line in clients.stdout:
                told = json.loads(line)
                watch(told["requests"])
            assert clients.wait() == 0
            return Counter(told["outcomes"])

        reloads, samples, begun = 0, [], time.monotonic()
        chance, next_reload = random.Random(1), begun

        def watch(requests: int) -> None:
            nonlocal reloads, next_reload
            samples.append((requests, rss(daemon.process.pid)))
            assert time.monotonic() - begun < HOURS * 3600, "too slow for this machine; set AIGW_SOAK_REQUESTS"
            if time.monotonic() >= next_reload:
                reloads += 1
                next_reload = time.monotonic() + RELOAD_SECONDS * (0.5 + chance.random())
                configurations.use(reloads, broken=reloads % 10 == 0)
                daemon.process.send_signal(signal.SIGHUP)
            if len(samples) % 60 == 0:
                with capsys.disabled():
                    print(f"\n  {requests} requests, {time.monotonic() - begun:.0f} s, {daemon.state()}", end="")

        run(WARM_UP, watch)  # what is made once is made, and every buffer was once as large as it gets
        before = daemon.settled(daemon.state() | {"connections": 0, "in_flight": 0, "delayed_calls": 2})
        samples.clear()
        begun = time.monotonic()
        outcomes = run(REQUESTS, watch)
        took = time.monotonic() - begun
        after = daemon.settled(before)
        grown = slope(samples)
        with capsys.disabled():
            print(f"\n  {REQUESTS} requests in {took:.0f} s ({REQUESTS / took:.0f}/s), {reloads} reloads")
            print(f"  before: {before}\n  after:  {after}\n  RSS: {grown:.0f} KiB for each 100,000 requests")
            print(f"  records: {dict(daemon.statuses)}\n  log: {dict(daemon.messages)}")
            for (provider, outcome), count in sorted(daemon.outcomes.items()):
                print(f"    {count:8} steps at {provider.decode()}: {outcome.decode()}")
            for outcome, count in sorted(outcomes.items()):
                print(f"    {count:8} {outcome}")
        assert not daemon.tracebacks, daemon.tracebacks[0]
        assert daemon.messages["The gateway has reloaded"] >= reloads * 0.8
        assert 500 not in daemon.statuses
        assert sum(daemon.outcomes.values()) < daemon.messages["Request"] * 0.2, "the providers answer well, mostly"
        assert not [outcome for outcome in outcomes if re.search("in time|no connection|500|more than", outcome)]
        assert sum(count for outcome, count in outcomes.items() if outcome.endswith(" 200")) > REQUESTS / 2
        for name in ("connections", "in_flight", "delayed_calls", "open_files"):
            assert after[name] <= before[name], f"{name}: {before} before, {after} after"
        assert REQUESTS < 100_000 or grown < SLOPE_KIB


def listening(daemon: Daemon) -> tuple[int, int]:
    """The plain port and the TLS one, by the addresses of the process's sockets."""
    found = {}
    inodes = {os.readlink(f"/proc/{daemon.process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{daemon.process.pid}/fd")}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *rest = line.split()
        if state == "0A" and f"socket:[{rest[5]}]" in inodes:
            address, port = local.split(":")
            found[int(address[:2], 16)] = int(port, 16)
    return found[1], found[2]
