"""Which of many equal log lines are worth writing: the first, and how many more there were."""

from __future__ import annotations

from collections.abc import Callable

WINDOW_SECONDS = 60.0
MAX_KINDS = 200


class DuplicateFilter:
    """Counts what comes again within WINDOW_SECONDS instead of letting it through; ``seconds`` is a monotonic clock."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._kinds: dict[object, list[float]] = {}  # when it was let through, and how often it came since

    def admit(self, kind: object) -> int | None:
        """None for what is only counted, else how often the like of it was held back since it last was let through."""
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
