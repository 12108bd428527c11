"""What an answer is charged: tokens by disjoint kinds, made of the counts that providers report, and their cost.

OpenAI's ``prompt_tokens`` include those that were read from a cache, and ``completion_tokens`` those of reasoning;
Anthropic's ``input_tokens`` include neither those that were read from its cache nor those that were written to it.
Some providers have OpenAI's names and Anthropic's meaning; ``total_tokens`` then shows what is beside what.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from aigw.config.prices import Prices, in_usd

Usage = Mapping[str, "int | Decimal"]  # the counts by the names of the providers, and ``cost`` in USD
CommonCounts = tuple[int, int, int]  # the tokens of the request and of the answer, and all

CHARGED_KINDS = ("input", "output", "cache_read", "cache_write", "reasoning")


def cost(prices: Prices, provider: str, model: str, usage: Usage) -> Decimal | None:
    """The cost of an answer in USD; None if there is no price for it, or if no tokens were reported and some cost.

    A cost that the provider itself reported counts more than any price.
    """
    reported = usage.get("cost")
    if isinstance(reported, Decimal):
        return in_usd(reported)
    price = prices.of(provider, model)
    if price is None:
        return None
    tokens = charged_tokens(usage)
    return price.cost(tokens) if tokens or price.is_free else None


def charged_tokens(usage: Usage) -> dict[str, int]:
    """The tokens of each kind, without the kinds that have none; no token is in two kinds. Empty: none were reported.

    A count of 0 that was reported is kept for ``input``, so that an answer without tokens costs nothing.
    """
    common = common_counts(usage)
    if common is not None:
        return {"input": common[0], "output": common[1]} if common[1] else {"input": common[0]}
    get = usage.get
    given, made = get("prompt_tokens"), get("completion_tokens")
    given, made = int(max(given or 0, get("input_tokens", 0))), int(max(made or 0, get("output_tokens", 0)))
    read = int(max(get("cached_tokens", 0), get("cache_read_input_tokens", 0), get("prompt_cache_hit_tokens", 0)))
    written = int(max(get("cache_write_tokens", 0), get("cache_creation_input_tokens", 0)))
    reasoning, total = int(get("reasoning_tokens", 0)), int(get("total_tokens", 0))
    if not (given or made or any([name in usage for name in _NAMES])):
        if "total_tokens" not in usage:
            return {}
        given = total  # of embeddings and reranking
    more = total - given - made  # what the total has beside the two
    cached = read + written
    is_beside = _is_anthropic(usage) or cached > given or (cached > 0 and more in (cached, cached + reasoning))
    if is_beside and more >= cached:
        more -= cached
    if not reasoning and more > 0 and "prompt_tokens" in usage:
        reasoning = more  # Gemini counts the tokens of thoughts in the total alone, and charges them
    elif more != reasoning and reasoning <= made:
        made -= reasoning
    found = (given if is_beside else given - cached), made, read, written, reasoning
    return {kind: n for kind, n in zip(CHARGED_KINDS, found, strict=True) if n or kind == "input"}


def common_counts(usage: Usage) -> CommonCounts | None:
    """These three, if the usage has no others and the last is the sum, as nearly every one has."""
    if len(usage) != 3:
        return None
    counts: Mapping[str, Any] = usage  # the cost alone is no whole number
    try:
        given, made, total = counts["prompt_tokens"], counts["completion_tokens"], counts["total_tokens"]
    except KeyError:
        return None
    return (given, made, total) if total == given + made else None


def _is_anthropic(usage: Usage) -> bool:
    return (
        "prompt_tokens" not in usage
        and "cached_tokens" not in usage
        and ("cache_read_input_tokens" in usage or "cache_creation_input_tokens" in usage)
    )


_NAMES = ("prompt_tokens", "input_tokens", "completion_tokens", "output_tokens")
