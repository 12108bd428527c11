"""One attempt: all that is sent to the provider. The pool and the connection add nothing to it."""

from __future__ import annotations

import msgspec

from aigw.config.model import Step
from aigw.protocols.envelope import Parts
from aigw.protocols.shaping import UNCHANGED, Difference


class Attempt(msgspec.Struct, frozen=True, eq=False):
    """One request to one provider. ``headers`` are lines by their lower-case names.

    The headers have the provider's key, so ``repr`` does not show them. ``difference`` is that between the body and the
    client's. ``model`` is the model that is sent: that of the step, with a client's text in place of its star. ``url``
    is one of few; ``tail``, which a client has chosen, follows it.
    """

    step: Step
    url: str
    headers: dict[bytes, bytes]
    body: bytes | Parts
    model: str = ""
    difference: Difference = UNCHANGED
    tail: bytes = b""
    method: str = "POST"

    def __repr__(self) -> str:
        return f"Attempt(step={self.step.number}, provider={self.step.provider.name!r}, body={len(self.body)} bytes)"
