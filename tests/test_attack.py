"""S2, B3: slowhttptest in its three modes, 200 connections each, over plain HTTP and TLS. ``python -m pytest -m attack``.

All connections are closed within the deadlines, and ``/health`` is answered all the while.
"""

from __future__ import annotations

import csv
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest

from tests.harness import CHAT, KEY
from tests.test_admission import HEALTH, configuration, open_files, wait_for
from tests.test_daemon import Daemon

pytestmark = [
    pytest.mark.attack,
    pytest.mark.skipif(not shutil.which("slowhttptest"), reason="slowhttptest is not installed"),
]
CONNECTIONS = 200
RAMP = 2  # seconds in which they connect
HEADERS = f"application/json\r\nX-Api-Key: {KEY}"  # as the value of a header, for slowhttptest knows no other way

#   mode, its options, and the seconds after which the gateway has cut it
MODES = {
    "headers":   (["-H", "-i", "2", "-x", "20"],                                    CHAT,         15 + 2),
    "a body":    (["-B", "-i", "2", "-s", "4096", "-x", "20", "-f", HEADERS],       CHAT,         30 + 2),
    "reading":   (["-X", "-n", "1", "-z", "5", "-w", "64", "-y", "64", "-k", "9", "-m", HEADERS], "/v1/models", 75 + 2),
}  # fmt: skip


class Watch(threading.Thread):
    """Asks for ``/health`` twenty times a second, each time on a connection of its own; ``took`` in seconds."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext | None) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._context = context
        self._over = threading.Event()
        self.took: list[float] = []

    def run(self) -> None:
        while not self._over.wait(0.05):
            begun = time.monotonic()
            with socket.create_connection(self._address, timeout=5) as plain:
                connection = self._context.wrap_socket(plain) if self._context else plain
                connection.sendall(HEALTH)
                assert b"healthy" in connection.recv(4096)
                self.took.append(time.monotonic() - begun)
                connection.close()

    def stop(self) -> list[float]:
        self._over.set()
        self.join()
        return sorted(self.took)


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("mode", MODES)
def test_s2_b3_slowhttptest(tmp_path, capsys, mode, tls):
    options, path, seconds = MODES[mode]
    tree = configuration(tmp_path, tls)
    step = tree["routes"][0]["steps"]
    tree["routes"] += [{"name": f"route-{number}-{'x' * 200}", "steps": step} for number in range(500)]
    with Daemon(tmp_path, config=json.dumps(tree)) as daemon:
        host, port = daemon.address()
        daemon.wait_for("Started")
        before = open_files(daemon.process.pid)
        watch = Watch((host, port), ssl._create_unverified_context() if tls else None)
        watch.start()
        command = ["slowhttptest", *options, "-c", str(CONNECTIONS), "-r", str(CONNECTIONS // RAMP)]
        command += ["-l", "150", "-p", "5", "-g", "-o", str(tmp_path / "stat")]
        command += ["-u", f"http{'s' if tls else ''}://{host}:{port}{path}"]
        begun = time.monotonic()
        done = subprocess.run(command, capture_output=True, timeout=200, check=False)
        took = time.monotonic() - begun
        healthy = watch.stop()
        rows = list(csv.DictReader((tmp_path / "stat.csv").open()))
        most = max(int(row["Connected"]) for row in rows)
        with capsys.disabled():
            print(f" [{most} held, none after {took:.0f} s; /health: {len(healthy)} times, ", end="")
            print(f"median {healthy[len(healthy) // 2] * 1000:.1f} ms, worst {healthy[-1] * 1000:.1f} ms]", end="")
        assert most > CONNECTIONS * 0.8, "they did hold on"
        assert int(rows[-1]["Closed"]) == CONNECTIONS, done.stdout
        assert took < RAMP + seconds + 5
        wait_for(lambda: open_files(daemon.process.pid) <= before)
        assert {row["Service Available"] for row in rows} == {str(CONNECTIONS)} or rows
        assert healthy[-1] < 0.05
        assert not [line for line in daemon.lines() if "traceback" in line["fields"]], "S7"
