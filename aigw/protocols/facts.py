"""What is to be known of one protocol, so that its streams can be judged. Pure."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from aigw.protocols.known_events import KnownEvents
from aigw.protocols.meaning import Meaning


class StreamFacts(ABC):
    """The facts of one protocol.

    Each event that may complete a stream contains ``sign``. Most events have it in one of the ``usual`` forms, which
    complete nothing. An event with one of the ``other`` texts is examined too.
    """

    sign: ClassVar[bytes]
    usual: ClassVar[tuple[bytes, bytes]]
    other: ClassVar[tuple[bytes, bytes, bytes, bytes, bytes]]
    text: ClassVar[re.Pattern[bytes]]  # finds the text in an event of output
    known: ClassVar[KnownEvents | None] = None  # events of output that earlier streams had, where they are alike
    must_finish = False
    is_known_to_finish: Callable[[], bool] = staticmethod(lambda: False)  # whether this model always reports its end
    error_event_ends_it: ClassVar[bool] = False  # for clients, if the body ends without an error
    repeats: ClassVar[bool] = False  # whether an ``error_event`` repeats data of earlier events

    @abstractmethod
    def meaning(self, value: dict[str, object]) -> Meaning:
        """What one JSON object means before the first output. An unknown object is output."""

    @abstractmethod
    def note(self, value: dict[str, object]) -> Meaning:
        """Note what one JSON object means for the end of the stream: OUTPUT, ERROR or END."""

    @abstractmethod
    def note_in_pieces(self, data: bytes) -> Meaning:
        """See ``note``, for an event that is too large to be decoded. ``data`` is a piece and some bytes before it."""

    @abstractmethod
    def raises(self, name: str, value: dict[str, object]) -> bool:
        """Whether the official clients raise when they receive this event."""

    def is_announcement(self, data: bytes) -> bool:
        """Whether an event with this beginning is certainly not output, whatever its size."""
        return False

    def remember(self, data: bytes) -> None:  # noqa: B027
        """Keep what an ``error_event`` repeats of the data that is passed on."""
