"""What one attempt sends. All of it is decided here; the pool and the connection add nothing."""

from __future__ import annotations

import msgspec

from aigw.config.model import Step
from aigw.protocols.envelope import Pieces


class Attempt(msgspec.Struct, frozen=True, eq=False):
    """One request to one provider, fully decided. ``headers`` hold the provider's key, so they show in no ``repr``.

    They are lines, by their lower-case names. ``dropped`` names what the body lacks of the client's, by the step's
    ``conflict_resolution``. ``tail`` follows the URL, which is one of few: a client has chosen it.
    """

    step: Step
    url: str
    headers: dict[bytes, bytes]
    body: bytes | Pieces
    dropped: tuple[str, ...] = ()
    tail: bytes = b""
    method: str = "POST"

    def __repr__(self) -> str:
        return f"Attempt(step={self.step.number}, provider={self.step.provider.name!r}, body={len(self.body)} bytes)"
