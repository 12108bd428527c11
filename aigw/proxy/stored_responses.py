"""Calls about a response that a provider keeps: they go to the step that gave its id, and never to another provider."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec.structs import replace
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from aigw.config.model import Config, Route, Step
from aigw.errors import (
    AllStepsFailed,
    BadRequest,
    GatewayError,
    PathNotFound,
    StateElsewhere,
    UpstreamFailure,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from aigw.key_forms import shortened
from aigw.net.lateness import within
from aigw.protocols.endpoint import Call
from aigw.proxy.committed import Answer
from aigw.routing.cooldown import Cooldowns
from aigw.routing.keyed_upstream import Sender
from aigw.routing.response_ids import Place, ResponseIds, is_id
from aigw.routing.router import Router
from aigw.telemetry.record import RecordBuilder
from aigw.upstream import body
from aigw.upstream.reasons import ProxyRefused
from aigw.upstream.response import Response

SEARCH_SECONDS = 10.0  # for each provider
MOST_ASKED = 16  # providers, for one id
_BEGINNING = 64 * 1024  # of a response, in which its id is
_NOT_THERE = frozenset([400, 404, 405, 410, 422, 501])  # the provider does not have the response, or keeps none

Start = Callable[[Route], Deferred[None]]


class StoredResponses:
    """Finds the step for such calls. ``cooldowns`` are those by the path of an endpoint."""

    def __init__(
        self,
        config: Config,
        upstream: Sender,
        router: Router,
        cooldowns: Mapping[str, Cooldowns],
        ids: ResponseIds,
        clock: IReactorTime,
    ) -> None:
        self._upstream = upstream
        self._router = router
        self._cooldowns = cooldowns
        self._ids = ids
        self._clock = clock
        # With several callers nothing shows which of them an unknown id belongs to, so none of them reaches it.
        self._may_search = len(config.callers) == 1
        self._keys = router.key_names

    def note(self, call: Call, route: Route, step: Step, held: Answer) -> None:
        """The step answers the call: remember the id of its answer."""
        if call.endpoint.id_in is not None and (response_id := call.endpoint.id_in(held.beginning)):
            place = Place(step.provider.name, step.model, route.name, self._keys[step.provider.name, step.key])
            self._ids.note(_caller(call), response_id, place)

    def serve(self, call: Call, response_id: str, record: RecordBuilder, start: Start) -> Deferred[None]:
        """``start`` the call on its route, of which only the step that has the response is left.

        Fails with StateElsewhere if that step cannot be asked, with PathNotFound or BadRequest if there is none.
        Raises RouteNotFound.
        """
        routes = self._routes(call, record)
        place = self._ids.place(_caller(call), response_id)
        if place is None and self._may_search:
            steps = {(step.provider.name, step.key): step for route in routes for step in route.steps}
            if len(steps) > 1 and is_id(response_id):
                found = self._search(call, response_id, list(steps.values())[:MOST_ASKED], record)
                return found.addCallback(self._start_at, call, response_id, routes, record, start)
            place = Place(next(iter(steps))[0]) if len(steps) == 1 else None
        if place is None:
            return fail(_unknown(call, response_id))
        return self._start_at(place, call, response_id, routes, record, start)

    def _routes(self, call: Call, record: RecordBuilder) -> list[Route]:
        """The call's route, else all of them, with the steps whose providers serve the endpoint."""
        visible = self._router.visible[call.caller.routes if call.caller is not None else ()]
        if call.model:
            return [self._router.part(visible[call.model], call.endpoint.path, record.skip)]
        parts = self._router.parts
        found = [
            part.route if (part := parts.get((route.name, call.endpoint.path))) else route for route in visible.routes
        ]
        return [route for route in found if route.steps]

    def _start_at(
        self,
        place: Place,
        call: Call,
        response_id: str,
        routes: Iterable[Route],
        record: RecordBuilder,
        start: Start,
    ) -> Deferred[None]:
        found = self._step_at(place, routes)
        if found is None:
            where = f"the route {call.model!r}" if call.model else "the configuration"
            has_provider = any(step.provider.name == place.provider for route in routes for step in route.steps)
            what = "key" if has_provider else "step"
            text = f"{where} has no {what} of the provider {place.provider!r}, which has the response"
            return fail(_elsewhere(f"{text} by another key" if has_provider else text))
        route, step = found
        rests = self._cooldowns[call.endpoint.path].cooldown_left(step)
        if rests is not None:
            text = f"step {step.number} of the route {route.name!r} cools down, and only its provider has the response"
            return fail(_elsewhere(text, rests))

        def ended(result: Any) -> Any:
            if isinstance(result, Failure):
                return _as_elsewhere(result)
            if call.method == "DELETE" and record.attempts[-1].outcome == "ok":
                self._ids.forget(_caller(call), response_id)
            return result

        return start(replace(route, steps=(step,), has_choice=False)).addBoth(ended)

    def _step_at(self, place: Place, routes: Iterable[Route]) -> tuple[Route, Step] | None:
        """The step that has what is at the place: of its route and model if there is one, else of its provider.

        Of several keys only the one that made it has it. A single key may have been replaced by another of its owner.
        """
        steps = [
            (route, step)
            for route in routes
            for step in route.steps
            if step.provider.name == place.provider
            and (step.key_number is None or self._keys[place.provider, step.key] == place.key)
        ]
        alike = [each for each in steps if each[1].model == place.model]
        return next((each for each in alike if each[0].name == place.route), next(iter([*alike, *steps]), None))

    def _search(self, call: Call, response_id: str, steps: Iterable[Step], record: RecordBuilder) -> Deferred[Place]:
        """Ask each provider once with each of its keys whether it has the response, one after the other."""
        began = self._clock.seconds()
        left = iter(steps)
        silent: list[str] = []

        def ask_next() -> Deferred[Place]:
            step = next(left, None)
            if step is None:
                if silent:
                    names = " and ".join(map(repr, dict.fromkeys(silent)))
                    text = f"the response is unknown here, and {names} cannot be asked"
                    return fail(_elsewhere(text, 1))
                return fail(_unknown(call, response_id))
            return self._ask(call, response_id, step).addCallbacks(
                decide, no_answer, callbackArgs=(step,), errbackArgs=(step,)
            )

        def decide(has_it: bool | None, step: Step) -> Place | Deferred[Place]:
            name = step.provider.name
            if has_it:
                place = Place(name, key=self._keys[name, step.key])
                self._ids.note(_caller(call), response_id, place)
                return place
            if has_it is None:
                silent.append(name)
            return ask_next()

        def no_answer(failure: Failure, step: Step) -> Deferred[Place]:
            failure.trap(UpstreamFailure)
            silent.append(step.provider.name)
            return ask_next()

        def waited(result: Any) -> Any:
            record.waited += self._clock.seconds() - began
            return result

        return ask_next().addBoth(waited)

    def _ask(self, call: Call, response_id: str, step: Step) -> Deferred[bool | None]:
        """Whether the provider has the response; None where its answer does not show that."""
        own = self._router.own_headers(step.provider, step.key)
        sent = {**own, b"x-request-id": b"X-Request-Id: %s\r\n" % call.request_id.encode()}
        path, wanted = call.endpoint.path.partition("/")[0], response_id.encode()
        url, tail = self._router.target(step.provider, path, step.model, b"/" + wanted)

        def read(response: Response) -> Deferred[bool | None]:
            taken = body.read(response, _BEGINNING, SEARCH_SECONDS, self._clock)
            return taken.addCallback(lambda found: decide(response.code, found[0]))

        def decide(status: int, data: bytes) -> bool | None:
            if 200 <= status < 300:
                return re.search(rb'"id"\s*:\s*"%s"' % re.escape(wanted), data) is not None
            return False if status in _NOT_THERE else None

        answered: Deferred[Any] = self._upstream.get(step.provider, url, sent, SEARCH_SECONDS, tail).addCallback(read)
        return within(answered, SEARCH_SECONDS, self._clock, lambda: UpstreamTimeout("answer", SEARCH_SECONDS))


