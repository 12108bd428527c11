"""The ``usage`` that providers report, read out of an answer's bytes; nothing is estimated, nothing is asked for.

Names of counts: https://platform.openai.com/docs/api-reference/chat/object (chat), .../responses/object (responses);
``cache_*`` are Anthropic's and ``prompt_cache_hit_tokens`` DeepSeek's.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping

MOST = 4096  # what a usage object may take
MAX_COUNT = 2**53  # more is no number in JSON that everybody reads alike

_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
_COUNTS = frozenset(
    "prompt_tokens completion_tokens input_tokens output_tokens total_tokens cached_tokens reasoning_tokens "
    "cache_read_input_tokens cache_creation_input_tokens prompt_cache_hit_tokens".split()
)
# The kinds that metrics and pages show. As OpenAI counts ``cached`` is part of ``prompt`` and ``reasoning`` of
# ``completion``; Anthropic's ``input_tokens`` leave the cached ones out.
KINDS = {
    "prompt": ("prompt_tokens", "input_tokens"),
    "completion": ("completion_tokens", "output_tokens"),
    "cached": ("cached_tokens", "cache_read_input_tokens", "prompt_cache_hit_tokens"),
    "reasoning": ("reasoning_tokens",),
}
_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}
_NAME = b'"usage"'
_decoder = json.JSONDecoder()


# Finds a ``usage`` object, or the start of one. Many events have none: look for the name itself first.
find_usage = _USAGE.search


class ReportedUsage:
    """The usage in the parts of one answer: the counts of the first part, replaced by those of the last one.

    Some providers report input at the start and output at the end. Who repeats usage in each part repeats all of it.
    It is read when it is asked for.
    """

    _first = b""
    _last = b""

    def add(self, data: bytes) -> None:
        """A part that holds usage: whole events, or a whole body."""
        self._first = self._first or self._last
        self._last = data

    def add_some(self, data: bytes) -> None:
        """More of a body that is too large to be looked at: usage stands at its start or its end."""
        self._first = self._first or data[:MOST]
        self._last = (self._last + data)[-MOST:]

    def counts(self) -> dict[str, int]:
        """The token counts."""
        last = usage_in(self._last)
        return {**usage_in(self._first), **last} if self._first else last


def usage_in(data: bytes) -> dict[str, int]:
    """The token counts of the ``usage`` objects in ``data``, nested ones included: of each the last one counts.

    Of many objects only the first and the last few are looked at: whoever repeats them repeats all of their counts.
    """
    at = data.rfind(_NAME)
    if at < 0:
        return {}
    if data.find(_NAME, 0, at) < 0:  # as nearly always: there is one
        match = _USAGE.match(data, at)
        return counts_in(data[match.end() : match.end() + MOST]) or {} if match else {}
    found = [*deque(_USAGE.finditer(data), maxlen=3)]
    first = _USAGE.search(data)
    counts: dict[str, int] = {}
    for match in [first, *found] if first else found:
        counts |= counts_in(data[match.end() : match.end() + MOST]) or {}
    return counts


def counts_in(data: bytes) -> dict[str, int] | None:
    """The token counts of the object that ``data`` begins with; None where there is no whole one."""
    try:
        usage, _ = _decoder.raw_decode(data.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    if type(usage) is not dict:
        return None
    counts: dict[str, int] = {}
    for group in (usage, *usage.values()):  # what stands at the top comes before what stands in its details
        if isinstance(group, dict):
            for name, n in group.items():
                if name in _COUNTS and type(n) is int and 0 <= n < MAX_COUNT:
                    counts.setdefault(name, n)
    return counts


def by_kind(usage: Mapping[str, int]) -> dict[str, int]:
    """The counts as prompt, completion, cached and reasoning, those that were reported."""
    kinds: dict[str, int] = {}
    for name, count in usage.items():
        if name in _KIND_OF:
            kind = _KIND_OF[name]
            if kind not in kinds:  # prompt_tokens and input_tokens are one count under two names
                kinds[kind] = count
    return kinds
