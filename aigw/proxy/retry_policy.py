"""What follows from a failure: whether the step cools down, is repeated, or the client gets the refusal as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from aigw.config.model import Step
from aigw.errors import UpstreamFailure, UpstreamRefused, UpstreamTimeout
from aigw.protocols.refusals import KEY_REFUSED
from aigw.proxy.cooldown import Cooldowns

REPEATABLE = frozenset([408, 409, 424, 425, 429, 499])  # of the 4xx, those that the same request may not get again

FAILED = frozenset([408, 424, 499])  # of the 4xx, those by which the provider, or one behind it, says that it failed

FOR_THIS_REQUEST = frozenset([402, 403])  # a flagged prompt, too large a ``max_tokens``, a closed model; or the account
KEY_REST = 60.0
RATE_LIMIT_REST = 10.0
RETRY_FIRST = 0.5
RETRY_MOST = 8.0


class Verdict(msgspec.Struct, frozen=True):
    """What follows from a failure.

    ``strike`` counts against the step: ``failure``, ``timeout``, ``refusal``, or nothing; ``alive`` counts for it.
    ``rest`` is for how many seconds the step rests at once, in place of a strike. ``repeatable``: the same step may be
    tried again. ``key_refused``: no other step of the provider can work.
    """

    strike: Literal["", "failure", "timeout", "refusal", "alive"] = ""
    rest: float = 0
    repeatable: bool = False
    key_refused: bool = False


def decide(failure: UpstreamFailure, final: bool = False) -> Verdict:
    """The policy on failures, all of it. ``final``: the client gets the refusal, so it is no fault of the step."""
    match failure:
        case UpstreamRefused(status=int(status)):
            is_own_failure = status >= 500 or status in FAILED
            if final:
                return Verdict(strike="" if is_own_failure or status == 429 else "alive")
            if status == 429:
                rest = RATE_LIMIT_REST if failure.retry_after is None else failure.retry_after
                return Verdict(rest=rest, repeatable=True)
            if status in KEY_REFUSED:
                return Verdict(rest=KEY_REST, key_refused=True)
            if status in FOR_THIS_REQUEST:
                return Verdict(strike="refusal", rest=failure.retry_after or 0)
            if is_own_failure:
                return Verdict(strike="failure", rest=failure.retry_after or 0, repeatable=True)
            return Verdict(strike="alive", repeatable=status in REPEATABLE)
        case UpstreamTimeout(limit="deadline"):
            return Verdict()
        case UpstreamTimeout():
            return Verdict(strike="timeout")
        case _:
            return Verdict(strike="failure", repeatable=True)


def apply(health: Cooldowns, step: Step, verdict: Verdict, probe: bool) -> float | None:
    """What the verdict means for the step: for how many seconds it rests from now on, if it does."""
    if verdict.rest:
        health.rest(step, verdict.rest, probe)
    elif verdict.strike == "failure":
        health.failed(step, probe)
    elif verdict.strike == "timeout":
        health.timed_out(step, probe)
    elif verdict.strike == "refusal":
        health.refused(step, probe)
    elif verdict.strike == "alive":
        health.answered(step, probe)
    else:
        health.abandoned(step, probe)
    return health.rests_for(step)


def retry_delay(failure: UpstreamFailure, tries: int, random: Callable[[], float]) -> float:
    """Seconds to wait before a step is repeated that was tried so often: longer each time, and no less than asked for.

    Half of it is jitter, so that clients which failed together do not come back together.
    """
    asked = failure.retry_after if isinstance(failure, UpstreamRefused) else None
    return max(asked or 0.0, min(RETRY_MOST, RETRY_FIRST * 2.0 ** (tries - 1)) * (0.5 + random() / 2))
