"""Finds the names that are most similar to an unknown name. Only a few of many names are compared in detail."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable
from functools import cached_property

from aigw.key_forms import shortened

MOST = 64  # characters of a name that are compared and shown
NAMED = 3  # names that are suggested
_ALIKE = 0.4  # the least similarity of a suggested name; 1 is that of equal names
_INSIDE = 0.7  # the similarity of a name that is a part of the other
_NEIGHBOURS = 12  # names on each side in each order


class Names:
    """Names in two orders, from their start and from their end. With one mistake, a name is near in one of them."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(names)

    def advice(self, asked: str) -> str:
        """A clause with the nearest names, or with all names if there are at most NAMED; else an empty string."""
        if near := self.nearest(asked):
            return f"did you mean {_listed(near, 'or')}?"
        if self._names and len(self._names) <= NAMED:
            return f"this gateway has {_listed(self._names, 'and')}."
        return ""

    def nearest(self, asked: str) -> list[str]:
        """At most NAMED similar names, the most similar first."""
        plain = _plain(asked)
        pairs = _pairs(plain)
        alike = {name: _likeness(pairs, _pairs(_plain(name))) for name in self._around(plain)}
        return sorted((name for name in alike if alike[name] >= _ALIKE), key=lambda name: -alike[name])[:NAMED]

    def _around(self, plain: str) -> list[str]:
        if len(self._names) <= 4 * _NEIGHBOURS:
            return self._names
        found: list[str] = []
        for order, key in zip(self._orders, (plain, plain[::-1]), strict=True):
            place = bisect(order, (key,))
            found += [name for _, name in order[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS]]
        return found

    @cached_property
    def _orders(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        plain = [(_plain(name), name) for name in self._names]
        return sorted(plain), sorted([(each[::-1], name) for each, name in plain])


def shown(name: str) -> str:
    """A name in quotes, of at most MOST characters."""
    return repr(name if len(name) <= MOST else shortened(name, MOST - 3) + "...")


def _listed(names: list[str], word: str) -> str:
    *others, last = map(shown, names)
    return f"{', '.join(others)} {word} {last}" if others else last


def _plain(name: str) -> str:
    """The beginning, in lower case and without the star at the end of a pattern."""
    return name.removesuffix("*")[:MOST].casefold()[:MOST]


def _pairs(plain: str) -> set[str]:
    framed = f"\n{plain}\n"
    return {framed[at : at + 2] for at in range(len(framed) - 1)}


def _likeness(one: set[str], other: set[str]) -> float:
    """The share of the pairs that both names have, or, if it is larger, _INSIDE times that of the shorter name."""
    both = len(one & other)
    return max(2 * both / (len(one) + len(other)), _INSIDE * both / min(len(one), len(other)))
