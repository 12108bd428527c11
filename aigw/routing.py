"""Policy: which attempts a call gets and in which order, and what to tell the client when none of them worked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from aigw import __version__
from aigw.config import Config, Provider, Route, Step
from aigw.errors import AllStepsFailed, RouteNotFound, UpstreamFailure
from aigw.openai import ENDPOINTS, Call, Endpoint, rewrite
from aigw.records import AttemptRecord
from aigw.secret import Secret

_REPEATABLE = frozenset([408, 409, 429])
_USER_AGENT = f"aigw/{__version__}".encode()


class Attempt(msgspec.Struct, frozen=True, eq=False):
    """One request to one provider, fully decided. ``headers`` hold the provider's key, so they show in no ``repr``."""

    step: Step
    url: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def __repr__(self) -> str:
        return f"Attempt(step={self.step.number}, provider={self.step.provider.name!r}, body={len(self.body)} bytes)"


class Router:
    """The routes of a configuration, with all that does not depend on the call made ready."""

    def __init__(self, config: Config) -> None:
        self._routes = config.routes
        self._headers = {name: _headers(provider) for name, provider in config.providers.items()}
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

    def plan(self, route: Route, call: Call) -> Iterator[Attempt]:
        """The attempts in order, each made only when it is asked for."""
        for step in route.steps:
            yield self._attempt(step, call.endpoint, call)

    def _attempt(self, step: Step, endpoint: Endpoint, call: Call) -> Attempt:
        name = step.provider.name
        own, taken = self._headers[name]
        passed = [header for header in call.headers if header[0] not in taken]
        return Attempt(
            step=step,
            url=self._urls[name, endpoint.path],
            headers=(*own, *passed, (b"x-request-id", call.request_id.encode())),
            body=rewrite(call, msgspec.Raw(msgspec.json.encode(step.model)), step.conflict_resolution),
        )


def _headers(provider: Provider) -> tuple[tuple[tuple[bytes, bytes], ...], frozenset[bytes]]:
    """What every request to the provider carries, and the lower-case names, which client headers do not replace."""
    headers = {b"user-agent": _USER_AGENT}
    if provider.api_key:
        headers[b"authorization"] = b"Bearer " + _revealed(provider.api_key)
    headers |= {name.lower().encode(): _revealed(value) for name, value in provider.headers.items()}
    return tuple(headers.items()), frozenset(headers)


def _revealed(secret: Secret) -> bytes:
    return secret.reveal().encode()


def all_failed(failures: Sequence[tuple[AttemptRecord, UpstreamFailure]], secrets: Sequence[Secret]) -> AllStepsFailed:
    """The 502 that says what happened at each step, in bounded and redacted words."""
    statuses = [failure.status for _, failure in failures]
    hopeless = all(status and 400 <= status < 500 and status not in _REPEATABLE for status in statuses)
    names = ", ".join(f"{record.provider} ({failure.message})" for record, failure in failures)
    return AllStepsFailed(
        f"No step of the route gave an answer: {names}"[:1000],
        headers={"x-should-retry": "false"} if hopeless else {},
        details={"attempts": attempts_told(failures, secrets)},
    )


def attempts_told(
    failures: Sequence[tuple[AttemptRecord, UpstreamFailure]], secrets: Sequence[Secret]
) -> list[dict[str, Any]]:
    """One entry for each attempt, as the client is shown it; the provider's own words are added here and only here."""
    told = []
    for record, failure in failures:
        message = f"{failure.message}: {failure.detail}" if failure.detail else failure.message
        for secret in sorted(secrets, key=len, reverse=True):  # one may begin with another
            message = secret.hide_in(message)
        told.append({**msgspec.structs.asdict(record), "message": message[:300]})
    return told
