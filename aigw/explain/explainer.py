"""Explains what the gateway would do with a request: which route, which steps in which order, and what each would get.

Nothing here uses the network, and nothing is changed. Of a request's content an explanation has names and sizes only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from urllib.parse import quote

from aigw.config.model import Config, Route, Step
from aigw.errors import GatewayError
from aigw.explain.asked import Asked, read
from aigw.explain.changes import changes_of
from aigw.explain.explained import Explained, ExplainedStep, PassedOver, Refused
from aigw.key_forms import shortened
from aigw.net import headers
from aigw.protocols.endpoint import JSON, Call, RawRequest
from aigw.protocols.endpoints import ENDPOINTS
from aigw.protocols.skip import Steps
from aigw.routing.balance import Balance, session_of
from aigw.routing.cooldown import Cooldowns, CooldownsByEndpoint
from aigw.routing.router import Router, as_json, fitted
from aigw.routing.urls import url_of
from aigw.secret import KeySearch
from aigw.settings.addresses import MODEL
from aigw.telemetry.record import RecordBuilder, requested

MOST_MEMBERS = 100
MAX_NAME = 64  # characters of a member


class Explainer:
    """Explains requests with one configuration. ``health`` has the cooldowns, if a gateway runs."""

    def __init__(self, config: Config, router: Router, health: CooldownsByEndpoint | None = None) -> None:
        self._config = config
        self._router = router
        self._is_running = health is not None
        self._health = health or CooldownsByEndpoint(lambda: 0.0)
        self._cooldowns = {path: self._health.at(path) for path in ENDPOINTS}

    @property
    def keys(self) -> KeySearch:
        """Finds all keys, of which some may change."""
        return self._router.keys

    def explain(self, data: bytes) -> Steps[Explained]:
        """The explanation of the request in ``data``, see ``read``. Raises BadRequest if there is none in it."""
        asked = yield from read(data)
        found = Explained(asked.endpoint.path, self._is_running, len(asked.body))
        try:
            call = yield from self._read_call(asked)
            yield from self._fill(found, call, asked)
        except GatewayError as error:
            found.error = Refused(error.status, error.type, error.code, error.message)
        return found

    def _read_call(self, asked: Asked) -> Steps[Call]:
        sent = headers.for_provider(asked.headers, (JSON,), asked.endpoint.client_headers)
        caller = self._config.callers[0] if len(self._config.callers) == 1 else None
        found = asked.endpoint.read(RawRequest(asked.endpoint, asked.body, sent, caller=caller, content_type=JSON))
        return found if isinstance(found, Call) else (yield from found)

    def _fill(self, found: Explained, call: Call, asked: Asked) -> Steps[None]:
        found.members = {_shown(name): len(raw) for name, raw in islice(call.members.items(), MOST_MEMBERS)}
        found.model, found.stream = requested(call.model) if call.model else None, call.stream
        mine = call.caller.routes if call.caller is not None else ()
        if call.model:
            route = self._router.visible[mine][call.model]
            found.name = self._router.routes.pattern(call.model)
            found.star = self._router.routes.star(call.model) or None
            found.found_by = "pattern" if found.star else "name" if route.name == call.model else "also"
        else:
            route, found.found_by = self._router.default_for(call.endpoint.path, mine), "default_for"
        found.route, path = route.name, call.endpoint.path
        found.notes = list(_notes(route, call))
        if call.caller is None and any([each.routes for each in self._config.callers]):
            found.notes.append("a caller whose key has routes without this one gets 404; the caller is not known here")

        def skip(step: Step, reason: str, until: float | None) -> None:
            passed = PassedOver(step.number, step.provider.name, step.model, reason)
            if passed not in found.passed_over:
                found.passed_over = [*found.passed_over, passed]

        route = self._router.part(route, path, skip)
        if route.limits_bodies:
            route = fitted(route, call, skip)
        steps: Sequence[Step] = route.steps
        if route.has_choice:
            steps = self._balanced(route, steps, call, asked)
            found.session = _session(route, call, asked)
        for step in self._cooldowns[path].order(steps):
            yield
            found.steps = [*found.steps, self._step(step, call, self._cooldowns[path])]

    def _balanced(self, route: Route, steps: Sequence[Step], call: Call, asked: Asked) -> list[Step]:
        """In the order of a Balance of its own, in which ``weighted`` draws nothing by chance."""
        balance = Balance(self._config, self._router.key_names, self._cooldowns, self._health.pending, lambda: 0.5)
        record = RecordBuilder("", "", "", 0.0, seconds=lambda: 0.0)
        return balance.order(route, steps, call, asked, record)

    def _step(self, step: Step, call: Call, health: Cooldowns) -> ExplainedStep:
        provider, model = step.provider, self._router.sent_model(step, call)
        written = as_json(model)
        body, difference = call.endpoint.rewrite(call, written, step.changes)
        left = health.cooldown_left(step)
        url = url_of(provider, call.endpoint.path).replace(MODEL, quote(model, safe=""))
        query = "&".join(f"{quote(name, safe='')}=***" for name in provider.query)
        return ExplainedStep(
            step.number,
            provider.name,
            model,
            f"{url}?{query}" if query else url,
            len(body),
            list(changes_of(call.members, written, difference, step.changes)),
            None if left is None else round(left),
            left is None and health.cools_down(step),
            step.target or None,
            step.key_number,
            _choice(step),
        )


def _shown(name: str) -> str:
    """The beginning of a member's name, as UTF-8 has it: a name may hold half of a surrogate pair."""
    return shortened(name, MAX_NAME).encode(errors="replace").decode()


def _notes(route: Route, call: Call) -> Iterator[str]:
    if call.endpoint.state_in is not None and call.endpoint.state_in(call):
        yield "it continues a stored response, so only the step that gave the response is tried"
    if route.hedge is not None:
        yield f"an attempt without output for {route.hedge.after:g}s may get a second one beside it, at the next step"
    if route.hold == "whole":
        yield "the answer is held until it is whole"


def _session(route: Route, call: Call, asked: Asked) -> str:
    """What names the session of the request. Its value is content of the client."""
    for name in route.session_from:
        header = name.lower().encode()
        if session_of(call, asked, [(name, header)]) is not None:
            return f"the header {name}" if asked.header(header) else f"the member {name}"
    return "the caller" if call.caller is not None else "the caller, which is not known here"


def _choice(step: Step) -> str | None:
    """How the step was chosen among those of its number."""
    among = [f"{step.balance} among targets"] if step.target else []
    among += [f"{step.provider.balance} among {len(step.provider.keys)} keys"] if step.key_number else []
    return ", ".join(among) or None
