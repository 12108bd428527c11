"""Which calls may go the straight path, and what all of those of one route have in common."""

from __future__ import annotations

from functools import partial

import msgspec

from aigw.config.model import Route, Step
from aigw.net import headers
from aigw.protocols.endpoint import Call
from aigw.proxy.answers import MustFinish
from aigw.proxy.gateway import Gateway
from aigw.routing.router import as_json
from aigw.settings.patterns import STAR
from aigw.telemetry.record import called, host_and_path
from aigw.upstream.client import ProviderClient


class Plan(msgspec.Struct, frozen=True, eq=False):
    """What all calls of one route have in common at one endpoint.

    ``start`` is the head of the request up to the digits of its Content-Length, ``own`` are the headers of its
    provider. ``model`` is that of the step as JSON. ``about`` are the headers of an answer that name its step.
    ``streams``: its streams can go this way too; ``must_finish`` is that of a Stream.
    """

    route: Route
    step: Step
    client: ProviderClient
    start: bytes
    own: dict[bytes, bytes]
    model: msgspec.Raw
    about: bytes
    host: str
    path: str
    streams: bool
    must_finish: MustFinish


class Plans:
    """The plans of one endpoint, by its path."""

    def __init__(self, gateway: Gateway, path: str) -> None:
        self._upstream = gateway.upstream
        self._router = gateway.router
        self._cooldowns = gateway.cooldowns[path]
        self._finishing = gateway.finishing
        self._path = path
        self._plans: dict[str, Plan | None] = {}  # by route, each made at its first call; None where there is none

    def plan_for(self, call: Call) -> Plan | None:
        """How this call can go; None if it cannot."""
        if not call.model:
            return None
        patterns = call.caller.routes if call.caller is not None else ()
        route = self._router.visible[patterns].get(call.model)
        if route is None:
            return None
        try:
            plan = self._plans[route.name]
        except KeyError:
            plan = self._plans[route.name] = self._plan(route)
        if plan is None or (call.stream and not plan.streams) or self._cooldowns.cools_down(plan.step):
            return None
        return plan

    def _plan(self, route: Route) -> Plan | None:
        path, step = self._path, route.steps[0]
        provider = step.provider
        special = (
            route.deadline is not None
            or route.hedge is not None
            or route.hold != "first_output"
            or route.has_choice
            or route.limits_bodies
            or (route.name, path) in self._router.parts
            or STAR in step.model
            or step.key_number is not None
            or step.counted
        )
        client = self._upstream.straight_to(provider)
        own = self._router.own_headers(provider, step.key)
        if special or client is None or b"x-request-id" in own:
            return None
        url, tail = self._router.target(provider, path, step.model)
        about = headers.about(route.name, 1, step.number, provider.name, step.model)
        where = called(step, path) if provider.paths else host_and_path(provider.base_url, path)
        start, model = client.start_of("POST", url, tail), as_json(step.model)
        must_finish = partial(self._finishing.expected, step, path)
        return Plan(route, step, client, start, own, model, about, *where, route.keepalive is None, must_finish)
