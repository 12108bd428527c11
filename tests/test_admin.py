"""Who may look: everybody on the listener for administrators, elsewhere whoever has the key or its cookie."""

from __future__ import annotations

import hmac
import os
import re
import stat
from types import SimpleNamespace

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.protocol import Factory

from aigw.admin.access_control import is_near
from aigw.admin.session import MOST_SIGNED_OUT, SECONDS, Cookies, cookie, is_own_form, no_cookie
from aigw.config import loader
from aigw.daemon.drain import Drain
from aigw.errors import ConfigError
from aigw.secret import Secret
from aigw.settings.callers import Caller
from tests.harness import AUTH, CHAT, KEY, Client, bounded, request, until
from tests.providers import begin_stream, event

LOOPBACK = "tcp:0:interface=127.0.0.1"


def gateway_with_admin(world, *steps, admin=LOOPBACK, **more):
    return world.gateway(*steps or [world.provider()], top={"admin": admin}, **more)


async def visit(gateway, path, method="GET", host="localhost", **headers):
    """One request to the listener for administrators, without a key."""
    client = Client(method)
    factory = Factory.forProtocol(lambda: client)
    factory.noisy = False
    address = gateway.service.ports[-1].getHost()
    if hasattr(address, "port"):
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", address.port)
    else:
        endpoint = UNIXClientEndpoint(reactor, address.name)
    await bounded(endpoint.connect(factory))
    gateway.world._closers.append(lambda: client.transport.abortConnection())
    client.transport.write(request(None, path, method, {"Host": host, **headers}))
    return await bounded(client.done)


@pytest.mark.parametrize("path", ["/metrics", "/ready", "/health"])
@ensureDeferred
async def test_administrators_need_no_key_on_their_listener(world, path):
    gateway = gateway_with_admin(world)
    got = await visit(gateway, path)
    assert got.status == 200
    assert got.body


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/", "/metrics/x", "/nothing"])
@ensureDeferred
async def test_nothing_of_the_api_is_on_their_listener(world, path):
    gateway = gateway_with_admin(world)
    got = await visit(gateway, path, headers=AUTH) if path == CHAT else await visit(gateway, path)
    assert (got.status, got.error["code"]) == (404, "unknown_url")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("localhost:9464", 200), ("127.0.0.1:9464", 200), ("127.9.9.9", 200), ("[::1]:9464", 200),
        ("rebound.example", 421), ("rebound.example:9464", 421), ("10.0.0.5", 421), ("localhost.example", 421),
    ],
)  # fmt: skip
@ensureDeferred
async def test_a_page_from_elsewhere_cannot_reach_it_by_a_name_of_its_own(world, host, status):
    """DNS rebinding: a browser on this machine asks for the attacker's name, which leads to 127.0.0.1."""
    assert (await visit(gateway_with_admin(world), "/metrics", host=host)).status == status


@ensureDeferred
async def test_it_may_be_a_unix_socket(world):
    gateway = gateway_with_admin(world, admin=f"unix:{world.folder}/admin.sock")
    assert (await visit(gateway, "/metrics", host="whatever")).status == 200


@pytest.mark.parametrize("socket_of", ["unix:{}/1.sock", "unix:{}/2.sock"], ids=["1", "2"])
@ensureDeferred
async def test_d3_each_instance_of_one_configuration_is_asked_on_a_socket_of_its_own(world, socket_of):
    """As the template unit sets AIGW_ADMIN: a scrape reaches the instance that was meant, not one by chance."""
    tree = {**gateway_with_admin(world).tree, "admin": "${AIGW_ADMIN}"}
    gateways = {
        endpoint.format(world.folder): world.gateway_of(tree, environ={"AIGW_ADMIN": endpoint.format(world.folder)})
        for endpoint in ("unix:{}/1.sock", "unix:{}/2.sock")
    }
    await gateways[socket_of.format(world.folder)].ask()
    for endpoint, gateway in gateways.items():
        body = (await visit(gateway, "/metrics")).body
        assert bool(re.search(rb"^aigw_requests_total\{.*\} [1-9]", body, re.M)) == (
            endpoint == socket_of.format(world.folder)
        )


@pytest.mark.parametrize(
    ("setting", "more", "mode"),
    [("admin", "", 0o660), ("admin", ":mode=600", 0o600), ("listen", "", 0o666), ("listen", ":mode=660", 0o660)],
)
@ensureDeferred
async def test_b11_who_may_connect_to_a_unix_socket(world, setting, more, mode):
    """Where no key is asked for: the gateway's user and group. Where one is: everybody, as a proxy of another user."""
    endpoint = f"unix:{world.folder}/a.sock{more}"
    world.gateway(world.provider(), top={setting: endpoint if setting == "admin" else [LOOPBACK, endpoint]})
    assert stat.S_IMODE((world.folder / "a.sock").stat().st_mode) == mode
    assert f'"address":"{world.folder}/a.sock"' in "".join(world.log)


