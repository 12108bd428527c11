"""Explains what the gateway would do with a request: which route, which steps in which order, and what each would get.

Nothing here uses the network, and nothing is changed. Of a request's content an explanation has names and sizes only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import msgspec

from aigw.config.model import Config, Route, Step
from aigw.errors import BadRequest, GatewayError
from aigw.explain.explained import Change, Explained, ExplainedStep, Refused
from aigw.net import headers
from aigw.protocols import envelope
from aigw.protocols.endpoint import JSON, Call, Endpoint, RawRequest
from aigw.protocols.endpoints import ENDPOINTS
from aigw.protocols.skip import Steps
from aigw.protocols.walk import Members, Walk
from aigw.proxy.cooldown import Cooldowns
from aigw.proxy.router import Router, as_json
from aigw.telemetry.record import requested

MOST_MEMBERS = 100
MAX_NAME = 64  # characters of a member
CHAT = "/v1/chat/completions"
_WRAPPED = frozenset(["path", "headers", "body"])
_headers = msgspec.json.Decoder(dict[str, str])
_path = msgspec.json.Decoder(str)


class Asked(msgspec.Struct, frozen=True):
    """A request that is to be explained. ``headers`` are those of the client, by their names in lower case."""

    endpoint: Endpoint
    headers: dict[bytes, bytes]
    body: bytes


class Explainer:
    """Explains requests with one configuration. ``cooldowns`` are those by the path of an endpoint, if known."""

    def __init__(self, config: Config, router: Router, cooldowns: Mapping[str, Cooldowns] | None = None) -> None:
        self._config = config
        self._router = router
        self._cooldowns = cooldowns

    def explain(self, data: bytes) -> Steps[Explained]:
        """The explanation of the request in ``data``, see ``read``. Raises BadRequest if there is none in it."""
        asked = yield from read(data)
        found = Explained(asked.endpoint.path, self._cooldowns is not None, len(asked.body))
        try:
            call = yield from _read_call(asked)
            yield from self._fill(found, call, asked)
        except GatewayError as error:
            found.error = Refused(error.status, error.type, error.code, error.message)
        return found

    def _fill(self, found: Explained, call: Call, asked: Asked) -> Steps[None]:
        found.members = {name[:MAX_NAME]: len(raw) for name, raw in islice(call.members.items(), MOST_MEMBERS)}
        found.model, found.stream = requested(call.model) if call.model else None, call.stream
        if call.model:
            route = self._router.routes[call.model]
            found.name = self._router.routes.pattern(call.model)
            found.star = self._router.routes.star(call.model) or None
            found.found_by = "pattern" if found.star else "name" if route.name == call.model else "also"
        else:
            route, found.found_by = self._router.default_for(call.endpoint.path), "default_for"
        found.route = route.name
        found.notes = list(_notes(route, call))
        health = self._cooldowns[call.endpoint.path] if self._cooldowns is not None else None
        for step in route.steps if health is None else health.order(route.steps):
            yield
            found.steps = [*found.steps, self._step(step, call, health)]

    def _step(self, step: Step, call: Call, health: Cooldowns | None) -> ExplainedStep:
        model = self._router.sent_model(step, call)
        written = as_json(model)
        body, dropped = call.endpoint.rewrite(call, written, step.conflict_resolution)
        left = health.cooldown_left(step) if health is not None else None
        return ExplainedStep(
            step.number,
            step.provider.name,
            model,
            f"{step.provider.base_url}/{call.endpoint.path}",
            len(body),
            list(_changes(call.members, written, dropped)),
            None if left is None else round(left),
            health is not None and left is None and health.cools_down(step),
        )


def read(data: bytes) -> Steps[Asked]:
    """The request in ``data``: the body of one to chat/completions, or ``body``, ``path`` and ``headers`` in an object.

    Raises BadRequest.
    """
    right = 'write the body of a request, or {"path": "/v1/responses", "headers": {}, "body": {}}'
    try:
        members = envelope.split_small(data)
        if members is None:
            members = yield from Walk(data).members()
    except ValueError as error:
        raise BadRequest(f"The request is not a JSON object: {error}; {right}.") from None
    if "body" not in members:
        return Asked(_endpoint(CHAT), {}, data)
    if unknown := next((name for name in members if name not in _WRAPPED), None):
        raise BadRequest(f"The member {unknown[:64]!r} beside 'body' is unknown; {right}.")
    try:
        path = _path.decode(members["path"]) if "path" in members else CHAT
        given = _headers.decode(members["headers"]) if "headers" in members else {}
    except (ValueError, RecursionError):
        raise BadRequest(f"'path' must be a string, and 'headers' names with strings; {right}.") from None
    sent = {name.lower().encode(errors="replace"): value.encode(errors="replace") for name, value in given.items()}
    return Asked(_endpoint(path), sent, bytes(members["body"]))


def _endpoint(path: str) -> Endpoint:
    plain = path.partition("?")[0].rstrip("/")
    by_path = {name: each for each in ENDPOINTS.values() for name in (each.path, f"/v1/{each.path}", *each.aliases)}
    endpoint = by_path.get(plain)
    if endpoint is None:
        there = ", ".join(f"/v1/{each}" for each in ENDPOINTS)
        raise BadRequest(f"'path' is not the path of an endpoint with a body; write one of {there}.")
    if JSON not in endpoint.takes:
        raise BadRequest(
            f"Requests to {plain} are forms, which cannot be explained; write the path of another endpoint."
        )
    return endpoint


def _read_call(asked: Asked) -> Steps[Call]:
    sent = headers.for_provider(asked.headers, (JSON,), asked.endpoint.client_headers)
    found = asked.endpoint.read(RawRequest(asked.endpoint, asked.body, sent, content_type=JSON))
    return found if isinstance(found, Call) else (yield from found)


def _notes(route: Route, call: Call) -> Iterator[str]:
    if call.endpoint.state_in is not None and call.endpoint.state_in(call):
        yield "it continues a stored response, so only the step that gave the response is tried"
    if route.hedge is not None:
        yield f"an attempt without output for {route.hedge.after:g}s may get a second one beside it, at the next step"
    if route.hold == "whole":
        yield "the answer is held until it is whole"


def _changes(members: Members, model: msgspec.Raw, dropped: Sequence[str]) -> Iterator[Change]:
    """The difference between a client's body and that for a step. ``dropped`` may name members of members."""
    before = members.get("model")
    if before is None or bytes(before) != bytes(model):
        yield Change("model", "added" if before is None else "replaced", value=model)
    for name in dropped:
        yield Change(name, "removed", len(members[name]) if name in members else None)
