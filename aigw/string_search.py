"""One search of a text for many strings, in about the time that it takes for a few."""

from __future__ import annotations

import re
from collections.abc import Iterable

FEW = 12  # so many are quicker looked for one by one
WIDTHS = (32, 16, 8, 1)
STEP = 4  # characters
MOST_WIDTH = 64  # of the end by which a string is found; a token may have thousands of characters

_SEPARATOR = "\0"  # begins a text, so that each run has a character before it


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
        """The strings that ``text`` contains, in no order."""
        if not self._groups:
            return list(filter(text.__contains__, self._few))
        return [each for group in self._groups for each in group.found_in(text)]


class _Group:
    """Strings of about one length, found by windows in their ends: keys often have their beginnings in common.

    Only runs of the characters in these ends are looked at, which in most texts are few, and of a run only each
    STEP-th window. A string has as many windows as that, so that one of those in the text is one of its own.
    """

    __slots__ = ("_by_window", "_more", "_runs", "_size", "_step")

    def __init__(self, strings: Iterable[str]) -> None:
        width = min(MOST_WIDTH, *map(len, strings))
        self._size = size = max(1, width // 2)
        self._step = step = min(STEP, width - size + 1)
        self._by_window: dict[str, str] = {}
        self._more: dict[str, list[str]] = {}  # of windows that several strings have
        for each in strings:
            for at in range(len(each) - size - step + 1, len(each) - size + 1):
                window = each[at : at + size]
                if self._by_window.setdefault(window, each) is not each:
                    self._more.setdefault(window, []).append(each)
        characters = "".join(map(re.escape, sorted({each for string in strings for each in string[-width:]})))
        self._runs = re.compile(rf"[^{characters}][{characters}]{{{width},}}")

    def found_in(self, text: str) -> set[str]:
        size, step, by_window = self._size, self._step, self._by_window
        found: set[str] = set()
        for run in self._runs.finditer(_SEPARATOR + text):
            start, end = run.start(), run.end() - len(_SEPARATOR)
            for at in [at for at in range(start, end - size + 1, step) if text[at : at + size] in by_window]:
                window = text[at : at + size]
                for each in (by_window[window], *self._more.get(window, ())):
                    if each not in found and text.find(each, max(0, at + size - len(each)), at + len(each)) >= 0:
                        found.add(each)
        return found
