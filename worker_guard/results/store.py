"""A sweep of the result backend in Redis, page by page.

Each key is checked and changed in one atomic step on the server. There are three ways, and a
sweep takes the fastest that the server at hand allows:

``scan-script``
    a script that scans by itself; no key travels.
``page-script``
    a script that is given the keys of a page, for servers that refuse undeclared keys.
``watch``
    WATCH, check here, MULTI and EXEC, for servers that refuse scripts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, Protocol

from worker_guard.errors import WorkerGuardError
from worker_guard.results import scripts
from worker_guard.results.selection import (
    VALUE_LIMIT_BYTES,
    Decision,
    Kind,
    Policy,
    Verdict,
    classify,
    judge,
)

#: Keys changed in one MULTI, and read again for it.
_WATCHED = 50

#: What a server's refusal says when a slower way would be refused just the same.
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


class SweepImpossibleError(WorkerGuardError):
    """The result backend can't be swept as it is; the message says why and what would help.

    Nothing was changed.
    """


@dataclass(frozen=True)
class Tally:
    """What a sweep, or a part of it, came to. In a dry run: what it would have come to."""

    keys_scanned: int = 0
    expired_results_deleted: int = 0
    task_states_cleaned: int = 0
    keys_unreadable: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.keys_scanned + other.keys_scanned,
            self.expired_results_deleted + other.expired_results_deleted,
            self.task_states_cleaned + other.task_states_cleaned,
            self.keys_unreadable + other.keys_unreadable,
        )


@dataclass(frozen=True, kw_only=True)
class Actor:
    """What a sweep changes with: by a script, or by commands within a MULTI."""

    script: str
    queue: Callable[[Any, bytes, Decision, Policy], None]


def _queue_change(pipe: Any, key: bytes, decision: Decision, policy: Policy) -> None:
    if decision.verdict is Verdict.DELETE:
        pipe.unlink(key)
    else:
        pipe.pexpire(key, policy.ttl_ms)


def _queue_nothing(_pipe: Any, _key: bytes, _decision: Decision, _policy: Policy) -> None:
    """Send no command: a dry run."""


REAL = Actor(script=scripts.REAL, queue=_queue_change)
DRY_RUN = Actor(script=scripts.DRY_RUN, queue=_queue_nothing)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How much a sweep asks of the server in one call: keys, and time after which it ends."""

    page_keys: int
    budget_s: float


#: For a process of its own.
FULL_SPEED = Pace(page_keys=400, budget_s=0.002)

#: For a worker's event loop, which waits for the answer.
IN_WORKER = Pace(page_keys=200, budget_s=0.001)


class _Cursor:
    """Where the scan stands, and the keys of its last page that are still to be looked at."""

    def __init__(self) -> None:
        self.at: bytes | None = b"0"
        self.pending: list[bytes] = []

    @property
    def finished(self) -> bool:
        return self.at is None and not self.pending

    def moved(self, at: Any) -> None:
        """Take over what SCAN returned; 0 is its end."""
        self.at = None if int(at) == 0 else str(int(at)).encode()


class _Way(Protocol):
    name: str

    def step(self, cursor: _Cursor) -> Tally:
        """One round trip or a few; errors are redis-py's."""


class _Script:
    """A script that is sent once, and known by its digest from then on."""

    def __init__(self, client: Any, source: str, arguments: Sequence[bytes | int]) -> None:
        self._client, self._source = client, source
        self._digest = sha1(source.encode()).hexdigest()  # noqa: S324 - what EVALSHA goes by
        self._arguments = arguments

    def call(self, keys: Sequence[bytes], *own: bytes | int) -> Any:
        """Call it; a server that forgot it is sent it again."""
        from redis.exceptions import NoScriptError

        try:
            return self._client.evalsha(self._digest, len(keys), *keys, *own, *self._arguments)
        except NoScriptError:
            return self._client.eval(self._source, len(keys), *keys, *own, *self._arguments)

    def queue(self, pipe: Any, keys: Sequence[bytes], *own: bytes | int) -> None:
        """Have a pipeline call it."""
        pipe.evalsha(self._digest, len(keys), *keys, *own, *self._arguments)


