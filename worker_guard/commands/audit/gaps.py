"""The time between two runs of a schedule."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import pairwise

_DAY_S = 86400.0
#: Eight years, so that a crontab of the 29th of February runs twice.
_FIRST, _DAYS = date(2024, 1, 1), 2 * 1461


@dataclass(frozen=True)
class Gaps:
    """The shortest and the longest time between two runs, in seconds."""

    shortest_s: float
    longest_s: float


def gaps_between(moments: Iterable[datetime]) -> Gaps | None:
    """The gaps between these moments; None if there are fewer than two."""
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(moments)]
    return Gaps(min(gaps), max(gaps)) if gaps else None


def crontab_gaps(
    *,
    minutes: Collection[int],
    hours: Collection[int],
    days_of_week: Collection[int],
    days_of_month: Collection[int],
    months: Collection[int],
) -> Gaps | None:
    """The gaps of a crontab, from the values that it matches (0 is Sunday), without DST.

    None if it runs less than twice in eight years.
    """
    times = sorted(3600.0 * hour + 60.0 * minute for hour in hours for minute in minutes)
    calendar = (_FIRST + timedelta(days=n) for n in range(_DAYS))
    days = [
        day
        for day in calendar
        if day.month in months and day.day in days_of_month and day.isoweekday() % 7 in days_of_week
    ]
    if not days or not times:
        return None
    gaps = {later - earlier for earlier, later in pairwise(times)}
    overnight_s = times[0] - times[-1]
    gaps |= {(later - earlier).days * _DAY_S + overnight_s for earlier, later in pairwise(days)}
    return Gaps(min(gaps), max(gaps)) if gaps else None
