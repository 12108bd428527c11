"""Who may look: everybody on the listener for administrators, elsewhere whoever has the key or its cookie."""

from __future__ import annotations

import re
import stat
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.protocol import Factory

from aigw import config
from aigw.config import Caller
from aigw.errors import ConfigError, Unauthorized
from aigw.gates import with_key_or_near
from aigw.secret import Secret
from aigw.signin import SECONDS, cookie, no_cookie, signed_in
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
    gateway.service._site.admission.connections = 0
    assert (await gateway.get("/health", {})).status == 503
    assert (await visit(gateway, "/ready")).status == 200


@ensureDeferred
async def test_ready_is_told_without_a_key_to_this_machine_only(world, monkeypatch):
    gateway = world.gateway(world.provider())
    assert (await gateway.get("/ready", {})).status == 200
    monkeypatch.setattr("aigw.gates._is_near", lambda _: False)
    assert (await gateway.get("/ready", {})).status == 401
    assert (await gateway.get("/ready", AUTH)).status == 200


@pytest.mark.parametrize(("peer", "host", "near"), [("10.0.0.5", "10.0.0.5", True), ("10.0.0.6", "10.0.0.5", False)])
def test_who_comes_from_the_address_that_it_asks_is_on_this_machine(peer, host, near):
    transport = SimpleNamespace(
        getPeer=lambda: IPv4Address("TCP", peer, 5), getHost=lambda: IPv4Address("TCP", host, 443)
    )
    asks = SimpleNamespace(channel=SimpleNamespace(transport=transport), header=lambda _: None)
    with nullcontext() if near else pytest.raises(Unauthorized):
        with_key_or_near([])(asks)


# The setting


def load(folder, tls=False, **more):
    tree = {
        "api_key": KEY,
        "providers": [{"name": "p", "base_url": "http://x/v1"}],
        "routes": [{"name": "r", "steps": [{"provider": "p", "model": "m"}]}],
        **more,
    }
    return config.build(tree, {}, folder)


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
        ("tcp:9464", "admin: no key is asked for there, and it is beyond loopback"),
        ("tcp:9464:interface=0.0.0.0", "beyond loopback"),
        ({"endpoint": "tcp:9464:interface=10.0.0.5"}, "beyond loopback"),
        (0, "admin.endpoint: "),
        (99999, "admin.endpoint: "),
        (True, "admin: "),
        ("ssl:1", "is not served"),
        ({"port": 1}, "admin.port: unknown setting"),
        ("tcp:8080:interface=127.0.0.1", "is the endpoint of admin too"),
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


@pytest.mark.parametrize("secure", [True, False])
def test_a_cookie_is_good_for_its_time(secure):
    sent = value(cookie(CALLER, NOW, secure))
    for now, found in [(NOW, CALLER), (NOW + SECONDS - 1, CALLER), (NOW + SECONDS, None), (NOW + 10 * SECONDS, None)]:
        assert signed_in([CALLER], f"other=1; {sent}; more=2", now, secure) is found
    assert signed_in([CALLER], sent, NOW, not secure) is None


def test_its_attributes_are_strict():
    assert cookie(CALLER, NOW, True).endswith("; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict; Secure")
    assert cookie(CALLER, NOW, True).startswith("__Host-aigw=")
    assert "Secure" not in cookie(CALLER, NOW, False)
    assert no_cookie(True) == "__Host-aigw=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict; Secure"


def test_nobody_makes_one_without_the_key():
    sent = value(cookie(CALLER, NOW, True))
    assert KEY not in sent
    assert signed_in([Caller("default", Secret("another-key"))], sent, NOW, True) is None
    name, _, signed = sent.partition("=")
    expires, _, signature = signed.partition(".")
    for forged in (
        f"{int(expires) + 1}.{signature}", f"0{expires}.", f"{expires}.{signature[:-1]}", f"{expires}.", f"{expires}",
        f".{signature}", f"{expires}.{signature[::-1]}", f"{'9' * 50}.{signature}", f"-1.{signature}", "é.é", f"{expires}.é", "", ".",
    ):  # fmt: skip
        assert signed_in([CALLER], f"{name}={forged}", NOW, True) is None


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