class _ByScript:
    def __init__(self, client: Any, policy: Policy, actor: Actor, pace: Pace) -> None:
        self._client, self._pace = client, pace
        self._script = _Script(client, actor.script, scripts.arguments(policy))
        self._budget_us = int(pace.budget_s * 1e6)

    def _taken(self, reply: Any, cursor: _Cursor) -> Tally:
        _cursor, scanned, deleted, cleaned, unreadable, rest = reply
        cursor.pending = list(rest)
        return Tally(int(scanned), int(deleted), int(cleaned), int(unreadable))


class _ScanScript(_ByScript):
    name = "scan-script"

    def step(self, cursor: _Cursor) -> Tally:
        if cursor.pending:
            reply = self._script.call(cursor.pending, b"", 0, self._budget_us)
            return self._taken(reply, cursor)
        assert cursor.at is not None
        page_keys = self._pace.page_keys
        reply = self._script.call([], cursor.at, page_keys, self._budget_us)
        cursor.moved(reply[0])
        return self._taken(reply, cursor)


class _PageScript(_ByScript):
    name = "page-script"

    def step(self, cursor: _Cursor) -> Tally:
        """One page's script, with the SCAN for the next page on its heels."""
        from redis.exceptions import NoScriptError

        page_keys = self._pace.page_keys
        if not cursor.pending:
            assert cursor.at is not None
            at, cursor.pending = self._client.scan(int(cursor.at), count=page_keys)
            cursor.moved(at)
        with self._client.pipeline(transaction=False) as pipe:
            self._script.queue(pipe, cursor.pending, b"", 0, self._budget_us)
            if cursor.at is not None and len(cursor.pending) <= page_keys:
                pipe.scan(int(cursor.at), count=page_keys)
            reply, *pages = pipe.execute(raise_on_error=False)
        if isinstance(reply, NoScriptError):
            reply = self._script.call(cursor.pending, b"", 0, self._budget_us)
        for answer in (reply, *pages):
            if isinstance(answer, Exception):
                raise answer
        done = self._taken(reply, cursor)
        for at, keys in pages:
            cursor.moved(at)
            cursor.pending += keys
        return done


