"""What the client is told when no step gave an answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from aigw.errors import AllStepsFailed, UpstreamFailure
from aigw.secret import KeySearch
from aigw.telemetry.record import AttemptRecord, attempt_for_client

_NOT_HOPELESS = frozenset([408, 409, 429])


_MOST_READ = 4096  # of what a provider says of its failure


def all_failed(
    failures: Sequence[tuple[AttemptRecord, UpstreamFailure]], keys: KeySearch, wakes_in: float | None = None
) -> AllStepsFailed:
    """The 502 that says what happened at each step, in bounded and redacted words.

    ``wakes_in`` is when the first of the resting steps wakes, in seconds, if any rests.
    """
    statuses = [failure.status for _, failure in failures]
    hopeless = all(status and 400 <= status < 500 and status not in _NOT_HOPELESS for status in statuses)
    names = ", ".join(f"{record.provider} ({failure.message})" for record, failure in failures)
    headers = {"x-should-retry": "false"} if hopeless else {}
    if wakes_in is not None and not hopeless:
        headers["Retry-After"] = str(max(1, math.ceil(wakes_in)))
    return AllStepsFailed(
        f"No step of the route gave an answer: {names}"[:1000],
        headers=headers,
        details={"attempts": attempts_shown(failures, keys)},
    )


def attempts_shown(failures: Sequence[tuple[AttemptRecord, UpstreamFailure]], keys: KeySearch) -> list[dict[str, Any]]:
    """One entry for each attempt, as the client is shown it; the provider's own words are added here and only here."""
    told = []
    for record, failure in failures:
        said = f"{failure.message}: {failure.detail}" if failure.detail else failure.message
        beginning = said[:_MOST_READ]
        message = keys.hide_any_form(beginning)
        if message is not beginning and len(said) > _MOST_READ:  # half a key may stand at the end
            message = message.rpartition("***")[0] + "***"
        told.append({**attempt_for_client(record), "message": message[:300]})
    return told
