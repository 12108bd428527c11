"""D3: what the daemon and systemd tell each other, with a socket of the test's own in systemd's place."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from aigw.daemon.systemd import Environment, Notify, watchdog_seconds
from aigw.telemetry.logs import JsonLines, is_journal
from tests.test_daemon import CONFIG, KEYS, Daemon, run


class Manager:
    """systemd's end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(10)

    def hears(self, beginning: str) -> dict[str, str]:
        """The next message that begins so."""
        while True:
            message = self.socket.recv(4096).decode()
            if message.startswith(beginning):
                return dict(line.partition("=")[::2] for line in message.splitlines())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    with Manager(str(tmp_path / "notify") if request.param == "path" else f"@aigw-test-{os.getpid()}") as manager:
        yield manager


def test_d3_messages(manager):
    notify = Notify({"NOTIFY_SOCKET": manager.address})
    notify.ready("a lone surrogate: \ud800")
    assert manager.hears("READY=1")["STATUS"] == "a lone surrogate: ?"
    notify.ready("two\nlines " + "x" * 5000)
    heard = manager.hears("READY=1")
    assert heard["STATUS"].startswith("two lines xxx")
    assert len(heard["STATUS"]) == 1000
    notify.reloading()
    assert int(manager.hears("RELOADING=1")["MONOTONIC_USEC"]) > 0
    notify.stopping("bye")
    assert manager.hears("STOPPING=1")["STATUS"] == "bye"


def test_d3_a_manager_that_is_gone_or_does_not_read_harms_nobody(tmp_path):
    Notify({}).alive()
    Notify({"NOTIFY_SOCKET": str(tmp_path / "none")}).alive()
    with Manager(str(tmp_path / "full")):
        for _ in range(10_000):
            Notify({"NOTIFY_SOCKET": str(tmp_path / "full")}).alive()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "20000000"}, 20.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "42"}, 20.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "43"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_d3_whether_a_watchdog_waits_for_us(environ, seconds):
    assert watchdog_seconds(environ, 42) == seconds


def test_d3_keys_may_be_credentials(tmp_path):
    (tmp_path / "ONE_KEY").write_text("one\n")
    (tmp_path / "keys_TWO_KEY").write_text("two\n")
    environ = Environment({"CREDENTIALS_DIRECTORY": str(tmp_path), "ONE_KEY": "of the environment"})
    assert (environ["ONE_KEY"], environ["TWO_KEY"]) == ("of the environment", "two")
    assert "THREE_KEY" not in environ
    assert environ.get("../one") is None


def test_d3_a_daemon_with_credentials(tmp_path):
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "keys_A_KEY").write_text("canary-key-4711\n")
    environ = {"GATEWAY_API_KEY": "gateway-key-0987-0987", "CREDENTIALS_DIRECTORY": str(credentials)}
    assert run(tmp_path, "--check-config", environ=environ).returncode == 0


def test_d3_it_says_ready_feeds_the_watchdog_reloads_and_says_when_it_stops(tmp_path, manager):
    environ = {**KEYS, "NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1500000"}
    with Daemon(tmp_path, environ=environ) as daemon:
        assert "Serving 1 routes with 1 providers" in manager.hears("READY=1")["STATUS"]
        with socket.create_connection(daemon.address()):
            pass  # READY means that it accepts
        for _ in range(3):
            assert manager.hears("WATCHDOG=1")
        daemon.process.send_signal(signal.SIGHUP)
        manager.hears("RELOADING=1")
        assert "reloaded at" in manager.hears("READY=1")["STATUS"]
        (tmp_path / "config.yaml").write_text(CONFIG.replace("90s", "never"))
        daemon.process.send_signal(signal.SIGHUP)
        manager.hears("RELOADING=1")
        status = manager.hears("READY=1")["STATUS"]
        assert status.startswith("Not reloaded at ")
        assert "routes[0].steps[0].timeout" in status
        daemon.process.terminate()
        manager.hears("STOPPING=1")
        assert daemon.process.wait(10) == -signal.SIGTERM