def _caller(call: Call) -> str:
    return call.caller.name if call.caller is not None else ""


def _elsewhere(text: str, seconds: float | None = None, **more: Any) -> StateElsewhere:
    """``seconds`` are those after which it may work."""
    again = {"x-should-retry": "false"} if seconds is None else {"Retry-After": str(max(1, round(seconds + 0.5)))}
    return StateElsewhere(f"The request needs a response that one provider keeps: {text}.", headers=again, **more)


def _as_elsewhere(failure: Failure) -> Failure:
    """A provider that cannot be reached: nothing else can answer, so it is no failure of all steps."""
    error: Any = failure.value
    outcomes = {each["outcome"] for each in error.details["attempts"]} if failure.check(AllStepsFailed) else set()
    if not outcomes or not outcomes <= {UpstreamUnreachable.outcome, ProxyRefused.outcome}:
        return failure
    text = "its provider cannot be reached, and no other has it"
    return Failure(_elsewhere(text, 1, details=error.details))


def _unknown(call: Call, response_id: str) -> GatewayError:
    shown = repr(shortened(response_id, 64))
    if call.response_id:
        return PathNotFound(f"No provider of this gateway has a response {shown} for you.", code="response_not_found")
    text = f"No provider of the route has a response {shown} for you; send the whole conversation instead."
    return BadRequest(text, param="previous_response_id", code="previous_response_not_found")
