"""The last hour of each step, minute by minute, and the failures of late; all of it in rings of a fixed size."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import msgspec

from aigw.telemetry.record import AttemptRecord

MINUTES = 60
FAILURES = 50


class Minute:
    """What a step did in one minute. ``first`` are the seconds to the first token of the ``streams``; ``whole`` those
    of the ``answers`` in one piece.
    """

    __slots__ = ("answers", "completion", "failed", "first", "number", "ok", "prompt", "streams", "whole")

    def __init__(self, number: int) -> None:
        self.number = number
        self.ok = self.failed = self.streams = self.answers = self.prompt = self.completion = 0
        self.first = self.whole = 0.0


class Hour:
    """Sixty minutes, each in the slot of the one that was an hour before it."""

    __slots__ = ("_slots", "latest")

    def __init__(self) -> None:
        self._slots: list[Minute] = []
        self.latest = -MINUTES  # the number of the last minute in which anything happened

    def at(self, seconds: float) -> Minute:
        """The minute of a moment on the gateway's clock."""
        number = int(seconds // 60)
        if number > self.latest:
            self.latest = number
            self._slots = self._slots or [Minute(-MINUTES)] * MINUTES
        slot = self._slots[number % MINUTES]
        if slot.number != number:
            slot = self._slots[number % MINUTES] = Minute(number)
        return slot

    def until(self, seconds: float) -> Iterator[Minute | None]:
        """The sixty minutes up to a moment, the oldest first; None for one in which nothing happened."""
        last = int(seconds // 60)
        for number in range(last - MINUTES + 1, last + 1):
            slot = self._slots[number % MINUTES] if self._slots else None
            yield slot if slot and slot.number == number else None


class Failed(msgspec.Struct, frozen=True):
    """An attempt that failed, or a request that did, which has no ``attempt``; ``time`` in Unix seconds.

    ``status`` is the provider's for an attempt and the client's for a request.
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
    """A ring of the latest."""
    return deque(maxlen=FAILURES)
