"""A cleanup of the result backend in Redis, page by page.

Each key is checked and changed in one atomic step on the server. A cleanup takes the fastest of
three strategies that the server allows:

``scan-script``
    a script that scans by itself; no key travels.
``page-script``
    a script that is given the keys of a page, for servers that refuse undeclared keys.
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

#: What a server's refusal says when a slower strategy would be refused just the same.
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
    """The result backend can't be cleaned as it is; the message says why and what would help.

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
    """One cleanup of one database. :meth:`step` until :attr:`finished`; :attr:`counts` so far.

    Each step is one round trip.

    ``changer`` is the client for what changes keys: one that sends nothing twice, or the count of
    a call whose answer was lost would be that of the second. ``first_strategy`` leaves out the
    strategies before it.
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
        """The strategy that this server allows, as far as it is known by now."""
        return self._strategies[0].name

    @property
    def finished(self) -> bool:
        """Whether every key was looked at."""
        return self._cursor.finished

    @property
    def refused(self) -> Exception | None:
        """The first change that this user may not make, where there was one. All else was done."""
        return self._cursor.refused

    def step(self) -> None:
        """Do what takes one more round trip.

        Raises:
            redis.exceptions.RedisError: the server is away, or refuses what every strategy needs.
            CleanupImpossibleError: it turned out to be a node of a cluster.
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
            # The cursor is the same whoever scans: the next strategy goes on where this one stood.
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
    "it can't be told whether the result backend is a node of a Redis Cluster, which worker_guard "
    "does not clean; allow its user the command INFO"
)


def refuse_cluster(client: Any, own_prefix: str) -> None:
    """Make sure, before anything is changed, that the server holds all of the keys.

    ``own_prefix`` is that of the guard's keys, which this user may read.

    Raises:
        CleanupImpossibleError: it is a node of a cluster.
    """
    from redis.exceptions import NoPermissionError, ResponseError

    try:
        info = client.info("cluster")
    except ResponseError as exc:
        if not isinstance(exc, NoPermissionError) and "unknown command" not in str(exc):
            raise
        # A node of a cluster answers for no two keys of two slots.
        try:
            client.exists(*(f"{own_prefix}{{slot-{number}}}" for number in (1, 2)))
        except ResponseError as refused:
            raise CleanupImpossibleError(_PERHAPS_A_CLUSTER) from refused
        return
    if int(info.get("cluster_enabled", 0)):
        raise CleanupImpossibleError(_CLUSTER)


def server_time(client: Any, own: Callable[[], float] = time.time) -> float:
    """Now (epoch, s), by the server's clock or this machine's, whichever is behind.

    So a clock that is fast makes no result look older than it is.
    """
    from redis.exceptions import ResponseError

    now = own()
    try:
        seconds, microseconds = client.time()
    except ResponseError:
        return now
    return min(now, float(seconds) + float(microseconds) / 1e6)