def with_socket(tmp_path, listening: socket.socket, config: str) -> Daemon:
    """A daemon to which systemd would have passed a listening socket, as descriptor 3."""

    class Passing(Daemon):
        def start(self, args, **more):
            dup = f"import os, sys; os.dup2({listening.fileno()}, 3); os.environ['LISTEN_PID'] = str(os.getpid())"
            wrapped = [sys.executable, "-c", f"{dup}; os.execv(sys.argv[1], sys.argv[1:])", *args]
            return subprocess.Popen(wrapped, pass_fds=[listening.fileno()], **more)

    return Passing(tmp_path, config=config, environ={**KEYS, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "https"})


@pytest.mark.parametrize("listen", ['listen: ["systemd:domain=INET:name=https"]\n', ""], ids=["named", "not named"])
def test_d3_sockets_of_systemd_are_taken(tmp_path, listen):
    """Where the file names no listener they take the place of the port; a reload leaves them open."""
    insecure = listen.replace('"systemd', '{endpoint: "systemd').replace('https"', 'https", insecure: true}')
    config = insecure + "\n".join(line for line in CONFIG.splitlines() if not line.startswith("listen"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        host, port = listening.getsockname()
        with with_socket(tmp_path, listening, config) as daemon:
            assert daemon.address() == (host, port)
            assert urllib.request.urlopen(f"http://{host}:{port}/health", timeout=5).status == 200
            daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_for("The gateway has reloaded")
            assert urllib.request.urlopen(f"http://{host}:{port}/ready", timeout=5).status == 200
            assert daemon.stop() == -signal.SIGTERM
        with socket.create_connection((host, port), 1):
            pass  # it is systemd's, and whoever comes meanwhile waits in it


def test_y3_a_socket_that_shares_its_port_is_closed_after_who_waits_in_it_was_taken(tmp_path):
    """systemd has closed it already where there is to be one instance less. The other sockets it keeps."""
    config = "\n".join(line for line in CONFIG.splitlines() if not line.startswith("listen"))
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(("127.0.0.1", 0))
        listening.listen(500)
        address = listening.getsockname()
        with with_socket(tmp_path, listening, config) as daemon:
            daemon.wait_for("The gateway has started", seconds=30)
            listening.close()
            daemon.process.send_signal(signal.SIGSTOP)
            clients = [socket.create_connection(address, timeout=10) for _ in range(300)]  # more than one turn takes
            for client in clients:
                client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            daemon.process.terminate()
            daemon.process.send_signal(signal.SIGCONT)
            assert all(b"healthy" in client.recv(4096) for client in clients)
            for client in clients:
                client.close()
            assert daemon.process.wait(10) == -signal.SIGTERM


def test_b11_a_socket_of_systemd_beyond_loopback_needs_tls(tmp_path):
    config = "\n".join(line for line in CONFIG.splitlines() if not line.startswith("listen"))
    with socket.socket() as listening:
        listening.bind(("0.0.0.0", 0))
        listening.listen()
        with with_socket(tmp_path, listening, config) as daemon:
            assert daemon.process.wait(10) == 78
            assert "not on loopback" in daemon.err.read_text()


# The journal


def test_d3_priorities_stand_before_each_line_where_the_journal_reads(tmp_path):
    file = tmp_path / "err"
    file.touch()
    stat = file.stat()
    environ = {**KEYS, "JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"}
    with Daemon(tmp_path, environ=environ, log=tmp_path / "none") as daemon:
        while "The gateway has started" not in file.read_text():
            assert daemon.process.poll() is None
    lines = file.read_text().splitlines()
    levels = {json.loads(line[3:])["level"]: line[:3] for line in lines}
    assert levels == {"WARN": "<4>", "INFO": "<6>"}


def test_d3_no_priorities_elsewhere():
    assert not is_journal({}, 2)
    assert not is_journal({"JOURNAL_STREAM": "1:2"}, 2)
    assert not is_journal({"JOURNAL_STREAM": "1:2"}, 12345)


def test_d3_all_levels_have_their_priority():
    from twisted.logger import LogLevel

    lines: list[str] = []

    class File:
        write = staticmethod(lines.append)
        flush = staticmethod(lambda: None)

    for level in LogLevel.iterconstants():
        JsonLines(File(), priorities=True)({"log_level": level, "aigw_message": "x", "aigw_fields": {}})
    assert [line[:3] for line in lines] == ["<6>", "<4>", "<3>", "<2>"]
