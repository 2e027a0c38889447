"""A part's failures: reported, and paused for longer each time in a row."""

from __future__ import annotations

from collections.abc import Callable

from worker_guard.events import Event, PartFailed

#: No pause is longer.
LONGEST_PAUSE_S = 900.0


class Backoff:
    """How often a part failed in a row, and when it may be tried again.

    ``first_pause_s`` is the pause after the first failure; each further one doubles it, up to
    ``longest_pause_s``.
    """

    def __init__(
        self,
        part: str,
        *,
        first_pause_s: float,
        longest_pause_s: float = LONGEST_PAUSE_S,
        report: Callable[[Event], None],
    ) -> None:
        self._part = part
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
        """Whether the part may be tried now."""
        return not self._failures or now >= self._retry_mono

    def lapse(self, now: float) -> None:
        """Reset the count after one further pause without a failure.

        For what is told of its failures only.
        """
        if now >= self._retry_mono + self._pause_s:
            self._failures = 0

    def succeeded(self) -> None:
        """The part came to its end."""
        self._failures = 0

    def failed(self, error: Exception, now: float) -> float:
        """The part raised; reports it and returns the pause, in seconds, before the next try."""
        self._failures += 1
        doubled_s = self._first_pause_s * 2.0 ** min(self._failures - 1, 30)
        pause_s = min(doubled_s, self._longest_pause_s)
        self._retry_mono, self._pause_s = now + pause_s, pause_s
        self._report(
            PartFailed(
                part=self._part,
                error=f"{type(error).__name__}: {error}",
                consecutive_failures=self._failures,
                retry_in_s=round(pause_s, 3),
            )
        )
        return pause_s

    def noticed(self, error: Exception, now: float) -> None:
        """The same of what goes on regardless: one report for each pause, not for each time."""
        self.lapse(now)
        if self.ready(now):
            self.failed(error, now)
