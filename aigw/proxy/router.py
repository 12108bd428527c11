"""Policy: which attempts a call gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from aigw import __version__
from aigw.config.model import Config, Provider, Route, Step
from aigw.errors import RouteNotFound
from aigw.net.headers import Lines, lines
from aigw.protocols.endpoint import Call
from aigw.protocols.endpoints import ENDPOINTS
from aigw.proxy import nearest
from aigw.proxy.cooldown import Skip
from aigw.secret import Secret
from aigw.upstream.attempt import Attempt

_USER_AGENT = f"aigw/{__version__}".encode()


class _Routes(dict[str, Route]):
    """By exactly their names. Raises RouteNotFound for any other."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        super().__init__(routes)
        self._names = nearest.Names(routes)

    def __missing__(self, model: str) -> Route:
        advice = self._names.advice(model)
        said = f"The model {nearest.shown(model)} is not a route of this gateway{'; ' if advice else '.'}{advice}"
        raise RouteNotFound(f"{said} GET /v1/models lists them.", param="model")


class Router:
    """The routes of a configuration, with all that does not depend on the call made ready.

    ``without_keys`` are, by provider, what takes the keys that it is sent out of its answers.
    """

    def __init__(self, config: Config) -> None:
        self.routes = _Routes(config.routes)
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

    def own_headers(self, provider: Provider) -> Lines:
        """What every request to the provider carries, its key included."""
        return self._headers[provider.name]

    def attempt(self, step: Step, call: Call) -> Attempt:
        """The request to a step."""
        name = step.provider.name
        own = self._headers[name]  # which those of the client do not replace
        body, dropped = call.endpoint.rewrite(call, self._models[step.model], step.conflict_resolution)
        return Attempt(
            step=step,
            url=self._urls[name, call.endpoint.path],
            headers={**own, **call.headers, **own, b"x-request-id": b"X-Request-Id: %s\r\n" % call.request_id.encode()},
            body=body,
            dropped=dropped,
            tail=call.tail,
            method=call.method,
        )


def less_provider(steps: Sequence[Step], provider: Provider, skip: Skip) -> list[Step]:
    """The steps that are left where a provider refuses the key; ``skip`` gets each of its others."""
    for step in steps:
        if step.provider.name == provider.name:
            skip(step, "key_refused", None)
    return [step for step in steps if step.provider.name != provider.name]


def _headers(provider: Provider) -> Lines:
    """What every request to the provider carries."""
    headers = {b"user-agent": _USER_AGENT}
    if provider.api_key:
        key = _revealed(provider.api_key)
        headers |= {b"x-api-key": key} if provider.auth == "x-api-key" else {b"authorization": b"Bearer " + key}
    headers |= {name.lower().encode(): _revealed(value) for name, value in provider.headers.items()}
    return {name: lines([(name, value)]) for name, value in headers.items()}


def _keys(provider: Provider, secrets: Sequence[Secret]) -> tuple[Secret, ...]:
    """Which of the keys the provider is sent."""
    sent = {*provider.headers.values(), *([provider.api_key] if provider.api_key else [])}
    sent |= {token for each in sent if (token := each.token())}
    return tuple(secret for secret in secrets if secret in sent)


def _revealed(secret: Secret) -> bytes:
    return secret.reveal().encode()
