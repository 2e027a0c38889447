"""The lease under which one of many workers cleans the results."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

from worker_guard.errors import WorkerGuardError

#: A worker that died holds it for no longer.
LEASE_S = 60.0


class LeaseLostError(WorkerGuardError):
    """Another process took the lease while this one cleaned.

    The cleanup stops where it stands, and whoever holds the lease starts over; nothing is lost by
    it. Where it happens again and again, the process or Redis stands still for longer than the
    lease's 60 s: look for the reason there.
    """


class Lease:
    """A key that one process holds at a time. Errors are redis-py's.

    Each method makes one call to Redis between two yields. None is a script, so that it works
    where scripts are refused.
    """

    def __init__(
        self, client: Any, key: str, holder: str, *, monotonic: Callable[[], float]
    ) -> None:
        self._client, self._key, self._holder = client, key, holder.encode()
        self._monotonic = monotonic
        self._renew_mono = 0.0
        self.held = False

    def take(self) -> Iterator[None]:
        """Take it where nobody holds it, or this holder already does; :attr:`held` says whether.

        It does after a cleanup that failed, and where the answer to an earlier try was lost.
        """
        lease_ms = int(LEASE_S * 1000)
        self.held = bool(self._client.set(self._key, self._holder, nx=True, px=lease_ms))
        if not self.held:
            yield
            self.held = yield from self._if_mine(lambda pipe: pipe.pexpire(self._key, lease_ms))
        self._renew_mono = self._monotonic() + LEASE_S / 3

    def renew(self) -> Iterator[None]:
        """Keep it; asks Redis only when a third of its time is over.

        One that ran out is taken again where nobody else took it: a solo worker's task can outlast
        it, and each key is checked and deleted in one step anyway.

        Raises:
            LeaseLostError: somebody else holds it now.
        """
        if self._monotonic() < self._renew_mono:
            return
        lease_ms = int(LEASE_S * 1000)
        if not (yield from self._if_mine(lambda pipe: pipe.pexpire(self._key, lease_ms))):
            yield
            self.held = bool(self._client.set(self._key, self._holder, nx=True, px=lease_ms))
        if not self.held:
            raise LeaseLostError("the lease on the result backend's cleanup is lost")
        self._renew_mono = self._monotonic() + LEASE_S / 3
        yield

    def release(self) -> Iterator[None]:
        """Give it back, where it is still held."""
        if self.held:
            self.held = False
            yield from self._if_mine(lambda pipe: pipe.delete(self._key))

    def _if_mine(self, change: Callable[[Any], Any]) -> Generator[None, None, bool]:
        from redis.exceptions import WatchError

        with self._client.pipeline() as pipe:
            pipe.watch(self._key)
            yield
            mine = pipe.get(self._key) == self._holder
            yield
            if not mine:
                return False
            pipe.multi()
            change(pipe)
            try:
                return bool(pipe.execute()[0])
            except WatchError:
                return False


class SeenLease:
    """In a dry run, which writes nothing: goes ahead where nobody holds the lease just now."""

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
