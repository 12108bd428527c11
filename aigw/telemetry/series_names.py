"""The labels of all series, kept from one scrape to the next: with thousands of routes they take longest to make."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from operator import is_
from typing import NamedTuple

from aigw.config.model import Config, Step
from aigw.telemetry.caller_counters import CallerCounters
from aigw.telemetry.counters import (
    OTHER,
    Counters,
    ModelCounters,
    RouteCounters,
    StepCounters,
    StepKey,
    step_key,
)

PIECE = 64  # routes
Use = tuple[str, str]  # a provider's name and a model, or "" for all its models
_LABEL = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class Seen(NamedTuple):
    """What is counted when a scrape begins, and for each route, model and caller a mark: it is another one if
    something was counted for it. To be made on the event loop, which counts each request as a whole.
    """

    routes: Mapping[str, RouteCounters]
    models: Mapping[tuple[str, str], ModelCounters]
    callers: Mapping[str, CallerCounters]
    other: RouteCounters
    route_marks: list[int]  # of ``other`` first, unless a route has its name, then of ``routes``
    model_marks: list[int]
    caller_marks: list[int]

    @classmethod
    def now(cls, counters: Counters) -> Seen:
        """Every request adds to ``requests`` of its route and its caller, and to ``duration`` of a model whose other
        counts it changes."""
        routes, models, callers = counters.routes, counters.models, counters.callers
        requests = [route.requests for route in routes.values()]
        if OTHER not in routes:
            requests.insert(0, counters.other.requests)
        return cls(
            *(routes, models, callers, counters.other),
            [*map(sum, map(dict.values, requests))],
            [sum(model.duration.counts) for model in models.values()],
            [caller.requests for caller in callers.values()],
        )


NamedModel = tuple[bytes, ModelCounters]
NamedCaller = tuple[bytes, CallerCounters]


class NamedRoute(NamedTuple):
    """A route with its steps, or the counts of requests that name none."""

    label: bytes
    name: str
    counted: RouteCounters
    is_configured: bool
    is_other: bool
    may_hedge: bool
    steps: list[tuple[bytes, StepCounters]]


class ConfiguredRoute(NamedTuple):
    """The steps of a route of the configuration. ``uses`` are their providers and models, and providers with ``""``."""

    steps: list[tuple[bytes, Step]]
    uses: frozenset[Use]


class Labelled(NamedTuple):
    """Everything that has series, with its labels."""

    routes: list[NamedRoute]  # OTHER first
    models: list[NamedModel]
    callers: list[NamedCaller]
    configured: list[ConfiguredRoute]


class SeriesNames:
    """The labels, which are made anew after a reload, and when other keys are hidden.

    ``hide`` gives what takes the keys out of a name.
    """

    def __init__(self, hide: Callable[[], Callable[[str], str]]) -> None:
        self._hide = hide
        self._values: dict[str, str] = {}
        self._made: tuple[tuple[object, ...], Labelled] = (None,), Labelled([], [], [], [])

    def refresh(self, seen: Seen, config: Config) -> Generator[None, None, Labelled]:
        """All labels; those of the last scrape unless they are old. They are made in short steps."""
        made_of = (seen.routes, seen.models, seen.callers, seen.other, config.routes, self._hide())
        before, named = self._made
        if all(map(is_, made_of, before)):
            return named
        self._values = {}
        routes: list[NamedRoute] = []
        labels_of: dict[tuple[str, StepKey], bytes] = {}
        if OTHER not in seen.routes:
            routes.append(NamedRoute(self.label("route", OTHER).encode(), OTHER, seen.other, False, True, False, []))
        for number, (name, route) in enumerate(seen.routes.items(), 1):
            label, of_config = self.label("route", name), config.routes.get(name)
            labels_of |= {(name, key): self._step_labels(label, key) for key in route.steps}
            steps = [(labels_of[name, key], step) for key, step in route.steps.items()]
            may_hedge = of_config is not None and of_config.hedge is not None
            routes.append(NamedRoute(label.encode(), name, route, True, route is seen.other, may_hedge, steps))
            if number % PIECE == 0:
                yield
        configured: list[ConfiguredRoute] = []
        for number, of_config in enumerate(config.routes.values(), 1):
            name, label = of_config.name, self.label("route", of_config.name)
            keyed = [(step_key(step), step) for step in of_config.steps]
            labelled = [(labels_of.get((name, key)) or self._step_labels(label, key), step) for key, step in keyed]
            uses = {(step.provider.name, model) for step in of_config.steps for model in (step.model, "")}
            configured.append(ConfiguredRoute(labelled, frozenset(uses)))
            if number % PIECE == 0:
                yield
        models = [(self.model_labels(*key).encode(), model) for key, model in seen.models.items()]
        yield
        callers = [(self.label("caller", name).encode(), caller) for name, caller in seen.callers.items()]
        named = Labelled(routes, models, callers, configured)
        # All at once and last: another scrape, of before or after a reload, may be here in a thread of its own.
        self._made = made_of, named
        return named

    def label(self, kind: str, name: str) -> str:
        """The label of a route, a caller or a group."""
        return f'{kind}="{self._value(name)}"'

    def model_labels(self, provider: str, model: str) -> str:
        """The labels of a model of a provider."""
        return f'provider="{self._value(provider)}",model="{self._value(model)}"'

    def _step_labels(self, route: str, key: StepKey) -> bytes:
        labels = f'{route},step="{key[0]}",{self.model_labels(key[1], key[2])}'
        return (labels if len(key) == 3 else f'{labels},key="{key[3]}"').encode()

    def _value(self, name: str) -> str:
        value = self._values.get(name)
        if value is None:
            value = self._values[name] = self._hide()(name).translate(_LABEL)
        return value
