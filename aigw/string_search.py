"""One search of a text for many strings, in about the time that it takes for a few."""

from __future__ import annotations

import re
from collections.abc import Iterable

FEW = 12  # so many are quicker looked for one by one
WIDTHS = (32, 16, 8, 1)
MOST_WIDTH = 64  # of the end by which a string is found; a token may have thousands of characters


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
    """Strings of about one length, found by the windows in their ends: keys often have their beginnings in common.

    Only runs of the characters in these ends are looked at, which in most texts are few, and of a run only every
    window that begins where the one before it ended: in an end of twice that size one of these windows lies whole.
    """

    __slots__ = ("_by_window", "_runs", "_size")

    def __init__(self, strings: Iterable[str]) -> None:
        width = min(MOST_WIDTH, *map(len, strings))
        self._size = size = max(1, width // 2)
        self._by_window: dict[str, list[tuple[str, int]]] = {}
        for each in strings:
            for at in range(len(each) - width, len(each) - size + 1):
                self._by_window.setdefault(each[at : at + size], []).append((each, at))
        characters = "".join(map(re.escape, sorted(set("".join(self._by_window)))))
        self._runs = re.compile(rf"[{characters}]{{{width},}}")

    def found_in(self, text: str) -> set[str]:
        size, by_window = self._size, self._by_window
        found: set[str] = set()
        for run in self._runs.finditer(text):
            start, end = run.span()
            for at in [at for at in range(start, end - size + 1, size) if text[at : at + size] in by_window]:
                for each, offset in by_window[text[at : at + size]]:
                    if at >= offset and text.startswith(each, at - offset):
                        found.add(each)
        return found
