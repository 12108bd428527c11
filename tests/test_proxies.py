"""``python -m pytest -m proxies``: the configurations of docs/proxies.md, as they stand but for ports and paths.

Each proxy is started for real in front of the gateway: streams pass event by event (A3), a client that leaves is noticed
before the answer and within it (T4), a large body and a pause pass (R5), and keep-alives keep a silent stream open (H7).
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest
import trustme
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from tests.harness import HELLO, bounded, request, until
from tests.providers import DONE, LAST_CHUNK, ROLE, STREAM_HEAD, answer, begin_stream, chunk, event, hang

PAGE = (Path(__file__).parent.parent / "docs" / "proxies.md").read_text()
COMMANDS = {
    "nginx": ["nginx", "-p", "{folder}", "-c", "{file}"],
    "haproxy": ["haproxy", "-f", "{file}"],
    "caddy": ["caddy", "run", "--adapter", "caddyfile", "--config", "{file}"],
}
AROUND_NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/error.log; user root;
events {{ }}
http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
{snippet} }}
"""
pytestmark = pytest.mark.proxies


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


class Proxy:
    """One that runs by the page's snippet. ``ca`` signs what it shows, unless it makes its own (Caddy)."""

    def __init__(self, name: str, folder: Path, gateway_port: int, ca: trustme.CA, read_timeout: str = "1h") -> None:
        self.port = free_port()
        certificate = ca.issue_cert("localhost")
        pem = folder / "gateway.pem"
        certificate.private_key_and_cert_chain_pem.write_to_path(str(pem))
        snippet = re.search(rf"```{name}\n(.*?)```", PAGE, re.DOTALL)[1].replace(":8080", f":{gateway_port}")
        snippet = re.sub(r"/etc/\w+/gateway\.(pem|key)", str(pem), snippet)
        snippet = snippet.replace("listen 443", f"listen 127.0.0.1:{self.port}").replace(
            "bind :443", f"bind 127.0.0.1:{self.port}"
        )
        snippet = snippet.replace("proxy_read_timeout 1h", f"proxy_read_timeout {read_timeout}")
        if name == "nginx":
            snippet = AROUND_NGINX.format(folder=folder, snippet=snippet)
        elif name == "caddy":
            snippet = snippet.replace("gateway.example.com {", f"https://localhost:{self.port} {{\n    tls {pem} {pem}")
            snippet = "{\n    admin off\n    auto_https off\n}\n" + snippet
        file = folder / "proxy.conf"
        file.write_text(snippet)
        command = [part.format(folder=folder, file=file) for part in COMMANDS[name]]
        self.log = (folder / "proxy.log").open("w")
        self.process = subprocess.Popen(
            command,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={"HOME": str(folder), "PATH": "/usr/sbin:/usr/bin:/bin"},
        )
        self._context = ssl.create_default_context()
        ca.configure_trust(self._context)

    def connect(self) -> ssl.SSLSocket:
        end = time.monotonic() + 20
        while True:
            try:
                plain = socket.create_connection(("127.0.0.1", self.port), timeout=30)
                return self._context.wrap_socket(plain, server_hostname="localhost")
            except OSError:
                assert time.monotonic() < end, Path(self.log.name).read_text()
                assert self.process.poll() is None, Path(self.log.name).read_text()
                time.sleep(0.05)  # a poll of another process, within a bound

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


@pytest.fixture(params=sorted(COMMANDS))
def proxy_name(request):
    if not shutil.which(request.param, path="/usr/sbin:/usr/bin:/bin"):
        pytest.skip(f"{request.param} is not installed")
    return request.param


def ask(sock: ssl.SSLSocket, body: dict) -> None:
    sock.sendall(re.sub(rb"\r\nHost: [^\r]*", b"\r\nHost: localhost", request(body), count=1))


def read_until(sock: ssl.SSLSocket, end: bytes) -> bytes:
    got = b""
    while end not in got:
        data = sock.recv(65536)
        assert data, got
        got += data
    return got


