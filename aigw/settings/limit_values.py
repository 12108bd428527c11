"""How limits, dates and hashes of keys are written in the configuration file."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from typing import Annotated, NamedTuple

from aigw.secret import KeyDigest
from aigw.settings.schema import Written
from aigw.settings.values import NAME

UNLIMITED = "unlimited"
PERIODS = ("hour", "day", "week", "month", "year")
MOST = 10**15

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_THOUSANDS = {"": 1, "k": 1000, "M": 1_000_000, "G": 1_000_000_000}
_RATE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kMG]?)\s*/\s*([smhd])")
_AMOUNT = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kMG]?)")
_DOLLARS = re.compile(r"\d{1,9}(?:\.\d{1,9})?")
_HASH = re.compile(r"[0-9a-fA-F]{64}")


class Rate(NamedTuple):
    """So many in ``seconds``; a ``limit`` of 0 is none."""

    limit: int
    seconds: float


NO_RATE = Rate(0, 1.0)


def _rate(value: object) -> Rate:
    if value == UNLIMITED:
        return NO_RATE
    match = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    limit = _whole(match[1], match[2]) if match else 0
    if match is None or not limit:
        raise ValueError(f"is not a rate; write 60/m, 200k/m, 10/s or 5M/d (s, m, h, d), at least 1, or {UNLIMITED}")
    return Rate(limit, _SECONDS[match[3]])


def _amount(value: object) -> int:
    match = _AMOUNT.fullmatch(str(value).strip()) if isinstance(value, int | float | str) else None
    amount = _whole(match[1], match[2]) if match and not isinstance(value, bool) else 0
    if not amount:
        raise ValueError("is not a number of tokens; write 5M, 200k or 1000, at least 1")
    return amount


def _whole(digits: str, unit: str) -> int:
    """The number; 0 where it is no whole one, or too large."""
    whole, _, part = digits.partition(".")
    factor = _THOUSANDS[unit]
    scaled = int(whole + part) * factor
    number, rest = divmod(scaled, 10 ** len(part))
    return 0 if rest or number > MOST else number


def _dollars(value: object) -> float:
    written = str(value).strip() if isinstance(value, int | float | str) and not isinstance(value, bool) else ""
    if not _DOLLARS.fullmatch(written) or not float(written):
        raise ValueError("is not an amount of US dollars; write 10 or 0.5, more than 0")
    return float(written)


def _slots(value: object) -> int:
    if value == UNLIMITED:
        return 0
    if isinstance(value, bool) or not re.fullmatch("[0-9]{1,6}", str(value)) or not int(str(value)):
        raise ValueError(f"is not a number of requests; write 1 to 999999, or {UNLIMITED}")
    return int(str(value))


def _moment(value: object) -> float:
    """In Unix seconds. A date alone is the end of that day in UTC."""
    wrong = ValueError("is not a date; write 2027-01-31, or a time such as 2027-01-31T18:00:00Z")
    if isinstance(value, str):
        try:
            value = date.fromisoformat(value)
        except ValueError:
            try:
                value = datetime.fromisoformat(re.sub(r"[Zz]\Z", "+00:00", str(value)))
            except ValueError:
                raise wrong from None
    try:
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()
        if isinstance(value, date):
            return datetime.combine(value + timedelta(days=1), time(), timezone.utc).timestamp()
    except (OverflowError, ValueError):
        pass
    raise wrong


def zone_of(name: str) -> tzinfo:
    """A time zone of the IANA list. Raises ValueError, OSError or LookupError."""
    from zoneinfo import ZoneInfo  # only budgets need it, and it takes a megabyte

    return ZoneInfo(name)


def _zone(value: object) -> str:
    try:
        return str(zone_of(value)) if isinstance(value, str) else _not_a_zone()
    except (ValueError, OSError, LookupError):
        return _not_a_zone()


def _not_a_zone() -> str:
    raise ValueError("is not a time zone; write a name of the IANA list, such as Europe/Berlin or UTC")


def _key_hash(value: object) -> KeyDigest:
    if not isinstance(value, str) or not _HASH.fullmatch(value.strip()):
        raise ValueError(
            "is not a SHA-256; write its 64 hexadecimal digits, in quotes, as aigw new-key NAME prints them"
        )
    return KeyDigest(bytes.fromhex(value.strip()))


def _pattern(value: object) -> str:
    name = str(NAME.decode(value))
    if "*" in name[:-1]:
        raise ValueError(
            "has a * before its end; write the name of a route, or the beginning of names with one * behind"
        )
    return name


RateLimit = Annotated[Rate, Written(_rate)]
"""A Rate, written ``60/m``, ``200k/m``, ``10/s``; or ``unlimited``."""
Tokens = Annotated[int, Written(_amount)]
"""A number of tokens, written ``5M``, ``200k`` or ``1000``."""
Dollars = Annotated[float, Written(_dollars)]
"""US dollars, more than 0."""
Slots = Annotated[int, Written(_slots)]
"""How many requests may run at the same time, from 1; ``unlimited`` is 0."""
Moment = Annotated[float, Written(_moment)]
"""A point in time, written as a date (its end, in UTC) or as a date with a time."""
Zone = Annotated[str, Written(_zone)]
"""The name of a time zone."""
KeyHash = Annotated[KeyDigest, Written(_key_hash, secret=True)]
"""The SHA-256 of a key, 64 hexadecimal digits."""
RoutePattern = Annotated[str, Written(_pattern)]
"""The name of a route, or with a star at its end the beginning of names."""


def matches(patterns: tuple[str, ...], name: str) -> bool:
    """Whether one of the patterns stands for the name."""
    return any([name.startswith(each[:-1]) if each.endswith("*") else name == each for each in patterns])
