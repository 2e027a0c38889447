"""Reports failures, and makes the pause before the next try longer each time."""

from __future__ import annotations

from collections.abc import Callable

from worker_guard.events import Event, PartFailed

#: The longest pause, in seconds.
LONGEST_PAUSE_S = 900.0


class Backoff:
    """Counts consecutive failures of one job or hook, and says when to try it again.

    The pause after the first failure is ``first_pause_s``. It doubles with each further failure, up
    to ``longest_pause_s``.
    """

    def __init__(
        self,
        name: str,
        *,
        first_pause_s: float,
        longest_pause_s: float = LONGEST_PAUSE_S,
        report: Callable[[Event], None],
    ) -> None:
        self._name = name
        self._longest_pause_s = longest_pause_s
        self._first_pause_s = first_pause_s
        self._report = report
        self._failures = 0
        self._retry_mono = self._pause_s = 0.0

    @property
    def consecutive_failures(self) -> int:
        """Failures since the last success."""
        return self._failures

    def ready(self, now: float) -> bool:
        """Whether it may be tried now."""
        return not self._failures or now >= self._retry_mono

    def lapse(self, now: float) -> None:
        """Reset the count after one further pause without a failure.

        For code that reports its failures, but not its successes.
        """
        if now >= self._retry_mono + self._pause_s:
            self._failures = 0

    def succeeded(self) -> None:
        """It worked: reset the count."""
        self._failures = 0

    def failed(self, error: Exception, now: float) -> float:
        """Report a failure; returns the pause before the next try, in seconds."""
        self._failures += 1
        doubled_s = self._first_pause_s * 2.0 ** min(self._failures - 1, 30)
        pause_s = min(doubled_s, self._longest_pause_s)
        self._retry_mono, self._pause_s = now + pause_s, pause_s
        self._report(
            PartFailed(
                part=self._name,
                error=f"{type(error).__name__}: {error}",
                consecutive_failures=self._failures,
                retry_in_s=round(pause_s, 3),
            )
        )
        return pause_s

    def noticed(self, error: Exception, now: float) -> None:
        """Record a failure of code that keeps running (a hook, a scrape); report once per pause."""
        self.lapse(now)
        if self.ready(now):
            self.failed(error, now)
