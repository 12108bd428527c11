"""Names of routes that end in a star, and models of steps with a star: the text for the star in the name.

A name has at most one star, at its end: of several that match, the one with the longest text before its star is meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

from aigw.settings.mistakes import Mistake, Path, shown
from aigw.settings.quoting import quoted
from aigw.settings.schema import Written
from aigw.settings.values import MOST_OF_A_NAME, NAME

STAR = "*"
_FOLDERS = re.compile(r"[/\\]")


def _route_name(value: object) -> str:
    name = str(NAME.decode(value))
    if STAR in name[:-1]:
        raise ValueError("has a * before its end; write one * at the end, such as openai/*, or * alone")
    return name


def _model(value: object) -> str:
    model = str(NAME.decode(value))
    if model.count(STAR) > 1:
        raise ValueError("has more than one *; write one, which stands for what the * in the route's name stands for")
    return model


RouteName = Annotated[str, Written(_route_name)]
"""A Name; with a star at its end it stands for all names that begin so."""
StepModel = Annotated[str, Written(_model)]
"""A Name; one star in it is replaced by what the star in the route's name stands for."""


def may_replace_a_star(text: str) -> bool:
    """Whether a star may stand for ``text``, which a client has sent and which becomes a part of a model's name.

    A model's name may become a part of a path (so no ``..`` in it) and of a form (so no ``--``, which could begin a
    boundary there).
    """
    return (
        0 < len(text) <= MOST_OF_A_NAME
        and text.isprintable()
        and text == text.strip()
        and not text.startswith("--")
        and {".", ".."}.isdisjoint(_FOLDERS.split(text))
    )


def replaced(model: str, text: str) -> str:
    """The model of a step with ``text`` in place of its star."""
    return model.replace(STAR, text, 1)


def star_of(pattern: str, name: str) -> str | None:
    """What the star of ``pattern`` stands for in ``name``; None if the two do not match."""
    text = name.removeprefix(pattern[:-1])
    return text if name.startswith(pattern[:-1]) and may_replace_a_star(text) else None


def names_crossed(tree: object) -> Iterator[Mistake]:
    """Mistakes in the names of routes and in what belongs to them, found in the tree as written."""
    routes = tree.get("routes") if isinstance(tree, dict) else None
    first: dict[str, Path] = {}
    for index, route in enumerate(routes if isinstance(routes, list) else ()):
        if isinstance(route, dict) and isinstance(route.get("name"), str):
            first.setdefault(route["name"], ("routes", index, "name"))
    for index, route in enumerate(routes if isinstance(routes, list) else ()):
        if isinstance(route, dict):
            path = ("routes", index)
            yield from _also_crossed(route, path, first)
            names = [name for name in (route.get("name"), *_listed(route.get("also"))) if isinstance(name, str)]
            yield from _stars_crossed(route, path, names)
            yield from _models_crossed(route, path, names)


def _also_crossed(route: dict[Any, Any], path: Path, first: dict[str, Path]) -> Iterator[Mistake]:
    for number, name in enumerate(_listed(route.get("also"))):
        here = (*path, "also", number)
        if isinstance(name, str) and first.setdefault(name, here) != here:
            yield Mistake(f"is the same as {shown(first[name])}; write a unique name", here)


def _stars_crossed(route: dict[Any, Any], path: Path, names: list[str]) -> Iterator[Mistake]:
    """A star in a model needs something to stand for in each request."""
    for here, model in _models_of(route.get("steps"), (*path, "steps")):
        if not isinstance(model, str) or STAR not in model:
            continue
        plain = next((name for name in names if not name.endswith(STAR)), None)
        if plain is not None:
            text = f"has a *, but the name {quoted(plain)!r} of the route has none that it could stand for"
            yield Mistake(f"{text}; write a model, or end each name of the route in *", here)
        elif route.get("default_for"):
            text = "has a *, but requests without a model come here too (default_for)"
            yield Mistake(f"{text}; write a model, or remove default_for", here)


def _models_of(steps: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    for number, step in enumerate(_listed(steps)):
        if isinstance(step, dict):
            yield (*path, number, "model"), step.get("model")
            yield from _models_of(step.get("targets"), (*path, number, "targets"))


def _models_crossed(route: dict[Any, Any], path: Path, names: list[str]) -> Iterator[Mistake]:
    patterns = [name for name in names if name.endswith(STAR)]
    for number, model in enumerate(_listed(route.get("models"))):
        if not patterns:
            text = "has no effect, because no name of the route ends in *; write other names of the route in also"
            yield Mistake(text, (*path, "models"))
            return
        if isinstance(model, str) and STAR in model:
            text = f"{quoted(model)!r} has a *; write the whole name of a model"
            yield Mistake(text, (*path, "models", number))
        elif isinstance(model, str) and all(star_of(pattern, model) is None for pattern in patterns):
            listed = " or ".join(quoted(each) for each in patterns)
            yield Mistake(
                f"{quoted(model)!r} does not match {listed}; write a name that does", (*path, "models", number)
            )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
