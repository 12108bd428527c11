"""Finds the route of a name: by its exact name, else by the pattern with the longest text before its star."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable

from aigw.config.model import Route, Step
from aigw.errors import RouteNotFound
from aigw.routing import nearest
from aigw.settings.endpoint_names import LISTED_FOR
from aigw.settings.limit_values import matches
from aigw.settings.patterns import STAR, may_replace_a_star, replaced, star_of


class Routes(dict[str, Route]):
    """The routes by all their exact names. Another name leads to the route of a pattern, or raises RouteNotFound.

    Nothing is kept of the names that clients send.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        named = {name: route for route in self.routes for name in (route.name, *route.also)}
        super().__init__({name: route for name, route in named.items() if not name.endswith(STAR)})
        self._names = nearest.Names(named)
        patterns = sorted((name[: -len(STAR)], route) for name, route in named.items() if name.endswith(STAR))
        self._beginnings = [beginning for beginning, _ in patterns]
        self._by_pattern = [route for _, route in patterns]
        self._shorter = _shorter(self._beginnings)

    def __missing__(self, model: str) -> Route:
        found = self.find(model)
        if found is None:
            raise not_found(model, self._names)
        return found

    def find(self, model: str) -> Route | None:
        """The same, or None."""
        at = -1 if model in self else self._pattern_of(model)
        return self._by_pattern[at] if at >= 0 else self.get(model)

    def star(self, model: str) -> str:
        """What the star of the pattern stands for in ``model``; empty if no pattern leads to its route."""
        at = -1 if model in self else self._pattern_of(model)
        return model[len(self._beginnings[at]) :] if at >= 0 else ""

    def pattern(self, model: str) -> str:
        """The name that leads to the route of ``model``, which is there."""
        return model if model in self else self._beginnings[self._pattern_of(model)] + STAR

    def _pattern_of(self, model: str) -> int:
        """The position of the pattern with the longest text before its star that ``model`` matches; -1 if none."""
        at = bisect(self._beginnings, model) - 1
        # In this order the longest beginning of ``model`` is at this position, or is a beginning of what is there.
        while at >= 0:
            beginning = self._beginnings[at]
            if model.startswith(beginning) and may_replace_a_star(model[len(beginning) :]):
                return at
            at = self._shorter[at]
        return -1


class OfCaller:
    """The routes that a caller with these patterns may use. It does not see that there are others.

    It may use a route under each of its names if one of the patterns stands for one of them, and a route whose name has
    a star under those names that a pattern stands for.
    """

    def __init__(self, all_routes: Routes, patterns: tuple[str, ...]) -> None:
        self._all = all_routes
        self._patterns = patterns
        self.routes = tuple([route for route in all_routes.routes if self.may_use(route)])
        self._names = nearest.Names([name for route in self.routes for name in (route.name, *route.also)])

    def may_use(self, route: Route) -> bool:
        """Whether it may use the route under each of its names."""
        return any([matches(self._patterns, name) for name in (route.name, *route.also)])

    def __getitem__(self, model: str) -> Route:
        route = self._all.find(model)
        if route is None or not (self.may_use(route) or matches(self._patterns, model)):
            raise not_found(model, self._names)  # in the same time, whether there is such a route or not
        return route

    def get(self, model: str) -> Route | None:
        """The same by an exact name; None for another name, which a pattern may lead to."""
        route = self._all.get(model)
        return route if route is not None and (self.may_use(route) or matches(self._patterns, model)) else None

    def listed(self) -> list[str]:
        """The names in the list of models of this caller."""
        mine = listed(self.routes)
        others = [name for name in listed(self._all.routes) if matches(self._patterns, name)]
        return list(dict.fromkeys([*mine, *others]))


class Visible(dict[tuple[str, ...], "Routes | OfCaller"]):
    """The routes that a caller may use, by its patterns. Each table is made at its first use, and callers share it."""

    def __init__(self, routes: Routes) -> None:
        super().__init__({(): routes})
        self._all = routes

    def __missing__(self, patterns: tuple[str, ...]) -> OfCaller:
        found = self[patterns] = OfCaller(self._all, patterns)
        return found


def not_found(model: str, names: nearest.Names) -> RouteNotFound:
    """The error for a name that leads to no route of those with these ``names``."""
    advice = names.advice(model)
    message = f"The model {nearest.shown(model)} is not a route of this gateway{'; ' if advice else '.'}{advice}"
    return RouteNotFound(f"{message} GET /v1/models lists them.", param="model")


def listed(routes: Iterable[Route]) -> list[str]:
    """The names in the list of models: those of routes for conversations, with a pattern's ``models`` in its place."""
    names: dict[str, None] = {}
    for route in routes:
        if not route.endpoints or not LISTED_FOR.isdisjoint(route.endpoints):
            names |= dict.fromkeys(each for each in (route.name, *route.also) if not each.endswith(STAR))
            names |= dict.fromkeys(route.models)
    return list(names)


def sent_models(route: Route, step: Step) -> list[str]:
    """The models that are known to be sent to the step: with a star one for each of the route's ``models``."""
    if STAR not in step.model:
        return [step.model]
    patterns = sorted((route.name, *route.also), key=len, reverse=True)
    found = [next(filter(None, (star_of(each, name) for each in patterns)), "") for name in route.models]
    return [replaced(step.model, text) for text in dict.fromkeys(found) if text]


def _shorter(beginnings: list[str]) -> list[int]:
    """For each of these, which are in order, the position of the longest other one that it begins with; -1 if none."""
    found: list[int] = []
    around: list[int] = []
    for at, text in enumerate(beginnings):
        while around and not text.startswith(beginnings[around[-1]]):
            around.pop()
        found.append(around[-1] if around else -1)
        around.append(at)
    return found
