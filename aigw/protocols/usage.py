"""The ``usage`` that providers report, read from an answer's bytes. Nothing is estimated or requested.

Names of counts: https://platform.openai.com/docs/api-reference/chat/object (chat), .../responses/object (responses);
``cache_*`` are Anthropic's, ``prompt_cache_hit_tokens`` DeepSeek's. OpenRouter has ``cache_write_tokens`` and ``cost``,
in USD (https://openrouter.ai/docs/use-cases/usage-accounting); Perplexity has an object ``cost`` with ``total_cost``.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Annotated, TypeVar

import msgspec

MOST = 4096  # bytes of a usage object
MAX_COUNT = 2**53  # JSON parsers do not agree on larger numbers

_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
_COUNTS = frozenset(
    "prompt_tokens completion_tokens input_tokens output_tokens total_tokens cached_tokens reasoning_tokens "
    "cache_read_input_tokens cache_creation_input_tokens prompt_cache_hit_tokens".split()
)
# What is charged is made of more counts than those that are logged.
_CHARGED = _COUNTS | {"cache_write_tokens"}
MAX_COST = 1_000_000  # USD
# The kinds that metrics and pages show. In OpenAI's counts ``cached`` is a part of ``prompt``, and ``reasoning`` is a
# part of ``completion``. Anthropic's ``input_tokens`` do not include the cached ones.
KINDS = {
    "prompt": ("prompt_tokens", "input_tokens"),
    "completion": ("completion_tokens", "output_tokens"),
    "cached": ("cached_tokens", "cache_read_input_tokens", "prompt_cache_hit_tokens"),
    "reasoning": ("reasoning_tokens",),
}
_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}
_NAME, _COST = b'"usage"', b'"cost"'
_AMOUNT = re.compile(r"\d{1,9}(?:\.\d{1,40})?(?:[eE][-+]?\d{1,3})?")
_decoder = json.JSONDecoder(parse_float=str)  # an amount keeps its digits
_decode_counts = msgspec.json.Decoder(dict[str, Annotated[int, msgspec.Meta(ge=0, lt=MAX_COUNT)]]).decode
_decode_object = msgspec.json.Decoder(dict[str, object]).decode

Count = TypeVar("Count")
Read = Callable[[bytes], "dict[str, Count] | None"]


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
        last = all_in(self._last, counts_in)
        return {**all_in(self._first, counts_in), **last} if self._first else last

    def charges(self) -> dict[str, int | Decimal]:
        """The token counts, those that are charged and not logged too, and the ``cost`` in USD if it is reported."""
        return {**all_in(self._first, charges_in), **all_in(self._last, charges_in)}


def counts_in(data: bytes, names: frozenset[str] = _COUNTS) -> dict[str, int] | None:
    """The token counts of the object at the start of ``data``; None if the object is not whole."""
    flat = _flat(data)
    if flat is not None:
        return flat if names.issuperset(flat) else {name: n for name, n in flat.items() if name in names}
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
                if name in names and type(n) is int and 0 <= n < MAX_COUNT:
                    counts.setdefault(name, n)
    return counts


def _flat(data: bytes) -> dict[str, int] | None:
    """The counts in the object at the start of ``data`` if there is no object in it; None if that is not sure.

    The two decoders are faster than the search for counts in objects: the first one where there are only counts.
    """
    end = data.find(b"}")
    if end < 0 or data.find(b"{", 1, end) >= 0:
        return None
    try:
        try:
            return _decode_counts(data[: end + 1])
        except msgspec.ValidationError:  # there are other values
            found = _decode_object(data[: end + 1])
    except (msgspec.MsgspecError, ValueError, RecursionError):  # a brace in a text, or not the JSON of msgspec
        return None
    return {name: n for name, n in found.items() if type(n) is int and 0 <= n < MAX_COUNT}


def charges_in(data: bytes) -> dict[str, int | Decimal] | None:
    """The same, with the counts that are not logged, and ``cost`` if the provider reports what it charges, in USD."""
    counts = counts_in(data, _CHARGED)
    if counts is None or _COST not in data:
        return None if counts is None else {**counts}
    usage, _ = _decoder.raw_decode(data.decode(errors="replace"))
    cost, details = usage.get("cost"), usage.get("cost_details")
    amount = _amount(cost.get("total_cost") if isinstance(cost, dict) else cost)
    if amount is None:
        return {**counts}
    # With the customer's own key for the provider behind it, OpenRouter charges its fee, and that provider the rest.
    own = details.get("upstream_inference_cost") if isinstance(details, dict) and usage.get("is_byok") is True else None
    return {**counts, "cost": amount + (_amount(own) or 0)}


def _amount(value: object) -> Decimal | None:
    """An amount of USD; None if it is none."""
    written = "" if isinstance(value, bool) else str(value)
    return amount if _AMOUNT.fullmatch(written) and (amount := Decimal(written)) <= MAX_COST else None


def usage_in(data: bytes) -> dict[str, int]:
    """The token counts of the ``usage`` objects in ``data``."""
    return all_in(data, counts_in)


def all_in(data: bytes, read: Read[Count]) -> dict[str, Count]:
    """What ``read`` finds in the ``usage`` objects in ``data``. Later counts replace earlier ones.

    Of many objects only the first and the last three are read, because a provider repeats all or nothing.
    """
    at = data.rfind(_NAME)
    if at < 0:
        return {}
    if data.find(_NAME, 0, at) < 0:  # the usual case: there is one
        match = _USAGE.match(data, at)
        return read(data[match.end() : match.end() + MOST]) or {} if match else {}
    found = [*deque(_USAGE.finditer(data), maxlen=3)]
    first = _USAGE.search(data)
    counts: dict[str, Count] = {}
    for match in [first, *found] if first else found:
        counts |= read(data[match.end() : match.end() + MOST]) or {}
    return counts


def logged(charges: Mapping[str, int | Decimal]) -> dict[str, int]:
    """Those of the counts that are logged."""
    return {name: n for name, n in charges.items() if name in _COUNTS and isinstance(n, int)}


def by_kind(usage: Mapping[str, int]) -> dict[str, int]:
    """The reported counts, by kind: prompt, completion, cached, reasoning."""
    kinds: dict[str, int] = {}
    for name, count in usage.items():
        if name in _KIND_OF:
            kind = _KIND_OF[name]
            if kind not in kinds:  # prompt_tokens and input_tokens are two names of one count
                kinds[kind] = count
    return kinds
