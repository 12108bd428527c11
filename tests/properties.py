"""What is tried many times: a part of the number by default, all of it by ``pytest -m slow``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import settings


def times(few: int, full: int) -> Any:
    """The parameter ``times`` of a test that runs ``few`` times by default, and ``full`` times behind ``slow``."""
    return pytest.mark.parametrize("times", [few, pytest.param(full, marks=pytest.mark.slow)])


def given(*strategies: Any, examples: tuple[int, int], **more: Any) -> Callable[[Any], Any]:
    """As hypothesis's, for so many ``examples`` by default and behind ``slow``. Each ``@example`` is tried in both.

    ``more`` are settings, or strategies by the name of their argument.
    """
    options = {name: more.pop(name) for name in [*more] if hasattr(settings.default, name)}

    def decorate(check: Any) -> Any:
        runs = {
            number: settings(**{"deadline": None, **options}, max_examples=number)(
                hypothesis.given(*strategies, **more)(check)
            )
            for number in examples
        }

        def run(times: int, **fixtures: Any) -> None:
            runs[times](**fixtures)

        fixtures = inspect.signature(runs[examples[0]]).parameters.values()
        parameters = [inspect.Parameter("times", inspect.Parameter.POSITIONAL_OR_KEYWORD), *fixtures]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__name__, run.__doc__, run.__module__ = check.__name__, check.__doc__, check.__module__
        return times(*examples)(run)

    return decorate


def grid(*names: str) -> Callable[[Any], Any]:
    """Of the values of these parameters, each is tried once by default; each with each other behind ``slow``."""

    def mark(test: Any) -> Any:
        test.grid = names
        return test

    return mark


def mark_the_rest_of_grids(items: list[Any]) -> None:
    """Mark as slow what of a ``grid`` is not on its diagonal, which goes through all values of the longest parameter."""
    tests: dict[Any, list[Any]] = {}
    for item in items:
        if hasattr(getattr(item, "function", None), "grid"):
            tests.setdefault(item.function, []).append(item)
    for test, cases in tests.items():
        values = {name: list({id(case.callspec.params[name]): None for case in cases}) for name in test.grid}
        longest = max(values, key=lambda name: len(values[name]))
        for case in cases:
            at = {name: values[name].index(id(case.callspec.params[name])) for name in test.grid}
            if any(at[name] != at[longest] % len(values[name]) for name in test.grid):
                case.add_marker(pytest.mark.slow)
