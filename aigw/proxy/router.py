"""Policy: which attempts a call gets and in which order, and what to tell the client when none of them worked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal

import msgspec

from aigw import __version__
from aigw.config.loader import Config, Provider, Route, Step
from aigw.errors import KEY_REFUSED, AllStepsFailed, RouteNotFound, UpstreamFailure, UpstreamRefused, UpstreamTimeout
from aigw.protocols.endpoints import ENDPOINTS, Call, rewrite
from aigw.proxy.cooldown import Health
from aigw.secret import Secret, without_keys
from aigw.telemetry.record import AttemptRecord
from aigw.upstream.attempt import Attempt

_NOT_HOPELESS = frozenset([408, 409, 429])
REPEATABLE = frozenset([408, 409, 425])
KEY_REST = 60.0
RATE_LIMIT_REST = 10.0
RETRY_FIRST = 0.5
RETRY_MOST = 8.0
_MOST_READ = 4096  # of what a provider says of its failure
_USER_AGENT = f"aigw/{__version__}".encode()


class Router:
    """The routes of a configuration, with all that does not depend on the call made ready.

    ``without_keys`` are, by provider, what takes the keys that it is sent out of its answers.
    """

    def __init__(self, config: Config) -> None:
        self._routes = config.routes
        self.without_keys = {
            name: [key.out_of for key in _keys(provider, config.secrets)] for name, provider in config.providers.items()
        }
        self._headers = {name: _headers(provider) for name, provider in config.providers.items()}
        self._models = {
            step.model: msgspec.Raw(msgspec.json.encode(step.model))
            for route in config.routes.values()
            for step in route.steps
        }
        self._urls = {
            (name, path): f"{provider.base_url}/{path}"
            for name, provider in config.providers.items()
            for path in ENDPOINTS
        }

    def route(self, model: str) -> Route:
        """The route of exactly that name. Raises RouteNotFound."""
        try:
            return self._routes[model]
        except KeyError:
            raise RouteNotFound(
                f"The model {model[:200]!r} is not a route of this gateway; GET /v1/models lists them.", param="model"
            ) from None

    def own_headers(self, provider: Provider) -> tuple[tuple[bytes, bytes], ...]:
        """What every request to the provider carries, its key included."""
        return self._headers[provider.name][0]

    def attempt(self, step: Step, call: Call) -> Attempt:
        """The request to a step."""
        name = step.provider.name
        own, taken = self._headers[name]
        passed = [header for header in call.headers if header[0] not in taken]
        return Attempt(
            step=step,
            url=self._urls[name, call.endpoint.path],
            headers=(*own, *passed, (b"x-request-id", call.request_id.encode())),
            body=rewrite(call, self._models[step.model], step.conflict_resolution),
        )


def choose(steps: Sequence[Step], health: Health) -> Step | None:
    """Of the steps that are left, the one to try now: as configured, but those that rest at the end."""
    return next(iter(health.order(steps)), None)


class Verdict(msgspec.Struct, frozen=True):
    """What follows from a failure.

    ``strike`` counts against the step: ``failure``, ``timeout``, or nothing; ``alive`` counts for it. ``rest`` is for
    how many seconds the step rests at once. ``repeatable``: the same step may be tried again. ``key_refused``: no other
    step of the provider can work. ``final``: the client is to have the provider's refusal as it is.
    """

    strike: Literal["", "failure", "timeout", "alive"] = ""
    rest: float = 0
    repeatable: bool = False
    key_refused: bool = False
    final: bool = False


def judge(failure: UpstreamFailure, stop_on: AbstractSet[str]) -> Verdict:
    """The policy on failures, all of it."""
    match failure:
        case UpstreamRefused(status=int(status)):
            # A provider's 401 is about our key, never about the client's (F6).
            named = not stop_on.isdisjoint([str(status), *failure.words])
            final = named and failure.body is not None and 400 <= status <= 599 and status != 401
            if status == 429:
                rest = RATE_LIMIT_REST if failure.retry_after is None else failure.retry_after
                return Verdict(rest=rest, repeatable=True, final=final)
            if status in KEY_REFUSED:
                return Verdict(rest=KEY_REST, key_refused=True, final=final)
            if status >= 500:
                return Verdict(strike="failure", repeatable=True, final=final)
            return Verdict(strike="alive", repeatable=status in REPEATABLE, final=final)
        case UpstreamTimeout(limit="deadline"):
            return Verdict()
        case UpstreamTimeout():
            return Verdict(strike="timeout")
        case _:
            return Verdict(strike="failure", repeatable=True)


def tell(health: Health, step: Step, verdict: Verdict, probe: bool) -> float | None:
    """What the verdict means for the step: for how many seconds it rests from now on, if it does."""
    if verdict.rest:
        health.rest(step, verdict.rest, probe)
    elif verdict.strike == "failure":
        health.failed(step, probe)
    elif verdict.strike == "timeout":
        health.timed_out(step, probe)
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


def _headers(provider: Provider) -> tuple[tuple[tuple[bytes, bytes], ...], frozenset[bytes]]:
    """What every request to the provider carries, and the lower-case names, which client headers do not replace."""
    headers = {b"user-agent": _USER_AGENT}
    if provider.api_key:
        headers[b"authorization"] = b"Bearer " + _revealed(provider.api_key)
    headers |= {name.lower().encode(): _revealed(value) for name, value in provider.headers.items()}
    return tuple(headers.items()), frozenset(headers)


def _keys(provider: Provider, secrets: Sequence[Secret]) -> tuple[Secret, ...]:
    """Which of the keys the provider is sent."""
    sent = {*provider.headers.values(), *([provider.api_key] if provider.api_key else [])}
    sent |= {token for each in sent if (token := each.token())}
    return tuple(secret for secret in secrets if secret in sent)


def _revealed(secret: Secret) -> bytes:
    return secret.reveal().encode()


def all_failed(
    failures: Sequence[tuple[AttemptRecord, UpstreamFailure]], secrets: Sequence[Secret], wakes_in: float | None = None
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
        details={"attempts": attempts_told(failures, secrets)},
    )


def attempts_told(
    failures: Sequence[tuple[AttemptRecord, UpstreamFailure]], secrets: Sequence[Secret]
) -> list[dict[str, Any]]:
    """One entry for each attempt, as the client is shown it; the provider's own words are added here and only here."""
    told = []
    for record, failure in failures:
        said = f"{failure.message}: {failure.detail}" if failure.detail else failure.message
        beginning = said[:_MOST_READ]
        message = without_keys(secrets, beginning)
        if message is not beginning and len(said) > _MOST_READ:  # half a key may stand at the end
            message = message.rpartition("***")[0] + "***"
        entry = {**msgspec.structs.asdict(record), "message": message[:300]}
        del entry["rests_s"]  # ours to know
        told.append(entry)
    return told
