"""What an attempt is charged, and the interface of what knows the prices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Protocol

import msgspec

from aigw.config.model import Step


class Charge(msgspec.Struct, frozen=True):
    """What one attempt used: tokens by disjoint kinds, none if none were reported, and their cost in USD.

    ``cost`` is None if it is not known. ``estimated``: the provider did not report the tokens, or an unknown price was
    assumed. ``is_priced``: the cost is known without that.
    """

    provider: str
    model: str
    tokens: Mapping[str, int]
    cost: Decimal | None = None
    estimated: bool = False
    is_priced: bool = True


class Pricing(Protocol):
    """Knows what tokens cost."""

    def charge(self, provider: str, model: str, usage: Mapping[str, int | Decimal], estimated: bool = False) -> Charge:
        """The charge of an attempt by the ``usage`` that the provider reported, or that is estimated."""

    def dearest(self, steps: Iterable[Step], tokens: Mapping[str, int]) -> Decimal:
        """What tokens cost at the dearest of these steps, in USD; 0 if no step has a price."""
