"""Which models give a ``finish_reason``: a stream of such a model that ends without one is truncated.

The state is small and is kept at a reload. Nothing here uses the network.
"""

from __future__ import annotations

from aigw.config.model import Step
from aigw.settings.patterns import STAR

MOST = 10_000  # models


class Finishing:
    """The models, each by provider, name and endpoint, that have given a ``finish_reason`` in a whole stream."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str], None] = {}

    def note(self, step: Step, path: str) -> None:
        """Note that the model gave one. Above MOST models, the one that was noted first is removed.

        A model with a star is many models, of which clients choose the names: nothing is noted of them.
        """
        if STAR in step.model:
            return
        key = step.provider.name, step.model, path
        if key not in self._known:
            self._known[key] = None
            if len(self._known) > MOST:
                del self._known[next(iter(self._known))]

    def expected(self, step: Step, path: str) -> bool:
        """Whether the model has given one before."""
        return (step.provider.name, step.model, path) in self._known
