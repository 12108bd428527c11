"""The state of the daemon at one moment: the numbers that are read when metrics or pages need them, not counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from aigw.config.model import Config, Step
from aigw.key_forms import shortened
from aigw.settings.callers import Account

MAX_MISTAKES = 20  # of a failed reload, on the page
MAX_MISTAKE = 500


class Reloads:
    """How often reloads worked (``taken``) and failed (``refused``), and when each was last, in Unix seconds."""

    def __init__(self) -> None:
        self.started = self.taken_at = time.time()
        self.taken = self.refused = 0
        self.refused_at: float | None = None
        self.mistakes: list[str] = []  # of the last failed reload

    def take(self) -> None:
        """Count a reload that worked."""
        self.taken, self.taken_at, self.refused_at = self.taken + 1, time.time(), None
        self.mistakes = []

    def refuse(self, mistakes: Sequence[str]) -> None:
        """Count a reload that failed; the old configuration stays in use."""
        self.refused, self.refused_at = self.refused + 1, time.time()
        self.mistakes = [shortened(mistake, MAX_MISTAKE) for mistake in mistakes[:MAX_MISTAKES]]


class HeldState(Protocol):
    """The answers that are held until they are whole: see HeldBytes."""

    limit: int
    now: int
    exhausted: int


class Snapshot(msgspec.Struct, frozen=True):
    """The state at one moment. ``now`` is on the gateway's clock, ``certificate_expires`` in Unix seconds.

    ``refused`` (connections), ``refused_keys`` and ``store_failures`` count since the start. ``lag`` is how late the
    last check of the event loop ran, in seconds. ``cooldown_left`` gives the seconds until a step's cooldown ends.
    ``limits_of`` gives what an account has used and has left of its limits, as the store that enforces them counts; a
    thread may call it. ``cools_down`` is true from the failure that began the cooldown until the step's next answer.
    ``failed_at`` gives the providers and models that failed last, and so may cool down; ``""`` for all of a provider's.
    """

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
    cooldown_left: Callable[[Step], float | None]
    cools_down: Callable[[Step], bool]
    failed_at: Callable[[], Collection[tuple[str, str]]] | None = None
    held: HeldState | None = None
    limits_of: Callable[[Account], Mapping[str, Any]] | None = None
    log_lines_dropped: int = 0
    store_failures: int = 0


TakeSnapshot = Callable[[], Snapshot]
