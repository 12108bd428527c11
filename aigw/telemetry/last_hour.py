"""The last hour of each step, minute by minute, and the latest failures; both in rings of a fixed size."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import msgspec

from aigw.telemetry.record import AttemptRecord

MINUTES = 60
FAILURES = 50


class Minute:
    """What a step did in one minute. ``number`` counts minutes on the gateway's clock.

    ``first`` is the sum of the seconds to the first token, over all ``streams``. ``whole`` is the sum of the seconds to
    the end, over all plain ``answers``.
    """

    __slots__ = ("answers", "completion", "failed", "first", "number", "ok", "prompt", "streams", "whole")

    def __init__(self, number: int) -> None:
        self.number = number
        self.ok = self.failed = self.streams = self.answers = self.prompt = self.completion = 0
        self.first = self.whole = 0.0


class Hour:
    """The last sixty minutes. A new minute replaces the one an hour before it."""

    __slots__ = ("_slots", "latest")

    def __init__(self) -> None:
        self._slots: list[Minute] = []
        self.latest = -MINUTES  # the number of the last minute in which anything happened

    def at(self, seconds: float) -> Minute:
        """The minute to count in, for a time on the gateway's clock."""
        number = int(seconds // 60)
        if number > self.latest:
            self.latest = number
            self._slots = self._slots or [Minute(-MINUTES)] * MINUTES
        slot = self._slots[number % MINUTES]
        if slot.number != number:
            slot = self._slots[number % MINUTES] = Minute(number)
        return slot

    def until(self, seconds: float) -> Iterator[Minute | None]:
        """The sixty minutes up to a time, the oldest first; None for a minute in which nothing happened."""
        last = int(seconds // 60)
        for number in range(last - MINUTES + 1, last + 1):
            slot = self._slots[number % MINUTES] if self._slots else None
            yield slot if slot and slot.number == number else None


class Failed(msgspec.Struct, frozen=True):
    """A failed attempt, or a failed request: then ``attempt`` is None. ``time`` is in Unix seconds.

    ``status`` is what the provider answered to the attempt, or what the client got for the request.
    """

    time: float
    request_id: str
    route: str
    attempt: AttemptRecord | None
    outcome: str
    status: int | None
    message: str


Failures = deque[Failed]


def failures() -> Failures:
    """An empty ring for the latest FAILURES."""
    return deque(maxlen=FAILURES)
