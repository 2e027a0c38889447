"""Whether replacing a child gains anything. Pure: no I/O, time is an argument."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from worker_guard.events import SuspensionReason

#: Suspended recycling resumes once a new child is at or below this share of the limit. New children
#: of one worker differ by a few per cent, so with a higher share the next one could suspend it
#: again; and a replacement that starts so near its limit gains hardly anything.
RESUME_SHARE = 0.9

#: This many new children in a row over the limit suspend recycling.
AGREEING_NEWBORNS = 2

#: This many replacements in a row that are over the limit again at once suspend recycling.
REGROWN_IN_A_ROW = 3

#: A replacement that is within the limit after this many tasks was worth it.
FIRST_TASKS = 10

#: A model that is loaded once doesn't grow further; a leak does. A child that grows to this many
#: times the size that suspended recycling has a leak, so recycling gains something.
GROWS_ON_SHARE = 1.5

#: After a leak has ended this many suspensions, regrowth no longer suspends recycling.
LEAKS_SHOWN = 2

#: The pool kills a replacement that does not say in time that it is up. If a child takes longer
#: than this share of that time, replacing children is too risky.
SLOW_START_SHARE = 0.5

#: Seconds until one recycle is tried again; then twice as long, and so on.
RETRY_S = 900.0

LIMIT_SETTING = "worker_guard_child_memory_limit"
TOTAL_SETTING = "worker_guard_total_memory_limit"
START_SETTING = "worker_proc_alive_timeout"


@dataclass(frozen=True, kw_only=True)
class Start:
    """How long a child took from its fork until it was up: somewhere between these two."""

    at_least_s: float
    at_most_s: float


@dataclass(frozen=True, kw_only=True)
class Suspension:
    """Why no child is recycled, and which setting to change (None: no setting helps)."""

    reason: SuspensionReason
    baseline_bytes: int | None
    limit_bytes: int
    setting: str | None
    since_mono: float


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """Recycling resumes."""

    suspended_s: float


@dataclass
class Gains:
    """Whether replacing a child gains anything, judged by the children so far.

    ``setting`` is the setting that holds the limit. ``start_timeout_s`` is how long the pool waits
    for a new child; None: for ever. Each change is put into ``news``, for the caller to take out
    and report.
    """

    limit_bytes: int
    setting: str = LIMIT_SETTING
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

    # -- questions

    def allowed(self, places: int, now: float) -> int:
        """How many of ``places`` children may be recycled now."""
        free = self.safe(places, now)
        return free if self.current is None else self._as_a_try(free, now)

    def safe(self, places: int, now: float) -> int:
        """The same for another limit: all that counts is that a replacement can start."""
        if self.start_timeout_s is not None and self.newest_start is None:
            return 0  # not before it is known how long a replacement will take
        if self._unfilled:
            return 0  # else the pool could lose one child after the other
        return self._as_a_try(places, now) if self._starts_in_doubt() else places

    def _as_a_try(self, places: int, now: float) -> int:
        return min(places, 1) if now >= self._retry_mono else 0

    def _starts_in_doubt(self) -> bool:
        return self.current is not None and self.current.reason == "replacement_not_up"

    def chose(self, now: float, *, for_another_limit: bool = False) -> None:
        """A child is recycled. If recycling is suspended, that is a try."""
        if self._starts_in_doubt() if for_another_limit else self.current is not None:
            self._tried = True
            self._pause_s *= 2
            self._retry_mono = now + self._pause_s

    def retry_in_s(self, now: float) -> float:
        """Seconds until a recycle is tried again."""
        return max(0.0, self._retry_mono - now)

    @property
    def slow_start_s(self) -> float:
        """How long the newest child took to start, at the most, if that was slow; else 0."""
        start = self.newest_start
        return 0.0 if start is None or self._is_fast(start) else start.at_most_s

    # -- observations

    def newborn(self, used_bytes: int, now: float) -> None:
        """A child that ran nothing yet was read: no replacement will use less."""
        over = used_bytes > self.limit_bytes
        self._newborns_over = self._newborns_over + 1 if over else 0
        if self._newborns_over >= AGREEING_NEWBORNS:
            self._suspend("baseline_over_limit", used_bytes, self.setting, now)
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

        ``in_time``: before the pool would have killed it. No child is recycled until the place is
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
            self._suspend("regrows_at_once", used_bytes, self.setting, now)
            self._largest_bytes = max(self._largest_bytes, used_bytes)

    def stayed_small(self, now: float) -> None:
        """A replacement is within the limit after its first tasks."""
        self._regrown = 0
        if self._tried:
            self._resume("regrows_at_once", now)

    def read(self, used_bytes: int, now: float) -> None:
        """A child was read. One that keeps growing after it loaded what it needs has a leak."""
        if self.current is None or self.current.reason != "regrows_at_once":
            return
        if used_bytes > self._largest_bytes * GROWS_ON_SHARE:
            self._leaks_shown += 1
            self._regrown = 0
            # Next time a leak must grow beyond this, since this much may have been loaded, too.
            self._largest_bytes = used_bytes
            self._resume("regrows_at_once", now)

    def _is_fast(self, start: Start) -> bool:
        timeout_s = self.start_timeout_s
        return timeout_s is None or start.at_most_s <= timeout_s * SLOW_START_SHARE

    def _suspend(
        self, reason: SuspensionReason, baseline_bytes: int | None, setting: str | None, now: float
    ) -> None:
        # ``replacement_not_up`` overrides the other reasons: the worker could lose its children.
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
