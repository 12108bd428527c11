"""The error for the client if no step gave an answer. Many clients show only the message, so it has the reasons."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from aigw.config.model import Route
from aigw.errors import AllStepsFailed, DeadlineExceeded, GatewayError, UpstreamFailure, UpstreamRefused
from aigw.key_forms import shortened
from aigw.protocols.endpoint import Endpoint
from aigw.proxy.passed_refusals import ABOUT_THE_REQUEST, of_all_steps
from aigw.routing.retry_policy import REPEATABLE
from aigw.secret import KeySearch
from aigw.telemetry.record import AttemptRecord, attempt_for_client
from aigw.upstream.attempt import Attempt

Failures = Sequence[tuple[AttemptRecord, UpstreamFailure]]

_MOST_READ = 4096  # characters of a provider's error that are searched for keys
MOST_OF_A_REASON = 300  # characters
MOST_OF_A_MESSAGE = 1000
_LEAST_OF_A_REASON = 20


class FailedAttempts(msgspec.Struct, eq=False):
    """The failed attempts of one request, and the last refusal of each step by its number."""

    failures: list[tuple[AttemptRecord, UpstreamFailure]] = []
    refusals: dict[int, tuple[Attempt, UpstreamRefused]] = {}

    def note(self, record: AttemptRecord, failure: UpstreamFailure, attempt: Attempt) -> None:
        """One more has failed."""
        failure.__traceback__ = failure.__context__ = None  # their frames would keep the body in memory
        self.failures.append((record, failure))
        if isinstance(failure, UpstreamRefused):
            self.refusals[record.step] = attempt, failure

    def in_the_end(
        self, route: Route, endpoint: Endpoint, keys: KeySearch, is_late: bool, shortest_cooldown: float | None
    ) -> tuple[Attempt, UpstreamRefused] | GatewayError:
        """What the client gets if no step or no time is left: a refusal if the route passes it on, else an error.

        For ``shortest_cooldown`` see all_failed.
        """
        refusals = [refusal for _, refusal in sorted(self.refusals.items())]
        passed = of_all_steps([failure for _, failure in self.failures], refusals, route, endpoint, keys)
        if passed is not None:
            return passed
        if is_late:
            return too_late(route.deadline or 0, self.failures, keys)
        return all_failed(self.failures, keys, shortest_cooldown)


def all_failed(failures: Failures, keys: KeySearch, shortest_cooldown: float | None = None) -> AllStepsFailed:
    """The 502 with the result of each step, in a bounded text without keys.

    ``shortest_cooldown`` is the shortest cooldown of a step of the route, in seconds; None if no step cools down.
    """
    hopeless = all(_is_hopeless(failure) for _, failure in failures)
    headers = {"x-should-retry": "false"} if hopeless else {}
    if shortest_cooldown is not None and not hopeless:
        headers["Retry-After"] = str(max(1, math.ceil(shortest_cooldown)))
    shown = attempts_shown(failures, keys)
    return AllStepsFailed(
        _with_reasons("No step of the route gave an answer", failures, shown),
        headers=headers,
        details={"attempts": shown},
    )


def too_late(deadline: float, failures: Failures, keys: KeySearch) -> DeadlineExceeded:
    """The 504 with the result of each step, after a route's ``deadline`` in seconds."""
    shown = attempts_shown(failures, keys)
    beginning = f"The route's deadline of {deadline:g} s passed before a step gave an answer"
    return DeadlineExceeded(_with_reasons(beginning, failures, shown), details={"attempts": shown})


def attempts_shown(failures: Failures, keys: KeySearch) -> list[dict[str, object]]:
    """One entry for each attempt, for the client. Only here the provider's own text is added."""
    shown = []
    for record, failure in failures:
        text = f"{failure.message}: {failure.detail}" if failure.detail else failure.message
        beginning = text[:_MOST_READ]
        message = keys.hide_any_form(beginning)
        if message is not beginning and len(text) > _MOST_READ:  # it may end with a part of a key
            message = message.rpartition("***")[0] + "***"
        shown.append({**attempt_for_client(record), "message": shortened(message, MOST_OF_A_REASON)})
    return shown


def _is_hopeless(failure: UpstreamFailure) -> bool:
    """Whether the same request would fail again: it was refused for a reason that does not change with time."""
    if not isinstance(failure, UpstreamRefused) or failure.retry_after is not None:
        return False
    return 400 <= (failure.status or 0) < 500 and failure.status not in REPEATABLE


def _with_reasons(beginning: str, failures: Failures, shown: list[dict[str, object]]) -> str:
    """``beginning``, then each provider with its reason, once each: the most useful reason first.

    The first reason may take MOST_OF_A_REASON characters; the others share the rest of MOST_OF_A_MESSAGE.
    """
    ranked = sorted(zip(failures, shown, strict=True), key=lambda each: _rank(each[0][1]))
    reasons = list(
        dict.fromkeys((_who(record), " ".join(str(entry["message"]).split())) for (record, _), entry in ranked)
    )
    if not reasons:
        return f"{beginning}."
    first = _named(*reasons[0], MOST_OF_A_REASON)
    share = (MOST_OF_A_MESSAGE - len(beginning) - len(first)) // max(1, len(reasons) - 1) - len(",  ()")
    others = [_named(name, reason, max(_LEAST_OF_A_REASON, share - len(name))) for name, reason in reasons[1:]]
    return shortened(f"{beginning}: {', '.join([first, *others])}", MOST_OF_A_MESSAGE)


def _who(record: AttemptRecord) -> str:
    return record.provider if record.key_number is None else f"{record.provider} key {record.key_number}"


def _named(provider: str, reason: str, most: int) -> str:
    return f"{provider} ({reason if len(reason) <= most else shortened(reason, most - 3) + '...'})"


def _rank(failure: UpstreamFailure) -> int:
    """The place of a failure in the message: 0 if it is about the request, 4 if it is a status without a text."""
    if not isinstance(failure, UpstreamRefused):
        return 3
    if not failure.detail:
        return 4
    if failure.status in ABOUT_THE_REQUEST:
        return 0
    return 3 if (failure.status or 0) >= 500 else 2 if failure.status in REPEATABLE else 1
