"""P4, P5, P6, P7: calls through a proxy. Most are in memory: the test is the proxy. TLS in a tunnel is on real sockets."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
import trustme
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionRefusedError, DNSLookupError
from twisted.internet.protocol import Factory, Protocol

from aigw.commands.check_providers import Check
from aigw.routing.retry_policy import Verdict, decide
from aigw.upstream.reasons import ProxyRefused
from tests.harness import HELLO, KEY, request, tls_options, until
from tests.memory import MemoryGateway, error_of
from tests.providers import ROLE, STREAM, answer, as_asked, begin_stream, completion, event, stream

PASSWORD = "canary/password-4711"
WRITTEN = f"http://canary-user:{PASSWORD}@proxy:3128"
AUTHORIZATION = b"Basic " + base64.b64encode(f"canary-user:{PASSWORD}".encode())
ASKED = b"CONNECT provider.example:443 HTTP/1.1\r\nHost: provider.example:443\r\n"
GOOD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(completion()),
    completion(),
)


def gateway(base_url: str = "https://provider.example/v1", proxy: str = "http://proxy:3128", **route) -> MemoryGateway:
    """Step 1 is behind the proxy, step 2 is not."""
    top = {
        "providers": [
            {"name": "p1", "base_url": base_url, "api_key": "key-of-p1", "proxy": proxy},
            {"name": "p2", "base_url": "http://p2/v1"},
        ]
    }
    return MemoryGateway(top=top, **route)


def ended(world: MemoryGateway) -> tuple[str, int | None, str]:
    (attempt,) = world.failed
    return attempt.outcome, attempt.status, attempt.message


# CONNECT


def test_p5_the_proxy_is_asked_for_the_provider_and_tls_follows_its_answer():
    world = gateway()
    world.ask()
    assert "provider.example" not in world.doors
    wire = world.doors["proxy"].wire
    assert wire.take() == ASKED + b"\r\n"
    wire.say(b"HTTP/1.0 200 Connection established\r\nProxy-Agent: x\r\nContent-Length: 9\r\n\r\n")
    hello = wire.take()
    assert hello[:2] == b"\x16\x03"
    assert b"provider.example" in hello  # the name for which it asks (SNI)


def test_p4_the_password_goes_to_the_proxy_and_nowhere_else():
    world = gateway(proxy=WRITTEN)
    world.ask()
    assert world.doors["proxy"].wire.take() == ASKED + b"Proxy-Authorization: %s\r\n\r\n" % AUTHORIZATION


@pytest.mark.parametrize(
    ("base_url", "target"),
    [("https://provider.example:8443/v1", b"provider.example:8443"), ("https://[2001:db8::7]/v1", b"[2001:db8::7]:443"),
     ("https://192.0.2.7/v1", b"192.0.2.7:443"), ("https://b\xfccher.example/v1", b"xn--bcher-kva.example:443")],
)  # fmt: skip
def test_p5_the_target_of_connect(base_url, target):
    world = gateway(base_url)
    world.ask()
    assert world.doors["proxy"].wire.take() == b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (target, target)


NO_PROVIDER = "it has no connection to the provider"
NOT_ALLOWED = "it does not allow connections to this host and port; allow them at the proxy"
NO_BASIC = "it does not take user name and password as the gateway sends them (Basic); allow that at the proxy"
NOT_HTTP = "the proxy's answer is not HTTP/1.1"
IN_HEAD = "the proxy closed the connection in the head of its answer"
TOO_LARGE = "the head of the proxy's answer is too large"
CLOSE = object()
ANSWERS = {  # what the proxy sends, read by read, and what the attempt's record has
    "407": ([b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\n\r\n"],
            "proxy_refused", 407, "the proxy answered 407: it requires a user name and a password; correct proxy"),
    "407 for another scheme": ([b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\nproxy-authenticate: Negotiate\r\n\r\n"],
            "proxy_refused", 407, f"the proxy answered 407: {NO_BASIC}"),
    "407 for several schemes": ([b'HTTP/1.1 407 No\r\nProxy-Authenticate: Digest realm="x", Basic realm="x"\r\n\r\n'],
            "proxy_refused", 407, "the proxy answered 407: it requires a user name and a password; correct proxy"),
    "407 for a scheme of two lines": ([b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\nProxy-Authenticate: basic\r\n\r\n"],
            "proxy_refused", 407, "the proxy answered 407: it requires a user name and a password; correct proxy"),
    "403": ([b"HTTP/1.1 403 Filtered\r\nContent-Type: text/html\r\n\r\n<html>no</html>"],
            "proxy_refused", 403, f"the proxy answered 403: {NOT_ALLOWED}"),
    "405": ([b"HTTP/1.1 405 No\r\n\r\n"], "proxy_refused", 405, f"the proxy answered 405: {NOT_ALLOWED}"),
    "401": ([b"HTTP/1.1 401 No\r\n\r\n"], "proxy_refused", 401,
            "the proxy answered 401: it requires a user name and a password; correct proxy"),
    "400": ([b"HTTP/1.1 400 No\r\n\r\n"], "proxy_refused", 400, "the proxy answered 400"),
    "429": ([b"HTTP/1.1 429 No\r\nRetry-After: 60\r\n\r\n"], "proxy_refused", 429, "the proxy answered 429"),
    "500": ([b"HTTP/1.0 500 Unable to connect\r\n\r\n"], "proxy_refused", 500, f"the proxy answered 500: {NO_PROVIDER}"),
    "502": ([b"HTTP/1.1 502 Bad\r\n\r\n"], "proxy_refused", 502, f"the proxy answered 502: {NO_PROVIDER}"),
    "503": ([b"HTTP/1.1 503 No\r\n\r\n"], "proxy_refused", 503, f"the proxy answered 503: {NO_PROVIDER}"),
    "504": ([b"HTTP/1.1 504 No\r\n\r\n"], "proxy_refused", 504, f"the proxy answered 504: {NO_PROVIDER}"),
    "302": ([b"HTTP/1.1 302 No\r\nLocation: http://x/\r\n\r\n"], "proxy_refused", 302, "the proxy answered 302"),
    "101": ([b"HTTP/1.1 101 No\r\n\r\n"], "proxy_refused", 101, "the proxy answered 101"),
    "403 behind 100": ([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 No\r\n\r\n"],
                       "proxy_refused", 403, f"the proxy answered 403: {NOT_ALLOWED}"),
    "a large page": ([b"HTTP/1.1 403 No\r\n\r\n" + b"x" * 100_000],
                     "proxy_refused", 403, f"the proxy answered 403: {NOT_ALLOWED}"),
    "no reason": ([b"HTTP/1.1 403\r\n\r\n"], "proxy_refused", 403, f"the proxy answered 403: {NOT_ALLOWED}"),
    "bare newlines": ([b"HTTP/1.0 403 No\nX: y\n\n"], "proxy_refused", 403, f"the proxy answered 403: {NOT_ALLOWED}"),
    "byte by byte": ([bytes([each]) for each in b"HTTP/1.1 403 No\r\nX: y\r\n\r\n"],
                     "proxy_refused", 403, f"the proxy answered 403: {NOT_ALLOWED}"),
    "closes": ([CLOSE], "unreachable", None, "the proxy closed the connection before an answer"),
    "closes in the status line": ([b"HTTP/1.1 2", CLOSE], "unreachable", None, IN_HEAD),
    "closes in the head": ([b"HTTP/1.1 200 OK\r\nX: y\r\n", CLOSE], "unreachable", None, IN_HEAD),
    "closes behind 100": ([b"HTTP/1.1 100 Go\r\n\r\nHTT", CLOSE], "unreachable", None, IN_HEAD),
    "garbage": ([b"\x00\x01\x02"], "unreachable", None, NOT_HTTP),
    "garbage, later": ([b"HT", b"TQ/1.1"], "unreachable", None, NOT_HTTP),
    "SSH": ([b"SSH-2.0-OpenSSH_9.2\r\n"], "unreachable", None, NOT_HTTP),
    "HTTP/2": ([b"HTTP/2 200 \r\n\r\n"], "unreachable", None, NOT_HTTP),
    "TLS": ([b"\x15\x03\x01\x00\x02\x02\x46"], "unreachable", None,
            f"{NOT_HTTP}: it is encrypted; does proxy need https://?"),
    "no status": ([b"HTTP/1.1 OK\r\n\r\n"], "unreachable", None, "the proxy's answer is malformed HTTP"),
    "a status of two digits": ([b"HTTP/1.1 20 OK\r\n\r\n"], "unreachable", None, "the proxy's answer is malformed HTTP"),
    "a status of four digits": ([b"HTTP/1.1 2000\r\n\r\n"], "unreachable", None, "the proxy's answer is malformed HTTP"),
    "status 000": ([b"HTTP/1.1 000 OK\r\n\r\n"], "unreachable", None, "the proxy's answer is malformed HTTP"),
    "a head without an end": ([b"HTTP/1.1 200 OK\r\n"] + [b"X: %s\r\n" % (b"y" * 1000)] * 17, "unreachable", None, TOO_LARGE),
    "a large head": ([b"HTTP/1.1 200 OK\r\nX: %s\r\n\r\n" % (b"y" * 17_000)], "unreachable", None, TOO_LARGE),
    "1xx without an end": ([b"HTTP/1.1 100 Continue\r\n\r\n" * 4000], "unreachable", None, TOO_LARGE),
    "1xx one by one": ([b"HTTP/1.1 100 Continue\r\n\r\n"] * 1000, "unreachable", None, TOO_LARGE),
    "data behind 200": ([b"HTTP/1.1 200 OK\r\n\r\nhello"], "unreachable", None,
                        "the proxy sent data behind its answer to CONNECT"),
    "an answer behind 200": ([b"HTTP/1.1 200 OK\r\n\r\n" + GOOD], "unreachable", None,
                             "the proxy sent data behind its answer to CONNECT"),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
def test_p6_what_the_proxy_answers(case):
    reads, outcome, status, message = ANSWERS[case]
    world = gateway(timeout=60)
    client = world.ask()
    wire = world.doors["proxy"].wire
    for each in reads:
        if each is CLOSE:
            wire.loseConnection()
        else:
            wire.say(each)
    assert ended(world) == (outcome, status, message)
    assert wire.disconnected
    world.doors["p2"].wire.say(GOOD)
    assert b"200 OK" in client.take()
    assert world.records[0].outcome == "ok"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 407, 413, 429, 502])
def test_p6_a_refusal_of_the_proxy_is_never_read_as_one_of_the_provider(status):
    """It passes no ``stop_on`` and no ``when_refused``, blames no key, and counts as a failed connection."""
    assert decide(ProxyRefused("x", status=status)) == Verdict(strike="failure", repeatable=True)
    top = {
        "providers": [
            {"name": "p1", "base_url": "https://provider.example/v1", "api_key": "key-of-p1", "proxy": WRITTEN}
        ],
        "when_refused": "pass_on",
    }
    world = MemoryGateway(steps=1, top=top, stop_on=[400, 403, 404, 407, 413, 429, 502])
    for number in range(1, 4):
        client = world.ask()
        world.doors["proxy"].wire.say(b"HTTP/1.1 %d No\r\nRetry-After: 7\r\n\r\n%s" % (status, PASSWORD.encode()))
        got = client.take()
        assert b" 502 " in got.split(b"\r\n")[0]
        assert b"x-should-retry" not in got.lower()
        (shown,) = error_of(got)["attempts"]
        assert (shown["outcome"], shown["status"]) == ("proxy_refused", status)
        assert "canary" not in got.decode()
        assert (world.failed[-1].rests_s is None) == (number < 3)  # three in a row, as other failed connections
    assert world.failed[-1].rests_s == 60


def test_p6_with_a_wrong_password_the_message_names_the_setting():
    world = gateway(proxy=WRITTEN)
    world.ask()
    world.doors["proxy"].wire.say(b"HTTP/1.1 407 No\r\n\r\n")
    assert ended(world)[2] == "the proxy answered 407: it refuses the user name or the password; correct proxy"


@pytest.mark.parametrize(
    ("proxy", "sent"),
    [("http://proxy:1", b""), ("http://proxy:1", b"HTTP/1.1 100 Continue\r\n\r\n"),
     ("http://proxy:1", b"HTTP/1.1 200 OK\r\nX: y\r\n"), ("https://proxy:1", b"\x16\x03")],
)  # fmt: skip
def test_p5_a_silent_proxy_ends_by_connect_timeout(proxy, sent):
    world = gateway(connect_timeout=3, proxy=proxy)
    world.ask()
    wire = world.doors["proxy"].wire
    wire.say(sent)
    world.clock.advance(2.9)
    assert world.failed == []
    world.clock.advance(0.2)
    assert ended(world) == ("timeout", None, "connect limit of 3 s passed before the proxy connected to the provider")
    assert wire.aborted


def test_p5_a_proxy_that_drips_ends_by_connect_timeout():
    world = gateway(connect_timeout=3)
    world.ask()
    wire = world.doors["proxy"].wire
    wire.say(b"HTTP/1.1 200 OK\r\n")
    for _ in range(40):
        world.clock.advance(0.1)
        wire.say(b"x")
    assert ended(world)[0] == "timeout"


@pytest.mark.parametrize(
    ("reason", "message"),
    [(ConnectionRefusedError(), "connection refused"), (DNSLookupError(), "name not found"),
     (OSError(), "the connection failed: OSError")],
)  # fmt: skip
@pytest.mark.parametrize("base_url", ["https://provider.example/v1", "http://provider.example/v1"])
def test_p6_without_a_connection_to_the_proxy_the_message_names_the_proxy(reason, message, base_url):
    world = gateway(base_url)
    door = world._door("proxy", 3128)
    door.opens = Deferred()
    world.ask()
    door.opens.errback(reason)
    assert ended(world) == ("unreachable", None, f"no connection to the proxy: {message}")


@pytest.mark.parametrize(
    ("proxy", "answer"),
    [("http://proxy:1", b""), ("http://proxy:1", b"HTTP/1.1 200 "), ("http://proxy:1", b"HTTP/1.1 200 OK\r\n\r\n"),
     ("https://proxy:1", b"\x16\x03")],
)  # fmt: skip
def test_t4_a_client_that_leaves_ends_the_connection_to_the_proxy(proxy, answer):
    world = gateway(proxy=proxy)
    client = world.ask()
    wire = world.doors["proxy"].wire
    wire.say(answer)
    client.loseConnection()
    assert wire.aborted
    assert [each.status for each in world.records] == [499]
    assert world.failed == []


def test_t4_a_client_that_leaves_before_the_proxy_is_connected():
    world = gateway()
    world._door("proxy", 3128).opens = opening = Deferred()
    client = world.ask()
    client.loseConnection()
    assert [each.status for each in world.records] == [499]
    assert opening.called  # cancelled


# Plain HTTP

PLAIN = "http://provider.example:8000/v1"


def test_p7_a_provider_over_plain_http_is_asked_for_by_whole_urls():
    world = gateway(PLAIN, WRITTEN)
    client = world.ask()
    wire = world.doors["proxy"].wire
    sent = wire.take()
    assert sent.startswith(
        b"POST http://provider.example:8000/v1/chat/completions HTTP/1.1\r\nHost: provider.example:8000\r\n"
    )
    assert b"\r\nProxy-Authorization: %s\r\n" % AUTHORIZATION in sent
    wire.say(GOOD)
    assert b"200 OK" in client.take()
    # tinyproxy would pass on a second request to the provider as it is, password and all.
    assert b"\r\nConnection: close\r\n" in sent
    assert wire.disconnected
    world.ask()
    assert len(world.doors["proxy"].wires) == 2


def test_p7_without_a_proxy_a_request_is_what_it_was():
    world = gateway(PLAIN, "none")
    world.ask()
    sent = world.doors["provider.example"].wire.take()
    assert sent.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: provider.example:8000\r\n")
    assert b"proxy" not in sent.lower()


REFUSED = {  # an answer to a request with a whole URL, and whether it is the proxy's
    "407": (b"HTTP/1.1 407 No\r\nContent-Length: 2\r\n\r\nno", True),
    "407, Negotiate": (b"HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate\r\nContent-Length: 2\r\n\r\nno", True),
    "squid": (b"HTTP/1.1 403 Forbidden\r\nServer: squid/5.7\r\nX-Squid-Error: ERR_ACCESS_DENIED 0\r\nContent-Length: 2\r\n\r\nno", True),
    "squid, hidden": (b"HTTP/1.1 503 No\r\nX-Squid-Error: ERR_CONNECT_FAIL 111\r\nContent-Length: 0\r\n\r\n", True),
    "tinyproxy": (b"HTTP/1.0 500 Unable to connect\r\nServer: tinyproxy/1.11.1\r\nConnection: close\r\n\r\n<html>", True),
    "tinyproxy, 401": (b"HTTP/1.0 401 Unauthorized\r\nServer: tinyproxy/1.11.1\r\nConnection: close\r\n\r\n<html>", True),
    "401 with Proxy-Authenticate": (b"HTTP/1.1 401 No\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n", True),
    "RFC 9209": (b"HTTP/1.1 502 Bad\r\nProxy-Status: p; error=dns_error\r\nContent-Length: 0\r\n\r\n", True),
    "RFC 9209, passed on": (b"HTTP/1.1 502 Bad\r\nProxy-Status: p; next-hop=x\r\nContent-Length: 0\r\n\r\n", False),
    "the provider's 403": (b"HTTP/1.1 403 No\r\nServer: uvicorn\r\nVia: 1.1 squid\r\nContent-Length: 0\r\n\r\n", False),
    "the provider's 401": (b"HTTP/1.1 401 No\r\nVia: 1.1 squid\r\nContent-Length: 0\r\n\r\n", False),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_p7_an_error_of_the_proxy_is_told_from_one_of_the_provider(case):
    got, of_the_proxy = REFUSED[case]
    world = gateway(PLAIN)
    client = world.ask()
    wire = world.doors["proxy"].wire
    wire.say(got)
    if b"close" in got:
        wire.loseConnection()
    outcome, status, _ = ended(world)
    assert (outcome, status) == ("proxy_refused" if of_the_proxy else "refused", int(got[9:12]))
    assert (NO_BASIC in world.failed[0].message) == ("Negotiate" in case)
    world.doors["p2"].wire.say(GOOD)
    assert b"200 OK" in client.take()
    world.clock.advance(2)
    assert wire.disconnected or not [each for each in world.timers() if each > 60]


def test_p7_a_page_of_the_proxy_without_an_end_is_not_waited_for():
    world = gateway(PLAIN)
    world.ask()
    wire = world.doors["proxy"].wire
    wire.say(b"HTTP/1.1 407 No\r\nContent-Length: 100\r\n\r\nno")
    assert ended(world)[0] == "proxy_refused"
    assert world.doors["p2"].wires
    world.clock.advance(1.1)
    assert wire.aborted


def test_p5_plain_http_through_a_silent_proxy_ends_by_connect_timeout():
    world = gateway(PLAIN, connect_timeout=3)
    world._door("proxy", 3128).opens = Deferred()
    world.ask()
    world.clock.advance(3.1)
    assert ended(world) == ("timeout", None, "connect limit of 3 s passed while connecting to the proxy")


def test_i3_a_response_whose_provider_is_behind_a_proxy_that_refuses_is_elsewhere():
    world = gateway(PLAIN)
    made = json.dumps({"id": "resp_1", "object": "response", "status": "completed", "output": []}).encode()
    client = world.open()
    client.say(request({"model": "route", "input": "hi"}, "/v1/responses"))
    world.doors["proxy"].wire.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(made), made))
    assert b"200 OK" in client.take()
    client.say(request({"model": "route", "input": "hi", "previous_response_id": "resp_1"}, "/v1/responses"))
    world.doors["proxy"].wire.say(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
    got = client.take()
    assert got.startswith(b"HTTP/1.1 409 ")
    assert error_of(got)["attempts"][0]["outcome"] == "proxy_refused"


@pytest.mark.parametrize("base_url", [PLAIN, "https://provider.example/v1"])
def test_p8_check_providers_goes_through_the_proxy(base_url):
    world = gateway(base_url)
    results: list[Any] = []
    Check(world.config, world.gateway.upstream, world.clock).run().addCallback(results.append)
    wire = world.doors["proxy"].wire
    assert wire.take().startswith(
        b"GET http://provider.example:8000/v1/models HTTP/1.1" if base_url == PLAIN else ASKED
    )
    wire.say(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
    world.doors["p2"].wire.lost(ConnectionRefusedError())
    world.clock.advance(30)
    ((checked, steps),) = results
    assert (checked[0].reachable, checked[0].problem) == (
        False,
        "the proxy answered 407: it requires a user name and a password; correct proxy",
    )
    assert steps[0].works is False


# On real sockets: TLS in the tunnel


class _Relayed(Protocol):
    """One side of a tunnel: what it receives goes to the other one."""

    other: Any = None

    def dataReceived(self, data: bytes) -> None:
        self.other.transport.write(data)

    def connectionLost(self, reason: Any) -> None:
        if self.other is not None:
            self.other.transport.loseConnection()


class _Asked(_Relayed):
    def __init__(self, proxy: ProxyBetween) -> None:
        self.proxy = proxy
        self.head = b""

    def connectionMade(self) -> None:
        self.proxy.open.append(self)

    def dataReceived(self, data: bytes) -> None:
        if self.other is not None:
            super().dataReceived(data)
            return
        self.head += data
        if b"\r\n\r\n" not in self.head:
            return
        self.proxy.heads.append(self.head)
        host = self.head.split()[1].decode().rpartition(":")[0]

        def connected(other: Any) -> None:
            self.other, other.other = other, self
            self.transport.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

        factory = Factory.forProtocol(_Relayed)
        factory.noisy = False
        TCP4ClientEndpoint(reactor, "127.0.0.1", self.proxy.ports[host]).connect(factory).addCallback(connected)


class ProxyBetween:
    """A proxy that opens tunnels to the ``ports`` on loopback, which it knows by the names of hosts."""

    def __init__(self, world: Any, ports: dict[str, int], certificate: Any = None) -> None:
        """With a ``certificate`` it is reached over TLS."""
        self.ports = ports
        self.heads: list[bytes] = []
        self.open: list[_Asked] = []
        factory = Factory.forProtocol(lambda: _Asked(self))
        factory.noisy = False
        listening: Any = (
            reactor.listenSSL(0, factory, tls_options(certificate), interface="127.0.0.1")
            if certificate
            else reactor.listenTCP(0, factory, interface="127.0.0.1")
        )
        self.port = listening.getHost().port
        world._closers.append(listening.stopListening)
        world._closers.append(self.stop)

    def stop(self) -> None:
        for each in self.open:
            each.transport.abortConnection()


class Through:
    """A gateway in front of a scripted proxy, which knows ``provider.test``; nobody else does."""

    def __init__(self, world, provider, host="provider.test", certificate=None, proxy_port=0, **settings):
        self.world, self.provider = world, provider
        self.proxy = ProxyBetween(world, {"provider.test": provider.port, "wrong.test": provider.port}, certificate)
        to_proxy = f"http{'s' if certificate or proxy_port else ''}://canary-user:{PASSWORD}@proxy.test"
        self.looked_up: list[str] = []
        self.tree = {
            "api_key": KEY,
            "listen": ["tcp:0:interface=127.0.0.1"],
            "providers": [
                {
                    "name": "p1",
                    "base_url": f"http{'s' if provider.tls and not proxy_port else ''}://{host}:{provider.port}/v1",
                    "api_key": "provider-key-1",
                    "ca_file": str(world.ca_file),
                    "proxy": f"{to_proxy}:{proxy_port or self.proxy.port}",
                }
            ],
            "routes": [{"name": "route", "timeout": 5, "steps": [{"provider": "p1", "model": "m"}], **settings}],
        }
        self.gateway = world.gateway_of(self.tree, look_up=self._look_up)

    def _look_up(self, host):
        self.looked_up.append(host)
        return ["127.0.0.1"] if host == "proxy.test" else []


@ensureDeferred
async def test_p5_plain_and_streamed_through_a_tunnel(world):
    through = Through(world, world.provider(tls=True, host="provider.test"))
    plain = await through.gateway.ask()
    streamed = await through.gateway.ask(stream=True)
    assert (plain.status, streamed.status) == (200, 200)
    assert (plain.body, streamed.body) == (completion(), b"".join(STREAM))
    assert through.looked_up == ["proxy.test"]  # the provider's name is looked up by the proxy
    (head,) = through.proxy.heads  # one tunnel for both
    assert b"\r\nProxy-Authorization: %s\r\n" % AUTHORIZATION in head
    for seen in through.provider.requests:
        assert seen.line == "POST /v1/chat/completions HTTP/1.1"
        assert not [name for name, _ in seen.headers if "proxy" in name.lower()]
    (line,) = [json.loads(each) for each in world.log if "through a proxy" in each]
    assert (line["level"], line["fields"]) == ("INFO", {"proxies": {f"http://proxy.test:{through.proxy.port}": ["p1"]}})
    pages = [await through.gateway.get(path) for path in ("/metrics", "/status.json", "/v1/models")]
    assert [each.status for each in pages] == [200, 200, 200]
    assert "canary" not in "".join([*world.log, *(each.body.decode() for each in pages)])


@ensureDeferred
async def test_p5_the_certificate_is_checked_for_the_name_of_the_provider(world):
    through = Through(world, world.provider(tls=True, host="provider.test"), host="wrong.test")
    got = await through.gateway.ask()
    (attempt,) = got.error["attempts"]
    assert (attempt["outcome"], attempt["status"]) == ("unreachable", None)
    assert "is not for this host" in attempt["message"]
    assert through.provider.requests == []


@ensureDeferred
async def test_p5_a_certificate_for_the_name_of_the_proxy_is_refused(world):
    through = Through(world, world.provider(tls=True, host="proxy.test"))
    got = await through.gateway.ask()
    assert "is not for this host" in got.error["attempts"][0]["message"]


@ensureDeferred
async def test_t4_a_client_that_leaves_a_stream_in_a_tunnel_ends_it_at_the_provider(world):
    provider = world.provider(begin_stream(ROLE, event({"content": "hel"})), tls=True, host="provider.test")
    through = Through(world, provider)
    client = await through.gateway.send(request_for_stream())
    await client.started
    client.transport.abortConnection()
    await until(lambda: provider.connections[0].is_closed)
    await until(lambda: world.records)
    assert world.records[0]["status"] == 499


@ensureDeferred
async def test_a4_a_proxy_that_stops_in_a_stream_is_a_broken_stream(world):
    provider = world.provider(begin_stream(ROLE, event({"content": "hel"})), tls=True, host="provider.test")
    through = Through(world, provider)
    client = await through.gateway.send(request_for_stream())
    await client.started
    through.proxy.stop()
    got = await client.done
    assert got.body.startswith(ROLE + event({"content": "hel"}))
    assert re.search(rb'"code": ?"stream_(reset|truncated)"', got.body)
    assert b"[DONE]" not in got.body


@ensureDeferred
async def test_p8_a_reload_that_changes_the_proxy_makes_new_connections(world):
    through = Through(world, world.provider(tls=True, host="provider.test"))
    await through.gateway.ask()
    other = ProxyBetween(world, {"provider.test": through.provider.port})
    assert await through.gateway.reload()
    await through.gateway.ask()
    assert (len(through.proxy.heads), len(other.heads)) == (1, 0)  # unchanged: the tunnel stays
    through.tree["providers"][0]["proxy"] = f"http://proxy.test:{other.port}"
    assert await through.gateway.reload()
    await through.gateway.ask()
    assert (len(through.proxy.heads), len(other.heads)) == (1, 1)
    assert b"Authorization" not in other.heads[0]


def request_for_stream() -> bytes:
    return request({**HELLO, "stream": True})


# TLS to the proxy itself


@pytest.fixture
def trusted(world, monkeypatch):
    """The proxy's CA is one of this machine."""
    monkeypatch.setenv("SSL_CERT_FILE", str(world.ca_file))


