"""Which steps cool down, and until when. A step that cools down is tried last. Nothing here uses the network.

There is one state for each provider, key, model and endpoint: a server that fails at embeddings may work for chat.
Routes with the same provider, key and model share it. It is kept at a reload. Where a provider has several keys, one
that is refused has a state beside these, for all its models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal

from aigw.config.model import Step
from aigw.routing.balance import Pending, Used, used_by
from aigw.routing.finishing import Finishing
from aigw.routing.hedge import Budgets
from aigw.routing.response_ids import ResponseIds

Kind = Literal["failure", "timeout", "refusal"]

IN_A_ROW: dict[Kind, int] = {"failure": 3, "timeout": 2, "refusal": 3}  # of one kind, until the step cools down
MAX_COOLDOWN = 600.0  # seconds

EVERY_MODEL = ""  # in place of a model
Skip = Callable[[Step, str, "float | None"], None]  # a step, why it is skipped, and until when in Unix seconds


class _State:
    """The last kind of failure of a step, and how often in a row it occurred. ``until``: 0 if it does not cool down."""

    __slots__ = ("count", "kind", "probing", "until")

    def __init__(self) -> None:
        self.kind: Kind | None = None
        self.count = 0
        self.until = 0.0
        self.probing = False


class Cooldowns:
    """The steps that failed at one endpoint. ``seconds`` is a monotonic clock."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._states: dict[Used, _State] = {}

    def forget_all_but(self, kept: Collection[Used]) -> None:
        """Keep the states of these steps, which a reload did not change. All other states are removed."""
        kept = {*kept, *((provider, key, EVERY_MODEL) for provider, key, _ in kept)}
        self._states = {key: state for key, state in self._states.items() if key in kept}

    def choose(self, steps: Sequence[Step], skip: Skip) -> Step | None:
        """The step to try now, of those that are left. ``skip`` is called with each step before it."""
        chosen = next(iter(self.order(steps)), None)
        if chosen is not None and chosen is not steps[0]:
            for step in steps[: steps.index(chosen)]:
                left = self.cooldown_left(step)
                skip(step, "cooling_down", None if left is None else time.time() + left)
        return chosen

    def any_awake(self, steps: Sequence[Step]) -> bool:
        """Whether one of them does not cool down."""
        return any([self.cooldown_left(step) is None for step in steps])

    def order(self, steps: Sequence[Step]) -> Sequence[Step]:
        """``steps``, with those that cool down at the end: the shortest cooldown first."""
        if not self._states:
            return steps
        known = [(self.cooldown_left(step), step) for step in steps]
        cooling = sorted([(left, step) for left, step in known if left is not None], key=lambda pair: pair[0])
        return [*(step for left, step in known if left is None), *(step for _, step in cooling)]

    def shortest(self, steps: Iterable[Step]) -> float | None:
        """The shortest cooldown of these steps, in seconds; None if none cools down."""
        return min((left for step in steps if (left := self.cooldown_left(step)) is not None), default=None)

    def cooldown_left(self, step: Step) -> float | None:
        """The seconds until the end of the step's cooldown, None if it does not cool down.

        After that time one request probes the step. Until it is answered the step cools down for all other requests.
        """
        if not self._states:
            return None
        lefts = []
        for state in self._states_of(step):
            if state.until and step.cooldown:
                left = state.until - self._seconds()
                if left > 0 or state.probing:
                    lefts.append(max(0.0, left))
        return max(lefts, default=None)

    def cools_down(self, step: Step) -> bool:
        """Whether the step was cooled down and has not answered since, even if the cooldown's time is over."""
        return bool(self._states) and any([state.until > 0 < step.cooldown for state in self._states_of(step)])

    def failed_at(self) -> set[tuple[str, str]]:
        """The providers and models that have a state; EVERY_MODEL for a refused key."""
        return {(provider, model) for provider, _, model in self._states}

    def begin(self, step: Step) -> bool:
        """An attempt at the step starts. Gives whether it is the probe: the first attempt after the cooldown's time."""
        if not self._states or step.cooldown == 0:
            return False
        due = [each for each in self._states_of(step) if each.until]
        if not due or any([each.probing or each.until > self._seconds() for each in due]):
            return False
        for each in due:
            each.probing = True
        return True

    def succeeded(self, step: Step) -> None:
        """The step answered: remove its state."""
        if self._states:
            for key in _keys(step):
                self._states.pop(key, None)

    def answered(self, step: Step, probe: bool) -> None:
        """The provider works and refused this request (400, 404, ...): the count of failures in a row restarts."""
        for state in self._states_of(step):
            state.kind, state.count = None, 0
            if probe:
                state.until, state.probing = 0.0, False

    def abandoned(self, step: Step, probe: bool) -> None:
        """The attempt ended without information about the step: the client left, or the request had no time."""
        if probe:
            for state in self._states_of(step):
                state.probing = False

    def failed(self, step: Step, probe: bool) -> None:
        """A connection failure, a broken answer or a 5xx."""
        self._strike(step, "failure", probe)

    def timed_out(self, step: Step, probe: bool) -> None:
        """No answer in time."""
        self._strike(step, "timeout", probe)

    def refused(self, step: Step, probe: bool) -> None:
        """A 402 or 403, which may be about the request alone. It shows that the provider works."""
        state = self._states.get(_keys(step)[0])
        if probe and state is not None and state.kind != "refusal":
            self.answered(step, probe)
            probe = False
        self._strike(step, "refusal", probe)

    def cool_down(self, step: Step, seconds: float, probe: bool) -> None:
        """Start the step's cooldown now, for at most MAX_COOLDOWN seconds."""
        self._cool_down(step, seconds, probe, _keys(step)[0])

    def key_refused(self, step: Step, seconds: float, probe: bool) -> None:
        """The same for a key that is refused: of several keys of a provider, this one for all its models."""
        self._cool_down(step, seconds, probe, _keys(step)[-1])

    def _cool_down(self, step: Step, seconds: float, probe: bool, key: Used) -> None:
        self.abandoned(step, probe)
        if step.cooldown > 0:
            state = self._states.setdefault(key, _State())
            state.until = max(state.until, self._seconds() + min(seconds, MAX_COOLDOWN))

    def _strike(self, step: Step, kind: Kind, probe: bool) -> None:
        state = self._states.setdefault(_keys(step)[0], _State())
        state.count = state.count + 1 if state.kind == kind else 1
        state.kind = kind
        # The step cools down again at once after a failed probe. A step that already cools down, and was tried because
        # all others failed, does not cool down longer.
        if (probe or state.count >= IN_A_ROW[kind]) and state.until <= self._seconds():
            self.cool_down(step, step.cooldown, probe)
        else:
            self.abandoned(step, probe)

    def _states_of(self, step: Step) -> list[_State]:
        return [state for key in _keys(step) if (state := self._states.get(key)) is not None]


