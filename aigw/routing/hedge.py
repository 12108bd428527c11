"""Policy: which requests may be sent to two providers at once, and for how many of a route's requests that is done.

The budgets are small and outlive a reload; nothing here touches the network.
"""

from __future__ import annotations

from collections.abc import Iterable

from aigw.config.model import Step
from aigw.protocols.endpoint import Call
from aigw.protocols.requests import uses_state
from aigw.upstream.attempt import Attempt

MOST_TWICE = 1024 * 1024  # bytes of a body
MOST_SAVED = 10.0  # hedges that a route may start at once after a quiet time
MOST_ROUTES = 10_000
_ONE = 1 - 1e-9  # what many small shares add up to


def may_be_sent_twice(call: Call, attempt: Attempt, left: Iterable[Step]) -> bool:
    """Whether a second provider may work on ``call``, of which ``attempt`` was the first; ``left`` has its step."""
    if len(attempt.body) > MOST_TWICE or uses_state(call.members):
        return False
    return not any([step.changes is not None and step.changes.adds_state for step in (attempt.step, *left)])


class Budget:
    """How many hedges a route may start: a share of its requests, of which at most MOST_SAVED are saved.

    The first hedge needs no savings: the requests after it pay for it, so that a new route is not without hedges.
    """

    __slots__ = ("_saved", "_used")

    def __init__(self) -> None:
        self._saved = 0.0
        self._used = False

    def add(self, share: float) -> None:
        """A request has come; ``share`` is more than 0 and at most 1."""
        self._saved = min(self._saved + share, MOST_SAVED)

    def take(self) -> bool:
        """Whether a hedge may start now, which is then paid for."""
        if self._used and self._saved < _ONE:
            return False
        self._used = True
        self._saved -= 1
        return True


class Budgets:
    """The budget of each route, by its name."""

    def __init__(self) -> None:
        self._by_route: dict[str, Budget] = {}

    def of(self, route: str) -> Budget:
        """That of one route. Of too many the first one is forgotten."""
        found = self._by_route.get(route)
        if found is None:
            found = self._by_route[route] = Budget()
            if len(self._by_route) > MOST_ROUTES:
                del self._by_route[next(iter(self._by_route))]
        return found
