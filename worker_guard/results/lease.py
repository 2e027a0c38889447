"""The lease that lets one of many workers clean the results."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
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

    Each method makes one call to Redis between two yields. It uses no script, since a server may
    refuse scripts.
    """

    def __init__(
        self, client: Any, key: str, holder: str, *, monotonic: Callable[[], float]
    ) -> None:
        self._client, self._key, self._holder = client, key, holder.encode()
        self._monotonic = monotonic
        self._renew_mono = 0.0
        self.held = False

    def take(self) -> Iterator[None]:
        """Take it if nobody else holds it; :attr:`held` says whether that worked.

        This holder may have it already: from a cleanup that failed, or from a try whose answer was
        lost.
        """
        lease_ms = int(LEASE_S * 1000)
        self.held = bool(self._client.set(self._key, self._holder, nx=True, px=lease_ms))
        if not self.held:
            yield
            self.held = yield from self._if_mine(lambda pipe: pipe.pexpire(self._key, lease_ms))
        self._renew_mono = self._monotonic() + LEASE_S / 3

    def renew(self) -> Iterator[None]:
        """Renew it when a third of its time is over; until then it asks Redis nothing.

        If it ran out and nobody else took it, take it again: a solo worker's task can outlast the
        lease, and the server checks and deletes each key in one step anyway.

        Raises:
            LeaseLostError: another process holds it now.
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
        """Give it back, if it is held."""
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
