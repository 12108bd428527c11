"""One search of a text for many strings, in about the time that it takes for a few."""

from __future__ import annotations

import re
from collections.abc import Iterable

FEW = 12  # so many are quicker looked for one by one
WIDTHS = (32, 16, 8, 1)


class StringSearch:
    """Strings that a text is searched for."""

    __slots__ = ("_few", "_groups")

    def __init__(self, strings: Iterable[str]) -> None:
        wanted = {each for each in strings if each}
        self._few = tuple(wanted) if len(wanted) <= FEW else ()
        self._groups: list[_Group] = []
        for width in () if self._few else WIDTHS:
            if group := [each for each in wanted if len(each) >= width]:
                self._groups.append(_Group(group))
                wanted.difference_update(group)

    def found_in(self, text: str) -> list[str]:
        """Those that stand in ``text``, in no order."""
        if not self._groups:
            return list(filter(text.__contains__, self._few))
        return [each for group in self._groups for each in group.found_in(text)]


class _Group:
    """Strings of about one length, looked up by their ends: keys often have their beginnings in common.

    Only runs of the characters in these ends are looked at, which in most texts are few.
    """

    __slots__ = ("_by_end", "_runs", "_width")

    def __init__(self, strings: Iterable[str]) -> None:
        self._width = min(map(len, strings))
        self._by_end: dict[str, list[str]] = {}
        for each in strings:
            self._by_end.setdefault(each[-self._width :], []).append(each)
        characters = "".join(map(re.escape, sorted(set("".join(self._by_end)))))
        self._runs = re.compile(rf"[{characters}]{{{self._width},}}")

    def found_in(self, text: str) -> set[str]:
        width, by_end = self._width, self._by_end
        found: set[str] = set()
        for run in self._runs.finditer(text):
            start, end = run.span()
            for behind in [at for at in range(start + width, end + 1) if text[at - width : at] in by_end]:
                found.update(each for each in by_end[text[behind - width : behind]] if text.endswith(each, 0, behind))
        return found
