"""What one attempt sends. All of it is decided here; the pool and the connection add nothing."""

from __future__ import annotations

import msgspec

from aigw.config.model import Step
from aigw.protocols.envelope import Parts


class Attempt(msgspec.Struct, frozen=True, eq=False):
    """One request to one provider, fully decided. ``headers`` hold the provider's key, so they show in no ``repr``.

    They are lines, by their lower-case names. ``dropped`` names what the body lacks of the client's, by the step's
    ``conflict_resolution``.
    """

    step: Step
    url: str
    headers: dict[bytes, bytes]
    body: bytes | Parts
    dropped: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Attempt(step={self.step.number}, provider={self.step.provider.name!r}, body={len(self.body)} bytes)"
