"""What a caller gets that may not do something, or not now: 403 and 429.

References: https://platform.openai.com/docs/guides/error-codes, .../guides/rate-limits and
https://docs.anthropic.com/en/api/errors
"""

from __future__ import annotations

from datetime import datetime
from math import ceil
from typing import TYPE_CHECKING

from aigw.access.limit_lines import ROUNDING
from aigw.errors import RequestError
from aigw.settings.callers import PICO
from aigw.settings.limit_values import zone_of

if TYPE_CHECKING:
    from aigw.access.ledger import LimitReached


class NotAllowed(RequestError):
    """The key is right, but not for this: 403."""

    status = 403
    code = "key_not_allowed"


class RateLimited(RequestError):
    """A limit of the caller is reached, and there will be room again soon: 429."""

    status = 429
    code = "rate_limit_exceeded"
    type = "requests"


class TokensLimited(RateLimited):
    """The same of a limit of tokens."""

    type = "tokens"


class StoreUnavailable(RequestError):
    """The store of the limits cannot be used, and requests are to be refused then: 503."""

    status = 503
    code = "limits_unavailable"


class BudgetSpent(RequestError):
    """A budget of the caller is spent: 429, which clients do not repeat."""

    status = 429
    code = "insufficient_quota"
    type = "insufficient_quota"


class TooLargeForLimit(TokensLimited):
    """A request that is larger than the limit, for a client that repeats each 429: 413."""

    status = 413


class BudgetSpentForGood(BudgetSpent):
    """A budget that is spent, for a client that repeats each 429: 402, as Anthropic has it for a ``billing_error``."""

    status = 402


_NOT_REPEATED: dict[type, type[RequestError]] = {TokensLimited: TooLargeForLimit, BudgetSpent: BudgetSpentForGood}


def refused(refusal: LimitReached, now: float) -> RequestError:
    """The error for a limit that is reached; ``now`` in Unix seconds."""
    whose = _whose(refusal)
    account, seconds = refusal.account, refusal.seconds
    if refusal.budget is not None:
        return _budget_spent(refusal, whose, now)
    if refusal.kind == "tokens":
        assert account.tokens is not None
        limit = f"{account.tokens.limit} tokens in {account.tokens.seconds:g} s"
        text = f"Rate limit reached for {whose}: {limit}, used {refusal.used}, requested {refusal.needed}."
        if seconds is None:
            text += " The request is larger than the limit; make it shorter, or send a smaller max_tokens."
            return TokensLimited(text, headers={"x-should-retry": "false"})
        return TokensLimited(f"{text} Please try again in {_in_words(seconds)}.", headers=_again(seconds))
    seconds = seconds or 0.0
    if refusal.kind == "requests":
        assert account.requests is not None
        limit = f"{account.requests.limit} requests in {account.requests.seconds:g} s"
    else:
        limit = f"{account.concurrency} requests at the same time"
    text = f"Rate limit reached for {whose}: {limit}. Please try again in {_in_words(seconds)}."
    return RateLimited(text, headers=_again(seconds))


def for_client(error: RequestError, user_agent: bytes | None) -> RequestError:
    """The error as this client understands it. The Vercel AI SDK repeats every 429, whatever its headers and its code
    are, so it gets another status where a repetition is of no use.
    """
    if user_agent and user_agent.find(b"ai-sdk/") >= 0 and error.headers.get("x-should-retry") == "false":
        other = _NOT_REPEATED.get(type(error))
        return other(error.message, headers=error.headers) if other is not None else error
    return error


def _budget_spent(refusal: LimitReached, whose: str, now: float) -> BudgetSpent:
    budget = refusal.budget
    assert budget is not None
    amount = f"{budget.limit / PICO:g} USD" if budget.in_usd else f"{budget.limit} tokens"
    ends = datetime.fromtimestamp(now + (refusal.seconds or 0.0), zone_of(budget.zone))
    text = f"The budget of {whose} is spent: {amount} a {budget.per}."
    again = f"It is renewed on {ends.strftime('%A, %d %B %Y at %H:%M')} ({budget.zone})."
    return BudgetSpent(f"{text} {again}", headers={"x-should-retry": "false"})


def _whose(refusal: LimitReached) -> str:
    kind, _, name = refusal.account.name.partition(" ")
    return f"the {kind} {name!r}"


def _again(seconds: float) -> dict[str, str]:
    milliseconds = max(1, ceil(seconds * 1000 - ROUNDING))
    return {"Retry-After": str(max(1, ceil(seconds - ROUNDING))), "retry-after-ms": str(milliseconds)}


def _in_words(seconds: float) -> str:
    return f"{max(1, ceil(seconds * 1000 - ROUNDING)) / 1000:g}s"
