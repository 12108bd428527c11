"""What follows from a failure: whether the step cools down, and whether it may be repeated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from aigw.config.model import Step
from aigw.credentials.source import NoKey
from aigw.errors import UpstreamFailure, UpstreamRefused, UpstreamTimeout
from aigw.protocols.refusals import KEY_REFUSED
from aigw.proxy.cooldown import Cooldowns

REPEATABLE = frozenset([408, 409, 424, 425, 429, 499])  # statuses 4xx after which the same request may succeed

FAILED = frozenset([408, 424, 499])  # statuses 4xx for a failure of the provider, or of a server behind it

FOR_THIS_REQUEST = frozenset([402, 403])  # about the prompt, ``max_tokens`` or model; or about the account
KEY_COOLDOWN = 60.0  # seconds
RATE_LIMIT_COOLDOWN = 10.0
RETRY_FIRST = 0.5
RETRY_MOST = 8.0


class Verdict(msgspec.Struct, frozen=True):
    """What follows from a failure.

    ``strike`` is what is counted in the cooldown of the step: ``failure``, ``timeout``, ``refusal``, nothing, or
    ``alive``, which resets the count. ``cooldown``, if it is not 0, is in seconds and starts at once instead.
    ``repeatable``: the same step may be tried again. ``key_refused``: no other step of the provider can work.
    ``final``: the client gets the refusal, and no other step is tried.
    """

    strike: Literal["", "failure", "timeout", "refusal", "alive"] = ""
    cooldown: float = 0
    repeatable: bool = False
    key_refused: bool = False
    final: bool = False


def decide(failure: UpstreamFailure, final: bool = False) -> Verdict:
    """The whole policy on failures. ``final``: the client gets the refusal, so the step does not cool down for it."""
    match failure:
        case UpstreamRefused(status=int(status)):
            is_own_failure = status >= 500 or status in FAILED
            if final:
                return Verdict(strike="" if is_own_failure or status == 429 else "alive", final=True)
            if status == 429:
                seconds = RATE_LIMIT_COOLDOWN if failure.retry_after is None else failure.retry_after
                return Verdict(cooldown=seconds, repeatable=True)
            if status in KEY_REFUSED:
                return Verdict(cooldown=KEY_COOLDOWN, key_refused=True)
            if status in FOR_THIS_REQUEST:
                return Verdict(strike="refusal", cooldown=failure.retry_after or 0)
            if is_own_failure:
                return Verdict(strike="failure", cooldown=failure.retry_after or 0, repeatable=True)
            return Verdict(strike="alive", repeatable=status in REPEATABLE)
        case NoKey(retry_after=seconds):
            return Verdict(cooldown=seconds, key_refused=True)
        case UpstreamTimeout(limit="deadline"):
            return Verdict()
        case UpstreamTimeout():
            return Verdict(strike="timeout")
        case _:
            return Verdict(strike="failure", repeatable=True)


def apply(cooldowns: Cooldowns, step: Step, verdict: Verdict, probe: bool) -> float | None:
    """Apply the verdict to the step. Gives the seconds for which it cools down from now on, None if it does not."""
    if verdict.cooldown:
        cooldowns.cool_down(step, verdict.cooldown, probe)
    elif verdict.strike == "failure":
        cooldowns.failed(step, probe)
    elif verdict.strike == "timeout":
        cooldowns.timed_out(step, probe)
    elif verdict.strike == "refusal":
        cooldowns.refused(step, probe)
    elif verdict.strike == "alive":
        cooldowns.answered(step, probe)
    else:
        cooldowns.abandoned(step, probe)
    return cooldowns.cooldown_left(step)


def retry_delay(failure: UpstreamFailure, tries: int, random: Callable[[], float]) -> float:
    """The seconds before a step is repeated. They double with each try, and are at least those of ``Retry-After``.

    Up to half of the delay is random, so that clients which failed together do not return together.
    """
    asked = failure.retry_after if isinstance(failure, UpstreamRefused) else None
    return max(asked or 0.0, min(RETRY_MOST, RETRY_FIRST * 2.0 ** (tries - 1)) * (0.5 + random() / 2))
