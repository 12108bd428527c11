"""Chat and legacy completions: what an event of a stream means, and when the stream is complete."""

from __future__ import annotations

import re
from typing import Any

from aigw.protocols.sse import Meaning


def chat_meaning(said: dict[str, Any]) -> Meaning:
    """Chat and legacy completions: output is a delta with content of any kind, or a ``finish_reason``."""
    choices = said.get("choices")
    if not isinstance(choices, list):
        return Meaning.OUTPUT
    for choice in choices:
        if not isinstance(choice, dict):
            return Meaning.OUTPUT
        delta = choice.get("delta")
        rest = [value for key, value in choice.items() if key not in _ABOUT_A_CHOICE]
        if any(rest) or (isinstance(delta, dict) and any(value for key, value in delta.items() if key != "role")):
            return Meaning.OUTPUT
        if delta is not None and not isinstance(delta, dict):
            return Meaning.OUTPUT
    return Meaning.NOTHING


_ABOUT_A_CHOICE = frozenset(
    ["index", "delta", "logprobs", "content_filter_results", "content_filter_offsets", "native_finish_reason"]
)


_FINISH = re.compile(rb'"finish_reason"\s*:\s*"[^"]+"')


def is_finished(data: bytes) -> bool:
    """Whether a ``finish_reason`` is given. Most events say there is none: counting takes half the time."""
    named = data.count(b'"finish_reason"')
    return named > data.count(b'"finish_reason":null') and _FINISH.search(data) is not None
