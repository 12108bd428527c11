"""What a key that may change offers to those who send it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.internet.defer import Deferred

from aigw.errors import UpstreamUnreachable
from aigw.secret import Secret
from aigw.settings import credentials

RECENT = 4  # keys: answers to requests with an earlier one may still come

NoteKey = Callable[[Secret], None]  # called with each new key before its first use


class NoKey(UpstreamUnreachable):
    """There is no key for the provider: its file or its command gives none. Nothing was sent.

    There may be one after ``retry_after`` seconds. ``reason`` is for the operator.
    """

    def __init__(self, message: str, retry_after: float, reason: str = "") -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.reason = reason


class KeySource(Protocol):
    """The key of one provider."""

    @property
    def recent(self) -> Sequence[Secret]:
        """The last RECENT keys, the newest first."""

    @property
    def runs(self) -> bool:
        """Whether something runs that ``close`` would end."""

    def start(self) -> None:
        """Get the key, and keep it fresh."""

    def stop(self) -> None:
        """Keep it fresh no longer. What waits for a key still gets it."""

    def close(self) -> None:
        """The gateway stops: end what runs."""

    def present(self) -> Secret | None:
        """The key that may be sent now."""

    def seconds_left(self) -> float:
        """For how long the present key may still be sent."""

    def wait(self) -> Deferred[Secret]:
        """The key, where there is none at present. Fails with NoKey."""

    def renew(self, refused: Secret) -> Deferred[Secret | None]:
        """The provider refused this key: the one to repeat the request with, None if there is no other."""


def checked(text: str) -> tuple[Secret, str | None]:
    """A key that can be sent, and a warning about it. Raises ValueError with a text that follows a subject."""
    text = text.strip().removeprefix("\ufeff").strip()
    if not text:
        raise ValueError("is empty")
    return credentials.key(text), credentials.advice_on_key(text)