@ensureDeferred
async def test_d1_it_comes_moves_and_goes_with_a_reload(world):
    gateway = world.gateway(world.provider())
    assert len(gateway.service.ports) == 1
    gateway.tree["admin"] = LOOPBACK
    assert await gateway.reload()
    assert (await visit(gateway, "/ready")).status == 200
    gateway.tree["admin"] = f"unix:{world.folder}/admin.sock"
    assert await gateway.reload()
    assert (await visit(gateway, "/ready")).status == 200
    del gateway.tree["admin"]
    assert await gateway.reload()
    assert len(gateway.service.ports) == 1


@ensureDeferred
async def test_d2_it_stays_open_while_the_gateway_drains(world):
    """Whoever balances the load hears 503 as long as streams go on, and metrics are scraped to the end."""
    gateway = gateway_with_admin(world, world.provider(begin_stream(event({"content": "a"}))))
    gateway.tree["drain"] = "10s"
    assert await gateway.reload()
    from tests.harness import HELLO

    client = await gateway.send(request({**HELLO, "stream": True}))
    await until(lambda: client.answer.pieces)
    stopped = gateway.service.stopService()
    await until(lambda: len(gateway.service.ports) == 1)
    got = await visit(gateway, "/ready")
    assert (got.status, got.error["code"]) == (503, "draining")
    assert b'aigw_requests_in_flight{route="route"} 1.0' in (await visit(gateway, "/metrics")).body
    client.transport.abortConnection()
    await bounded(stopped)
    assert not gateway.service.ports


@ensureDeferred
async def test_clients_that_fill_the_public_listener_do_not_fill_it(world):
    gateway = gateway_with_admin(world)
    gateway.service._site.limiter.connections = 0
    assert (await gateway.get("/health", {})).status == 503
    assert (await visit(gateway, "/ready")).status == 200


@pytest.mark.parametrize("headers", [{}, AUTH, {"X-Api-Key": "wrong"}], ids=["no key", "key", "wrong key"])
@pytest.mark.parametrize("near", [True, False])
@ensureDeferred
async def test_ready_is_for_everybody_and_from_elsewhere_no_more_than_a_word(world, monkeypatch, near, headers):
    """S23, D2: on every listener; which process answers, and why not, is told on this machine only."""
    gateway = gateway_with_admin(world)
    monkeypatch.setattr("aigw.admin.resources.is_near", lambda _: near)
    for got in (await gateway.get("/ready", headers), await visit(gateway, "/ready")):
        said = {"status": "ready", "pid": os.getpid()} if near else {"status": "ready"}
        assert (got.status, got.json) == (200, said)
    gateway.service._drain = Drain(gateway.service._site, [], reactor, 1)
    for got in (await gateway.get("/ready", headers), await visit(gateway, "/ready")):
        assert got.status == 503
        if near:
            assert (got.error["code"], got.error["pid"]) == ("draining", os.getpid())
        else:
            message = "The gateway is not ready."
            assert got.error == {"message": message, "type": "server_error", "param": None, "code": "not_ready"}


@pytest.mark.parametrize(("peer", "host", "near"), [("10.0.0.5", "10.0.0.5", True), ("10.0.0.6", "10.0.0.5", False)])
def test_who_comes_from_the_address_that_it_asks_is_on_this_machine(peer, host, near):
    transport = SimpleNamespace(
        getPeer=lambda: IPv4Address("TCP", peer, 5), getHost=lambda: IPv4Address("TCP", host, 443)
    )
    assert is_near(transport) is near


# The setting


def load(folder, tls=False, **more):
    tree = {
        "api_key": KEY,
        "providers": [{"name": "p", "base_url": "http://x/v1"}],
        "routes": [{"name": "r", "steps": [{"provider": "p", "model": "m"}]}],
        **more,
    }
    return loader.build(tree, {}, folder)


@pytest.mark.parametrize(
    ("written", "endpoint"),
    [
        (9464, "tcp:9464:interface=127.0.0.1"),
        ("9464", "tcp:9464:interface=127.0.0.1"),
        (r"tcp6:9464:interface=\:\:1", r"tcp6:9464:interface=\:\:1"),
        ("unix:/run/a.sock", "unix:/run/a.sock"),
        ({"endpoint": "tcp:9464:interface=10.0.0.5", "insecure": True}, "tcp:9464:interface=10.0.0.5"),
    ],
)
def test_the_setting(tmp_path, written, endpoint):
    admin = load(tmp_path, admin=written).admin
    assert (admin.endpoint, admin.insecure, admin.admin) == (endpoint, True, True)