@ensureDeferred
async def test_p5_tls_in_tls_to_the_proxy(world, trusted):
    large = completion("y" * 2_000_000)
    provider = world.provider(answer(body=large), stream(*STREAM), tls=True, host="provider.test")
    through = Through(world, provider, certificate=world.ca.issue_cert("proxy.test"))
    message = {"role": "user", "content": "x" * 2_000_000}
    plain = await through.gateway.ask({"messages": [message]})
    streamed = await through.gateway.ask(stream=True)
    assert (plain.body, streamed.body) == (large, b"".join(STREAM))
    assert provider.bodies[0]["messages"] == [message]
    (head,) = through.proxy.heads
    assert b"\r\nProxy-Authorization: %s\r\n" % AUTHORIZATION in head
    (line,) = [json.loads(each) for each in world.log if "through a proxy" in each]
    assert list(line["fields"]["proxies"]) == [f"https://proxy.test:{through.proxy.port}"]


@ensureDeferred
async def test_t4_a_client_that_leaves_a_stream_in_tls_in_tls_ends_it_at_the_provider(world, trusted):
    provider = world.provider(begin_stream(ROLE, event({"content": "hel"})), tls=True, host="provider.test")
    through = Through(world, provider, certificate=world.ca.issue_cert("proxy.test"))
    client = await through.gateway.send(request_for_stream())
    await client.started
    client.transport.abortConnection()
    await until(lambda: provider.connections[0].is_closed)


