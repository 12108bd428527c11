"""What has changed in the status, for pages that stay open while there are many routes or callers.

To make all of it each second would take most of a processor. So each round makes the routes in which something has
changed, at most some of them in turn, and the callers with the highest costs. What is known stays in memory.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator

from aigw.config.model import Route
from aigw.telemetry.counters import Counters, RouteCounters
from aigw.telemetry.route_marks import RouteMarks
from aigw.telemetry.snapshot import Snapshot, TakeSnapshot
from aigw.telemetry.status import Hide, Pace, callers_status, daemon_status, route_status, with_list

MANY_ROUTES = 100  # with fewer routes and callers each event has the whole status
MANY_STEPS = 200
MANY_CALLERS = 100
MOST_CALLERS = 100  # shown by the page
ROUNDS = 10  # the callers are chosen anew once in so many rounds


class StatusChanges:
    """The status as it was sent, and what has changed since then."""

    def __init__(self, take_snapshot: TakeSnapshot, counters: Counters, hide: Hide) -> None:
        self._take_snapshot = take_snapshot
        self._counters = counters
        self._hide = hide
        self.forget()

    def forget(self) -> None:
        """No page is open."""
        self._known: object = None  # the routes of the counters, which a reload replaces
        self._shown = b""
        self._routes: list[bytes] = []
        self._named: list[tuple[Route, RouteCounters]] = []
        self._marks = RouteMarks([])
        self._callers: list[bytes] = []
        self._round = 0

    def are_due(self) -> bool:
        """Whether there is so much that pages get the changes only."""
        routes, callers = self._counters.routes, self._counters.callers
        if len(routes) > MANY_ROUTES or len(callers) > MANY_CALLERS:
            return True
        return sum(len(route.steps) for route in routes.values()) > MANY_STEPS

    def whole(self) -> bytes:
        """All that is known, as JSON; nothing before the first round has ended."""
        if not self._shown:
            return b""
        whole = with_list(self._shown, "routes", self._routes)
        return with_list(whole, "callers", self._callers) if self._callers else whole

    def round(self) -> Generator[None, None, bytes]:
        """What has changed since the last round, as JSON, made in short steps; nothing if nothing has.

        The first round and the one after a reload give the whole status. Later ``changed`` has pairs of the position
        of a route and the route, and ``callers`` is there if one of them has changed.
        """
        live, known = self._take_snapshot(), self._counters.routes
        is_new = known is not self._known
        if is_new:
            self.forget()
            self._named = [(route, known[route.name]) for route in live.config.routes.values()]
            self._marks, self._routes = RouteMarks(self._named), [b"{}"] * len(self._named)
        routes, marks, named = self._routes, self._marks, self._named
        changed: list[bytes] = []
        pace = Pace()
        for number in (yield from marks.due(live, self._round)):
            route, counted = named[number]
            marks.note(number, live)
            made = yield from route_status(route, counted, counted.steps, live, self._hide, pace)
            if made != routes[number]:
                changed.append(b"[%d,%s]" % (number, made))
            routes[number] = made
        callers = yield from self._callers_now(live)
        if routes is not self._routes:  # all pages were closed meanwhile
            return b""
        shown = daemon_status(live, self._counters, self._hide)
        shown, before = b'%s,"keys":%d}' % (shown[:-1], len(self._counters.callers)), self._shown
        are_new, self._callers, self._shown = callers != self._callers, callers, shown
        if is_new:
            self._known = known
            return self.whole()
        if not changed and not are_new and shown == before:
            return b""
        event = with_list(shown, "changed", changed)
        return with_list(event, "callers", callers) if are_new else event

    def _callers_now(self, live: Snapshot) -> Generator[None, None, list[bytes]]:
        callers, number = self._counters.callers, self._round
        self._round += 1
        if number % ROUNDS:
            return self._callers
        yield
        chosen = heapq.nlargest(MOST_CALLERS, callers.items(), key=lambda each: (each[1].cost, each[1].requests))
        yield
        return (yield from callers_status(chosen, live, self._hide))
