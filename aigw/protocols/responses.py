"""The responses API: what an event of a stream means, and when the stream is complete."""

from __future__ import annotations

import re
from typing import Any

from aigw.protocols.scanner import Meaning, StreamScanner

_ANNOUNCEMENTS = (
    "response.created",
    "response.queued",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
)
_END = re.compile(rb'"type"\s*:\s*"response\.(?:completed|incomplete|failed)"')


class ResponsesScanner(StreamScanner):
    """Everything is output but the announcements in front of it; an event of its own ends the stream."""

    sign = b'"type"'
    usual = b'"type":"response.output_text.delta"', b'"type": "response.output_text.delta"'
    completing_is_the_end = True

    def meaning(self, value: dict[str, Any]) -> Meaning:
        """See StreamScanner."""
        return Meaning.SILENCE if value.get("type") in _ANNOUNCEMENTS else Meaning.OUTPUT

    def completes(self, data: bytes) -> bool:
        """Whether an event ends the response, however it ended."""
        return _END.search(data) is not None
