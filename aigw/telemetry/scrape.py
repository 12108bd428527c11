"""All series with labels from the configuration, in the order in which a scrape has them.

What has not changed since the last scrape is the same bytes: most routes are idle between two of them.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterable, Iterator
from functools import partial
from itertools import repeat
from typing import TypeVar

from aigw.telemetry.caller_series import OF_CALLERS, of_accounts
from aigw.telemetry.counters import Counters
from aigw.telemetry.kept_texts import KeptTexts
from aigw.telemetry.series import OF_MODELS, OF_ROUTES, Family, in_flight
from aigw.telemetry.series_names import ConfiguredRoute, NamedCaller, NamedModel, NamedRoute, Seen, SeriesNames, Use
from aigw.telemetry.snapshot import Snapshot

T = TypeVar("T")

PAUSE_SECONDS = 0.0001  # a pause after each piece, in which the event loop can run
LOOKED_AT = 250  # routes, between two pauses
_COOLING = Family(
    "aigw_step_cooling_down", "gauge", "1 from the failure that began a step's cooldown until its next answer, else 0."
)
_RESTING = Family("aigw_step_resting", "gauge", "The old name of aigw_step_cooling_down.")
_REST_END = Family("aigw_step_rest_end_timestamp_seconds", "gauge", "When the cooldown of a step ends, in Unix time.")


class Scrapes:
    """Makes the lines in a thread; several threads may do so at once. It keeps labels and texts, in bounded memory."""

    def __init__(self, counters: Counters, names: SeriesNames) -> None:
        self._counters = counters
        self._names = names
        self._routes = KeptTexts[NamedRoute]([lines for _, lines in OF_ROUTES])
        self._models = KeptTexts[NamedModel]([lines for _, lines in OF_MODELS])
        self._callers = KeptTexts[NamedCaller]([lines for _, lines in OF_CALLERS])
        self._awake = KeptTexts[ConfiguredRoute]([partial(_cooldowns, _COOLING), partial(_cooldowns, _RESTING)])

    def begin(self, live: Snapshot, openmetrics: bool) -> Iterator[bytes]:
        """Begin a scrape, on the event loop, and give an iterator of texts of whole lines, for a thread."""
        failed = None if live.failed_at is None else live.failed_at()
        return self._texts(Seen.now(self._counters), live, failed, openmetrics)

    def _texts(
        self, seen: Seen, live: Snapshot, failed: Collection[Use] | None, openmetrics: bool
    ) -> Generator[bytes, None, None]:
        named = yield from _paced(self._names.refresh(seen, live.config))
        routes = yield from _paced(self._routes.refresh(named.routes, seen.route_marks))
        *others, none_runs = routes
        for (family, _), lines in zip(OF_ROUTES, (*others, _with_running(none_runs, named.routes, live)), strict=True):
            yield from _family(family, lines, openmetrics)
        models = yield from _paced(self._models.refresh(named.models, seen.model_marks))
        for (family, _), lines in zip(OF_MODELS, models, strict=True):
            yield from _family(family, lines, openmetrics)
        awake = yield from _paced(self._awake.refresh(named.configured, [0] * len(named.configured)))
        cooling, resting, ends = yield from _paced(_with_cooldowns(awake, named.configured, live, failed))
        yield from _family(_COOLING, cooling, openmetrics)
        yield from _family(_RESTING, resting, openmetrics)
        yield from _family(_REST_END, ends, openmetrics)
        if not seen.callers:
            return
        callers = yield from _paced(self._callers.refresh(named.callers, seen.caller_marks))
        for (family, _), lines in zip(OF_CALLERS, callers, strict=True):
            yield from _family(family, lines, openmetrics)
        for family, lines in (yield from _paced(of_accounts(self._counters, live, self._names))):
            yield from _family(family, lines, openmetrics)


def _paced(steps: Generator[None, None, T]) -> Generator[bytes, None, T]:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            made: T = end.value
            return made
        yield b""
        time.sleep(PAUSE_SECONDS)


def _family(family: Family, lines: list[bytes], openmetrics: bool) -> Iterator[bytes]:
    yield family.head(openmetrics)
    yield from filter(None, lines)
    time.sleep(PAUSE_SECONDS)


def _cooldowns(family: Family, route: ConfiguredRoute, cool_down: Iterable[bool] = repeat(False)) -> bytes:
    name = family.name.encode()
    return b"".join(
        [b"%s{%s} %d.0\n" % (name, labels, each) for (labels, _), each in zip(route.steps, cool_down, strict=False)]
    )


def _with_running(none_runs: list[bytes], routes: list[NamedRoute], live: Snapshot) -> list[bytes]:
    """``none_runs`` with the requests in flight."""
    lines, running = none_runs.copy(), live.in_flight
    for number, route in enumerate(routes if running else ()):
        if route.is_configured and route.name in running:
            lines[number] = in_flight(route, running[route.name])
    return lines


def _with_cooldowns(
    awake: list[list[bytes]], routes: list[ConfiguredRoute], live: Snapshot, failed: Collection[Use] | None
) -> Generator[None, None, list[list[bytes]]]:
    """``awake`` with the steps that cool down, and when their cooldowns end."""
    cooling, resting = [each.copy() for each in awake]
    ends = []
    for number, route in enumerate(routes if failed is None or failed else ()):
        if failed is None or not route.uses.isdisjoint(failed):
            cool_down = [live.cools_down(step) for _, step in route.steps]
            if any(cool_down):
                cooling[number] = _cooldowns(_COOLING, route, cool_down)
                resting[number] = _cooldowns(_RESTING, route, cool_down)
            for labels, step in route.steps:
                if (left := live.cooldown_left(step)) is not None:
                    ends.append(f"{_REST_END.name}{{{labels.decode()}}} {time.time() + left!r}\n".encode())
        if number % LOOKED_AT == 0:
            yield
    return [cooling, resting, ends]
