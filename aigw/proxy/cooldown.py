"""Which steps rest, and until when. A resting step is tried last, not dropped; nothing here touches the network.

The state is that of a provider, model and endpoint: a server that cannot do embeddings may be good at chat. Routes that
share them share it, and it outlives a reload.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from aigw.config.model import Step
from aigw.proxy.finishing import Finishing
from aigw.proxy.response_ids import ResponseIds

Kind = Literal["failure", "timeout", "refusal"]

IN_A_ROW: dict[Kind, int] = {"failure": 3, "timeout": 2, "refusal": 3}  # of one kind, until the step rests
MAX_REST = 600.0

Key = tuple[str, str]
Skip = Callable[[Step, str, "float | None"], None]  # a step, why it is passed over, and until when in Unix seconds


class _State:
    """What is known of a step that has failed: so many of one kind in a row. ``until`` is 0 where it does not rest."""

    __slots__ = ("count", "kind", "probing", "until")

    def __init__(self) -> None:
        self.kind: Kind | None = None
        self.count = 0
        self.until = 0.0
        self.probing = False


class Cooldowns:
    """The steps that have failed lately at one endpoint; ``seconds`` is a clock that never goes back."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._states: dict[Key, _State] = {}

    def forget_all_but(self, steps: Iterable[Step]) -> None:
        """What a reload left as it was: whatever is known of other steps, or of a changed provider, counts no more."""
        kept = {_key(step) for step in steps}
        self._states = {key: state for key, state in self._states.items() if key in kept}

    def choose(self, steps: Sequence[Step], skip: Skip) -> Step | None:
        """Of the steps that are left, the one to try now; ``skip`` gets each that is before it."""
        chosen = next(iter(self.order(steps)), None)
        if chosen is not None and chosen is not steps[0]:
            for step in steps[: steps.index(chosen)]:
                left = self.rests_for(step)
                skip(step, "cooling_down", None if left is None else time.time() + left)
        return chosen

    def order(self, steps: Sequence[Step]) -> Sequence[Step]:
        """``steps`` with those that rest at the end, the one that wakes soonest first among them."""
        if not self._states:
            return steps
        resting = {step.number: left for step in steps if (left := self.rests_for(step)) is not None}
        awake = [step for step in steps if step.number not in resting]
        return awake + sorted((s for s in steps if s.number in resting), key=lambda step: resting[step.number])

    def rests_for(self, step: Step) -> float | None:
        """The seconds until the step wakes, None if it does not rest.

        Once its rest is over one request probes it; until that is answered it still rests for all others.
        """
        state = self._states.get(_key(step))
        if state is None or not state.until or step.cooldown == 0:
            return None
        left = state.until - self._seconds()
        return max(0.0, left) if left > 0 or state.probing else None

    def cools_down(self, step: Step) -> bool:
        """Whether the step rested, and has not answered since: its rest may be over, and nobody have asked it."""
        state = self._states.get(_key(step))
        return state is not None and state.until > 0 and step.cooldown > 0

    def begin(self, step: Step) -> bool:
        """An attempt at the step starts. Whether it is the probe: the first one since its rest is over."""
        state = self._states.get(_key(step))
        if state is None or not state.until or step.cooldown == 0 or state.probing or state.until > self._seconds():
            return False
        state.probing = True
        return True

    def succeeded(self, step: Step) -> None:
        """The step answered: whatever was held against it is forgotten."""
        if self._states:
            self._states.pop(_key(step), None)

    def answered(self, step: Step, probe: bool) -> None:
        """The provider is there and refused this request (400, 404, ...): nothing is in a row any more."""
        state = self._states.get(_key(step))
        if state is not None:
            state.kind, state.count = None, 0
            if probe:
                state.until, state.probing = 0.0, False

    def abandoned(self, step: Step, probe: bool) -> None:
        """The attempt ended without a word on the step: its client left, or its request had no time."""
        state = self._states.get(_key(step))
        if state is not None and probe:
            state.probing = False

    def failed(self, step: Step, probe: bool) -> None:
        """A connection failure, a broken answer or a 5xx."""
        self._strike(step, "failure", probe)

    def timed_out(self, step: Step, probe: bool) -> None:
        """No answer in time."""
        self._strike(step, "timeout", probe)

    def refused(self, step: Step, probe: bool) -> None:
        """A 402 or 403, which may be about the request alone: it says that the provider is there."""
        state = self._states.get(_key(step))
        if probe and state is not None and state.kind != "refusal":
            self.answered(step, probe)
            probe = False
        self._strike(step, "refusal", probe)

    def rest(self, step: Step, seconds: float, probe: bool) -> None:
        """Let the step rest now, for at most MAX_REST seconds."""
        self.abandoned(step, probe)
        if step.cooldown > 0:
            state = self._state(step)
            state.until = max(state.until, self._seconds() + min(seconds, MAX_REST))

    def _strike(self, step: Step, kind: Kind, probe: bool) -> None:
        state = self._state(step)
        state.count = state.count + 1 if state.kind == kind else 1
        state.kind = kind
        # A probe that fails has found out what it was to find out: the step rests again at once. One that rests
        # already, and is tried because all others failed, wakes no later for that.
        if (probe or state.count >= IN_A_ROW[kind]) and state.until <= self._seconds():
            self.rest(step, step.cooldown, probe)
        else:
            self.abandoned(step, probe)

    def _state(self, step: Step) -> _State:
        return self._states.setdefault(_key(step), _State())


class CooldownsByEndpoint:
    """The cooldowns of each endpoint, by its path. What the pages and the metrics show of a step is the longest one."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self.finishing = Finishing()  # which lives as long
        self.response_ids = ResponseIds()
        self._seconds = seconds
        self._by_path: dict[str, Cooldowns] = {}

    def at(self, path: str) -> Cooldowns:
        """Those of one endpoint."""
        found = self._by_path.get(path)
        if found is None:
            found = self._by_path[path] = Cooldowns(self._seconds)
        return found

    def forget_all_but(self, steps: Iterable[Step]) -> None:
        """See Cooldowns."""
        kept = list(steps)
        for each in self._by_path.values():
            each.forget_all_but(kept)

    def rests_for(self, step: Step) -> float | None:
        """The seconds until the step is tried at its turn at every endpoint again, None if it rests at none."""
        return max(
            (left for each in self._by_path.values() if (left := each.rests_for(step)) is not None), default=None
        )

    def cools_down(self, step: Step) -> bool:
        """Whether it does so at one endpoint: see Cooldowns."""
        return any([each.cools_down(step) for each in self._by_path.values()])


def _key(step: Step) -> Key:
    return step.provider.name, step.model
