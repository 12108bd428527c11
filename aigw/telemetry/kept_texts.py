"""Texts of many things of one kind, kept from one scrape to the next: only what has changed is written anew."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Sequence
from itertools import accumulate, compress, count
from operator import ne
from typing import Generic, TypeVar

T = TypeVar("T")

PIECE = 16  # things, which take about a millisecond
MOST_BYTES = 32 * 1024 * 1024  # the texts of further things are written at each scrape
_NEVER = -1  # a mark that nothing has


class KeptTexts(Generic[T]):
    """One list of texts for each of ``renders``, with a text for each thing."""

    def __init__(self, renders: Sequence[Callable[[T], bytes]], most: int = MOST_BYTES) -> None:
        self._renders = renders
        self._most = most
        # At most one. A scrape takes it out, so that another one, in a thread of its own, begins without.
        self._kept: deque[tuple[Sequence[T], list[int], list[list[bytes]]]] = deque(maxlen=1)

    def refresh(self, things: Sequence[T], marks: list[int]) -> Generator[None, None, list[list[bytes]]]:
        """The lists, made in short steps. A text is written if ``things`` is another object than at the last time, or
        if the mark of its thing is another one: marks are to be read before.
        """
        try:
            before, marks_before, texts = self._kept.pop()
        except IndexError:
            before, marks_before, texts = (), [], []
        if before is not things:
            marks_before, texts = [_NEVER] * len(things), [[b""] * len(things) for _ in self._renders]
        written = list(zip(texts, self._renders, strict=True))
        for done, number in enumerate(compress(count(), map(ne, marks, marks_before)), 1):
            thing = things[number]
            for each, render in written:
                each[number] = render(thing)
            if done % PIECE == 0:
                yield
        made = [each.copy() for each in texts]
        self._kept.append((things, self._that_fit(marks, texts), texts))
        return made

    def _that_fit(self, marks: list[int], texts: list[list[bytes]]) -> list[int]:
        """The marks, and none for the things whose texts are not kept."""
        if sum([sum(map(len, each)) for each in texts]) <= self._most:
            return marks
        sizes = map(sum, zip(*[map(len, each) for each in texts], strict=True))
        fit = bisect_right([*accumulate(sizes)], self._most)
        for each in texts:
            each[fit:] = [b""] * (len(marks) - fit)
        return [*marks[:fit], *[_NEVER] * (len(marks) - fit)]