def test_there_is_none_by_default(tmp_path):
    assert load(tmp_path).admin is None


@pytest.mark.parametrize(
    ("written", "mistake"),
    [
        ("tcp:9464", "admin: this listener needs no key and is beyond loopback"),
        ("tcp:9464:interface=0.0.0.0", "beyond loopback"),
        ({"endpoint": "tcp:9464:interface=10.0.0.5"}, "beyond loopback"),
        (0, "admin.endpoint: "),
        (99999, "admin.endpoint: "),
        (True, "admin: "),
        ("ssl:1", "is not an endpoint"),
        ({"port": 1}, "admin.port: unknown setting"),
        ("tcp:8080:interface=127.0.0.1", "has the same endpoint as admin"),
    ],
)
def test_mistakes_in_it(tmp_path, written, mistake):
    with pytest.raises(ConfigError, match=re.escape(mistake)):
        load(tmp_path, admin=written, listen=["tcp:8080:interface=127.0.0.1"])


# The cookie

CALLER = Caller("default", Secret(KEY))
NOW = 1_800_000_000.0


def value(set_cookie):
    return set_cookie.partition(";")[0]


def judged(sent, now=NOW, secure=True, cookies=None, callers=(CALLER,)):
    return (cookies or Cookies()).verify(callers, sent, now, secure)


@pytest.mark.parametrize("secure", [True, False])
def test_a_cookie_is_good_for_its_time(secure):
    sent = value(cookie(CALLER, NOW, secure))
    for now, found in [(NOW, CALLER), (NOW + SECONDS - 1, CALLER), (NOW + SECONDS, None), (NOW + 10 * SECONDS, None)]:
        assert judged(f"other=1; {sent}; more=2", now, secure) == (found, 0)
    assert judged(sent, NOW, not secure) == (None, 0)


def test_its_attributes_are_strict():
    assert cookie(CALLER, NOW, True).endswith("; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict; Secure")
    assert cookie(CALLER, NOW, True).startswith("__Host-aigw=")
    assert "Secure" not in cookie(CALLER, NOW, False)
    assert no_cookie(True) == "__Host-aigw=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict; Secure"


def test_nobody_makes_one_without_the_key():
    sent = value(cookie(CALLER, NOW, True))
    assert KEY not in sent
    assert judged(sent, callers=[Caller("default", Secret("another-key"))]) == (None, 1)
    name, _, signed = sent.partition("=")
    expires, which, signature = signed.split(".")
    for forged in (
        f"{int(expires) + 1}.{which}.{signature}", f"{expires}.{which[::-1]}.{signature}", f"{expires}.{which}.{'0' * 64}",
    ):  # fmt: skip
        assert judged(f"{name}={forged}") == (None, 1)
    for nothing in (
        f"0{expires}.{which}.", f"{expires}.{which}.{signature[:-1]}", f"{expires}.{which}.", f"{expires}.{signature}", f"{expires}",
        f".{which}.{signature}", f"{'9' * 50}.{which}.{signature}", f"-1.{which}.{signature}", "é.é.é", f"{expires}.{which}.é",
        f"{'٩' * 10}.{which}.{signature}", "", ".", "..",
    ):  # fmt: skip
        assert judged(f"{name}={nothing}") == (None, 0)


def test_s22_it_is_signed_with_a_key_made_for_cookies_and_not_with_the_api_key():
    _, _, signed = value(cookie(CALLER, NOW, True)).partition("=")
    text, _, signature = signed.rpartition(".")
    assert signature != hmac.digest(KEY.encode(), text.encode(), "sha256").hex()


@pytest.mark.parametrize("junk", ["{name}=", "{name}=1.2", "{name}=9999999999." + "a" * 32 + "." + "b" * 64])
@pytest.mark.parametrize("number", [1, 5, 100])
def test_s22_junk_of_its_name_does_not_lock_out(junk, number):
    """A site below the same domain can set cookies of any name, and browsers send those of a longer path first."""
    sent = value(cookie(CALLER, NOW, False))
    name = sent.partition("=")[0]
    assert judged("; ".join([junk.format(name=name)] * number + [sent]), secure=False) == (CALLER, 0)


def test_s20_each_forged_cookie_is_a_wrong_key():
    """A cookie that was signed with a guess of the key says whether the guess was right."""
    sent = [value(cookie(Caller("default", Secret(f"guess {n}")), NOW, True)) for n in range(7)]
    assert judged("; ".join(sent)) == (None, 7)


