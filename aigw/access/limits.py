"""The arithmetic of limits: how much is used, when there is room again, and where a period of the calendar ends.

Nothing here knows a clock: each function is given the time.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from aigw.settings.limit_values import Rate, zone_of

SET_BACK_SECONDS = 86_400.0  # by which a clock may be set back without an effect on windows
TOLERANCE = 1e-6  # requests: what many additions of small shares may be wrong by


class RequestCount:
    """Requests under a rate, by the generic cell rate algorithm (GCRA), counted in requests instead of seconds.

    ``used`` requests are under way through a bucket of ``limit`` that drains evenly within the rate's seconds: a burst
    of ``limit`` passes at once, then one each ``seconds / limit``. Another limit keeps the count. From ``idle_at`` on
    the bucket is empty; it may be so a little earlier.
    """

    __slots__ = ("at", "idle_at", "used")

    def __init__(self) -> None:
        self.used = 0.0
        self.at = 0.0
        self.idle_at = 0.0

    def drain(self, rate: Rate, now: float) -> float:
        """How many are used at ``now``."""
        elapsed = now - self.at
        if elapsed > 0:
            self.at = now
            self.used = max(0.0, self.used - elapsed * rate.limit / rate.seconds)
        return self.used

    def used_at(self, rate: Rate, now: float) -> float:
        """The same, and nothing changes."""
        return max(0.0, self.used - max(0.0, now - self.at) * rate.limit / rate.seconds)

    def has_room(self, rate: Rate, now: float) -> bool:
        """Whether one more may pass."""
        return self.drain(rate, now) + 1 <= rate.limit + TOLERANCE

    def seconds_to_room(self, rate: Rate) -> float:
        """How long until one more may pass, as of the last ``drain``."""
        return max(0.0, (self.used + 1 - rate.limit) * rate.seconds / rate.limit)


class Total:
    """Amounts of one unit since the start: ``spent``, and ``taken``, which has those that are reserved too."""

    __slots__ = ("spent", "taken")

    def __init__(self, spent: int = 0) -> None:
        self.spent = spent
        self.taken = spent


class WindowCount:
    """Amounts in windows: ``spent`` in the present one, and ``reserved`` by requests that have not ended.

    Several windows may have one ``total``, so that a request adds to it once. Each knows what it was at its ``start``.
    """

    __slots__ = ("ends", "start", "total")

    def __init__(self) -> None:
        self.total = Total()
        self.start = 0
        self.ends = 0.0

    def belongs_to(self, total: Total) -> None:
        """Count in this total from now on. What is spent so far stays."""
        if self.total is not total:
            self.total, self.start = total, total.spent - self.spent

    @property
    def spent(self) -> int:
        """In the present window."""
        return self.total.spent - self.start

    @spent.setter
    def spent(self, amount: int) -> None:
        self.start = self.total.spent - amount

    @property
    def reserved(self) -> int:
        """By requests that have not ended."""
        return self.total.taken - self.total.spent

    def turn(self, seconds: float, now: float) -> None:
        """Begin a window of so many seconds at ``now``, if the last one is over."""
        if now >= self.ends:
            self.spent, self.ends = 0, now + seconds

    def spent_at(self, now: float) -> int:
        """What is spent in the window of ``now``; nothing changes."""
        return self.spent if now < self.ends else 0

    def turn_to_calendar(self, per: str, zone: str, now: float) -> None:
        """The same with a period of the calendar; ``now`` in Unix seconds.

        A clock that is set back changes nothing until it reaches the end of the window again.
        """
        if now >= self.ends:
            self.spent, self.ends = 0, end_of_period(per, zone, now)

    def correct(self, per: str, zone: str, now: float) -> None:
        """Give a window that began while the clock was days ahead the end that it should have; it keeps its amount."""
        if (
            self.ends - now > SET_BACK_SECONDS
            and self.ends - (ends := end_of_period(per, zone, now)) > SET_BACK_SECONDS
        ):
            self.ends = ends


def end_of_period(per: str, zone: str, now: float) -> float:
    """When the hour, day, week (from Monday), month or year of ``now`` ends in that zone, in Unix seconds."""
    if per == "hour":
        return now - now % 3600 + 3600  # zones with half hours too: each hour has one window
    local = datetime.fromtimestamp(now, zone_of(zone))
    day = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0, tzinfo=None)
    if per == "day":
        end = day + timedelta(days=1)
    elif per == "week":
        end = day + timedelta(days=7 - day.weekday())
    elif per == "month":
        end = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
    else:
        end = day.replace(year=day.year + 1, month=1, day=1)
    return end.replace(tzinfo=zone_of(zone)).timestamp()
