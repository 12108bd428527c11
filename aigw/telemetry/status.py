"""What ``/status`` shows, as data: the daemon, each route with its steps, what failed of late. No key, no content."""

from __future__ import annotations

import math
import platform
import time
from typing import Any

from aigw import __version__
from aigw.config.model import Route, Step
from aigw.telemetry.counters import Counters, RouteCounters, StepCounters
from aigw.telemetry.last_hour import Hour
from aigw.telemetry.snapshot import Snapshot

_STATES = {True: "answering", False: "failed", None: "unused"}


def status(live: Snapshot, tally: Counters) -> dict[str, Any]:
    """Everything, ready for JSON. Moments are Unix seconds; an hour has 60 values, the oldest first."""
    reloads, expires = live.reloads, live.certificate_expires
    return {
        "version": __version__,
        "python": platform.python_version(),
        "state": "stopping" if live.stopping else "ready",
        "started": round(reloads.started),
        "in_flight": sum(live.in_flight.values()),
        "connections": live.connections,
        "lag_ms": round(live.lag * 100) * 10,
        "certificate": None if expires is None else {"expires": round(expires)},
        "reload": {
            "taken": reloads.taken,
            "taken_at": round(reloads.taken_at),
            "refused": reloads.refused,
            "refused_at": reloads.refused_at and round(reloads.refused_at),
        },
        "routes": [_route(route, live, tally.routes[route.name]) for route in live.config.routes.values()],
        "failures": list(reversed(tally.failures)),
    }


def _route(route: Route, live: Snapshot, tally: RouteCounters) -> dict[str, Any]:
    steps = [_step(step, live, tally.steps[step.number, step.provider.name, step.model]) for step in route.steps]
    return {
        "name": route.name,
        "in_flight": live.in_flight.get(route.name, 0),
        "requests": sum(tally.requests.values()),
        "fallbacks": tally.fallbacks,
        "steps": steps,
    }


def _step(step: Step, live: Snapshot, tally: StepCounters) -> dict[str, Any]:
    left = live.rests_for(step)
    shown = {
        "number": step.number,
        "provider": step.provider.name,
        "model": step.model,
        "state": "resting" if left is not None else _STATES[tally.answers],
        "until": None if left is None else math.ceil(time.time() + left),
        "why": None if left is None else tally.why or "it failed on another route",
        "tokens": tally.tokens,
    }
    return {**shown, "hour": _hour(tally.hour, live.now)}


def _hour(hour: Hour, now: float) -> dict[str, Any]:
    """``first_token_ms`` is that of streams or, where there was none in the hour, the time to the whole answer."""
    minutes = list(hour.until(now))
    known = [minute for minute in minutes if minute is not None]
    streams, answers = sum(m.streams for m in known), sum(m.answers for m in known)
    total = sum(m.first for m in known) if streams else sum(m.whole for m in known)
    return {
        "ok": sum(m.ok for m in known),
        "failed": sum(m.failed for m in known),
        "prompt": sum(m.prompt for m in known),
        "completion": sum(m.completion for m in known),
        "streams": streams > 0,
        "ms": round(total / (streams or answers) * 1000) if streams or answers else None,
        "minutes": [
            None if m is None or not (n := m.streams if streams else m.answers)
            else round((m.first if streams else m.whole) / n * 1000)
            for m in minutes
        ],
    }  # fmt: skip