class _Watched:
    """Reads here, and changes only what nobody wrote to since it was read."""

    name = "watch"

    def __init__(self, client: Any, policy: Policy, actor: Actor, pace: Pace) -> None:
        self._client, self._policy, self._actor, self._pace = client, policy, actor, pace
        # What the scripts do within a page's time on the server takes ten times as long here.
        self._read_keys = max(1, pace.page_keys // 10)

    def step(self, cursor: _Cursor) -> Tally:
        if not cursor.pending:
            assert cursor.at is not None
            at, cursor.pending = self._client.scan(int(cursor.at), count=self._pace.page_keys)
            cursor.moved(at)
        keys, rest = cursor.pending[: self._read_keys], cursor.pending[self._read_keys :]
        ours = [key for key in keys if classify(key, self._policy) is not Kind.FOREIGN]
        with self._client.pipeline(transaction=False) as pipe:
            decisions = self._decide(pipe, ours)
        done = Tally(
            keys_scanned=len(keys),
            keys_unreadable=sum(decision.unreadable for decision in decisions.values()),
        )
        due = [
            key
            for key, decision in decisions.items()
            if decision.verdict in (Verdict.DELETE, Verdict.EXPIRE)
        ]
        for start in range(0, len(due), _WATCHED):
            done += self._change(due[start : start + _WATCHED])
        cursor.pending = rest
        return done

    def _decide(self, pipe: Any, keys: Sequence[bytes]) -> dict[bytes, Decision]:
        """Judge these keys by what they hold now; the pipeline's next round trip reads them."""
        from redis.exceptions import ResponseError

        kinds = {key: classify(key, self._policy) for key in keys}
        for key, kind in kinds.items():
            pipe.pttl(key)
            if kind is Kind.RESULT:
                pipe.getrange(key, 0, VALUE_LIMIT_BYTES)
        answers = iter(pipe.execute(raise_on_error=False))
        decisions = {}
        for key, kind in kinds.items():
            pttl: Any = next(answers)
            value: Any = next(answers) if kind is Kind.RESULT else None
            if isinstance(value, ResponseError) and "WRONGTYPE" in str(value):
                value = None
            for answer in (pttl, value):
                if isinstance(answer, Exception):
                    raise answer
            decisions[key] = judge(kind, value, int(pttl), self._policy)
        return decisions

    def _change(self, keys: Sequence[bytes]) -> Tally:
        """Change these keys as one; those that somebody writes to meanwhile stay as they are."""
        from redis.exceptions import WatchError

        with self._client.pipeline(transaction=False) as look, self._client.pipeline() as pipe:
            pipe.watch(*keys)
            # Read again, by another connection, now that every write would be noticed.
            decisions = self._decide(look, keys)
            pipe.multi()
            for key, decision in decisions.items():
                if decision.verdict in (Verdict.DELETE, Verdict.EXPIRE):
                    self._actor.queue(pipe, key, decision, self._policy)
            try:
                pipe.execute()
            except WatchError:
                if len(keys) == 1:
                    return Tally()
                return sum((self._change([key]) for key in keys), Tally())
        verdicts = [decision.verdict for decision in decisions.values()]
        return Tally(
            expired_results_deleted=verdicts.count(Verdict.DELETE),
            task_states_cleaned=verdicts.count(Verdict.EXPIRE),
        )


_WAYS: tuple[type[_ScanScript] | type[_PageScript] | type[_Watched], ...] = (
    _ScanScript,
    _PageScript,
    _Watched,
)

#: The names of the ways, the fastest first.
WAYS = tuple(way.name for way in _WAYS)


class Sweep:
    """One sweep of one database. :meth:`step` until :attr:`finished`; :attr:`tally` so far.

    ``first_way`` leaves out the ways before it.
    """

    def __init__(
        self,
        client: Any,
        policy: Policy,
        *,
        actor: Actor,
        pace: Pace,
        first_way: str = WAYS[0],
    ) -> None:
        ways = _WAYS[WAYS.index(first_way) :]
        self._ways: list[_Way] = [way(client, policy, actor, pace) for way in ways]
        self._cursor = _Cursor()
        self.tally = Tally()

    @property
    def way(self) -> str:
        """The way that this server allows, as far as it is known by now."""
        return self._ways[0].name

    @property
    def finished(self) -> bool:
        """Whether every key was looked at."""
        return self._cursor.finished

    def step(self) -> None:
        """Look at some more keys.

        Raises:
            redis.exceptions.RedisError: the server is away, or refuses what every way needs.
            SweepImpossibleError: it turned out to be a node of a cluster.
        """
        from redis.exceptions import ReadOnlyError, ResponseError

        try:
            self.tally += self._ways[0].step(self._cursor)
        except ReadOnlyError:
            raise
        except ResponseError as exc:
            text = str(exc)
            if "MOVED " in text or "CROSSSLOT" in text or "CLUSTERDOWN" in text:
                raise SweepImpossibleError(_CLUSTER) from exc
            if len(self._ways) == 1 or any(word in text for word in _TROUBLE):
                raise
            # The cursor is the same whoever scans: the next way goes on where this one stood.
            del self._ways[0]


_CLUSTER = (
    "the result backend is a node of a Redis Cluster, which worker_guard does not sweep: a sweep "
    "of one node would leave the others as they are"
)


_PERHAPS_A_CLUSTER = (
    "it can't be told whether the result backend is a node of a Redis Cluster, which worker_guard "
    "does not sweep; allow its user the command INFO"
)


def refuse_cluster(client: Any) -> None:
    """Make sure, before anything is changed, that the server holds all of the keys.

    Raises:
        SweepImpossibleError: it is a node of a cluster.
    """
    from redis.exceptions import RedisError, ResponseError

    try:
        info = client.info("cluster")
    except ResponseError:
        # INFO is refused to this user. A node of a cluster answers for no two keys of two slots.
        try:
            client.exists("{worker-guard-a}", "{worker-guard-b}")
        except RedisError as exc:
            raise SweepImpossibleError(_PERHAPS_A_CLUSTER) from exc
        return
    if int(info.get("cluster_enabled", 0)):
        raise SweepImpossibleError(_CLUSTER)


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
