"""The live page of a large gateway (G5, D10): each round sends what has changed, and takes little."""

from __future__ import annotations

import copy
import gc
import json
import time
from decimal import Decimal
from functools import cache

import msgspec
import pytest
from twisted.internet.task import Clock

from aigw.admin.live_feed import EVERY_SECONDS, LiveFeed
from aigw.secret import Secret
from aigw.settings.callers import Caller
from aigw.telemetry import status_changes
from aigw.telemetry.redaction import Redaction
from aigw.telemetry.route_marks import CLOSELY, MOST_ROUTES
from aigw.telemetry.series_names import Seen, SeriesNames
from aigw.telemetry.snapshot import Reloads, Snapshot
from aigw.telemetry.status import status
from aigw.telemetry.status_changes import StatusChanges
from tests.test_status import Tab, many_steps
from tests.test_tally import AttemptRecord, record


def drained(steps) -> bytes:
    """What the steps give in the end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


class Page:
    """What a page knows, as its script puts it together."""

    def __init__(self) -> None:
        self.data: dict = {}

    def take(self, event: bytes) -> dict:
        news = json.loads(event or '{"changed":[]}')
        changed = news.pop("changed", None)
        self.data = {**(self.data if changed is not None else {}), **news}
        for at, route in changed or ():
            self.data["routes"][at] = route
        return {at: route for at, route in changed or ()}


class World:
    """A gateway with so many routes, at a time that the test sets."""

    def __init__(self, routes: int, callers: int = 0) -> None:
        self.config, self.counters = many_steps(routes)
        for route in self.counters.routes.values():
            for step in route.steps.values():
                step.hour = copy.copy(step.hour)
                step.hour._slots = [*step.hour._slots]
        self.counters.keep_accounts([Caller(f"caller-{n}") for n in range(callers)], True, True)
        self.now = 3660.0  # a minute of its own for each step
        self.left: float | None = None
        self.in_flight: dict[str, int] = {}
        self.changes = StatusChanges(self.look, self.counters, Redaction([Secret("a-key-1234")]).hide_in_values)

    def look(self) -> Snapshot:
        return Snapshot(
            self.config, self.now, False, self.in_flight, 1, 0, 0, 0.0, None, self.reloads, lambda step: self.left,
            lambda step: False,
        )  # fmt: skip

    reloads = Reloads()

    def count(self, route: str, **more) -> None:
        tried = AttemptRecord(1, "p", "m0", "ok", 200, 5, "")
        self.counters.count(record(tried, route=route, started=self.now - 1, ended=self.now, **more))

    def round(self) -> bytes:
        return drained(self.changes.round())

    def whole(self) -> dict:
        return json.loads(drained(status(self.look(), self.counters, lambda text: text)))


def test_g5_a_page_knows_what_the_whole_status_says():
    world, page = World(300), Page()
    assert world.changes.are_due()
    page.take(world.round())
    assert page.data["routes"] == world.whole()["routes"]
    assert world.round() == b""
    world.count("route-7")
    world.count("route-299", status=502, outcome="error", error="all_steps_failed")
    assert {*page.take(world.round())} == {7, 299}
    world.in_flight = {"route-3": 2}
    assert {*page.take(world.round())} == {3}
    assert not any(world.round() for _ in range(CLOSELY))
    assert page.data == {**world.whole(), "keys": 0}


@pytest.mark.parametrize("change", ["requests", "cooldowns", "minutes"])
def test_g5_where_all_routes_change_each_has_its_turn(change):
    world, page = World(3 * MOST_ROUTES + 40), Page()
    page.take(world.round())
    seen = set()
    for number in range(12):
        if change == "requests":
            for route in world.config.routes:
                world.count(route)
        elif change == "cooldowns":
            world.left = 10.0
        else:
            world.now = 3660.0 + 60
        news = page.take(world.round())
        assert 0 < len(news) <= MOST_ROUTES or number > 3
        seen |= {*news}
    assert seen == {*range(len(world.config.routes))}
    for event in [world.round() for _ in range(2 * CLOSELY)]:
        page.take(event)
    if change != "requests":
        for one, other in zip(page.data["routes"], world.whole()["routes"], strict=True):
            assert [step["hour"] for step in one["steps"]] == [step["hour"] for step in other["steps"]]
            assert [step["state"] for step in one["steps"]] == [step["state"] for step in other["steps"]]


def test_g5_what_changes_comes_before_what_only_grows_older():
    world, page = World(300), Page()
    page.take(world.round())
    world.now += 60
    assert len(page.take(world.round())) > 9
    world.count("route-290")
    assert 290 in page.take(world.round())


def test_g5_a_reload_sends_the_whole():
    world, page = World(300), Page()
    page.take(world.round())
    world.count("route-1")
    world.config, _ = many_steps(200)
    world.counters.keep(world.config.routes.values())
    event = world.round()
    assert b'"changed"' not in event
    page.take(event)
    assert page.data["routes"] == world.whole()["routes"]


def test_g5_the_callers_with_the_highest_costs_are_sent(monkeypatch):
    monkeypatch.setattr(status_changes, "ROUNDS", 1)
    world, page = World(1, callers=1000), Page()
    assert world.changes.are_due()
    world.counters.callers["caller-700"].cost = Decimal(7)
    world.counters.callers["caller-500"].requests = 5
    page.take(world.round())
    assert [each["name"] for each in page.data["callers"]][:2] == ["caller-700", "caller-500"]
    assert len(page.data["callers"]) == 100
    assert page.data["keys"] == 1000
    world.counters.callers["caller-2"].cost = Decimal(9)
    page.take(world.round())
    assert page.data["callers"][0]["name"] == "caller-2"


def test_g5_a_page_that_opens_or_reads_again_has_the_whole_and_then_what_changes():
    world, clock = World(300), Clock()
    feed = LiveFeed(lambda: pytest.fail("the whole is not made"), clock, world.changes)
    tabs = [Tab(), Tab()]
    pages = [Page(), Page()]

    def pump() -> None:
        clock.pump([0.0] * 200)
        clock.advance(EVERY_SECONDS)
        clock.pump([0.0] * 200)
        for tab, page in zip(tabs, pages, strict=True):
            for event in tab.heard:
                if event.startswith(b"data: "):
                    page.take(event[6:])
            tab.heard.clear()

    feed.admit(tabs[0])
    pump()
    world.count("route-1")
    pump()
    feed.admit(tabs[1])
    tabs[0].producer.pauseProducing()
    world.count("route-2")
    pump()
    assert pages[1].data["routes"] == world.whole()["routes"]
    assert pages[0].data["routes"] != world.whole()["routes"]
    tabs[0].producer.resumeProducing()
    pump()
    assert pages[0].data["routes"] == world.whole()["routes"]


@pytest.mark.parametrize("turns", range(0, 12, 3))
def test_g5_a_page_that_closes_in_the_middle_leaves_nothing_and_the_next_has_the_whole(turns):
    world, clock = World(300), Clock()
    feed = LiveFeed(lambda: pytest.fail("the whole is not made"), clock, world.changes)
    first, second = Tab(), Tab()
    feed.admit(first)
    clock.pump([0.0] * turns)
    next(iter(feed._viewers)).end()
    feed.admit(second)
    for _ in range(3):
        clock.pump([0.0] * 200)
        clock.advance(EVERY_SECONDS)
    page = Page()
    for event in second.heard:
        page.take(event[6:])
    assert page.data["routes"] == world.whole()["routes"]
    next(iter(feed._viewers)).end()
    clock.pump([EVERY_SECONDS] * 3)
    assert not clock.getDelayedCalls()
    assert world.changes.whole() == b""


def test_g5_b9_a_key_is_hidden_in_changes_too():
    world, page = World(300), Page()
    world.changes._hide = Redaction([Secret("route-7")]).hide_in_values
    page.take(world.round())
    world.count("route-7")
    assert page.take(world.round())[7]["name"] == "***"


def test_g5_cooldowns_are_looked_for_only_where_something_failed():
    world, page, asked = World(300), Page(), []
    failed: set[tuple[str, str]] = set()
    look = world.look

    def counted(step) -> float | None:
        asked.append(step)
        return world.left

    world.changes._take_snapshot = lambda: msgspec.structs.replace(
        look(), failed_at=lambda: failed, cooldown_left=counted
    )
    page.take(world.round())
    asked.clear()
    assert not any(world.round() for _ in range(CLOSELY))
    assert not asked
    world.left = 30.0
    failed.add(("p", "m0"))
    seen: set[int] = set()
    for _ in range(20):
        seen |= {*page.take(world.round())}
    assert seen == set(range(300))
    world.left = None
    failed.clear()
    seen = set()
    for _ in range(20):
        seen |= {*page.take(world.round())}
    assert seen == set(range(300)), "the ends of cooldowns are seen, too"
    asked.clear()
    assert not any(world.round() for _ in range(CLOSELY))
    assert not asked


@cache
def large(routes: int, callers: int) -> World:
    """A gateway that is made once, because that takes seconds."""
    return World(routes, callers)


@pytest.mark.parametrize(("routes", "callers"), [(2000, 0), (10, 10_000)])
@pytest.mark.parametrize("kind", ["nothing", "all", "minute"])
def test_g5_a_round_takes_little_whatever_changes(routes, callers, kind):
    """With 2,000 routes of three steps the whole took 0.4 s and had 3.4 MB, each second."""
    world, page = large(routes, callers), Page()
    world.changes.forget()
    page.take(world.round())
    took, sizes = [], []
    gc.collect()
    gc.disable()
    try:
        for number in range(10):
            if kind == "all":
                for route in world.config.routes:
                    world.count(route)
            world.now += 60 if kind == "minute" and number == 0 else 1
            began = time.thread_time()
            event = world.round()
            took.append(time.thread_time() - began)
            sizes.append(len(event))
    finally:
        gc.enable()
    print(f" [{routes} {callers} {kind}: {min(took) * 1000:.1f} to {max(took) * 1000:.1f} ms, {max(sizes)} bytes]")
    assert sorted(took)[len(took) // 2] < 0.04  # alone under 0.01
    assert max(sizes) < 100_000


def test_g4_a_scrape_of_before_a_reload_that_ends_within_one_of_after_it_leaves_no_old_labels():
    waiting, after = [World(3)], World(5)

    class Interrupted(SeriesNames):
        """Its last labels are made while the other scrape ends."""

        def model_labels(self, provider: str, model: str) -> str:
            if waiting:
                other = waiting.pop()
                drained(self.refresh(Seen.now(other.counters), other.config))
            return super().model_labels(provider, model)

    hide = Redaction().hide
    names = Interrupted(lambda: hide)
    for _ in range(2):
        named = drained(names.refresh(Seen.now(after.counters), after.config))
        assert [route.counted for route in named.routes[1:]] == [*after.counters.routes.values()]
        assert named.routes[0].counted is after.counters.other
        assert len(named.models) == len(after.counters.models)
        assert sum(len(route.steps) for route in named.routes) == 15
        assert sum(len(route.steps) for route in named.configured) == 15
