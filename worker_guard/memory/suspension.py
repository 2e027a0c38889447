"""Whether it gains anything to replace a child. Pure: no I/O, time is an argument."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from worker_guard.events import SuspensionReason

#: Recycling that was suspended goes on once a newborn child is at or below this share of the
#: limit: newborns of one worker differ by some per cent, so that others would suspend it again, and
#: a replacement that begins so near its limit gains hardly anything.
RESUME_SHARE = 0.9

#: So many newborns in a row over the limit suspend recycling.
AGREEING_NEWBORNS = 2

#: So many replacements in a row that are over the limit again at once suspend recycling.
REGROWN_IN_A_ROW = 3

#: A replacement that is within the limit after so many tasks was worth it.
FIRST_TASKS = 10

#: A model that is loaded once doesn't grow further; a leak does. A child that grows to this many
#: times what suspended recycling shows that there is a leak, so that recycling gains something.
GROWS_ON_SHARE = 1.5

#: After so many suspensions that a leak ended, replacements are no longer judged by their regrowth.
LEAKS_SHOWN = 2

#: The pool kills a replacement that does not say in time that it is up. A child that takes longer
#: than this share of that time is too slow to be replaced.
SLOW_START_SHARE = 0.5

#: After this time one recycle is tried again; then after twice as long, and so on.
RETRY_S = 900.0

LIMIT_SETTING = "worker_guard_child_memory_limit"
START_SETTING = "worker_proc_alive_timeout"


@dataclass(frozen=True, kw_only=True)
class Start:
    """How long a child took from its fork until it was up: between these two."""

    at_least_s: float
    at_most_s: float


@dataclass(frozen=True, kw_only=True)
class Suspension:
    """Why no child is recycled, and which setting to change (None: it is none of the settings)."""

    reason: SuspensionReason
    baseline_bytes: int | None
    limit_bytes: int
    setting: str | None
    since_mono: float


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """Recycling goes on."""

    suspended_s: float


@dataclass
class Gains:
    """Whether to replace a child gains anything, by what became of the children so far.

    ``start_timeout_s`` is how long the pool waits for a new child; None: for ever. What changes is
    put into ``news``, to be taken from there and told.
    """

    limit_bytes: int
    start_timeout_s: float | None = None
    current: Suspension | None = None
    newest_start: Start | None = None
    news: deque[Suspension | Resumption] = field(default_factory=deque)
    _retry_mono: float = 0.0
    _pause_s: float = 0.0
    _tried: bool = False
    _newborns_over: int = 0
    _regrown: int = 0
    _leaks_shown: int = 0
    _largest_bytes: int = 0
    _unfilled: set[int] = field(default_factory=set)

    # -- what is asked

    def allowed(self, places: int, now: float) -> int:
        """How many of so many children may be recycled now."""
        if self.start_timeout_s is not None and self.newest_start is None:
            return 0  # not before it is known how long a replacement will take
        if self._unfilled:
            return 0  # one place after the other would be lost
        if self.current is None:
            return places
        return min(places, 1) if now >= self._retry_mono else 0

    def chose(self, now: float) -> None:
        """A child is recycled. Where recycling is suspended that is a try."""
        if self.current is not None:
            self._tried = True
            self._pause_s *= 2
            self._retry_mono = now + self._pause_s

    def retry_in_s(self, now: float) -> float:
        """How long it is until a recycle is tried again."""
        return max(0.0, self._retry_mono - now)

    @property
    def slow_start_s(self) -> float:
        """What the newest child may have needed to start where that was slow; else 0."""
        start = self.newest_start
        return 0.0 if start is None or self._is_fast(start) else start.at_most_s

    # -- what is told

    def newborn(self, used_bytes: int, now: float) -> None:
        """A child that ran nothing yet was read: no replacement will use less."""
        over = used_bytes > self.limit_bytes
        self._newborns_over = self._newborns_over + 1 if over else 0
        if self._newborns_over >= AGREEING_NEWBORNS:
            self._suspend("baseline_over_limit", used_bytes, LIMIT_SETTING, now)
        elif used_bytes <= self.limit_bytes * RESUME_SHARE:
            self._resume("baseline_over_limit", now)

    def started(self, start: Start, now: float) -> None:
        """A child is up."""
        self.newest_start = start
        if self.start_timeout_s is None:
            return
        if start.at_least_s > self.start_timeout_s * SLOW_START_SHARE:
            self._suspend("replacement_not_up", None, START_SETTING, now)
        elif self._tried and self._is_fast(start):
            self._resume("replacement_not_up", now)

    def ended_before_it_was_up(self, pid: int, now: float, *, in_time: bool) -> None:
        """A replacement of this child ended before it was up.

        ``in_time``: before the pool kills it for that. No child is recycled until the place is
        :meth:`filled`.
        """
        self._unfilled.add(pid)
        self._suspend("replacement_not_up", None, None if in_time else START_SETTING, now)

    def filled(self, pid: int) -> None:
        """The place of this child is no longer empty."""
        self._unfilled.discard(pid)

    def regrown(self, used_bytes: int, now: float) -> None:
        """A replacement is over the limit again after its first tasks."""
        self._regrown += 1
        if self._regrown >= REGROWN_IN_A_ROW and self._leaks_shown < LEAKS_SHOWN:
            self._suspend("regrows_at_once", used_bytes, LIMIT_SETTING, now)
            self._largest_bytes = max(self._largest_bytes, used_bytes)

    def stayed_small(self, now: float) -> None:
        """A replacement is within the limit after its first tasks."""
        self._regrown = 0
        if self._tried:
            self._resume("regrows_at_once", now)

    def read(self, used_bytes: int, now: float) -> None:
        """A child was read: one that goes on growing after it loaded what it needs has a leak."""
        if self.current is None or self.current.reason != "regrows_at_once":
            return
        if used_bytes > self._largest_bytes * GROWS_ON_SHARE:
            self._leaks_shown += 1
            self._regrown = 0
            # The next time a leak is to grow beyond this: so much may have been loaded, too.
            self._largest_bytes = used_bytes
            self._resume("regrows_at_once", now)

    def _is_fast(self, start: Start) -> bool:
        timeout_s = self.start_timeout_s
        return timeout_s is None or start.at_most_s <= timeout_s * SLOW_START_SHARE

    def _suspend(
        self, reason: SuspensionReason, baseline_bytes: int | None, setting: str | None, now: float
    ) -> None:
        # A worker that could lose its children is told of in any case.
        if self.current is not None and self.current.reason in (reason, "replacement_not_up"):
            return
        self.current = Suspension(
            reason=reason,
            baseline_bytes=baseline_bytes,
            limit_bytes=self.limit_bytes,
            setting=setting,
            since_mono=now,
        )
        self._tried, self._pause_s, self._retry_mono = False, RETRY_S, now + RETRY_S
        self.news.append(self.current)

    def _resume(self, reason: SuspensionReason, now: float) -> None:
        if self.current is None or self.current.reason != reason:
            return
        self.news.append(Resumption(suspended_s=now - self.current.since_mono))
        self.current, self._tried = None, False
