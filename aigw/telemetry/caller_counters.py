"""What each caller has used since the start, and what all callers of a group have."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from aigw.config.prices import EXACT
from aigw.protocols.charges import CHARGED_KINDS, charged_tokens

if TYPE_CHECKING:
    from aigw.telemetry.record import Record

# The codes of the gateway's own refusals by a limit of a caller.
LIMIT_REACHED = frozenset(["rate_limit_exceeded", "insufficient_quota"])


class CallerCounters:
    """One caller, or all of a group: requests that have ended, tokens by disjoint kinds, and their known cost in USD.

    ``refused`` are those of the requests that one of its limits, or one of its group, refused. ``group`` is counted
    with it. Nothing else counts this since the start: ``GET /v1/usage``, the page and the metrics show these numbers.
    """

    __slots__ = ("cache_read", "cache_write", "cost", "group", "input", "output", "reasoning", "refused", "requests")

    def __init__(self) -> None:
        self.requests = self.refused = 0
        self.input = self.output = self.cache_read = self.cache_write = self.reasoning = 0
        self.cost = Decimal(0)
        self.group: CallerCounters | None = None

    @property
    def tokens(self) -> dict[str, int]:
        """By their kinds."""
        return {kind: getattr(self, kind) for kind in CHARGED_KINDS}

    def shown(self) -> dict[str, object]:
        """As JSON."""
        tokens, cost = sum(self.tokens.values()), float(self.cost)
        return {"requests": self.requests, "tokens": tokens, "cost_usd": cost, "refused": self.refused}

    def count(self, record: Record, has_charges: bool) -> None:
        """Count a request by the charges of its attempts where there are any, else by what was reported at the end.

        ``Counters.count`` counts one with ``common`` without a call.
        """
        charges, error = record.charges, record.error
        self.requests += 1
        if error is not None and error in LIMIT_REACHED and not record.attempts:
            self.refused += 1
        if record.cost is not None:
            self.cost = EXACT.add(self.cost, record.cost)
        counted = [charge.tokens for charge in charges] if charges or has_charges else [charged_tokens(record.usage)]
        for kinds in counted:
            for kind, count in kinds.items():
                setattr(self, kind, getattr(self, kind) + count)
