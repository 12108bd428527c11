"""One line of the file for accounting: a JSON object for one request. It holds names and counts, no content."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from functools import lru_cache
from typing import Annotated

import msgspec

from aigw.protocols.charges import CHARGED_KINDS
from aigw.telemetry.pricing import Charge
from aigw.telemetry.record import Record

COLUMNS = ("key", "route", "provider", "model", "endpoint", "session", "status", "outcome", "day")  # of a report
_encode = msgspec.json.encode
_MAX_COST = Decimal(10) ** 15  # USD; a line with more is broken
_Tokens = dict[str, Annotated[int, msgspec.Meta(ge=0)]]


class Charged(msgspec.Struct, kw_only=True):
    """Tokens and their cost, as they are read."""

    tokens: _Tokens = {}
    cost: Decimal | None = None

    def __post_init__(self) -> None:
        """Sums are made of what is read."""
        if self.cost is not None and not (self.cost.is_finite() and 0 <= self.cost <= _MAX_COST):
            raise ValueError("the cost is not an amount")


class ChargedPart(Charged, kw_only=True):
    """What one of several attempts used."""

    provider: str
    model: str


class Line(Charged, kw_only=True):
    """A line as it is read. ``cost`` in USD is None if it is not known.

    ``lost`` is not None in a line that stands for that many lines that were lost.
    """

    time: str
    request_id: str = ""
    caller: str = ""
    session: str | None = None
    route: str | None = None
    provider: str | None = None
    model: str | None = None
    endpoint: str = ""
    status: int = 0
    outcome: str = ""
    estimated: bool = False
    attempts: list[ChargedPart] = []
    lost: Annotated[int, msgspec.Meta(ge=0)] | None = None


decode = msgspec.json.Decoder(Line).decode


def line_of(record: Record, now: float) -> str:
    """The line of a request that ended at ``now``, in Unix seconds; it ends with a line feed."""
    charges, provider, model = record.charges, record.provider, record.model
    if provider is None and charges:  # no step has answered, and one that failed is charged
        provider, model = charges[-1].provider, charges[-1].model
    shape: dict[str, object] = {
        "time": moment(now),
        "request_id": record.request_id,
        "caller": record.caller,
        "session": record.session,
        "route": record.route,
        "provider": provider,
        "model": model,
        "endpoint": record.path,
        "status": record.status,
        "outcome": record.outcome,
        "tokens": total(charges),
        "cost": _number(record.cost) if charges else 0,
        "estimated": record.estimated,
    }
    if len(charges) > 1 or any((each.provider, each.model) != (provider, model) for each in charges):
        shape["attempts"] = [
            {"provider": each.provider, "model": each.model, "tokens": each.tokens, "cost": _number(each.cost)}
            for each in charges
        ]
    return f"{_encode(shape).decode()}\n"


def lost_line(count: int, now: float) -> str:
    """The line that stands for ``count`` lines that could not be written."""
    return f"{_encode({'time': moment(now), 'lost': count}).decode()}\n"


def total(charges: Iterable[Charge]) -> dict[str, int]:
    """The tokens of all attempts, by kind."""
    found: Counter[str] = Counter()
    for each in charges:
        found.update(each.tokens)
    return {kind: found[kind] for kind in CHARGED_KINDS if kind in found}


def moment(now: float) -> str:
    """Unix seconds as the lines have them, in UTC."""
    return f"{_to_the_second(int(now))}.{int(now % 1 * 1000):03d}Z"


@lru_cache(maxsize=1)
def _to_the_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _number(cost: Decimal | None) -> msgspec.Raw | None:
    """An amount with all its digits and no exponent."""
    return None if cost is None else msgspec.Raw(f"{cost:f}".encode())