def test_s22_a_sign_out_ends_the_cookie_and_no_other():
    cookies = Cookies()
    one, other = (value(cookie(CALLER, NOW, True)) for _ in range(2))
    assert one != other
    assert cookies.sign_out([CALLER], one, NOW, True)
    assert judged(one, cookies=cookies) == (None, 0)
    assert judged(other, cookies=cookies) == (CALLER, 0)
    assert not cookies.sign_out([Caller("default", Secret("another-key"))], other, NOW, True)
    assert judged(other, cookies=cookies) == (CALLER, 0)


def test_s22_the_memory_of_sign_outs_is_bounded_and_none_of_them_comes_back():
    cookies = Cookies()
    first, kept = (value(cookie(CALLER, NOW, True)) for _ in range(2))
    cookies.sign_out([CALLER], first, NOW, True)
    for n in range(MOST_SIGNED_OUT):
        cookies.sign_out([CALLER], value(cookie(CALLER, NOW, True)), NOW + n / MOST_SIGNED_OUT, True)
        assert len(cookies._signed_out) <= MOST_SIGNED_OUT
    assert judged(first, NOW + 1, cookies=cookies) == (None, 0)
    assert judged(kept, NOW + 1, cookies=cookies) == (None, 0), "whoever was signed in signs in again"
    assert judged(value(cookie(CALLER, NOW + 2, True)), NOW + 2, cookies=cookies) == (CALLER, 0)
    for _ in range(MOST_SIGNED_OUT):
        cookies.sign_out([CALLER], value(cookie(CALLER, NOW + 3, True)), NOW + 3, True)
    later = NOW + 4 + SECONDS
    kept = value(cookie(CALLER, later - 1, True))
    cookies.sign_out([CALLER], value(cookie(CALLER, later, True)), later, True)
    assert len(cookies._signed_out) == 1, "those that are over are forgotten"
    assert judged(kept, later, cookies=cookies) == (CALLER, 0)


@pytest.mark.parametrize(
    ("origin", "fetch_site", "own"),
    [
        (None, None, True), (None, b"same-origin", True), (None, b"none", True), (b"null", b"same-origin", True),
        (b"https://gw.example", None, True), (b"http://gw.example", None, True), (b"https://GW.example", None, True),
        (b"https://behind.a.proxy", b"same-origin", True),
        (b"https://evil.example", None, False), (b"null", None, False), (b"", None, False), (b"https://gw.example:444", None, False),
        (b"https://gw.example.evil", None, False), (b"file://gw.example", None, False), (b"gw.example", None, False),
        (None, b"cross-site", False), (None, b"same-site", False), (None, b"", False), (b"https://gw.example", b"cross-site", False),
    ],
)  # fmt: skip
def test_s22_a_form_is_our_own_or_no_browser_s(origin, fetch_site, own):
    assert is_own_form(origin, fetch_site, b"gw.example") is own


@ensureDeferred
async def test_the_cookie_opens_what_the_key_opens_and_not_the_api(world):
    import time

    gateway = world.gateway(world.provider(), tls=True)
    with_cookie = {"Cookie": value(cookie(CALLER, time.time(), True))}
    assert (await gateway.get("/metrics", with_cookie)).status == 200
    assert (await gateway.get("/metrics", {"Cookie": "__Host-aigw=1.2"})).status == 401
    assert (await gateway.get("/v1/models", with_cookie)).status == 401
    assert (await gateway.ask(headers=with_cookie)).status == 401


@ensureDeferred
async def test_d1_whoever_came_in_by_a_listener_that_is_closed_is_out(world):
    gateway = gateway_with_admin(world)
    client = Client("GET")
    factory = Factory.forProtocol(lambda: client)
    factory.noisy = False
    await bounded(TCP4ClientEndpoint(reactor, "127.0.0.1", gateway.service.ports[-1].getHost().port).connect(factory))
    client.transport.write(request(None, "/health", "GET", {"Host": "localhost"}))
    assert (await bounded(client.done)).status == 200
    del gateway.tree["admin"]
    assert await gateway.reload()
    await bounded(client.closed)


@pytest.mark.parametrize(
    "accept", ["text/plain;version=x", "application/openmetrics-text; version=abc", "a;version==1"]
)
@ensureDeferred
async def test_s7_a_scraper_may_ask_for_what_makes_no_sense(world, accept):
    got = await visit(gateway_with_admin(world), "/metrics", Accept=accept)
    assert got.status == 200
    assert b"aigw_build_info" in got.body
