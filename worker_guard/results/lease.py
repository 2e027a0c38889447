"""The lease under which one of many workers sweeps the results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worker_guard.errors import WorkerGuardError

#: A worker that died holds it for no longer.
LEASE_S = 60.0


class LeaseLostError(WorkerGuardError):
    """The lease ran out, or was taken away, while this process swept.

    The sweep stops where it stands, and whoever holds the lease starts over; nothing is lost by
    it. Where it happens again and again, the process or Redis stood still for longer than the
    lease's 60 s: look for the reason there.
    """


class Lease:
    """A key that one process holds at a time. Errors are redis-py's.

    It needs no script, so that it works where scripts are refused.
    """

    def __init__(
        self, client: Any, key: str, holder: str, *, monotonic: Callable[[], float]
    ) -> None:
        self._client, self._key, self._holder = client, key, holder.encode()
        self._monotonic = monotonic
        self._renew_mono = 0.0
        self.held = False

    def take(self) -> bool:
        """Take it where nobody holds it, or this holder already does.

        It does after a sweep that failed, and where the answer to an earlier try was lost.
        """
        lease_ms = int(LEASE_S * 1000)
        taken = self._client.set(self._key, self._holder, nx=True, px=lease_ms)
        self.held = bool(taken) or self._if_mine(lambda pipe: pipe.pexpire(self._key, lease_ms))
        self._renew_mono = self._monotonic() + LEASE_S / 3
        return self.held

    def renew(self) -> None:
        """Keep it; asks Redis only when a third of its time is over.

        Raises:
            LeaseLostError: somebody else holds it now, or nobody does.
        """
        if self._monotonic() < self._renew_mono:
            return
        if not self._if_mine(lambda pipe: pipe.pexpire(self._key, int(LEASE_S * 1000))):
            self.held = False
            raise LeaseLostError("the lease on the result backend's sweep is lost")
        self._renew_mono = self._monotonic() + LEASE_S / 3

    def release(self) -> None:
        """Give it back, where it is still held."""
        if self.held:
            self.held = False
            self._if_mine(lambda pipe: pipe.delete(self._key))

    def _if_mine(self, change: Callable[[Any], Any]) -> bool:
        from redis.exceptions import WatchError

        with self._client.pipeline() as pipe:
            pipe.watch(self._key)
            if pipe.get(self._key) != self._holder:
                return False
            pipe.multi()
            change(pipe)
            try:
                return bool(pipe.execute()[0])
            except WatchError:
                return False


class NoLease:
    """In a dry run, which writes nothing: every worker looks for itself."""

    held = False

    def take(self) -> bool:
        """Go ahead."""
        return True

    def renew(self) -> None:
        """Nothing is held."""

    def release(self) -> None:
        """Nothing is held."""