class CooldownsByEndpoint:
    """The Cooldowns of each endpoint, by its path. The pages and the metrics show the longest cooldown of a step."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self.finishing = Finishing()  # kept at a reload, as the cooldowns are
        self.response_ids = ResponseIds()
        self.budgets = Budgets()  # and so are these
        self.pending = Pending()
        self._seconds = seconds
        self._by_path: dict[str, Cooldowns] = {}

    def at(self, path: str) -> Cooldowns:
        """The Cooldowns of one endpoint."""
        found = self._by_path.get(path)
        if found is None:
            found = self._by_path[path] = Cooldowns(self._seconds)
        return found

    def forget_all_but(self, steps: Iterable[Step]) -> None:
        """See Cooldowns."""
        kept = {used_by(step) for step in steps}
        self.pending.forget_all_but(kept)
        for each in self._by_path.values():
            each.forget_all_but(kept)

    def cooldown_left(self, step: Step) -> float | None:
        """The seconds until the step cools down at no endpoint, None if it cools down at none now."""
        return max(
            (left for each in self._by_path.values() if (left := each.cooldown_left(step)) is not None), default=None
        )

    def cools_down(self, step: Step) -> bool:
        """Whether the step cools down at one endpoint or more: see Cooldowns."""
        return any([each.cools_down(step) for each in self._by_path.values()])

    def failed_at(self) -> set[tuple[str, str]]:
        """The providers and models that failed last at one endpoint or more; no other step cools down."""
        return set().union(*[each.failed_at() for each in self._by_path.values()])


def _keys(step: Step) -> list[Used]:
    """The keys of its states: its own, and where its provider has several keys that of the key for all models."""
    own = used_by(step)
    return [own] if step.key_number is None else [own, (own[0], own[1], EVERY_MODEL)]