@ensureDeferred
async def test_a3_events_pass_one_by_one(world, proxy_name, tmp_path):
    provider = world.provider(begin_stream(ROLE, event({"content": "one"})))
    gateway = world.gateway(provider)
    proxy = Proxy(proxy_name, tmp_path, gateway.port, trustme.CA())
    try:
        sock = await deferToThread(proxy.connect)
        ask(sock, {**HELLO, "stream": True})
        first = await bounded(deferToThread(read_until, sock, b"one"), 30)
        assert b" 200 " in first[:20]
        assert b"two" not in first
        connection = provider.connections[-1]
        connection.send(chunk(event({"content": "two"})))
        await bounded(deferToThread(read_until, sock, b"two"), 30)
        connection.send(chunk(event(finish_reason="stop") + DONE) + LAST_CHUNK)
        await bounded(deferToThread(read_until, sock, b"[DONE]"), 30)
        sock.close()
    finally:
        await deferToThread(proxy.stop)


@ensureDeferred
async def test_t4_a_client_that_leaves_before_the_answer_or_within_it_is_noticed(world, proxy_name, tmp_path):
    provider = world.provider(hang, begin_stream(ROLE, event({"content": "one"})))
    gateway = world.gateway(provider)
    proxy = Proxy(proxy_name, tmp_path, gateway.port, trustme.CA())
    try:
        for number, stream in enumerate((False, True), 1):
            sock = await deferToThread(proxy.connect)
            ask(sock, {**HELLO, "stream": stream})
            await until(lambda count=number: len(provider.requests) == count, 10)
            if stream:
                await bounded(deferToThread(read_until, sock, b"one"), 30)
            sock.close()
            await until(lambda count=number: len(world.records) == count, 5)
            assert world.records[-1]["outcome"] == "client_gone"
    finally:
        await deferToThread(proxy.stop)


@ensureDeferred
async def test_r5_a_large_body_passes(world, proxy_name, tmp_path):
    provider = world.provider(answer())
    gateway = world.gateway(provider)
    proxy = Proxy(proxy_name, tmp_path, gateway.port, trustme.CA())

    def call() -> bytes:
        sock = proxy.connect()
        ask(sock, {**HELLO, "pad": "x" * 20_000_000})
        with sock:
            return sock.recv(100)

    try:
        assert b" 200 " in (await bounded(deferToThread(call), 60))[:20]
        assert json.loads(provider.requests[-1].body)["pad"] == "x" * 20_000_000
    finally:
        await deferToThread(proxy.stop)


def thinks(*before: bytes, seconds: int = 20):
    """Sends these events, then thinks, then sends the rest. Before its first output it comments on that each second."""

    def behave(connection) -> None:
        connection.send(STREAM_HEAD + b"".join(map(chunk, before)))

        def second(number: int) -> None:
            if connection.is_closed:
                return
            if number == seconds:
                end = chunk(event({"content": "thought"})), chunk(event(finish_reason="stop") + DONE), LAST_CHUNK
                connection.send(b"".join(end))
                return
            if before == (ROLE,):
                connection.send(chunk(b": thinking\n\n"))
            reactor.callLater(1, second, number + 1)

        second(0)

    return behave


@pytest.mark.parametrize(
    ("keepalive", "before"),
    [(None, (ROLE,)), ({"every": "2s", "before_output": True}, (ROLE,)), ("2s", (ROLE, event({"content": "one"})))],
    ids=["without", "before output", "after output"],
)
@ensureDeferred
async def test_h7_h10_a_thought_of_20_s_passes_an_nginx_that_waits_for_4(world, tmp_path, keepalive, before):
    """Without ``keepalive`` the same stream is lost: the comments of the provider are held up to the first output."""
    if not shutil.which("nginx", path="/usr/sbin:/usr/bin:/bin"):
        pytest.skip("nginx is not installed")
    provider = world.provider(thinks(*before))
    gateway = world.gateway(provider, timeout=60, **({"keepalive": keepalive} if keepalive else {}))
    proxy = Proxy("nginx", tmp_path, gateway.port, trustme.CA(), read_timeout="4s")

    def read_all(sock: ssl.SSLSocket) -> bytes:
        got = b""
        while b"[DONE]" not in got and (data := sock.recv(65536)):
            got += data
        return got

    try:
        sock = await deferToThread(proxy.connect)
        await deferToThread(ask, sock, {**HELLO, "stream": True})
        if keepalive is None:
            assert b" 504 " in await bounded(deferToThread(sock.recv, 100), 30)
        else:
            got = await bounded(deferToThread(read_all, sock), 40)
            assert got.count(b": keep-alive\n\n") >= 7
            assert b"thought" in got
            assert b"[DONE]" in got
            assert world.records[-1]["outcome"] == "ok"
        sock.close()
    finally:
        await deferToThread(proxy.stop)
