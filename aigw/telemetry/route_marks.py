"""Which routes have changed since a page was sent them, found without a look at each of thousands of routes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Generator, Sequence
from itertools import compress, count
from operator import ne
from typing import TypeVar

from aigw.config.model import Route
from aigw.telemetry.counters import RouteCounters
from aigw.telemetry.last_hour import MINUTES
from aigw.telemetry.snapshot import Snapshot

T = TypeVar("T")

MOST_ROUTES = 24  # made in one round, unless all are new
MOST_STEPS = 48
LOOKED_AT = 1000  # routes, between two pauses
CLOSELY = 4  # each round looks for cooldowns at one of so many routes that had no new request
_NEVER = -1

Until = tuple[tuple[int, int], ...]  # the positions of the steps that cool down, and when each ends to do so


class RouteMarks:
    """Of each route what it was when it was last sent: its requests, those in flight, its cooldowns, the minute."""

    def __init__(self, routes: Sequence[tuple[Route, RouteCounters]]) -> None:
        self._routes = routes
        self._counted = [counted.requests for _, counted in routes]
        self._position = {route.name: number for number, (route, _) in enumerate(routes)}
        self._requests = [_NEVER] * len(routes)
        self._minutes = [0] * len(routes)  # 0 if the last hour was quiet: it is quiet until the next request
        self._in_flight: dict[int, int] = {}  # without the routes that have none
        self._until: dict[int, Until] = {}  # without those of which no step cools down
        self._next = 0

    def due(self, live: Snapshot, round_number: int) -> Generator[None, None, list[int]]:
        """The routes to send in this round, by their positions: those with news first, then those that only grow
        older. Each has its turn.
        """
        requests: list[int] = []
        for begin in range(0, len(self._counted), LOOKED_AT):
            requests += map(sum, map(dict.values, self._counted[begin : begin + LOOKED_AT]))
            yield
        changed = set(compress(count(), map(ne, requests, self._requests)))
        running = {at: n for name, n in live.in_flight.items() if (at := self._position.get(name)) is not None}
        changed |= {at for at, _ in running.items() ^ self._in_flight.items()}
        for number in self._checked_closely(live, round_number):
            if number not in changed and self._until.get(number, ()) != _until(self._routes[number][0], live):
                changed.add(number)
        yield
        minute = int(live.now // 60)
        aged = [n for n, before in enumerate(self._minutes) if before and before != minute and n not in changed]
        return self._chosen([*self._in_turn(sorted(changed)), *self._in_turn(aged)], _NEVER in self._requests)

    def note(self, number: int, live: Snapshot) -> None:
        """A route is sent. To be called before it is made: what happens meanwhile is sent in the next round."""
        route, counted = self._routes[number]
        self._requests[number] = sum(counted.requests.values())
        minute = int(live.now // 60)
        latest = max([step.hour.latest for step in counted.steps.values()], default=-MINUTES)
        self._minutes[number] = minute if latest > minute - MINUTES else 0
        _set_or_remove(self._in_flight, number, live.in_flight.get(route.name, 0))
        _set_or_remove(self._until, number, _until(route, live))

    def _checked_closely(self, live: Snapshot, round_number: int) -> Collection[int]:
        """Those whose cooldowns may have changed without a request: others share their providers and models."""
        closely = range(round_number % CLOSELY, len(self._routes), CLOSELY)
        may_cool_down = live.failed_at is None or bool(live.failed_at())
        return closely if may_cool_down else [number for number in self._until if number in closely]

    def _in_turn(self, numbers: list[int]) -> list[int]:
        first = bisect_left(numbers, self._next)
        return numbers[first:] + numbers[:first]

    def _chosen(self, numbers: list[int], all_of_them: bool) -> list[int]:
        if all_of_them:
            return numbers
        steps = 0
        chosen: list[int] = []
        for number in numbers:
            steps += len(self._routes[number][0].steps)
            if chosen and (len(chosen) == MOST_ROUTES or steps > MOST_STEPS):
                break
            chosen.append(number)
        if chosen:
            self._next = (chosen[-1] + 1) % len(self._routes)
        return chosen


def _set_or_remove(known: dict[int, T], number: int, value: T) -> None:
    if value:
        known[number] = value
    else:
        known.pop(number, None)


def _until(route: Route, live: Snapshot) -> Until:
    left = [(at, live.cooldown_left(step)) for at, step in enumerate(route.steps)]
    return tuple([(at, round(live.now + each)) for at, each in left if each is not None])
