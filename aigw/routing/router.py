"""Makes the attempts of a call from the routes of a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from aigw import __version__
from aigw.config.model import Config, Provider, Route, Step
from aigw.errors import BadRequest, RouteNotFound, TooLarge
from aigw.net.headers import Lines, lines
from aigw.protocols.endpoint import Call
from aigw.protocols.endpoints import ENDPOINTS
from aigw.routing import nearest
from aigw.routing.balance import key_names
from aigw.routing.cooldown import Skip
from aigw.routing.route_names import Routes, Visible
from aigw.routing.urls import Tail, url_of
from aigw.secret import KeySearch, Secret, TwoSearches
from aigw.settings.addresses import MODEL
from aigw.settings.endpoint_names import NAMES
from aigw.settings.patterns import STAR, replaced, star_of
from aigw.upstream.attempt import Attempt

MODELS = "models"  # the list of them
_NONE: frozenset[str] = frozenset()
_USER_AGENT = f"aigw/{__version__}".encode()


class Part(NamedTuple):
    """A route as one endpoint has it: with the steps whose providers serve it, and those that are passed over."""

    route: Route
    passed_over: tuple[Step, ...]


class Router:
    """The routes of a configuration, and the parts of requests that do not depend on the call.

    ``visible`` has, by the patterns of a caller, the routes that it may use. ``without_keys`` has, by provider, the
    functions that remove the provider's keys from its answers. ``keys`` finds all keys. ``parts`` has, by name and
    endpoint, the routes of which some steps do not serve the endpoint. For ``key_names`` see balance.
    """

    def __init__(self, config: Config) -> None:
        self.routes = Routes(config.routes.values())
        self.visible = Visible(self.routes)
        self._defaults = {path: route for route in config.routes.values() for path in route.default_for}
        self.without_keys = {
            name: [key.out_of for key in _keys(provider, config.secrets)] for name, provider in config.providers.items()
        }
        self.keys = self._fixed_keys = KeySearch(config.secrets)
        self._secrets = config.secrets
        self._headers = {
            (name, number): _headers(provider, key)
            for name, provider in config.providers.items()
            for number, key in enumerate(provider.keys)
        }
        self.key_names = key_names(config)
        self._models = {step.model: as_json(step.model) for route in config.routes.values() for step in route.steps}
        self.parts = dict(_parts(config))
        self._urls: dict[tuple[str, str], str] = {}  # by provider and endpoint, each up to the model if it has one
        self._tails: dict[tuple[str, str], Tail] = {}  # what follows them, where that is not the client's alone
        for name, provider in config.providers.items():
            query = [(each, _revealed(value).decode()) for each, value in provider.query.items()]
            for path in (*ENDPOINTS, MODELS):
                self._urls[name, path], *pieces = url_of(provider, path).split(MODEL)
                if pieces or query:
                    self._tails[name, path] = Tail(pieces, query)

    def default_for(self, path: str, patterns: tuple[str, ...] = ()) -> Route:
        """The route of a request to this endpoint that names no model. Raises BadRequest where there is none.

        ``patterns`` are those of the routes that the caller may use, all if empty.
        """
        route = self._defaults.get(path)
        if route is None or (patterns and route not in self.visible[patterns].routes):
            right = f"name a route, as no route of this gateway has 'default_for: [{path}]'"
            raise BadRequest(f"'model' is missing; {right}.", param="model")
        return route

    def own_headers(self, provider: Provider, key: int = 0) -> Lines:
        """The headers of every request to the provider, with the key at this position."""
        return self._headers[provider.name, key]

    def sent_model(self, step: Step, call: Call) -> str:
        """The model that the step sends: a star in it is what the star in the route's name stands for."""
        found = next(filter(None, (star_of(pattern, call.model) for pattern in step.patterns)), None)
        return step.model if found is None else replaced(step.model, found)

    def headers_with(self, provider: Provider, key: Secret, changing: Sequence[Secret]) -> Lines:
        """The headers of every request to the provider, with a ``key`` that the configuration does not have.

        From now on all ``changing`` keys, of which this is one, are hidden as those of the configuration are.
        """
        self.keys = TwoSearches(self._fixed_keys, KeySearch(changing))
        known = [*_keys(provider, self._secrets), *changing]
        self.without_keys[provider.name] = [each.out_of for each in known]
        return _headers(provider, key)

    def part(self, route: Route, path: str, skip: Skip) -> Route:
        """The route as this endpoint has it. ``skip`` is called with each step that does not serve the endpoint.

        Raises RouteNotFound where no step does.
        """
        part = self.parts.get((route.name, path))
        if part is None:
            return route
        for step in part.passed_over:
            skip(step, "endpoint_not_served", None)
        if not part.route.steps:
            there = [f"/v1/{name}" for name in NAMES if any(step.provider.serves(name) for step in route.steps)]
            text = f"The model {nearest.shown(route.name)} is not served at /v1/{path}, but at {', '.join(there)}."
            raise RouteNotFound(text, param="model", code="endpoint_not_served")
        return part.route

    def target(self, provider: Provider, path: str, model: str, tail: bytes = b"") -> tuple[str, bytes]:
        """The URL of an endpoint of the provider, or of ``models``, and what follows it."""
        following = self._tails.get((provider.name, path))
        return self._urls[provider.name, path], tail if following is None else following.after(model, tail)

    def attempt(self, step: Step, call: Call) -> Attempt:
        """The request to a step."""
        name, path, tail = step.provider.name, call.endpoint.path, call.tail
        own = self._headers[name, step.key]  # a header of the client does not replace these
        if STAR in step.model:
            model = self.sent_model(step, call)
            written = as_json(model)
        else:
            model, written = step.model, self._models[step.model]
        if self._tails and (following := self._tails.get((name, path))):
            tail = following.after(model, tail)
        body, difference = call.endpoint.rewrite(call, written, step.changes)
        return Attempt(
            step=step,
            url=self._urls[name, path],
            headers={**own, **call.headers, **own, b"x-request-id": b"X-Request-Id: %s\r\n" % call.request_id.encode()},
            body=body,
            model=model,
            difference=difference,
            tail=tail,
            method=call.method,
        )


