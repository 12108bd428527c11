"""Several keys of a provider and several targets of a step: what excludes what, and the steps that they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from aigw.config.model import Route, Step
from aigw.settings.mistakes import Mistake, Path
from aigw.settings.patterns import STAR


def choices_crossed(tree: dict[Any, Any]) -> Iterator[Mistake]:
    """Mistakes in the tree as written: two forms of one setting, a key or a target that is there twice."""
    for index, provider in enumerate(_mappings(tree.get("providers"))):
        keys = provider.get("api_keys")
        yield from _repeated(keys, "key", ("providers", index, "api_keys"))
    for number, route in enumerate(_mappings(tree.get("routes"))):
        for index, step in enumerate(_mappings(route.get("steps"))):
            path: Path = ("routes", number, "steps", index)
            if step.get("targets") is None:
                continue
            for name in ("provider", "model"):
                if step.get(name) is not None:
                    text = f"cannot be used together with targets; write the {name} in each target"
                    yield Mistake(text, (*path, name))
            targets = [(each.get("provider"), each.get("model")) for each in _mappings(step["targets"])]
            yield from _repeated(targets, "provider and model", (*path, "targets"))


def _mappings(listed: object) -> list[dict[Any, Any]]:
    """Entries that are no mapping are reported elsewhere."""
    return [each if isinstance(each, dict) else {} for each in listed] if isinstance(listed, list) else []


def _repeated(listed: object, what: str, path: Path) -> Iterator[Mistake]:
    entries = listed if isinstance(listed, list) else []
    for index, entry in enumerate(entries):
        first = entries.index(entry)
        if first < index and entry not in (None, (None, None)):
            yield Mistake(f"has the same {what} as entry {first + 1} of the list; remove it", (*path, index))


def with_choices(route: Route) -> Route:
    """The route with one step for each target and key of a step; all of them have its number.

    A step whose model has a star gets the names of the route that the star can be taken from.
    """
    patterns = tuple(sorted((route.name, *route.also), key=len, reverse=True))
    steps = tuple(
        replace(each, patterns=patterns) if STAR in each.model else each
        for step in route.steps
        for each in _each_target(step)
    )
    if list(map(id, steps)) == list(map(id, route.steps)):
        return route
    return replace(route, steps=steps, has_choice=len(steps) > len(route.steps))


def _each_target(step: Step) -> Iterator[Step]:
    counted = step.balance == "least_pending" and len(step.targets) > 1
    for position, target in enumerate(step.targets, 1):
        of_target = replace(step, provider=target.provider, model=target.model, weight=target.weight, target=position)
        yield from _each_key(replace(of_target, targets=(), counted=counted))
    if not step.targets:
        yield from _each_key(step)


def _each_key(step: Step) -> Iterator[Step]:
    keys = len(step.provider.keys)
    if keys == 1:
        yield step
        return
    counted = step.counted or step.provider.balance != "sticky"
    for key in range(keys):
        yield replace(step, key=key, key_number=key + 1, counted=counted)
