"""Chat and legacy completions: what an event of a stream means, and when the stream is complete."""

from __future__ import annotations

import re
from typing import Any

from aigw.protocols.scanner import Meaning, StreamScanner

_ABOUT_A_CHOICE = frozenset(
    ["index", "delta", "logprobs", "content_filter_results", "content_filter_offsets", "native_finish_reason"]
)
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"[^"]+"')


class ChatScanner(StreamScanner):
    """Output is a delta with content of any kind, or a ``finish_reason``, which also completes the stream."""

    sign = b'"finish_reason"'
    usual = b'"finish_reason":null', b'"finish_reason": null'

    def meaning(self, value: dict[str, Any]) -> Meaning:
        """See StreamScanner."""
        choices = value.get("choices")
        if not isinstance(choices, list):
            return Meaning.OUTPUT
        for choice in choices:
            if not isinstance(choice, dict):
                return Meaning.OUTPUT
            for name, given in choice.items():
                if given and name not in _ABOUT_A_CHOICE:
                    return Meaning.OUTPUT
            delta = choice.get("delta")
            if isinstance(delta, dict):
                for name, given in delta.items():
                    if given and name != "role":
                        return Meaning.OUTPUT
            elif delta is not None:
                return Meaning.OUTPUT
        return Meaning.SILENCE

    def completes(self, data: bytes) -> bool:
        """Whether a ``finish_reason`` is given."""
        return _FINISH.search(data) is not None
