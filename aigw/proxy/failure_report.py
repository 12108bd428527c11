"""What the client is told when no step gave an answer. Many clients show only the message, so it holds the reasons."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from aigw.config.model import Route
from aigw.errors import AllStepsFailed, DeadlineExceeded, GatewayError, UpstreamFailure, UpstreamRefused
from aigw.protocols.endpoint import Endpoint
from aigw.proxy.passed_refusals import ABOUT_THE_REQUEST, of_all_steps
from aigw.proxy.retry_policy import REPEATABLE
from aigw.secret import KeySearch
from aigw.telemetry.record import AttemptRecord, attempt_for_client
from aigw.upstream.attempt import Attempt

Failures = Sequence[tuple[AttemptRecord, UpstreamFailure]]

_MOST_READ = 4096  # of what a provider says of its failure
MOST_OF_A_REASON = 300
MOST_OF_A_MESSAGE = 1000
_LEAST_OF_A_REASON = 20


def in_the_end(
    route: Route,
    endpoint: Endpoint,
    failures: Failures,
    refusals: Iterable[tuple[Attempt, UpstreamRefused]],
    keys: KeySearch,
    is_late: bool,
    wakes_in: float | None,
) -> tuple[Attempt, UpstreamRefused] | GatewayError:
    """What the client gets where no step is left, or no time: a refusal if the route passes it on, else our own error.

    ``refusals`` has the last one of each step; for ``wakes_in`` see all_failed.
    """
    passed = of_all_steps([failure for _, failure in failures], refusals, route, endpoint, keys)
    if passed is not None:
        return passed
    return too_late(route.deadline or 0, failures, keys) if is_late else all_failed(failures, keys, wakes_in)


def all_failed(failures: Failures, keys: KeySearch, wakes_in: float | None = None) -> AllStepsFailed:
    """The 502 that says what happened at each step, in bounded and redacted words.

    ``wakes_in`` is when the first of the resting steps wakes, in seconds, if any rests.
    """
    hopeless = all(_is_hopeless(failure) for _, failure in failures)
    headers = {"x-should-retry": "false"} if hopeless else {}
    if wakes_in is not None and not hopeless:
        headers["Retry-After"] = str(max(1, math.ceil(wakes_in)))
    shown = attempts_shown(failures, keys)
    return AllStepsFailed(
        _with_reasons("No step of the route gave an answer", failures, shown),
        headers=headers,
        details={"attempts": shown},
    )


def too_late(deadline: float, failures: Failures, keys: KeySearch) -> DeadlineExceeded:
    """The 504 that says the same after a route's ``deadline`` of so many seconds."""
    shown = attempts_shown(failures, keys)
    beginning = f"The route's deadline of {deadline:g} s passed before a step gave an answer"
    return DeadlineExceeded(_with_reasons(beginning, failures, shown), details={"attempts": shown})


def attempts_shown(failures: Failures, keys: KeySearch) -> list[dict[str, Any]]:
    """One entry for each attempt, as the client is shown it; the provider's own words are added here and only here."""
    told = []
    for record, failure in failures:
        said = f"{failure.message}: {failure.detail}" if failure.detail else failure.message
        beginning = said[:_MOST_READ]
        message = keys.hide_any_form(beginning)
        if message is not beginning and len(said) > _MOST_READ:  # half a key may stand at the end
            message = message.rpartition("***")[0] + "***"
        told.append({**attempt_for_client(record), "message": message[:MOST_OF_A_REASON]})
    return told


def _is_hopeless(failure: UpstreamFailure) -> bool:
    """Whether the same request would fail in the same way: a refusal, and not one that time changes."""
    if not isinstance(failure, UpstreamRefused) or failure.retry_after is not None:
        return False
    return 400 <= (failure.status or 0) < 500 and failure.status not in REPEATABLE


def _with_reasons(beginning: str, failures: Failures, shown: list[dict[str, Any]]) -> str:
    """``beginning``, and each provider with its reason, the most telling first and each only once.

    The first one has all of its reason; what is left of the bound is shared by the others.
    """
    telling = sorted(zip(failures, shown, strict=True), key=lambda each: _rank(each[0][1]))
    said = list(dict.fromkeys((entry["provider"], " ".join(entry["message"].split())) for _, entry in telling))
    if not said:
        return f"{beginning}."
    first = _named(*said[0], MOST_OF_A_REASON)
    share = (MOST_OF_A_MESSAGE - len(beginning) - len(first)) // max(1, len(said) - 1) - len(",  ()")
    others = [_named(name, reason, max(_LEAST_OF_A_REASON, share - len(name))) for name, reason in said[1:]]
    return f"{beginning}: {', '.join([first, *others])}"[:MOST_OF_A_MESSAGE]


def _named(provider: str, reason: str, most: int) -> str:
    return f"{provider} ({reason if len(reason) <= most else reason[: most - 3] + '...'})"


def _rank(failure: UpstreamFailure) -> int:
    """How little a failure says to a request's sender: first what is wrong with it, last a status without words."""
    if not isinstance(failure, UpstreamRefused):
        return 3
    if not failure.detail:
        return 4
    if failure.status in ABOUT_THE_REQUEST:
        return 0
    return 3 if (failure.status or 0) >= 500 else 2 if failure.status in REPEATABLE else 1
