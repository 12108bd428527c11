"""Policy: the order in which a request tries the targets and the keys of a step. Nothing here uses the network.

``sticky`` is weighted rendezvous hashing: a session goes where its hash with the name of the target, or with the digest
of the key, is highest. So every instance gives the same answer without a table, and a target or a key that is added
or removed moves only the sessions that it gets or had. What cools down is tried last, see ``cooldown``.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Protocol

import msgspec

from aigw.config.model import Config, Route, Step
from aigw.protocols.endpoint import Call
from aigw.secret import Secret
from aigw.telemetry.record import RecordBuilder

MOST_OF_A_SESSION = 256  # characters
_MOST_READ = 4096  # bytes of a member
_NUMBER = re.compile(rb"-?\d{1,40}")
_text = msgspec.json.Decoder(str)


Used = tuple[str, "Secret | int | None", str]  # a provider's name, a key, a model


def used_by(step: Step) -> Used:
    """What a step uses. Of several keys of a provider it has the key itself, whose position a reload may change."""
    provider = step.provider
    return provider.name, 0 if step.key_number is None else provider.keys[step.key], step.model


class Headers(Protocol):
    """The headers of the client's request."""

    def header(self, name: bytes) -> bytes | None:
        """The value of a header, by its lower-case name."""


class Health(Protocol):
    """See Cooldowns."""

    def cooldown_left(self, step: Step) -> float | None:
        """None if the step does not cool down."""


class Pending:
    """How many attempts run now, by provider, key and model, of the steps that are ``counted``, and the order in which
    these were last used. A reload keeps it."""

    def __init__(self) -> None:
        self._running: dict[Used, int] = {}
        self._last: dict[Used, int] = {}  # the number of the last attempt
        self._begun = 0

    def begin(self, step: Step) -> None:
        """An attempt starts."""
        key = used_by(step)
        self._running[key] = self._running.get(key, 0) + 1
        self._begun += 1
        self._last[key] = self._begun

    def end(self, step: Step) -> None:
        """It has ended, however it did."""
        key = used_by(step)
        self._running[key] -= 1
        if not self._running[key]:
            del self._running[key]

    def of(self, steps: Iterable[Step]) -> int:
        """Those of all these steps."""
        return sum([self._running.get(used_by(step), 0) for step in steps])

    def last_used(self, steps: Iterable[Step]) -> int:
        """The number of the last attempt at one of these steps: the smallest one was used the longest time ago."""
        return max([self._last.get(used_by(step), 0) for step in steps])

    def forget_all_but(self, kept: Collection[Used]) -> None:
        """Keep the order of these, which a reload did not change. What runs is counted until it ends."""
        self._last = {key: number for key, number in self._last.items() if key in kept}

    def __len__(self) -> int:
        return sum(self._running.values())


class _Choice:
    """A target or a key. ``below`` are the keys of a target that has several. Sessions are hashed with ``name``."""

    __slots__ = ("below", "name", "steps", "weight")

    def __init__(self, name: bytes, steps: Sequence[Step], weight: float = 1.0, below: _Choices | None = None) -> None:
        self.name = name
        self.steps = steps
        self.weight = weight
        self.below = below

    def score(self, session: bytes) -> float:
        """The highest one of all choices gets the session. It is in proportion to the weight."""
        number = int.from_bytes(hmac.digest(self.name, session, "sha256")[:8], "big")
        return math.log((number + 0.5) / 2**64) / self.weight


class _Choices:
    """The targets of a step, or the keys of a target."""

    __slots__ = ("_balance", "_choices")

    def __init__(self, balance: str, choices: Sequence[_Choice]) -> None:
        self._balance = balance
        self._choices = choices

    def ordered(self, session: bytes, health: Health, pending: Pending, random: Callable[[], float]) -> list[Step]:
        """All steps of all choices, in the order for this request."""
        match self._balance if len(self._choices) > 1 else None:
            case None:
                ranked = self._choices
            case "sticky":
                ranked = sorted(self._choices, key=lambda each: each.score(session), reverse=True)
            case "weighted":
                drawn = [(math.log(max(1.0 - random(), 1e-300)) / each.weight, each) for each in self._choices]
                ranked = [each for _, each in sorted(drawn, key=lambda pair: pair[0], reverse=True)]
            case _:
                ranked = self._in_turn(health, pending)
                if self._balance == "least_pending":
                    ranked = sorted(ranked, key=lambda each: (pending.of(each.steps) + 1) / each.weight)
        steps: list[Step] = []
        for each in ranked:
            steps += each.steps if each.below is None else each.below.ordered(session, health, pending, random)
        return steps

    def _in_turn(self, health: Health, pending: Pending) -> list[_Choice]:
        """The one that was used the longest time ago is the first, of those that do not cool down.

        A counter of requests would not do: where two targets take turns, each would see every second number only.
        """
        ready = [c for c in self._choices if any([health.cooldown_left(step) is None for step in c.steps])]
        rest = [choice for choice in self._choices if choice not in ready]
        return [*sorted(ready, key=lambda each: pending.last_used(each.steps)), *rest]


