"""Policy: which attempts a call gets and in which order."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from aigw import __version__
from aigw.config.model import Config, Provider, Route, Step
from aigw.errors import RouteNotFound
from aigw.protocols.endpoint import Call
from aigw.protocols.endpoints import ENDPOINTS
from aigw.proxy import nearest
from aigw.proxy.cooldown import Cooldowns
from aigw.secret import Secret
from aigw.upstream.attempt import Attempt

Skip = Callable[[Step, str, "float | None"], None]  # a step, why it is passed over, and until when in Unix seconds
_USER_AGENT = f"aigw/{__version__}".encode()


class Router:
    """The routes of a configuration, with all that does not depend on the call made ready.

    ``without_keys`` are, by provider, what takes the keys that it is sent out of its answers.
    """

    def __init__(self, config: Config) -> None:
        self._routes = config.routes
        self._names = nearest.Names(config.routes)
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
            advice = self._names.advice(model)
            said = f"The model {nearest.shown(model)} is not a route of this gateway{'; ' if advice else '.'}{advice}"
            raise RouteNotFound(f"{said} GET /v1/models lists them.", param="model") from None

    def own_headers(self, provider: Provider) -> tuple[tuple[bytes, bytes], ...]:
        """What every request to the provider carries, its key included."""
        return self._headers[provider.name][0]

    def attempt(self, step: Step, call: Call) -> Attempt:
        """The request to a step."""
        name = step.provider.name
        own, taken = self._headers[name]
        passed = [header for header in call.headers if header[0] not in taken]
        body, dropped = call.endpoint.rewrite(call, self._models[step.model], step.conflict_resolution)
        return Attempt(
            step=step,
            url=self._urls[name, call.endpoint.path],
            headers=(*own, *passed, (b"x-request-id", call.request_id.encode())),
            body=body,
            dropped=dropped,
        )


def choose(steps: Sequence[Step], health: Cooldowns, skip: Skip) -> Step | None:
    """Of the steps that are left, the one to try now: as configured, but those that cool down at the end.

    ``skip`` gets each that is before it.
    """
    chosen = next(iter(health.order(steps)), None)
    if chosen is not None and chosen is not steps[0]:
        for step in steps[: steps.index(chosen)]:
            left = health.rests_for(step)
            skip(step, "cooling_down", None if left is None else time.time() + left)
    return chosen


def less_provider(steps: Sequence[Step], provider: Provider, skip: Skip) -> list[Step]:
    """The steps that are left where a provider refuses the key; ``skip`` gets each of its others."""
    for step in steps:
        if step.provider.name == provider.name:
            skip(step, "key_refused", None)
    return [step for step in steps if step.provider.name != provider.name]


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
