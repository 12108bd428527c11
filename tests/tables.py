"""One test for a table: the rows of a parametrized test are tried one after the other, and all that fail are shown.

pytest's own work for a test takes longer than most rows do. So a test that takes nothing but its row, a folder and a
``monkeypatch`` is made one test. With ``--rows`` or ``-k``, or where the command line names a row, each row is a test of its own.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

AUTOUSE = {"twisted_greenlet", "failures", "late_failures", "sdks"}
Row = tuple[dict[str, Any], str]


def table_of(module: pytest.Module, name: str, test: Any) -> pytest.Function | None:
    """The one test for all rows of ``test``, if that needs nothing that is set up for each row."""
    marks = getattr(test, "pytestmark", [])
    parametrized = [mark for mark in marks if mark.name == "parametrize"]
    if not parametrized or not inspect.isfunction(test) or inspect.iscoroutinefunction(test):
        return None
    if inspect.isgeneratorfunction(test) or any(mark.name == "xfail" for mark in marks):  # each row fails or does not
        return None
    if hasattr(test, "grid") or hasattr(test, "hypothesis") or any(_differs(mark) for mark in parametrized):
        return None
    columns = [_column(*mark.args, **mark.kwargs) for mark in parametrized]
    names = {name for column in columns for name in column[0][0]} if all(columns) else set()
    others = inspect.signature(test).parameters.keys() - names
    if not names or not others <= {"tmp_path", "monkeypatch"}:
        return None
    run = _runner(test, columns, "tmp_path" in others, "monkeypatch" in others)
    run.pytestmark = [mark for mark in marks if mark not in parametrized]  # type: ignore[attr-defined]
    table: pytest.Function = pytest.Function.from_parent(module, name=name, callobj=run)
    return table if {*table.fixturenames} - AUTOUSE <= {"request", "tmp_path", "tmp_path_factory"} else None


def _differs(mark: pytest.Mark) -> bool:
    """Whether some rows are set up in another way, or are not tried by default."""
    if len(mark.args) != 2 or mark.kwargs.keys() - {"ids"} or not isinstance(mark.args[1], Collection):
        return True
    return any(hasattr(row, "marks") and row.marks for row in mark.args[1])


def _column(names: Any, values: Any, ids: Any = None) -> list[Row]:
    """What one ``parametrize`` gives to the rows: the arguments, and a word for them."""
    names = [each.strip() for each in names.split(",")] if isinstance(names, str) else [*names]
    if isinstance(ids, Collection):
        ids = [*ids]
    column = []
    for at, value in enumerate(values):
        given, word = (
            (value.values, value.id) if hasattr(value, "marks") else ((value,) if len(names) == 1 else value, None)
        )
        if word is None and ids is not None:
            word = ids[at] if isinstance(ids, list) else ids(given[0])
        arguments = dict(zip(names, given, strict=True))
        if word is None:
            word = ", ".join(f"{name}={value!r:.100}" for name, value in arguments.items())
        column.append((arguments, str(word)))
    return column


def _rows(columns: list[list[Row]]) -> Iterator[Row]:
    """Each of one column with each of the others, in pytest's order."""
    for parts in itertools.product(*columns):
        arguments: dict[str, Any] = {}
        for part, _ in parts:
            arguments.update(part)
        yield arguments, "; ".join(word for _, word in parts)


def _runner(test: Any, columns: list[list[Row]], folder: bool, patches: bool) -> Callable[..., None]:
    def run(tmp_path: Path | None = None) -> None:
        failed, skipped = [], []
        for number, (arguments, word) in enumerate(_rows(columns), 1):
            with pytest.MonkeyPatch.context() as monkeypatch:
                if patches:
                    arguments["monkeypatch"] = monkeypatch
                if tmp_path is not None:
                    arguments["tmp_path"] = tmp_path / str(number)
                    arguments["tmp_path"].mkdir()
                try:
                    given = test(**arguments)
                    assert given is None, f"a test gives nothing, and one that waits is async; this gives {given!r}"
                except pytest.skip.Exception as skip:
                    skipped.append(skip)
                except (Exception, pytest.fail.Exception):
                    shown = pytest.ExceptionInfo.from_current().getrepr(style="short")
                    failed.append(f"--- row {number}: {word}\n{shown}")
        if failed:
            pytest.fail(f"{len(failed)} of {number} rows failed\n" + "\n".join(failed), pytrace=False)
        if skipped:  # the others have passed; a skip that nobody sees would pass for a test
            pytest.skip(f"{len(skipped)} of {number} rows: {skipped[0].msg}")

    parameter = inspect.Parameter("tmp_path", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = inspect.Signature([parameter] if folder else [])  # type: ignore[attr-defined]
    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    return run
