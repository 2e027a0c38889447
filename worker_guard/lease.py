"""A lease in Redis: one of many workers does a thing. It is redis-py's ``Lock``, used in slices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from worker_guard.errors import WorkerGuardError

#: Seconds for which a dead worker still holds the lease.
LEASE_S = 60.0


class LeaseLostError(WorkerGuardError):
    """Another process took the lease while this one cleaned.

    The cleanup stops, and the new holder starts over; nothing is lost. If it happens again and
    again, this process or Redis hangs for more than the lease's 60 s: look for the reason there.
    """


class Lease:
    """A key that one process holds at a time. Errors are redis-py's.

    Each method makes one call to Redis between two yields. A lease is extended and given back by
    scripts, so the server has to allow them.
    """

    def __init__(
        self, client: Any, key: str, holder: str, *, monotonic: Callable[[], float]
    ) -> None:
        from redis.lock import Lock

        self._client, self._holder, self._monotonic = client, holder, monotonic
        # The job that holds it may be stopped by another thread.
        self._lock = Lock(client, key, timeout=LEASE_S, blocking=False, thread_local=False)
        self._renew_mono = 0.0
        self.held = False

    def take(self) -> Iterator[None]:
        """Take it if nobody else holds it; :attr:`held` says whether that worked.

        This holder may have it already, from a run that failed.
        """
        self.held = self._acquired()
        if not self.held:
            yield
            self.held = self._extended()
            return
        # So that each later call is one round trip.
        for script in (self._lock.LUA_EXTEND_SCRIPT, self._lock.LUA_RELEASE_SCRIPT):
            yield
            self._client.script_load(script)

    def renew(self) -> Iterator[None]:
        """Renew it when a third of its time is over; until then it asks Redis nothing.

        If it ran out and nobody else took it, take it again: a solo worker's task can outlast the
        lease, and what is cleaned is checked and deleted in one step anyway.

        Raises:
            LeaseLostError: another process holds it now.
        """
        if self._monotonic() < self._renew_mono:
            return
        if not self._extended():
            yield
            self.held = self._acquired()
        if not self.held:
            raise LeaseLostError("the lease is lost: another process cleans now")
        yield

    def release(self) -> Iterator[None]:
        """Give it back, if it is held."""
        from redis.exceptions import LockNotOwnedError

        if not self.held:
            return
        self.held = False
        try:
            self._lock.release()
        except LockNotOwnedError:
            return
        yield

    def _acquired(self) -> bool:
        self._renew_mono = self._monotonic() + LEASE_S / 3
        return bool(self._lock.acquire(blocking=False, token=self._holder))

    def _extended(self) -> bool:
        """Whether this holder still had it, and has it for its whole time now."""
        from redis.exceptions import LockError

        self._renew_mono = self._monotonic() + LEASE_S / 3
        try:
            return bool(self._lock.extend(LEASE_S, replace_ttl=True))
        except LockError:
            return False


class SeenLease:
    """The lease of a dry run, which writes nothing: it only looks for another holder."""

    def __init__(self, client: Any, key: str) -> None:
        self._client, self._key = client, key
        self.held = False

    def take(self) -> Iterator[None]:
        """Look whether anybody cleans."""
        self.held = not self._client.exists(self._key)
        yield from ()

    def renew(self) -> Iterator[None]:
        """Nothing is held."""
        yield from ()

    def release(self) -> Iterator[None]:
        """Nothing is held."""
        yield from ()