def _parts(config: Config) -> Iterator[tuple[tuple[str, str], Part]]:
    """See Router.parts. Few parts of a route differ, and most routes have none."""
    unserved = {
        name: {path for path in ENDPOINTS if not provider.serves(path)}
        for name, provider in config.providers.items()
        if provider.endpoints
    }
    for route in config.routes.values():
        lacking = [unserved.get(step.provider.name, _NONE) for step in route.steps]
        made: dict[tuple[int, ...], Part] = {}
        for path in _NONE.union(*lacking):
            served = tuple(step for step, without in zip(route.steps, lacking, strict=True) if path not in without)
            key = tuple(map(id, served))
            if key not in made:
                numbers = {step.number for step in served}
                others = tuple(step for step in route.steps if step.number not in numbers)
                made[key] = Part(msgspec.structs.replace(route, steps=served), others)
            yield (route.name, path), made[key]


def as_json(text: str) -> msgspec.Raw:
    """``text`` as a JSON string."""
    return msgspec.Raw(msgspec.json.encode(text))


def fitted(route: Route, call: Call, skip: Skip) -> Route:
    """The route with the steps that take a request of this size. ``skip`` is called with each of the others.

    Raises TooLarge where there is none.
    """
    steps = []
    for step in route.steps:
        if step.max_body is None or call.size <= step.max_body:
            steps.append(step)
        else:
            skip(step, "too_large", None)
    if not steps:
        most = max(step.max_body or 0 for step in route.steps)
        name = nearest.shown(route.name)
        text = f"The request has {call.size} bytes, and no step of the route {name} takes more than {most} bytes."
        raise TooLarge(text)
    return msgspec.structs.replace(route, steps=tuple(steps))


def _headers(provider: Provider, key: Secret | None) -> Lines:
    """The headers of every request to the provider, with this key."""
    headers = {b"user-agent": _USER_AGENT}
    if key and provider.key_header:
        sent = _revealed(key)
        headers[provider.key_header.encode()] = b"Bearer " + sent if provider.auth == "bearer" else sent
    headers |= {name.lower().encode(): _revealed(value) for name, value in provider.headers.items()}
    return {name: lines([(name, value)]) for name, value in headers.items()}


def _keys(provider: Provider, secrets: Sequence[Secret]) -> tuple[Secret, ...]:
    """Those of ``secrets`` that are sent to the provider."""
    own = [key for key in provider.keys if key]
    sent = {*provider.headers.values(), *provider.query.values(), *own}
    sent |= {value.in_url() for value in provider.query.values()}
    sent |= {token for each in sent if (token := each.token())}
    return tuple(secret for secret in secrets if secret in sent)


def _revealed(secret: Secret) -> bytes:
    return secret.reveal().encode()
