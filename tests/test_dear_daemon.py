"""B3, S6: a daemon that reads six bodies at once which are dear to read serves everybody else, within three times their size."""

import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.test_daemon import CONFIG, KEYS, Daemon
from tests.test_dear import DEAR, MEBI

ANSWER = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'
AT_ONCE = 6
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


class Sink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        left = int(self.headers["content-length"])
        while left:
            left -= len(self.rfile.read(min(left, 65536)))
        self.send_response(200)
        self.send_header("content-length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, *_):
        pass


class Provider(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """The gateway closes what is idle."""


@pytest.fixture
def daemon(tmp_path):
    provider = Provider(("127.0.0.1", 0), Sink)
    threading.Thread(target=provider.serve_forever, daemon=True).start()
    config = re.sub(r"base_url: [^,}\n]+", f"base_url: http://127.0.0.1:{provider.server_port}/v1", CONFIG)
    with Daemon(tmp_path, config=config.replace("name: r,", "name: smart,")) as daemon:
        daemon.wait_for("The gateway has started")
        yield daemon
    provider.shutdown()
    provider.server_close()


def ask(address, body, statuses):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Api-Key: %s\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(address, timeout=120) as client:
        client.sendall(head % (KEYS["GATEWAY_API_KEY"].encode(), len(body)))
        client.sendall(body)
        statuses.append(client.recv(65536)[9:12].decode())


def memory(daemon, what):
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(re.search(rf"{what}:\s+(\d+)", status)[1]) * 1024


@pytest.mark.parametrize("size", [2 * MEBI, pytest.param(32 * MEBI, marks=pytest.mark.slow)], ids=["2", "32"])
@pytest.mark.parametrize(
    "kind", ["empty lists and a lone surrogate", "members", "messages", "deep lists", "lone surrogates", "a string"]
)
def test_b3_six_at_once_hold_nobody_up(daemon, kind, size):
    make, refusal = DEAR[kind]
    body, statuses, slowest = make(size), [], 0.0
    before = memory(daemon, "VmRSS")
    clients = [threading.Thread(target=ask, args=(daemon.address(), body, statuses)) for _ in range(AT_ONCE)]
    with socket.create_connection(daemon.address(), timeout=10) as health:
        for client in clients:
            client.start()
        while any(client.is_alive() for client in clients):
            began = daemon.cpu_seconds()
            health.sendall(HEALTH)
            assert b"healthy" in health.recv(65536)
            slowest = max(slowest, daemon.cpu_seconds() - began)
            time.sleep(0.01)  # the next of a series of looks at it
    assert statuses == ["200" if refusal is None else "400"] * AT_ONCE
    assert slowest < 0.3  # of turns that take at most 50 ms each, and count in hundredths
    assert memory(daemon, "VmHWM") - before < 3 * AT_ONCE * len(body) + 16 * MEBI
