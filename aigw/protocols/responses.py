"""The responses API: what an event of a stream means, and when the stream is complete."""

from __future__ import annotations

import re
from typing import Any

from aigw.protocols.sse import Meaning


def responses_meaning(said: dict[str, Any]) -> Meaning:
    """The responses API: everything is output but the announcements that come before it."""
    return Meaning.NOTHING if said.get("type") in _ANNOUNCEMENTS else Meaning.OUTPUT


_ANNOUNCEMENTS = (
    "response.created",
    "response.queued",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
)


_RESPONSE_END = re.compile(rb'"type"\s*:\s*"response\.(?:completed|incomplete|failed)"')


def is_response_end(data: bytes) -> bool:
    """Whether an event says that the response is over, however it ended."""
    return _RESPONSE_END.search(data) is not None
