"""Since when the main loop hangs in one read. Pure: no I/O, time is an argument."""

from __future__ import annotations

#: By so much the kernel's count of silent seconds may lag behind the clock.
_SLACK_S = 0.5


class BlockedRead:
    """Judges samples of what the main loop does, and says when it hangs.

    It hangs if all samples for ``after_s`` found it in a read of the same connection, no byte came
    on that connection meanwhile, and :meth:`beat` was not called.
    """

    def __init__(self, after_s: float) -> None:
        self.after_s = after_s
        self._connection: int | None = None
        self._since_mono = 0.0

    def beat(self) -> None:
        """The main loop turns."""
        self._connection = None

    def sample(self, connection: int | None, silent_s: float, now: float) -> float | None:
        """Take one sample; returns for how many seconds the loop has hung, or None.

        ``connection`` is None if the loop is in no such read; ``silent_s`` are the seconds since a
        byte came on that connection.
        """
        same = connection is not None and connection == self._connection
        if not same or silent_s < now - self._since_mono - _SLACK_S:
            self._connection, self._since_mono = connection, now
            return None
        hung_s = now - self._since_mono
        return hung_s if hung_s >= self.after_s else None
