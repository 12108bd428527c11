"""The ``usage`` that providers report, read out of an answer's bytes; nothing is estimated, nothing is asked for.

Names of counts: https://platform.openai.com/docs/api-reference/chat/object (chat), .../responses/object (responses);
``cache_*`` are Anthropic's and ``prompt_cache_hit_tokens`` DeepSeek's.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator, Mapping

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
_decoder = json.JSONDecoder()


def mentions_usage(data: bytes) -> bool:
    """Whether ``data`` holds a ``usage`` object, or the start of one."""
    return b'"usage"' in data and _USAGE.search(data) is not None


def usage_in(data: bytes) -> dict[str, int]:
    """The token counts of the ``usage`` objects in ``data``, nested ones included: the last word on each counts.

    Of many objects only the first and the last few are looked at: whoever repeats them repeats all of their counts.
    """
    first = _USAGE.search(data) if b'"usage"' in data else None
    if first is None:
        return {}
    last = deque(_USAGE.finditer(data, first.end()), maxlen=3)
    counts: dict[str, int] = {}
    for match in (first, *last):
        counts |= counts_in(data[match.end() : match.end() + MOST]) or {}
    return counts


def counts_in(data: bytes) -> dict[str, int] | None:
    """The token counts of the object that ``data`` begins with; None where there is no whole one."""
    try:
        usage, _ = _decoder.raw_decode(data.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(usage, dict):
        return None
    counts = {}
    for group in (usage, *usage.values()):
        if isinstance(group, dict):
            for name, n in group.items():
                if name in _COUNTS and type(n) is int and 0 <= n < MAX_COUNT:
                    counts[name] = n
    return counts


def by_kind(usage: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """The counts as prompt, completion, cached and reasoning, those that were reported."""
    for kind, names in KINDS.items():
        for name in names:
            if name in usage:
                yield kind, usage[name]
                break
