"""A charge for what no provider has reported, by an estimate, so that the accounts and the limits have one sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal

from aigw.config.model import Step
from aigw.protocols.charges import charged_tokens
from aigw.telemetry.pricing import Charge, Pricing
from aigw.telemetry.record import RecordBuilder


def complete(record: RecordBuilder, tokens: int, prompt: int, pricing: Pricing) -> tuple[int, Decimal]:
    """Charge a request for ``tokens`` in all, as far as they were not reported; gives all tokens and the known cost.

    ``prompt`` of them are of the request, and the others of the answer. A charge without tokens gives its place to the
    estimate.
    """
    known = sum(sum(charge.tokens.values()) for charge in record.charges)
    if tokens > known and record.estimated and record.attempts:
        last = record.attempts[-1]
        provider, model = record.provider or last.provider, record.model or last.model
        given = sum(n for charge in record.charges for kind, n in charge.tokens.items() if kind not in _OF_ANSWERS)
        more = tokens - known
        of_request = min(more, max(0, prompt - given))
        usage = {"input_tokens": of_request, "output_tokens": more - of_request}
        record.charges = tuple(charge for charge in record.charges if charge.tokens or charge.cost is not None)
        record.add(pricing.charge(provider, model, usage, estimated=True))
        known = tokens
    return known, record.cost if record.cost is not None else Decimal(0)


_OF_ANSWERS = ("output", "reasoning")


class NoPrices:
    """Makes the charges of requests where costs are not wanted."""

    def charge(self, provider: str, model: str, usage: Mapping[str, int | Decimal], estimated: bool = False) -> Charge:
        """See Pricing."""
        return Charge(provider, model, charged_tokens(usage), None, estimated)

    def dearest(self, steps: Iterable[Step], tokens: Mapping[str, int]) -> Decimal:
        """See Pricing."""
        return Decimal(0)
