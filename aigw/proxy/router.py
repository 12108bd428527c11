"""Makes the attempts of a call from the routes of a configuration."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from aigw import __version__
from aigw.config.model import Config, Provider, Route, Step
from aigw.config.patterns import STAR, replaced
from aigw.errors import BadRequest
from aigw.net.headers import Lines, lines
from aigw.protocols.endpoint import Call
from aigw.protocols.endpoints import ENDPOINTS
from aigw.proxy.cooldown import Skip
from aigw.proxy.route_names import Routes
from aigw.secret import Secret
from aigw.upstream.attempt import Attempt

_USER_AGENT = f"aigw/{__version__}".encode()


class Router:
    """The routes of a configuration, and the parts of requests that do not depend on the call.

    ``without_keys`` has, by provider, the functions that remove the provider's keys from its answers.
    """

    def __init__(self, config: Config) -> None:
        self.routes = Routes(config.routes.values())
        self._defaults = {path: route for route in config.routes.values() for path in route.default_for}
        self.without_keys = {
            name: [key.out_of for key in _keys(provider, config.secrets)] for name, provider in config.providers.items()
        }
        self._headers = {
            (name, number): _headers(provider, key)
            for name, provider in config.providers.items()
            for number, key in enumerate(provider.keys)
        }
        self._models = {step.model: as_json(step.model) for route in config.routes.values() for step in route.steps}
        self._urls = {
            (name, path): f"{provider.base_url}/{path}"
            for name, provider in config.providers.items()
            for path in ENDPOINTS
        }

    def default_for(self, path: str) -> Route:
        """The route of a request to this endpoint that names no model. Raises BadRequest where there is none."""
        route = self._defaults.get(path)
        if route is None:
            right = f"name a route, as no route of this gateway has 'default_for: [{path}]'"
            raise BadRequest(f"'model' is missing; {right}.", param="model")
        return route

    def own_headers(self, provider: Provider, key: int = 0) -> Lines:
        """The headers of every request to the provider, with the key at this position."""
        return self._headers[provider.name, key]

    def sent_model(self, step: Step, call: Call) -> str:
        """The model that the step sends: a star in it is what the star in the route's name stands for."""
        if STAR in step.model and (text := self.routes.star(call.model)):
            return replaced(step.model, text)
        return step.model

    def attempt(self, step: Step, call: Call) -> Attempt:
        """The request to a step."""
        name = step.provider.name
        own = self._headers[name, step.key]  # a header of the client does not replace these
        if STAR in step.model:
            model = self.sent_model(step, call)
            written = as_json(model)
        else:
            model, written = step.model, self._models[step.model]
        body, dropped = call.endpoint.rewrite(call, written, step.conflict_resolution)
        return Attempt(
            step=step,
            url=self._urls[name, call.endpoint.path],
            headers={**own, **call.headers, **own, b"x-request-id": b"X-Request-Id: %s\r\n" % call.request_id.encode()},
            body=body,
            model=model,
            dropped=dropped,
            tail=call.tail,
            method=call.method,
        )


def less_provider(steps: Sequence[Step], provider: Provider, skip: Skip) -> list[Step]:
    """``steps`` without those of a provider that refused the key. ``skip`` is called with each of those."""
    for step in steps:
        if step.provider.name == provider.name:
            skip(step, "key_refused", None)
    return [step for step in steps if step.provider.name != provider.name]


def as_json(text: str) -> msgspec.Raw:
    """``text`` as a JSON string."""
    return msgspec.Raw(msgspec.json.encode(text))


def _headers(provider: Provider, key: Secret | None) -> Lines:
    """The headers of every request to the provider, with this key."""
    headers = {b"user-agent": _USER_AGENT}
    if key:
        sent = _revealed(key)
        headers |= {b"x-api-key": sent} if provider.auth == "x-api-key" else {b"authorization": b"Bearer " + sent}
    headers |= {name.lower().encode(): _revealed(value) for name, value in provider.headers.items()}
    return {name: lines([(name, value)]) for name, value in headers.items()}


def _keys(provider: Provider, secrets: Sequence[Secret]) -> tuple[Secret, ...]:
    """Those of ``secrets`` that are sent to the provider."""
    sent = {*provider.headers.values(), *([provider.api_key] if provider.api_key else [])}
    sent |= {token for each in sent if (token := each.token())}
    return tuple(secret for secret in secrets if secret in sent)


def _revealed(secret: Secret) -> bytes:
    return secret.reveal().encode()
