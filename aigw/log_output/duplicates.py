"""Events of one kind that come in great numbers: the log has one of them in a while, with the number of the others."""

from __future__ import annotations

from collections.abc import Callable

WINDOW_SECONDS = 60.0
MAX_KINDS = 200


class DuplicateFilter:
    """Admits one event of a kind in WINDOW_SECONDS and counts the others. ``seconds`` is a monotonic clock."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._kinds: dict[object, list[float]] = {}  # when one was admitted, and how many were held back since

    def admit(self, kind: object) -> int | None:
        """None if the event must not be logged; else how many of its kind were held back since the last one."""
        now = self._seconds()
        known = self._kinds.get(kind)
        if known is None:
            if len(self._kinds) >= MAX_KINDS:
                del self._kinds[next(iter(self._kinds))]
            self._kinds[kind] = [now, 0]
            return 0
        if now - known[0] < WINDOW_SECONDS:
            known[1] += 1
            return None
        held_back, known[:] = int(known[1]), [now, 0]
        return held_back
