"""What a caller gets that may not do something, or not now: 403 and 429, and the headers with its limits.

References: https://platform.openai.com/docs/guides/error-codes, .../guides/rate-limits and
https://docs.anthropic.com/en/api/errors
"""

from __future__ import annotations

from datetime import datetime
from math import ceil
from typing import TYPE_CHECKING

from aigw.errors import RequestError
from aigw.settings.callers import PICO
from aigw.settings.limit_values import zone_of

if TYPE_CHECKING:
    from aigw.access.ledger import Claim, LimitReached, Room

_ROUNDING = 1e-6  # of sums of fractions


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
    milliseconds = max(1, ceil(seconds * 1000 - _ROUNDING))
    return {"Retry-After": str(max(1, ceil(seconds - _ROUNDING))), "retry-after-ms": str(milliseconds)}


def _in_words(seconds: float) -> str:
    return f"{max(1, ceil(seconds * 1000 - _ROUNDING)) / 1000:g}s"


_OF_REQUESTS = (
    b"X-Ratelimit-Limit-Requests: %d\r\nX-Ratelimit-Remaining-Requests: %d\r\nX-Ratelimit-Reset-Requests: %d%b\r\n"
)
_OF_TOKENS = b"X-Ratelimit-Limit-Tokens: %d\r\nX-Ratelimit-Remaining-Tokens: %d\r\nX-Ratelimit-Reset-Tokens: %d%b\r\n"
_UP = 1 - _ROUNDING  # what int() of a number with this is, is the number rounded up


def with_limits(lines: bytes, claim: Claim) -> bytes:
    """The header lines of an answer, and those with what the caller has left.

    The limits of the provider are those of its key and go under other names: the client sees those of its own key.
    """
    if lines.find(b"X-Ratelimit-") >= 0:
        lines = (b"\n" + lines).replace(b"\nX-Ratelimit-", b"\nX-Upstream-Ratelimit-")[1:]
    requests, window = claim.requests, claim.window
    if requests is not None and window is not None:
        return b"%b%b%b" % (lines, _OF_REQUESTS % _shown(requests), _OF_TOKENS % _shown(window))
    if requests is not None:
        return lines + _OF_REQUESTS % _shown(requests)
    return lines if window is None else lines + _OF_TOKENS % _shown(window)


def _shown(room: Room) -> tuple[int, int, int, bytes]:
    """What is left, and the time of the reset as OpenAI writes it: ``120ms``, ``1.5s``, ``6m0s``, ``1h0m0s``.

    The time is its first number and the text behind that, of which there are few: none is made for each answer.
    """
    limit, left, reset = room
    if left < 0:
        left = 0
    milliseconds = int(reset * 1000 + _UP)
    if milliseconds < 1000:
        return limit, left, milliseconds, b"ms"
    if milliseconds < 60_000:
        return limit, left, milliseconds // 1000, _THOUSANDTHS[milliseconds % 1000]
    minutes, seconds = divmod(-(-milliseconds // 1000), 60)
    if minutes < 60:
        return limit, left, minutes, _SECONDS[seconds]
    return limit, left, minutes // 60, b"h%d%b" % (minutes % 60, _SECONDS[seconds])


_THOUSANDTHS = [f"{part / 1000:g}s"[1:].encode() for part in range(1000)]
_SECONDS = [b"m%ds" % seconds for seconds in range(60)]
