"""When a process reaches its limit if it goes on growing as it did. Pure: no I/O, no clock.

A number needs growth that the readings show. Memory is no white noise: it remembers its jumps, so a
line through all readings would find a trend in most series. Instead the time is cut into equal
blocks, and the growth from the median of one block to that of the next is looked at. If it is much
the same each time, the process grows. A step, a sawtooth or a plateau has blocks without growth
beside blocks with much, and gets no number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, quantiles, stdev

#: Growth is that of the last hour, or of its latest half if that alone is even.
WINDOW_S = 3600.0

#: Readings over a shorter time give no number.
SHORTEST_S = 1200.0

#: Memory that a process held before counts as much as what it holds now, for a day.
REMEMBERED_S = 86_400.0

#: How far the number looks ahead, as a multiple of the time that the readings cover.
HORIZON = 4.0

#: A rate that may be off by more than this share of itself gives no number.
PRECISION = 0.5

#: Growth that slowed down by more than this share of its mean, from the first block to the last,
#: gives no number, if that is no chance.
SLOWDOWN = 0.25

_BLOCKS = 6
_PER_BLOCK = 2

#: Student's t for five rates: 99 % of the means are nearer to the true one than so many errors.
_T_OF_MEAN = 4.604
#: Student's t for a line through five rates: 2.5 % of the lines fall so steeply by chance.
_T_OF_SLOWDOWN = 3.182

Point = tuple[float, int]
"""When a process was read (monotonic, s), and its memory (bytes)."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """When a process reaches its limit (monotonic, s), and the interval in which that lies."""

    at_mono: float
    earliest_mono: float
    latest_mono: float


@dataclass
class Growth:
    """What one process held in the last hour, and the most that it held before."""

    points: deque[Point] = field(default_factory=deque)
    before_bytes: int = 0
    _before_mono: float = 0.0

    def add(self, used_bytes: int, now: float) -> None:
        """The process was read."""
        self.points.append((now, used_bytes))
        while self.points[0][0] < now - WINDOW_S:
            self._leave_behind(now)

    def forecast(self, limit_bytes: int) -> Forecast | None:
        """When it reaches this limit; None: its readings support no number."""
        points = list(self.points)
        if not points:
            return None
        first_mono, last_mono = points[0][0], points[-1][0]
        for span_s in (last_mono - first_mono, (last_mono - first_mono) / 2):
            if span_s < SHORTEST_S:
                break
            start = next(n for n, (at, _) in enumerate(points) if at >= last_mono - span_s)
            # What it held before, it may hold again without growing: a sawtooth does.
            before_bytes = max(self.before_bytes, _height(points[:start]))
            found = _forecast(points[start:], limit_bytes, before_bytes)
            if found is not None:
                return found
        return None

    def _leave_behind(self, now: float) -> None:
        """Drop the oldest point. A single high reading is not remembered."""
        height_bytes = _height([self.points[n] for n in range(min(3, len(self.points)))])
        self.points.popleft()
        if height_bytes >= self.before_bytes or now - self._before_mono > REMEMBERED_S:
            self.before_bytes, self._before_mono = height_bytes, now


def _height(points: Sequence[Point]) -> int:
    """The most that a process held in three readings in a row, by their median."""
    used = [used_bytes for _, used_bytes in points]
    return max((int(median(used[n : n + 3])) for n in range(len(used) - 2)), default=0)


def _forecast(points: Sequence[Point], limit_bytes: int, before_bytes: int) -> Forecast | None:
    """When the limit is reached, if these readings show even growth beyond what was before."""
    rates = _rates(points)
    if rates is None or _slows_down(rates):
        return None
    rate = fmean(rates)
    error = _T_OF_MEAN * stdev(rates) / len(rates) ** 0.5
    if rate <= 0 or error > PRECISION * rate:
        return None
    last_mono = points[-1][0]
    levels = [used_bytes - rate * (at - last_mono) for at, used_bytes in points]
    level = median(levels)
    low, *_, high = quantiles(levels, n=20)
    span_s = last_mono - points[0][0]
    if min(rate * span_s, level - before_bytes) <= high - low:
        return None
    noise = 1.5 * median(abs(each - level) for each in levels)
    room = limit_bytes - level
    in_s = room / rate
    if not 0 < in_s <= HORIZON * span_s:
        return None
    return Forecast(
        at_mono=last_mono + in_s,
        earliest_mono=last_mono + max(0.0, room - noise) / (rate + error),
        latest_mono=last_mono + (room + noise) / (rate - error),
    )


def _rates(points: Sequence[Point]) -> list[float] | None:
    """Growth from block to block in bytes per second; None: a block has too few readings."""
    if len(points) < _BLOCKS * _PER_BLOCK:
        return None
    first_mono, last_mono = points[0][0], points[-1][0]
    block_s = (last_mono - first_mono) / _BLOCKS
    blocks: list[list[Point]] = [[] for _ in range(_BLOCKS)]
    for point in points:
        blocks[min(_BLOCKS - 1, int((point[0] - first_mono) / block_s))].append(point)
    if min(map(len, blocks)) < _PER_BLOCK:
        return None
    middles = [(fmean(at for at, _ in b), median(used for _, used in b)) for b in blocks]
    return [
        (middles[n + 1][1] - middles[n][1]) / (middles[n + 1][0] - middles[n][0])
        for n in range(_BLOCKS - 1)
    ]


def _slows_down(rates: Sequence[float]) -> bool:
    """Whether the growth slows down, by the slope of a line through the rates."""
    middle, rate = (len(rates) - 1) / 2, fmean(rates)
    squares = sum((n - middle) ** 2 for n in range(len(rates)))
    slope = sum((n - middle) * each for n, each in enumerate(rates)) / squares
    rest = sum((each - rate - slope * (n - middle)) ** 2 for n, each in enumerate(rates))
    error = (rest / (len(rates) - 2) / squares) ** 0.5
    return -slope * (len(rates) - 1) > SLOWDOWN * rate and -slope > _T_OF_SLOWDOWN * error
