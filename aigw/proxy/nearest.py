"""The names that an unknown name may have meant. However many there are, few of them are looked at closely."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable
from functools import cached_property

MOST = 64  # of a name that is looked at and shown
NAMED = 3
_ALIKE = 0.4  # 1 for names that are the same
_INSIDE = 0.7  # for a name that is a part of the other
_NEIGHBOURS = 12  # on each side in each order


class Names:
    """Names in two orders, by their beginning and by their end: a name with one mistake is near it in one of them."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(names)

    def advice(self, asked: str) -> str:
        """A clause with the nearest names, or with all if there are few; empty where there is nothing to say."""
        if near := self.nearest(asked):
            return f"did you mean {_listed(near, 'or')}?"
        if self._names and len(self._names) <= NAMED:
            return f"this gateway has {_listed(self._names, 'and')}."
        return ""

    def nearest(self, asked: str) -> list[str]:
        """At most NAMED names that are like it, the most alike first."""
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
    """A name as it is quoted: bounded."""
    return repr(name if len(name) <= MOST else name[: MOST - 3] + "...")


def _listed(names: list[str], word: str) -> str:
    *others, last = map(shown, names)
    return f"{', '.join(others)} {word} {last}" if others else last


def _plain(name: str) -> str:
    return name[:MOST].casefold()[:MOST]


def _pairs(plain: str) -> set[str]:
    framed = f"\n{plain}\n"
    return {framed[at : at + 2] for at in range(len(framed) - 1)}


def _likeness(one: set[str], other: set[str]) -> float:
    """The share of what both have; less counts that all of the shorter one is in the longer one."""
    both = len(one & other)
    return max(2 * both / (len(one) + len(other)), _INSIDE * both / min(len(one), len(other)))
