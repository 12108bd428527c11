"""The ``usage`` that providers report, read from an answer's bytes. Nothing is estimated or requested.

Names of counts: https://platform.openai.com/docs/api-reference/chat/object (chat), .../responses/object (responses);
``cache_*`` are Anthropic's and ``prompt_cache_hit_tokens`` DeepSeek's.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping

MOST = 4096  # bytes of a usage object
MAX_COUNT = 2**53  # JSON parsers do not agree on larger numbers

_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
_COUNTS = frozenset(
    "prompt_tokens completion_tokens input_tokens output_tokens total_tokens cached_tokens reasoning_tokens "
    "cache_read_input_tokens cache_creation_input_tokens prompt_cache_hit_tokens".split()
)
# The kinds that metrics and pages show. In OpenAI's counts ``cached`` is a part of ``prompt``, and ``reasoning`` is a
# part of ``completion``. Anthropic's ``input_tokens`` do not include the cached ones.
KINDS = {
    "prompt": ("prompt_tokens", "input_tokens"),
    "completion": ("completion_tokens", "output_tokens"),
    "cached": ("cached_tokens", "cache_read_input_tokens", "prompt_cache_hit_tokens"),
    "reasoning": ("reasoning_tokens",),
}
_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}
_NAME = b'"usage"'
_decoder = json.JSONDecoder()


# Finds a ``usage`` object, or the start of one. Many events have none: a search for the name alone is faster.
find_usage = _USAGE.search


class ReportedUsage:
    """The usage in the parts of one answer: the counts of the first part, replaced by those of the last part.

    Some providers report input at the start and output at the end. A provider that repeats usage in each part repeats
    all counts. The counts are read when ``counts`` is called.
    """

    _first = b""
    _last = b""

    def add(self, data: bytes) -> None:
        """Add a part that has usage: whole events, or a whole body."""
        self._first = self._first or self._last
        self._last = data

    def add_some(self, data: bytes) -> None:
        """Add the next part of a body that is too large to be searched. Only its start and its end are kept."""
        self._first = self._first or data[:MOST]
        self._last = (self._last + data)[-MOST:]

    def counts(self) -> dict[str, int]:
        """The token counts."""
        last = usage_in(self._last)
        return {**usage_in(self._first), **last} if self._first else last


def usage_in(data: bytes) -> dict[str, int]:
    """The token counts of the ``usage`` objects in ``data`` and in their details. Later counts replace earlier ones.

    Of many objects only the first and the last three are read, because a provider repeats all or nothing.
    """
    at = data.rfind(_NAME)
    if at < 0:
        return {}
    if data.find(_NAME, 0, at) < 0:  # the usual case: there is one
        match = _USAGE.match(data, at)
        return counts_in(data[match.end() : match.end() + MOST]) or {} if match else {}
    found = [*deque(_USAGE.finditer(data), maxlen=3)]
    first = _USAGE.search(data)
    counts: dict[str, int] = {}
    for match in [first, *found] if first else found:
        counts |= counts_in(data[match.end() : match.end() + MOST]) or {}
    return counts


def counts_in(data: bytes) -> dict[str, int] | None:
    """The token counts of the object at the start of ``data``; None if the object is not whole."""
    try:
        usage, _ = _decoder.raw_decode(data.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    if type(usage) is not dict:
        return None
    counts: dict[str, int] = {}
    for group in (usage, *usage.values()):  # a count at the top level has priority over one in the details
        if isinstance(group, dict):
            for name, n in group.items():
                if name in _COUNTS and type(n) is int and 0 <= n < MAX_COUNT:
                    counts.setdefault(name, n)
    return counts


def by_kind(usage: Mapping[str, int]) -> dict[str, int]:
    """The reported counts, by kind: prompt, completion, cached, reasoning."""
    kinds: dict[str, int] = {}
    for name, count in usage.items():
        if name in _KIND_OF:
            kind = _KIND_OF[name]
            if kind not in kinds:  # prompt_tokens and input_tokens are two names of one count
                kinds[kind] = count
    return kinds