class _Plan:
    """The choices of each step of a route, and where its requests may name their session."""

    def __init__(self, route: Route, key_names: Mapping[tuple[str, int], bytes]) -> None:
        self.session_from = [(name, name.lower().encode()) for name in route.session_from]
        self.steps = [
            _choices_of(list(steps), key_names) for _, steps in groupby(route.steps, key=lambda step: step.number)
        ]


def _choices_of(steps: Sequence[Step], key_names: Mapping[tuple[str, int], bytes]) -> _Choices:
    targets = []
    for _, of_target in groupby(steps, key=lambda step: step.target):
        keys = list(of_target)
        first = keys[0]
        by_key = [_Choice(key_names[each.provider.name, each.key], [each]) for each in keys]
        below = _Choices(first.provider.balance, by_key) if len(keys) > 1 else None
        name = hashlib.sha256(f"{first.provider.name}\0{first.model}".encode()).digest()
        targets.append(_Choice(name, keys, first.weight, below))
    return _Choices(steps[0].balance, targets)


class Balance:
    """Orders the steps of routes with ``has_choice``. ``cooldowns`` are those by the path of an endpoint."""

    def __init__(
        self,
        config: Config,
        names: Mapping[tuple[str, int], bytes],
        cooldowns: Mapping[str, Health],
        pending: Pending,
        random: Callable[[], float],
    ) -> None:
        """For ``names`` see key_names."""
        self._routes = config.routes
        self._cooldowns = cooldowns
        self.pending = pending
        self._random = random
        self._names = names
        self._plans: dict[str, _Plan] = {}  # made at the first request to each route

    def order(
        self, route: Route, steps: Sequence[Step], call: Call, client: Headers, record: RecordBuilder
    ) -> list[Step]:
        """``steps``, all of the route's or some of them, for this request. The session is noted in ``record``."""
        plan = self._plans.get(route.name)
        if plan is None:
            plan = self._plans[route.name] = _Plan(self._routes[route.name], self._names)
        record.session = session_of(call, client, plan.session_from)
        session = record.session or (call.caller.name if call.caller is not None else "")
        hashed, health = session.encode(errors="backslashreplace"), self._cooldowns[call.endpoint.path]
        ordered: list[Step] = []
        for each in plan.steps:
            ordered += each.ordered(hashed, health, self.pending, self._random)
        if len(ordered) == len(steps):
            return ordered
        wanted = {*map(id, steps)}
        return [step for step in ordered if id(step) in wanted]


def key_names(config: Config) -> dict[tuple[str, int], bytes]:
    """A digest of each key, by its provider's name and its position. Only an owner of the key can compute it."""
    return {
        (name, position): key.signature(b"aigw key of a provider").encode() if key else b""
        for name, provider in config.providers.items()
        for position, key in enumerate(provider.keys)
    }


def session_of(call: Call, client: Headers, names: Iterable[tuple[str, bytes]]) -> str | None:
    """The first of these headers and members of the body that is there; None if none is. It is bounded."""
    for name, header in names:
        value = client.header(header)
        found = value.decode("latin-1").strip() if value else _member(call, name)
        if found:
            return found if len(found) <= MOST_OF_A_SESSION else _digest(found.encode(errors="backslashreplace"))
    return None


def _member(call: Call, name: str) -> str:
    """A string or a whole number; empty for anything else."""
    raw = call.members.get(name)
    if raw is None:
        return ""
    if len(raw) > _MOST_READ:
        return _digest(bytes(raw)) if bytes(memoryview(raw)[:1]) == b'"' else ""
    written = bytes(raw)
    if _NUMBER.fullmatch(written):
        return written.decode()
    try:
        return _text.decode(written).strip()
    except ValueError:
        return ""


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
