"""What is true of the daemon at this moment, for whoever reads it: numbers that nobody has to count."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from aigw.config.model import Config, Step

MAX_MISTAKES = 20  # of a refused reload, on the page
MAX_MISTAKE = 500


class Reloads:
    """How often the configuration was taken and refused, and when last, in Unix seconds."""

    def __init__(self) -> None:
        self.started = self.taken_at = time.time()
        self.taken = self.refused = 0
        self.refused_at: float | None = None
        self.mistakes: list[str] = []  # because of which it was refused last

    def take(self) -> None:
        """A reload worked."""
        self.taken, self.taken_at, self.refused_at = self.taken + 1, time.time(), None
        self.mistakes = []

    def refuse(self, mistakes: Sequence[str]) -> None:
        """A reload failed; the old configuration goes on."""
        self.refused, self.refused_at = self.refused + 1, time.time()
        self.mistakes = [mistake[:MAX_MISTAKE] for mistake in mistakes[:MAX_MISTAKES]]


class HeldState(Protocol):
    """The answers that are held until they are whole: see HeldBytes."""

    limit: int
    now: int
    exhausted: int


class Snapshot(msgspec.Struct, frozen=True):
    """A look at the daemon. ``now`` is on the gateway's clock, ``certificate_expires`` in Unix seconds;
    ``refused`` connections and ``refused_keys`` are counted since the start; ``lag`` and what ``rests_for`` gives are
    seconds. ``cools_down`` is for each step from the failure that began it to the next answer."""

    config: Config
    now: float
    stopping: bool
    in_flight: Mapping[str, int]
    connections: int
    refused: int
    refused_keys: int
    lag: float
    certificate_expires: float | None
    reloads: Reloads
    rests_for: Callable[[Step], float | None]
    cools_down: Callable[[Step], bool]
    held: HeldState | None = None
    log_lines_dropped: int = 0


TakeSnapshot = Callable[[], Snapshot]
