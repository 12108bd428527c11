"""The responses API: what an event means, when a stream is complete, and how it is reported that one broke."""

from __future__ import annotations

import re
from typing import Any

from aigw.errors import StreamBroken
from aigw.protocols.error_bodies import response_failed
from aigw.protocols.scanner import Meaning, StreamScanner

_ANNOUNCEMENTS = (
    "response.created",
    "response.queued",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
)
_END = re.compile(rb'"type"\s*:\s*"response\.(?:completed|incomplete|failed)"')
# A quote inside a JSON string is escaped: neither is met by what a model writes.
_ID = re.compile(rb'"response"\s*:\s*\{.*?"id"\s*:\s*"([^"\\]{1,200})"', re.DOTALL)
_NUMBER = re.compile(rb'"sequence_number"\s*:\s*(\d{1,15})')


class ResponsesScanner(StreamScanner):
    """Everything is output but the announcements in front of it; an event of its own ends the stream."""

    sign = b'"type"'
    usual = b'"type":"response.output_text.delta"', b'"type": "response.output_text.delta"'
    completing_is_the_end = True
    error_event_ends_it = True

    def __init__(self) -> None:
        super().__init__()
        self._id = ""
        self._next = 0  # after the largest number that was noted

    def meaning(self, value: dict[str, Any]) -> Meaning:
        """See StreamScanner."""
        return Meaning.SILENCE if value.get("type") in _ANNOUNCEMENTS else Meaning.OUTPUT

    def _meaning_of(self, event: bytes) -> Meaning:
        self.note(event)
        return super()._meaning_of(event)

    def completes(self, data: bytes) -> bool:
        """Whether an event ends the response, however it ended."""
        return _END.search(data) is not None

    def note(self, data: bytes) -> None:
        """Which response it is, and how far its numbers went."""
        if not self._id and (found := _ID.search(data)):
            self._id = found[1].decode(errors="replace")
        self._next = max([self._next, *(int(number) + 1 for number in _NUMBER.findall(data))])

    def error_event(self, broken: StreamBroken) -> bytes:
        """``response.failed``, as the provider would send it. Codex reads nothing that has no ``type``."""
        self.note(self.passed_last)
        return self.give_up_event() + response_failed(broken, self._id, self._next)
