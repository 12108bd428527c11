"""`/status` and what is behind it: its data, its events, the form and the cookie, and what a browser may do with it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.task import Clock, deferLater

from aigw.admin.live_feed import EVERY_SECONDS, MOST, MOST_SECONDS, LiveFeed
from aigw.admin.page import Page
from aigw.admin.session import cookie as cookie_of
from aigw.config import loader
from aigw.config.model import Config
from aigw.errors import Draining
from aigw.secret import Secret
from aigw.settings.callers import Caller
from aigw.telemetry.counters import Counters
from aigw.telemetry.last_hour import Hour
from aigw.telemetry.redaction import Redaction
from aigw.telemetry.snapshot import Reloads, Snapshot
from aigw.telemetry.status import status as make_status
from tests.harness import AUTH, HELLO, KEY, bounded, request, until
from tests.providers import answer, begin_stream, event, hang
from tests.test_admin import gateway_with_admin, visit

HTML = {"Accept": "text/html,application/xhtml+xml"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


async def status(gateway):
    return (await gateway.get("/status.json", AUTH)).json


def events(client):
    """What came so far, as data."""
    return [json.loads(each) for each in re.findall(rb"^data: (.+)$", client.answer.body, re.MULTILINE)]


async def watch(gateway):
    client = await gateway.send(request(None, "/status/events", "GET", AUTH), "GET")
    await until(lambda: events(client))
    return client


@ensureDeferred
async def test_the_data_says_what_each_step_does(world):
    gateway = world.gateway(world.provider(answer(429, Retry_After="60"), answer()), world.provider())
    await gateway.ask()
    await gateway.ask()
    shown = await status(gateway)
    (route,) = shown["routes"]
    assert (route["name"], route["requests"], route["fallbacks"], route["in_flight"]) == ("route", 2, 1, 0)
    first, second = route["steps"]
    assert (first["state"], first["why"], first["hour"]["failed"]) == ("resting", "answered 429", 1)
    assert 50 < first["until"] - shown["started"] < 70
    assert (second["state"], second["until"], second["hour"]["ok"]) == ("answering", None, 2)
    assert (second["hour"]["prompt"], second["hour"]["completion"]) == (6, 8)
    assert len(second["hour"]["minutes"]) == 60
    assert second["hour"]["minutes"][-1] is not None or second["hour"]["minutes"][-2] is not None
    (failed,) = shown["failures"]
    assert (failed["outcome"], failed["status"], failed["rests_s"], failed["step"]) == ("refused", 429, 60, 1)
    assert (shown["state"], shown["certificate"], shown["reload"]["taken"]) == ("ready", None, 0)


@ensureDeferred
async def test_an_error_for_the_client_is_a_failure_of_its_own(world):
    gateway = world.gateway(None)
    await gateway.ask()
    shown = await status(gateway)
    assert [(each["step"], each["outcome"]) for each in shown["failures"]] == [
        (None, "all_steps_failed"),
        (1, "unreachable"),
    ]
    assert shown["routes"][0]["steps"][0]["state"] == "failed"


@ensureDeferred
async def test_events_come_when_something_has_changed_and_only_then(world):
    gateway = world.gateway(world.provider(answer(429, Retry_After="60"), hang), world.provider())
    page = await watch(gateway)
    assert events(page)[0]["routes"][0]["steps"][0]["state"] == "unused"
    await gateway.ask()
    await until(lambda: events(page)[-1]["routes"][0]["steps"][0]["state"] == "resting", 2.0)
    seen = len(events(page))
    await deferLater(reactor, 1.5)
    assert len(events(page)) - seen <= 1  # the connection of the request above is gone
    assert page.answer.headers["content-type"] == "text/event-stream"
    assert page.answer.headers["cache-control"] == "no-store"


@ensureDeferred
async def test_a_page_that_closes_leaves_nothing_behind(world):
    gateway = world.gateway(world.provider())
    pages = [await watch(gateway) for _ in range(3)]
    for page in pages:
        page.transport.abortConnection()
    viewers = gateway.service._admin.viewers
    await until(lambda: not viewers._viewers)
    assert viewers._timer is None


@ensureDeferred
async def test_there_are_only_so_many_pages(world, monkeypatch):
    monkeypatch.setattr("aigw.admin.live_feed.MOST", 1)
    assert MOST == 50
    gateway = world.gateway(world.provider())
    await watch(gateway)
    got = await gateway.get("/status/events", AUTH)
    assert (got.status, got.error["code"]) == (503, "too_many_viewers")


@ensureDeferred
async def test_a_page_that_does_not_read_costs_nothing(world):
    gateway = world.gateway(world.provider())
    await watch(gateway)
    (viewer,) = gateway.service._admin.viewers._viewers
    viewer.pauseProducing()
    before = viewer._request.sentLength
    viewer.send(b"data: {}\n\n")
    assert viewer._request.sentLength == before
    viewer.resumeProducing()
    viewer.send(b"data: {}\n\n")
    assert viewer._request.sentLength > before


@ensureDeferred
async def test_d2_an_open_page_does_not_hold_up_a_stop(world):
    gateway = gateway_with_admin(world)
    gateway.tree["drain"] = "30s"
    assert await gateway.reload()
    page = await watch(gateway)
    await bounded(gateway.service.stopService(), 5.0)
    assert events(page)[-1]["state"] == "stopping"
    assert page.answer.whole


@ensureDeferred
async def test_in_flight_is_told_by_route(world):
    gateway = world.gateway(world.provider(begin_stream(event({"content": "a"}))))
    client = await gateway.send(request({**HELLO, "stream": True}))
    await until(lambda: client.answer.pieces)
    shown = await status(gateway)
    assert (shown["in_flight"], shown["routes"][0]["in_flight"]) == (1, 1)


@ensureDeferred
async def test_a_reload_is_told(world):
    gateway = world.gateway(world.provider())
    gateway.tree["routes"].append({"name": "second", "steps": [{"provider": "p1", "model": "m"}]})
    assert await gateway.reload()
    assert [route["name"] for route in (await status(gateway))["routes"]] == ["route", "second"]
    gateway.tree["nonsense"] = 1
    assert not await gateway.reload()
    reload = (await status(gateway))["reload"]
    assert (reload["taken"], reload["refused"]) == (1, 1)
    assert reload["refused_at"] >= reload["taken_at"]


# The form and the cookie


@ensureDeferred
async def test_a_browser_without_a_cookie_gets_the_form_and_others_get_401(world):
    gateway = world.gateway(world.provider(), tls=True)
    got = await gateway.get("/status", HTML)
    assert got.status == 200
    assert b'type="password"' in got.body
    assert b"routes" not in got.body
    for path in ("/status", "/status.json", "/status/events", "/status/x"):
        assert (await gateway.get(path, {})).status == 401
    assert (await gateway.get("/status.json", HTML)).status == 401
    assert (await gateway.get("/status/x", HTML)).status == 401
    assert (await gateway.get("/status/x", AUTH)).status == 404


async def sign_in(gateway, key=KEY, headers=FORM):
    client = await gateway.send(request(f"key={key}".encode(), "/status/login", "POST", headers))
    return await bounded(client.done)


@ensureDeferred
async def test_the_key_buys_a_cookie_that_opens_the_page(world):
    gateway = world.gateway(world.provider(), tls=True)
    got = await sign_in(gateway)
    assert (got.status, got.headers["location"], got.body) == (303, "../status", b"")
    set_cookie = got.headers["set-cookie"]
    assert set_cookie.startswith("__Host-aigw=")
    assert set_cookie.endswith("; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict; Secure")
    assert KEY not in set_cookie
    cookie = {"Cookie": set_cookie.partition(";")[0]}
    page = await gateway.get("/status", {**HTML, **cookie})
    assert b'id="routes"' in page.body
    assert b"Sign out" in page.body
    assert (await gateway.get("/status.json", cookie)).status == 200
    viewer = await gateway.send(request(None, "/status/events", "GET", cookie), "GET")
    await until(lambda: viewer.answer.pieces)
    out = await sign_out(gateway, cookie)
    assert "Max-Age=0" in out.headers["set-cookie"]
    assert (await bounded(viewer.done)).whole, "S22: a page that the cookie has opened asks anew"
    assert (await gateway.get("/status.json", cookie)).status == 401
    assert b'id="key"' in (await gateway.get("/status", {**HTML, **cookie})).body
    assert gateway.service._site.refused_keys.total == 0, "a cookie that is signed out is no wrong key"


def sign_out(gateway, headers):
    return gateway.ask(b"", path="/status/logout", headers={**FORM, **headers})


@pytest.mark.parametrize("path", ["/status/login", "/status/logout"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "https://gateway"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "application/json"}, 415),
        ({"Content-Type": ""}, 415),
        ({"Origin": "https://gateway"}, 303),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, 303),
        ({"Content-Type": "Application/X-WWW-Form-Urlencoded; charset=UTF-8"}, 303),
    ],
)
@ensureDeferred
async def test_s22_a_form_of_another_site_signs_nobody_in_or_out(world, path, headers, status):
    gateway = world.gateway(world.provider())
    cookie = {"Cookie": (await sign_in(gateway)).headers["set-cookie"].partition(";")[0]}
    got = await gateway.ask(f"key={KEY}".encode(), path=path, headers={**FORM, **cookie, **headers})
    assert got.status == status
    if status != 303:
        assert "set-cookie" not in got.headers
        assert got.error["code"] == {403: "cross_site_request", 415: "unsupported_media_type"}[status]
    signed_out = status == 303 and path == "/status/logout"
    assert (await gateway.get("/status.json", cookie)).status == (401 if signed_out else 200)


@ensureDeferred
async def test_s22_s20_a_cookie_of_another_key_is_a_wrong_key_and_is_taken_back(world):
    gateway = world.gateway(world.provider())
    forged = {"Cookie": cookie_of(Caller("default", Secret("a guess")), time.time(), False).partition(";")[0]}
    got = await gateway.get("/status", {**HTML, **forged})
    assert b'id="key"' in got.body
    assert got.headers["set-cookie"].startswith("aigw=; Path=/; Max-Age=0")
    assert (await gateway.get("/status.json", forged)).status == 401
    assert (await gateway.get("/status", {**HTML, "X-Api-Key": "wrong", "Cookie": "a=b"})).status == 200
    assert gateway.service._site.refused_keys.total == 3


@pytest.mark.parametrize("key", ["wrong", "", "%00", "é" * 10, KEY + "x"])
@ensureDeferred
async def test_a_wrong_key_buys_none(world, key):
    gateway = world.gateway(world.provider())
    got = await sign_in(gateway, key)
    assert "set-cookie" not in got.headers
    assert b'role="alert"' in got.body


@ensureDeferred
async def test_the_form_takes_no_more_than_a_key(world):
    gateway = world.gateway(world.provider())
    got = await sign_in(gateway, "x" * 5000)
    assert got.status == 413
    assert (await gateway.get("/status/login", HTML)).status == 405


@ensureDeferred
async def test_the_admin_listener_shows_the_page_and_has_no_form(world):
    gateway = gateway_with_admin(world)
    page = await visit(gateway, "/status", **HTML)
    assert b'id="routes"' in page.body
    assert b"Sign out" not in page.body
    assert (await visit(gateway, "/status.json")).json["state"] == "ready"
    assert (await visit(gateway, "/status/login", "POST")).status == 404


# What a browser may do with it


@pytest.mark.parametrize("name", ["status.html", "login.html"])
def test_a_page_has_all_that_it_needs_and_runs_nothing_else(name):
    page = Page(name)
    html = page.html().decode()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)
    assert not re.search(r"\s(on\w+|style)=", html)
    policy = dict(page.headers)[b"content-security-policy"].decode()
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for kind in ("script", "style"):
        for text in re.findall(f"<{kind}>(.*?)</{kind}>", html, re.DOTALL):
            assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert "frame-ancestors 'none'" in policy


@ensureDeferred
async def test_both_carry_the_headers(world):
    gateway = world.gateway(world.provider())
    for headers in (HTML, {**HTML, **AUTH}):
        got = await gateway.get("/status", headers)
        assert got.headers["content-security-policy"].startswith("default-src 'none'")
        assert got.headers["x-content-type-options"] == "nosniff"
        assert got.headers["referrer-policy"] == "same-origin"
        assert got.headers["cache-control"] == "no-store"
        assert got.headers["content-type"] == "text/html; charset=utf-8"


@ensureDeferred
async def test_b9_neither_keys_nor_content_are_shown(world):
    """Not even where a provider repeats the key, or a client sends it as the id of its request."""
    from tests.providers import completion

    body = b'{"error": {"message": "key provider-key-1 of canary-content is wrong"}}'
    gateway = world.gateway(
        world.provider(answer(401, body)), world.provider(answer(body=completion("canary-content")))
    )
    await gateway.ask(
        {"messages": [{"role": "user", "content": "canary-content"}]}, headers={**AUTH, "X-Request-Id": KEY}
    )
    for path in ("/status.json", "/metrics"):
        text = (await gateway.get(path, AUTH)).body
        for secret in (KEY, "provider-key-1", "provider-key-2", "canary-content"):
            assert secret.encode() not in text


@ensureDeferred
async def test_a_key_that_is_no_more_ends_the_pages_that_it_opened(world):
    gateway = world.gateway(world.provider())
    client = await watch(gateway)
    assert await gateway.reload()
    assert not client.done.called, "any other reload leaves them open"
    gateway.tree["api_key"] = "another-key-of-the-gateway"
    assert await gateway.reload()
    assert (await bounded(client.done)).whole
    assert (await gateway.get("/status/events", AUTH)).status == 401


@ensureDeferred
async def test_d2_no_page_is_opened_while_the_gateway_stops(world):
    gateway = world.gateway(world.provider(), top={"drain": 10})
    idle = await gateway.connect("GET")
    stopped = gateway.service.stopService()
    idle.transport.write(request(None, "/status/events", "GET", AUTH))
    got = await bounded(idle.done)
    assert (got.status, got.error["code"]) == (503, "draining")
    await bounded(stopped)


@ensureDeferred
async def test_events_have_no_head_of_their_own(world):
    gateway = world.gateway(world.provider())
    assert (await gateway.get("/status/events", AUTH, "HEAD")).status == 405


def test_b9_a_key_that_is_a_word_of_the_form_hides_in_values_only():
    redaction = Redaction([Secret("requests"), Secret("route")])
    metrics = b'# TYPE aigw_requests counter\naigw_requests_total{route="a route",b="\\"requests"} 1\n'
    shown = metrics.replace(b'"a route"', b'"a ***"').replace(b'"\\"requests"', b'"\\"***"')
    assert redaction.hide_in_values(metrics) == shown
    assert redaction.hide_in_values(b'{"route":"route","n":["requests",1]}') == b'{"route":"***","n":["***",1]}'
    assert redaction.hide_in_values(b"nothing") == b"nothing"


def steps(status, number=0):
    """The making of a status, in some steps."""
    yield from [None] * number
    return status


class Tab:
    """A request that notes what is written, and whether it has ended."""

    producer = None
    ended = False

    def __init__(self):
        self.heard = []

    def write(self, data):
        self.heard += [data] if data else []

    def serve(self, served):
        pass

    def begin(self, *head):
        pass

    def registerProducer(self, producer, streaming):
        self.producer = producer

    def unregisterProducer(self):
        self.producer = None

    def end(self):
        self.ended = True


def test_a_page_that_reads_again_sees_what_it_missed():
    clock, says, page = Clock(), [b"1"], Tab()
    viewers = LiveFeed(lambda: steps(says[0]), clock)
    viewers.admit(page)
    page.producer.pauseProducing()
    says[0] = b"2"
    clock.advance(EVERY_SECONDS)
    assert page.heard == [b"data: 1\n\n"]
    page.producer.resumeProducing()
    assert page.heard == [b"data: 1\n\n", b"data: 2\n\n"]
    page.producer.resumeProducing()
    assert len(page.heard) == 2


def test_d10_a_status_that_takes_many_turns_goes_to_each_page_also_one_that_opens_meanwhile():
    clock, says, pages = Clock(), [b"1"], [Tab(), Tab(), Tab()]

    def status():
        yield from [None] * 10
        if says[0] == b"2":
            viewers.admit(pages[2])
            assert pages[2].heard == [b"data: 1\n\n"], "what the others see"
        yield from [None] * 10
        return says[0]

    viewers = LiveFeed(status, clock)
    viewers.admit(pages[0])
    viewers.admit(pages[1])
    assert pages[0].heard == pages[1].heard == []
    clock.advance(0)
    assert pages[0].heard == pages[1].heard == [b"data: 1\n\n"]
    says[0] = b"2"
    clock.advance(EVERY_SECONDS)
    assert [page.heard for page in pages] == [[b"data: 1\n\n", b"data: 2\n\n"]] * 3


@pytest.mark.parametrize("number", [0, 10, 10_000])
def test_d10_d2_a_page_gets_the_last_status_also_where_that_takes_many_turns(number):
    clock, says, page = Clock(), [b"1"], Tab()
    viewers = LiveFeed(lambda: steps(says[0], number), clock)
    viewers.admit(page)
    says[0] = b"stopping"
    ended = viewers.end()
    while clock.getDelayedCalls():
        assert ended.called == page.ended
        clock.advance(0)
    assert ended.called
    assert page.ended
    assert page.heard[-1] == b"data: stopping\n\n"
    with pytest.raises(Draining):
        viewers.admit(Tab())


@pytest.mark.parametrize("left_at", [0, 1])
def test_d10_a_page_that_leaves_while_its_status_is_made_leaves_nothing_behind(left_at):
    clock, page, other = Clock(), Tab(), Tab()
    viewers = LiveFeed(lambda: steps(b"1", 10), clock)
    viewers.admit(page)
    clock.pump([EVERY_SECONDS] * left_at)
    viewers.left(next(iter(viewers._viewers)))
    while clock.getDelayedCalls():
        clock.advance(0)
    assert len(page.heard) == left_at
    viewers.admit(other)
    clock.advance(0)
    assert other.heard == [b"data: 1\n\n"]


def test_d10_a_status_that_fails_is_logged_and_made_again(failures):
    clock, page, fails = Clock(), Tab(), [True]

    def status():
        yield
        if fails:
            raise ValueError("for the test")
        return b"1"

    viewers = LiveFeed(status, clock)
    viewers.admit(page)
    assert [each.splitlines()[0] for each in failures] == [
        "A status page gets no data: unexpected error: Traceback (most recent call last):"
    ]
    failures.clear()
    fails.clear()
    clock.advance(EVERY_SECONDS)
    assert page.heard == [b"data: 1\n\n"]


def many_steps(routes: int) -> tuple[Config, Counters]:
    """So many routes of three steps, each with answers in every minute of the hour."""
    tree = {
        "api_key": KEY,
        "providers": [{"name": "p", "base_url": "http://p/v1"}],
        "routes": [
            {"name": f"route-{n}", "steps": [{"provider": "p", "model": f"m{step}"} for step in range(3)]}
            for n in range(routes)
        ],
    }
    config, counters = loader.build(tree, {}, Path("/nonexistent")), Counters()
    counters.keep(config.routes.values())
    hour = Hour()
    for minute in range(60):
        counted = hour.at(minute * 60.0)
        counted.ok = counted.answers = 7
        counted.whole = 1.5
    for route in counters.routes.values():
        for step in route.steps.values():
            step.hour = hour
    return config, counters


def made(config, counters, between=lambda: None) -> tuple[dict, list[float]]:
    """The data, and the seconds of processor time of each step of making them."""
    live = Snapshot(config, 3599.0, False, {}, 1, 0, 0, 0.0, None, Reloads(), lambda step: None, lambda step: False)
    making, took = make_status(live, counters, Redaction([Secret("a-key")]).hide_in_values), []
    while True:
        began = time.thread_time()
        try:
            next(making)
        except StopIteration as end:
            return json.loads(end.value), [*took, time.thread_time() - began]
        took.append(time.thread_time() - began)
        between()


def test_d10_the_data_of_2000_routes_are_made_in_steps_of_a_few_milliseconds():
    """In one go they took 0.2 s of the event loop, each second in which a page was open."""
    shown, took = made(*many_steps(2000))
    assert len(shown["routes"]) == 2000
    assert shown["routes"][7]["steps"][2]["hour"]["ok"] == 420
    assert sorted(took)[-3] < 0.02, sorted(took)[-10:]  # a search for garbage may be in one


def test_d10_a_reload_while_the_data_are_made_changes_nothing_of_them():
    config, counters = many_steps(20)
    fewer, _ = many_steps(1)
    shown, _ = made(config, counters, lambda: counters.keep(fewer.routes.values()))
    assert len(shown["routes"]) == 20


def test_an_open_page_asks_anew_after_an_hour_and_so_does_not_outlive_its_cookie_for_long():
    clock, early, late = Clock(), Tab(), Tab()
    viewers = LiveFeed(lambda: steps(b"1"), clock)
    viewers.admit(early)
    clock.pump([EVERY_SECONDS] * 10)
    viewers.admit(late)
    clock.pump([EVERY_SECONDS] * (int(MOST_SECONDS) - 11))
    assert not early.ended
    clock.advance(EVERY_SECONDS)
    assert early.ended
    assert not late.ended
    clock.pump([EVERY_SECONDS] * 10)
    assert late.ended
    assert not clock.getDelayedCalls()  # nobody is left to look for
