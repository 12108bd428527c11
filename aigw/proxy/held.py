"""What runs at present, of any configuration: the exchanges, and the memory of the answers that are held by them."""

from __future__ import annotations

from typing import Any

from aigw.telemetry import logs

ONE_ANSWER = 16 * 1024 * 1024  # the most bytes that are held of one answer
LOG_SECONDS = 60.0


class HeldBytes:
    """The bytes of all answers that are held until they are whole, from the first output to the client's socket.

    ``limit`` may be assigned at any time; what is held stays. ``exhausted`` is how many answers found no room since
    the start, and were committed before they were whole.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.now = 0
        self.exhausted = 0
        self._logged_at = -LOG_SECONDS
        self._unlogged = 0

    def take(self, size: int, of_the_answer: int) -> bool:
        """Whether there is room for ``size`` bytes more of an answer that has taken ``of_the_answer``; takes it."""
        if self.now + size > self.limit or of_the_answer + size > ONE_ANSWER:
            return False
        self.now += size
        return True

    def give_back(self, size: int) -> None:
        """``size`` bytes are not held any more."""
        self.now -= size

    def note_exhausted(self, now: float) -> None:
        """An answer found no room; one line of the log in LOG_SECONDS. ``now`` is on the gateway's clock."""
        self.exhausted += 1
        self._unlogged += 1
        if now - self._logged_at >= LOG_SECONDS:
            logs.warn(
                "Answers were passed on before they were whole: limits.held or the limit of one answer is reached",
                answers=self._unlogged,
                held_bytes=self.now,
                limit_bytes=self.limit,
            )
            self._logged_at, self._unlogged = now, 0


class Running(set[Any]):
    """The exchanges that have not ended. It outlives a reload."""

    def __init__(self, max_held: int = 0) -> None:
        super().__init__()
        self.held = HeldBytes(max_held)