@ensureDeferred
async def test_p7_plain_http_over_tls_to_the_proxy(world, trusted):
    """The scripted provider is the proxy here."""
    proxy = world.provider(as_asked(), tls=True, host="proxy.test")
    through = Through(world, proxy, proxy_port=proxy.port)
    plain = await through.gateway.ask()
    streamed = await through.gateway.ask(stream=True)
    assert (plain.body, streamed.body) == (completion(), b"".join(STREAM))
    assert [seen.line for seen in proxy.requests] == [
        f"POST http://provider.test:{proxy.port}/v1/chat/completions HTTP/1.1"
    ] * 2
    assert len(proxy.connections) == 2


CA = "the CA of the proxy must be one of this machine, and proxy must have its name"


@pytest.mark.parametrize(
    ("name", "is_trusted", "why"),
    [
        ("provider.test", True, f"the certificate is not for this host; {CA}"),
        ("proxy.test", False, CA),
        (None, True, "TLS: wrong version number: the port does not use TLS; does proxy need http://?"),
    ],
)
@pytest.mark.parametrize("scheme", ["https", "http"])
@ensureDeferred
async def test_p6_tls_to_the_proxy_that_fails(world, monkeypatch, name, is_trusted, why, scheme):
    other = trustme.CA()
    monkeypatch.setenv("SSL_CERT_FILE", str(world.folder / "roots.pem"))
    (world.ca if is_trusted else other).cert_pem.write_to_path(str(world.folder / "roots.pem"))
    provider = world.provider(tls=scheme == "https", host="provider.test")
    proxy = world.provider(answer(), tls=name is not None, host=name or "")
    through = Through(world, provider, certificate=world.ca.issue_cert("x.test"))
    through.tree["providers"][0]["proxy"] = f"https://canary-user:{PASSWORD}@proxy.test:{proxy.port}"
    if name is None:  # a port in plain HTTP answers a handshake so
        proxy.on_connect = lambda connection: connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert await through.gateway.reload()
    got = await through.gateway.ask()
    (attempt,) = got.error["attempts"]
    assert (attempt["outcome"], attempt["status"]) == ("unreachable", None)
    assert attempt["message"].startswith("no TLS with the proxy: ")
    assert attempt["message"].endswith(why)
    assert proxy.requests == []
