"""The labels of all series, kept from one scrape to the next: with thousands of routes they take longest to make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import is_

from aigw.config.model import Step
from aigw.telemetry.counters import OTHER, Counters, ModelCounters, RouteCounters, StepCounters, StepKey, step_key
from aigw.telemetry.snapshot import Snapshot

PIECE = 64  # routes
_LABEL = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class SeriesNames:
    """Labels of routes, steps and models, each with what is counted.

    They are made anew after a reload, and when other keys are hidden. ``hide`` gives what takes the keys out of a name.
    """

    def __init__(self, hide: Callable[[], Callable[[str], str]]) -> None:
        self._hide = hide
        self._made_of: tuple[object, ...] = (None,)
        self._values: dict[str, str] = {}
        self.routes: list[tuple[str, str, RouteCounters]] = []
        self.with_other: list[tuple[str, RouteCounters]] = []
        self.steps: list[tuple[str, StepCounters]] = []
        self.models: list[tuple[str, ModelCounters]] = []
        self.configured: list[tuple[str, Step]] = []

    def refresh(self, counters: Counters, live: Snapshot) -> Iterator[None]:
        """Make the labels if those of the last scrape are old, in short steps."""
        made_of = (counters.routes, counters.models, live.config.routes, counters.other, self._hide())
        if all(map(is_, made_of, self._made_of)):
            return
        self._values = {}
        routes: list[tuple[str, str, RouteCounters]] = []
        steps: list[tuple[str, StepCounters]] = []
        configured: list[tuple[str, Step]] = []
        for number, (name, route) in enumerate(counters.routes.items(), 1):
            labels = self.route_label(name)
            routes.append((labels, name, route))
            steps += [(f"{labels},{self._step_labels(key)}", step) for key, step in route.steps.items()]
            if number % PIECE == 0:
                yield
        for number, of_config in enumerate(live.config.routes.values(), 1):
            labels = self.route_label(of_config.name)
            configured += [(f"{labels},{self._step_labels(step_key(step))}", step) for step in of_config.steps]
            if number % PIECE == 0:
                yield
        models = [(self.model_labels(*key), model) for key, model in counters.models.items()]
        others = [] if OTHER in counters.routes else [(self.route_label(OTHER), counters.other)]
        # All at once and last: another scrape, of before or after a reload, may be here in a thread of its own.
        self.routes, self.steps, self.models, self.configured, self.with_other, self._made_of = (
            routes,
            steps,
            models,
            configured,
            [*others, *((labels, each) for labels, _, each in routes)],
            made_of,
        )

    def route_label(self, name: str) -> str:
        """The label of a route."""
        return f'route="{self._value(name)}"'

    def model_labels(self, provider: str, model: str) -> str:
        """The labels of a model of a provider."""
        return f'provider="{self._value(provider)}",model="{self._value(model)}"'

    def caller_label(self, kind: str, name: str) -> str:
        """The label of a caller or a group."""
        return f'{kind}="{self._value(name)}"'

    def _step_labels(self, key: StepKey) -> str:
        labels = f'step="{key[0]}",{self.model_labels(key[1], key[2])}'
        return labels if len(key) == 3 else f'{labels},key="{key[3]}"'

    def _value(self, name: str) -> str:
        value = self._values.get(name)
        if value is None:
            value = self._values[name] = self._hide()(name).translate(_LABEL)
        return value
