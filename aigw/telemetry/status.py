"""The data of ``/status``: the daemon, routes with their steps, callers, the latest failures. No key, no content.

It is made in short steps, because there may be thousands of routes. Each number is that of the time of its step.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import TypedDict

import msgspec

from aigw import __version__
from aigw.config.model import Route, Step
from aigw.settings.callers import Account
from aigw.telemetry.caller_counters import CallerCounters
from aigw.telemetry.counters import Counters, RouteCounters, StepCounters, StepKey, step_key
from aigw.telemetry.last_hour import MINUTES, Failed, Hour
from aigw.telemetry.snapshot import Snapshot


class HourStatus(TypedDict):
    """The last hour of a step: attempts, tokens and times; see ``_hour``."""

    ok: int
    failed: int
    prompt: int
    completion: int
    streams: bool
    ms: int | None
    minutes: list[int | None]


class ChoiceStatus(TypedDict, total=False):
    """What a step of a route chooses from: the positions of a target, and of a key if the provider has several."""

    target: int
    key_number: int


class StepStatus(ChoiceStatus):
    """One step of a route, or one of its targets and keys. ``until`` and ``why`` are of its cooldown, None without
    one."""

    number: int
    provider: str
    model: str
    state: str
    until: int | None
    why: str | None
    tokens: dict[str, int]
    hour: HourStatus


_QUIET: HourStatus = {
    "ok": 0,
    "failed": 0,
    "prompt": 0,
    "completion": 0,
    "streams": False,
    "ms": None,
    "minutes": [None] * MINUTES,
}
# Why a step cools down that did not fail itself: by whether its provider has one key at most.
_ELSEWHERE = {True: "it failed on another route", False: "its provider or its key failed elsewhere"}
_STATES = {True: "answering", False: "failed", None: "unused"}
PIECE = 16  # steps of routes, which take up to a millisecond

Hide = Callable[[bytes], bytes]


def status(live: Snapshot, counters: Counters, hide: Hide) -> Generator[None, None, bytes]:
    """All of it, as JSON. Times are in Unix seconds. ``minutes`` has 60 values, the oldest first.

    ``hide`` removes the keys from the values of a JSON text.
    """
    known = counters.routes  # a reload makes another one
    named = [(route, known[route.name], known[route.name].steps) for route in live.config.routes.values()]
    shown = daemon_status(live, counters, hide)
    routes: list[bytes] = []
    pace = Pace()
    for route, counted, steps in named:
        routes.append((yield from route_status(route, counted, steps, live, hide, pace)))
    whole = with_list(shown, "routes", routes)
    if not counters.callers:
        return whole
    callers = yield from callers_status(counters.callers.items(), live, hide)
    return with_list(whole, "callers", callers)


def daemon_status(live: Snapshot, counters: Counters, hide: Hide) -> bytes:
    """The daemon and the latest failures, as a JSON object."""
    reloads, expires = live.reloads, live.certificate_expires
    shown = {
        "version": __version__,
        "python": platform.python_version(),
        "state": "stopping" if live.stopping else "ready",
        "started": round(reloads.started),
        "in_flight": sum(live.in_flight.values()),
        "connections": live.connections,
        "lag_ms": round(live.lag * 100) * 10,
        "held": _held(live),
        "certificate": None if expires is None else {"expires": round(expires)},
        "reload": {
            "taken": reloads.taken,
            "taken_at": round(reloads.taken_at),
            "refused": reloads.refused,
            "refused_at": reloads.refused_at and round(reloads.refused_at),
            "mistakes": reloads.mistakes,
        },
        "failures": [_failed(failed) for failed in reversed(counters.failures)],
    }
    return hide(msgspec.json.encode(shown))


class Pace:
    """How many steps of routes were made since the last pause."""

    made = 0


def route_status(
    route: Route,
    counted: RouteCounters,
    steps: Mapping[StepKey, StepCounters],
    live: Snapshot,
    hide: Hide,
    pace: Pace,
) -> Generator[None, None, bytes]:
    """One route with its steps, as a JSON object."""
    encoded, answered = [], []
    for step in route.steps:
        one = _step(step, live, steps[step_key(step)])
        encoded.append(hide(msgspec.json.encode(one)))
        answered.append((step.number, one["hour"]["ok"]))
        pace.made += 1
        if pace.made % PIECE == 0:
            yield
    one_route = {
        "name": route.name,
        "in_flight": live.in_flight.get(route.name, 0),
        "requests": sum(counted.requests.values()),
        "fallbacks": counted.fallbacks,
        "hold": route.hold,
        "keepalive_s": route.keepalive and route.keepalive.every,
        "keepalives": counted.keepalives,
        "hedge": route.hedge and {"after_s": route.hedge.after, "share": route.hedge.share, **counted.hedges},
        "first_step_percent": _percent(sum(ok for n, ok in answered if n == 1), sum(ok for _, ok in answered)),
    }
    return with_list(hide(msgspec.json.encode(one_route)), "steps", encoded)


def callers_status(
    chosen: Iterable[tuple[str, CallerCounters]], live: Snapshot, hide: Hide
) -> Generator[None, None, list[bytes]]:
    """Callers with what they have left, each as a JSON object."""
    accounts = {caller.name: caller.accounts for caller in live.config.callers}
    has_prices = bool(live.config.prices) or live.config.unknown_price is not None
    callers = []
    for number, (name, caller) in enumerate(chosen, 1):
        used = {
            "name": name,
            "requests": caller.requests,
            "refused": caller.refused,
            "tokens": caller.tokens,
            "cost_usd": float(caller.cost) if caller.cost or has_prices else None,
            "limits": [_limits(live, account) for account in accounts.get(name, ())],
        }
        callers.append(hide(msgspec.json.encode(used)))
        if number % PIECE == 0:
            yield
    return callers


def _limits(live: Snapshot, account: Account) -> dict[str, object]:
    """What a key or its group has left, in the words of ``GET /v1/usage``."""
    used = live.limits_of(account) if live.limits_of is not None else {}
    return {name: value for name, value in used.items() if name in ("key", "group", "running", "limits")}


def _held(live: Snapshot) -> dict[str, int] | None:
    """The answers that are held until they are whole; None if no route holds them so long."""
    if live.held is None or all(route.hold != "whole" for route in live.config.routes.values()):
        return None
    return {"bytes": live.held.now, "limit": live.held.limit, "exhausted": live.held.exhausted}


def with_list(encoded: bytes, name: str, values: list[bytes]) -> bytes:
    """A JSON object with one more member."""
    return b'%s,"%s":[%s]}' % (encoded[:-1], name.encode(), b",".join(values))


def _percent(part: int, of: int) -> int | None:
    """``part`` as percent ``of`` a whole: 0 and 100 only if exact; None if the whole is 0."""
    if not of:
        return None
    return min(max(round(100 * part / of), 1), 99) if 0 < part < of else 100 * part // of


def _step(step: Step, live: Snapshot, counters: StepCounters) -> StepStatus:
    left = live.cooldown_left(step)
    choice: ChoiceStatus = {}
    if step.target:
        choice["target"] = step.target
    if step.key_number is not None:
        choice["key_number"] = step.key_number
    return {
        "number": step.number,
        "provider": step.provider.name,
        "model": step.model,
        "state": "resting" if left is not None else _STATES[counters.answers],
        "until": None if left is None else math.ceil(time.time() + left),
        "why": None if left is None else counters.why or _ELSEWHERE[step.key_number is None],
        "tokens": counters.tokens,
        "hour": _hour(counters.hour, live.now),
        **choice,
    }


def _failed(failed: Failed) -> dict[str, object]:
    attempt = failed.attempt
    return {
        "time": failed.time,
        "request_id": failed.request_id,
        "route": failed.route,
        "step": attempt and attempt.step,
        "provider": attempt and attempt.provider,
        "model": attempt and attempt.model,
        **({"key_number": attempt.key_number} if attempt and attempt.key_number is not None else {}),
        "outcome": failed.outcome,
        "status": failed.status,
        "message": failed.message,
        "rests_s": attempt and attempt.rests_s,
    }


def _hour(hour: Hour, now: float) -> HourStatus:
    """The last hour of a step. ``ms`` and ``minutes`` are mean times in milliseconds.

    They are the times to the first token of streams or, if the hour had no stream, to the end of the answer.
    """
    if hour.latest <= now // 60 - MINUTES:
        return _QUIET
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
