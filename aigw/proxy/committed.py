"""What is committed, and what follows it to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from aigw.errors import StreamBroken
from aigw.proxy.responder import BodySink


class Answer(Protocol):
    """What is committed: an answer of which enough is held. ``flow`` lets it go on."""

    mislabelled: bool
    default_type: bytes
    flows: bool
    flushes: bool | None
    length: int | None
    bytes_out: int

    @property
    def beginning(self) -> bytes:
        """See Relay."""

    @property
    def usage(self) -> dict[str, int]:
        """See Relay."""

    @property
    def finished(self) -> bool:
        """See Relay."""

    @property
    def failure(self) -> StreamBroken | None:
        """See Relay."""

    def rewrite(self, changes: Iterable[Callable[[bytes], bytes]]) -> None:
        """See Relay."""

    def flow(self, client: BodySink, seconds: float) -> Deferred[None]:
        """See Relay."""

    def interrupt(self) -> None:
        """See Relay."""

    def hang_up(self) -> None:
        """See Relay."""


class Follows(Protocol):
    """What a Relay calls in place of its two Deferreds: at the commit point, and at its end."""

    called: bool  # at least once

    def callback(self, result: object) -> None:
        """See Deferred. At the end ``last`` is still to be written."""

    def errback(self, failure: Failure) -> None:
        """See Deferred."""

    def leave(self) -> None:
        """The limit has moved: have another client ``go_on_to``."""
