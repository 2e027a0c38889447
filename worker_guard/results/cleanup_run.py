"""A cleanup of the result backend in Redis, page by page.

The server checks and changes each key in one atomic step. A cleanup uses the fastest of three
strategies that the server allows:

``scan-script``
    a script that scans by itself; no key goes over the network.
``page-script``
    a script that gets the keys of a page, for servers that refuse undeclared keys.
``watch``
    WATCH, check here, MULTI and EXEC, for servers that refuse scripts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from worker_guard.errors import WorkerGuardError
from worker_guard.results.script_strategy import PageScript, ScanScript
from worker_guard.results.selection import Policy
from worker_guard.results.strategy import CleanupCounts, Cursor, Pace, ResultsActor, Strategy
from worker_guard.results.watch_strategy import WatchStrategy

#: Words of an error that every other strategy would meet too.
_TROUBLE = (
    "READONLY",
    "OOM",
    "MISCONF",
    "NOREPLICAS",
    "BUSY",
    "LOADING",
    "MASTERDOWN",
    "NOAUTH",
    "WRONGPASS",
    "max number of clients",
)


class CleanupImpossibleError(WorkerGuardError):
    """A cleanup of this result backend is not possible; the message says why and what would help.

    Nothing was changed.
    """


_STRATEGIES: tuple[type[ScanScript] | type[PageScript] | type[WatchStrategy], ...] = (
    ScanScript,
    PageScript,
    WatchStrategy,
)

#: The names of the strategies, the fastest first.
STRATEGIES = tuple(strategy.name for strategy in _STRATEGIES)


class CleanupRun:
    """One cleanup of one database. Call :meth:`step` until it is :attr:`finished`.

    Each step is one round trip. :attr:`counts` says what was done so far.

    ``changer`` is the client that changes keys. It must not retry: after a lost answer, the counts
    would be those of the second call. ``first_strategy`` leaves out the strategies before it.
    """

    def __init__(
        self,
        client: Any,
        policy: Policy,
        *,
        actor: ResultsActor,
        pace: Pace,
        changer: Any = None,
        first_strategy: str = STRATEGIES[0],
    ) -> None:
        strategies = _STRATEGIES[STRATEGIES.index(first_strategy) :]
        changer = client if changer is None else changer
        self._strategies: list[Strategy] = [
            strategy(client, changer, policy, actor, pace) for strategy in strategies
        ]
        self._cursor = Cursor()
        self._turn: Iterator[CleanupCounts] | None = None
        self.counts = CleanupCounts()

    @property
    def strategy(self) -> str:
        """The strategy that this server allows, as far as is known."""
        return self._strategies[0].name

    @property
    def finished(self) -> bool:
        """Whether every key was looked at."""
        return self._cursor.finished

    @property
    def refused(self) -> Exception | None:
        """The first change that the server refused to this user, if any. All others were made."""
        return self._cursor.refused

    def step(self) -> None:
        """Make one more round trip.

        Raises:
            redis.exceptions.RedisError: the server is away, or refuses what every strategy needs.
            CleanupImpossibleError: the server is a node of a cluster after all.
        """
        from redis.exceptions import ReadOnlyError, ResponseError

        try:
            self.counts += self._next()
        except ReadOnlyError:
            raise
        except ResponseError as exc:
            text = str(exc)
            if "MOVED " in text or "CROSSSLOT" in text or "CLUSTERDOWN" in text:
                raise CleanupImpossibleError(_CLUSTER) from exc
            if len(self._strategies) == 1 or any(word in text for word in _TROUBLE):
                raise
            # All strategies share the cursor: the next one goes on from here.
            del self._strategies[0]
            self._turn = None
            return
        if self._cursor.failed is not None:
            raise self._cursor.failed

    def _next(self) -> CleanupCounts:
        while True:
            if self._turn is None:
                self._turn = self._strategies[0].turn(self._cursor)
            done = next(self._turn, None)
            if done is not None:
                return done
            self._turn = None


_CLUSTER = (
    "the result backend is a node of a Redis Cluster, which worker_guard does not clean: a cleanup "
    "of one node would leave the others as they are"
)


_PERHAPS_A_CLUSTER = (
    "worker_guard can't find out whether the result backend is a node of a Redis Cluster, which it "
    "does not clean; allow its user the command INFO"
)


def refuse_cluster(client: Any, own_prefix: str) -> None:
    """Make sure that the server holds all keys, before anything is changed.

    ``own_prefix`` is the prefix of the guard's keys, which this user may read.

    Raises:
        CleanupImpossibleError: the server is a node of a cluster.
    """
    from redis.exceptions import NoPermissionError, ResponseError

    try:
        info = client.info("cluster")
    except ResponseError as exc:
        if not isinstance(exc, NoPermissionError) and "unknown command" not in str(exc):
            raise
        # A node of a cluster refuses a command with keys of two slots.
        try:
            client.exists(*(f"{own_prefix}{{slot-{number}}}" for number in (1, 2)))
        except ResponseError as refused:
            raise CleanupImpossibleError(_PERHAPS_A_CLUSTER) from refused
        return
    if int(info.get("cluster_enabled", 0)):
        raise CleanupImpossibleError(_CLUSTER)


def server_time(client: Any, own: Callable[[], float] = time.time) -> float:
    """Now (epoch, s), by the server's clock or this machine's, whichever is behind.

    Then a fast clock does not make a result look older than it is.
    """
    from redis.exceptions import ResponseError

    now = own()
    try:
        seconds, microseconds = client.time()
    except ResponseError:
        return now
    return min(now, float(seconds) + float(microseconds) / 1e6)
