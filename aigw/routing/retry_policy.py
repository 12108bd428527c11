"""What follows from a failure: whether the step cools down, and whether it may be repeated."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

import msgspec

from aigw.config.model import Step
from aigw.credentials.source import NoKey
from aigw.errors import UpstreamFailure, UpstreamRefused, UpstreamTimeout, UpstreamUnreachable
from aigw.protocols.refusals import KEY_REFUSED
from aigw.routing.cooldown import Cooldowns, Skip

REPEATABLE = frozenset([408, 409, 424, 425, 429, 499])  # statuses 4xx after which the same request may succeed

FAILED = frozenset([408, 424, 499])  # statuses 4xx for a failure of the provider, or of a server behind it

SAME_FOR_KEYS = frozenset([400, 413, 415, 422])  # statuses for what is wrong with the request
_A_KEY = re.compile(r"api.?key", re.IGNORECASE)

FOR_THIS_REQUEST = frozenset([402, 403])  # about the prompt, ``max_tokens`` or model; or about the account
KEY_COOLDOWN = 60.0  # seconds
RATE_LIMIT_COOLDOWN = 10.0
RETRY_FIRST = 0.5
RETRY_MOST = 8.0


class Verdict(msgspec.Struct, frozen=True):
    """What follows from a failure.

    ``strike`` is what is counted in the cooldown of the step: ``failure``, ``timeout``, ``refusal``, nothing, or
    ``alive``, which resets the count. ``cooldown``, if it is not 0, is in seconds and starts at once instead.
    ``repeatable``: the same step may be tried again. ``key_refused``: no other step with this key can work.
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
    if verdict.key_refused:
        cooldowns.key_refused(step, verdict.cooldown, probe)
    elif verdict.cooldown:
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


def is_same_for_keys(failure: UpstreamFailure) -> bool:
    """Whether another key makes no difference: the provider is silent or cannot be reached, or the request is wrong.

    Some providers refuse a wrong key with 400, in words about an API key.
    """
    if isinstance(failure, UpstreamRefused):
        return failure.status in SAME_FOR_KEYS and not _A_KEY.search(" ".join([failure.detail or "", *failure.words]))
    return isinstance(failure, UpstreamTimeout | UpstreamUnreachable)


def left_after(
    failure: UpstreamFailure, verdict: Verdict, failed: Step, left: list[Step], cooldowns: Cooldowns, skip: Skip
) -> list[Step]:
    """The steps of ``left`` that can work after a failure of ``failed``. ``skip`` is called for each number that is
    not among them because its key was refused.

    If the failure has nothing to do with the key, it counts for the other keys of the provider too.
    """
    if verdict.key_refused:
        gone = [each for each in left if each.provider.name == failed.provider.name and each.key == failed.key]
    elif failed.key_number is not None and is_same_for_keys(failure):
        gone = [each for each in left if each.number == failed.number and each.target == failed.target]
    else:
        return left
    kept = [each for each in left if each not in gone]
    numbers = {each.number for each in kept}
    for each in gone:
        if verdict.key_refused and each.number not in numbers:
            skip(each, "key_refused", None)
        elif verdict.strike in ("failure", "timeout"):
            apply(cooldowns, each, verdict, probe=False)
    return kept


def other_keys_last(steps: list[Step], slow: Step) -> list[Step]:
    """``steps`` for an attempt beside a slow one: those that differ from it by the key alone are the last."""
    return sorted(steps, key=lambda each: each.number == slow.number and each.target == slow.target)


def retry_delay(failure: UpstreamFailure, tries: int, random: Callable[[], float]) -> float:
    """The seconds before a step is repeated. They double with each try, and are at least those of ``Retry-After``.

    Up to half of the delay is random, so that clients which failed together do not return together.
    """
    asked = failure.retry_after if isinstance(failure, UpstreamRefused) else None
    return max(asked or 0.0, min(RETRY_MOST, RETRY_FIRST * 2.0 ** (tries - 1)) * (0.5 + random() / 2))
