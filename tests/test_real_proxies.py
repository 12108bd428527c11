"""``python -m pytest -m proxies``: the gateway in front of a real tinyproxy and a real squid (P4, P5, P6, P7).

Each proxy runs in a folder of its own on loopback, with and without a password, for a provider over TLS (CONNECT) and one
over plain HTTP (whole URLs). The provider has an address of this machine that is not loopback.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from tests import providers
from tests.harness import HELLO, KEY, bounded, request, tls_options, until
from tests.providers import LAST_CHUNK, ROLE, STREAM, as_asked, begin_stream, chunk, completion, event

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
PASSWORDS = {"tinyproxy": "canary.password-4711", "squid": "canary/pass:w@rd%4711"}  # tinyproxy takes no others
SOME = event({"content": "hel"})

pytestmark = pytest.mark.proxies

TINYPROXY = """
Port {port}
Listen 127.0.0.1
Timeout 600
MaxClients 100
LogFile "{folder}/log"
PidFile "{folder}/pid"
Filter "{folder}/filter"
"""
SQUID = """
http_port 127.0.0.1:{port}
pid_filename {folder}/pid
cache_log {folder}/log
access_log stdio:{folder}/access.log
coredump_dir {folder}
netdb_filename none
pinger_enable off
cache deny all
hosts_file {folder}/hosts
visible_hostname squid.test
shutdown_lifetime 0 seconds
acl blocked dstdomain blocked.test
{password}
http_access deny blocked
http_access allow {allowed}
http_access deny all
"""
SQUID_PASSWORD = """
auth_param basic program /usr/lib/squid/basic_ncsa_auth {folder}/users
acl known proxy_auth REQUIRED
"""


def address_of_this_machine() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return sock.getsockname()[0]


class RealProxy:
    def __init__(self, name: str, password: bool, address: str) -> None:
        self.name = name
        self.folder = folder = Path(tempfile.mkdtemp(prefix="aigw-proxy-"))
        folder.chmod(0o777)  # squid changes its user
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        user = f"canary-user:{quote(PASSWORDS[name], safe='')}@" if password else ""
        self.url = f"http://{user}127.0.0.1:{self.port}"
        (folder / "filter").write_text("blocked.test\n")
        (folder / "hosts").write_text(f"{address} provider.test blocked.test\n")
        if name == "tinyproxy":
            config = TINYPROXY.format(port=self.port, folder=folder)
            config += f"BasicAuth canary-user {PASSWORDS[name]}\n" if password else ""
            command = ["tinyproxy", "-d", "-c", str(folder / "conf")]
        else:
            hashed = subprocess.run(
                ["openssl", "passwd", "-apr1", PASSWORDS[name]], capture_output=True, text=True, check=True
            ).stdout
            (folder / "users").write_text(f"canary-user:{hashed}")
            rule = SQUID_PASSWORD.format(folder=folder) if password else ""
            allowed = "known" if password else "all"
            config = SQUID.format(port=self.port, folder=folder, password=rule, allowed=allowed)
            command = ["squid", "-N", "-f", str(folder / "conf")]
        (folder / "conf").write_text(config)
        self.output = (folder / "output").open("w")
        self.process = subprocess.Popen(
            command, stdout=self.output, stderr=subprocess.STDOUT, env={"PATH": PATH}, cwd=folder
        )
        end = time.monotonic() + 20
        while not self._accepts():
            if time.monotonic() > end or self.process.poll() is not None:
                logs = self.logs()
                self.stop()
                raise AssertionError(logs)
            time.sleep(0.05)  # a poll of another process, within a bound

    def _accepts(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 5).close()
        except OSError:
            return False
        return True

    def logs(self) -> str:
        return "".join(each.read_text() for each in (self.folder / "output", self.folder / "log") if each.exists())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        self.output.close()
        shutil.rmtree(self.folder)


@pytest.fixture(params=["tinyproxy", "squid"])
def name(request):
    if not shutil.which(request.param, path=PATH):
        pytest.skip(f"{request.param} is not installed")
    return request.param


@pytest.fixture(params=["password", "open"])
def proxy(request, name):
    made = RealProxy(name, request.param == "password", address_of_this_machine())
    yield made
    made.stop()


@pytest.fixture(params=["https", "http"])
def scheme(request):
    return request.param


class Behind:
    """A provider, and a gateway that reaches it through the proxy."""

    def __init__(
        self, world: Any, proxy: RealProxy, scheme: str, *behaviours: Any, host: str = "", url: str = ""
    ) -> None:
        address = address_of_this_machine()
        self.world = world
        self.provider = providers.Provider(list(behaviours) or [as_asked()])
        host = host or address
        if scheme == "https":
            options = tls_options(world.ca.issue_cert(host))
            listening: Any = reactor.listenSSL(0, self.provider, options, interface=address)
        else:
            listening = reactor.listenTCP(0, self.provider, interface=address)
        world._closers.append(listening.stopListening)
        world._closers.append(self._close)
        self.looked_up: list[str] = []
        tree = {
            "api_key": KEY,
            "listen": ["tcp:0:interface=127.0.0.1"],
            "proxy": url or proxy.url,
            "providers": [
                {
                    "name": "p1",
                    "base_url": f"{scheme}://{host}:{listening.getHost().port}/v1",
                    "api_key": "provider-key-1",
                    "ca_file": str(world.ca_file),
                }
            ],
            "routes": [{"name": "route", "timeout": 20, "steps": [{"provider": "p1", "model": "m"}]}],
        }
        self.gateway = world.gateway_of(tree, look_up=self.look_up)

    def look_up(self, host: str) -> list[str]:
        self.looked_up.append(host)
        return []

    def _close(self) -> None:
        for connection in self.provider.connections:
            if not connection.is_closed:
                connection.transport.abortConnection()

    async def stream(self) -> Any:
        client = await self.gateway.send(request({**HELLO, "stream": True}))
        await bounded(client.started)
        return client


@ensureDeferred
async def test_p5_p7_plain_and_streamed(world, proxy, scheme):
    behind = Behind(world, proxy, scheme)
    for _ in range(2):
        plain = await behind.gateway.ask()
        assert (plain.status, plain.body) == (200, completion()), (plain.body, proxy.logs())
        streamed = await behind.gateway.ask(stream=True)
        assert (streamed.status, streamed.body) == (200, b"".join(STREAM))
    if scheme == "https":
        assert len(behind.provider.connections) == 1  # one tunnel
    assert len(behind.provider.requests) == 4
    for seen in behind.provider.requests:
        assert seen.line.split()[1] == "/v1/chat/completions"
        assert seen.header("authorization") == "Bearer provider-key-1"
        assert seen.header("proxy-authorization") is None
        assert "canary" not in str(seen.headers)
    assert [each["outcome"] for record in world.records for each in record["attempts"]] == ["ok"] * 4
    assert "canary" not in "".join(world.log)


@ensureDeferred
async def test_r5_a_large_request_and_a_large_answer_pass(world, proxy, scheme):
    behind = Behind(world, proxy, scheme, providers.answer(body=completion("y" * 3_000_000)))
    message = {"role": "user", "content": "x" * 3_000_000}
    got = await behind.gateway.ask({"messages": [message]})
    assert (got.status, len(got.body)) == (200, len(completion("y" * 3_000_000))), proxy.logs()
    assert behind.provider.bodies[0]["messages"] == [message]


@ensureDeferred
async def test_a3_events_pass_one_by_one(world, proxy, scheme):
    behind = Behind(world, proxy, scheme, begin_stream(ROLE, SOME))
    client = await behind.stream()
    connection = behind.provider.connections[-1]
    for number in range(3):
        following = event({"content": f"word {number}"})
        connection.send(chunk(following))
        await until(lambda following=following: client.answer.body.endswith(following))
    end = event(finish_reason="stop") + b"data: [DONE]\n\n"
    connection.send(chunk(end) + LAST_CHUNK)
    answer = await bounded(client.done)
    assert answer.whole
    assert answer.body.endswith(end)


@ensureDeferred
async def test_t4_a_client_that_leaves_a_stream_ends_it_at_the_provider(world, proxy, scheme):
    behind = Behind(world, proxy, scheme, begin_stream(ROLE, SOME))
    client = await behind.stream()
    client.transport.abortConnection()
    await until(lambda: behind.provider.connections[-1].is_closed, 3)
    await until(lambda: world.records)
    assert world.records[0]["status"] == 499


@ensureDeferred
async def test_t4_a_client_that_leaves_before_the_answer_ends_the_request_at_the_provider(world, proxy, scheme):
    if (proxy.name, scheme) == ("tinyproxy", "http"):
        pytest.skip("tinyproxy reads nothing from its client until the provider answers")
    behind = Behind(world, proxy, scheme, providers.hang)
    client = await behind.gateway.send(request(HELLO))
    await until(lambda: behind.provider.requests)
    client.transport.abortConnection()
    await until(lambda: behind.provider.connections[-1].is_closed, 3)


@ensureDeferred
async def test_a4_a_proxy_that_stops_in_a_stream_is_a_broken_stream(world, proxy, scheme):
    behind = Behind(world, proxy, scheme, begin_stream(ROLE, SOME))
    client = await behind.stream()
    await deferToThread(proxy.kill)
    answer = await bounded(client.done)
    assert answer.body.startswith(ROLE + SOME)
    assert re.search(rb'"code": ?"stream_(reset|truncated)"', answer.body)
    assert b"[DONE]" not in answer.body
    got = await behind.gateway.ask()
    (attempt,) = got.error["attempts"]
    assert attempt["outcome"] == "unreachable"
    assert attempt["message"] == "no connection to the proxy: connection refused"


@ensureDeferred
@pytest.mark.parametrize("user", ["canary-user:wrong-canary@", ""])
async def test_p6_a_wrong_password_or_none_is_a_refusal_of_the_proxy(world, name, scheme, user):
    proxy = RealProxy(name, True, address_of_this_machine())
    try:
        behind = Behind(world, proxy, scheme, url=f"http://{user}127.0.0.1:{proxy.port}")
        got = await behind.gateway.ask()
        (attempt,) = got.error["attempts"]
        status = 401 if user and name == "tinyproxy" else 407
        assert (got.status, attempt["outcome"], attempt["status"]) == (502, "proxy_refused", status), proxy.logs()
        why = "it refuses the user name or the password" if user else "it requires a user name and a password"
        assert attempt["message"] == f"the proxy answered {status}: {why}; correct proxy"
        assert behind.provider.requests == []
        assert "canary" not in got.body.decode() + "".join(world.log)
        (line,) = [json.loads(each) for each in world.log if "Step failed" in each]
        assert (line["level"], line["fields"]["outcome"], line["fields"]["status"]) == ("WARN", "proxy_refused", status)
        metrics = await behind.gateway.get("/metrics")
        assert b'outcome="proxy_refused"' in metrics.body
    finally:
        await deferToThread(proxy.stop)


@ensureDeferred
async def test_p6_a_host_that_the_proxy_does_not_allow(world, proxy, scheme):
    behind = Behind(world, proxy, scheme, host="blocked.test")
    got = await behind.gateway.ask()
    (attempt,) = got.error["attempts"]
    assert (attempt["outcome"], attempt["status"]) == ("proxy_refused", 403), proxy.logs()


@ensureDeferred
async def test_p6_a_host_that_the_proxy_does_not_find(world, proxy, scheme):
    behind = Behind(world, proxy, scheme, host="nowhere.invalid")
    got = await behind.gateway.ask()
    (attempt,) = got.error["attempts"]
    assert attempt["outcome"] == "proxy_refused", (attempt, proxy.logs())
    assert attempt["status"] in (500, 502, 503, 504)
    assert behind.looked_up == []


@ensureDeferred
async def test_p5_squid_looks_up_the_name_of_the_provider(world, proxy, scheme):
    if proxy.name != "squid":
        pytest.skip("tinyproxy knows no names of its own")
    behind = Behind(world, proxy, scheme, host="provider.test")
    got = await behind.gateway.ask()
    assert (got.status, got.body) == (200, completion()), proxy.logs()
    assert behind.looked_up == []
