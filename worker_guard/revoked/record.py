"""The operators' revocations on record, in a Redis result backend.

Four keys hold all of them, so that they are read in pages, without a scan of the results:

- ``…revocations``, a sorted set: each revocation, and until when it is held;
- ``…revocations-since``, a sorted set: when it was made;
- ``…revocations-way``, a hash: by which way;
- ``…revocations-taken-back``, a sorted set: what was taken back, and when.

A revocation stands if it was made after it was last taken back. Scores only grow (``ZADD GT``), so
it does not matter in which order workers write, or how late. All times are the server's: a worker
says how long ago a revocation was made, so clocks that differ do no harm.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from worker_guard import celery_internals
from worker_guard.errors import WorkerGuardError
from worker_guard.values.source import Stamp, Target, Way

#: Entries of one page, which is one slice of a run: reading them takes about 4 ms.
PAGE = 150

#: What was taken back is remembered at least this long, in seconds: a worker that was away or down
#: must not bring it back.
_REMEMBERED_S = 8 * 86_400.0

#: Seconds after its end until a revocation is removed: each worker first marks the ids it holds.
_ENDED_FOR_S = 600.0

#: Seconds that the keys outlive their last entry.
_SLACK_S = 86_400.0

_FOR_EVER = float("inf")


class Made(NamedTuple):
    """How a revocation was made: ``age_s`` seconds ago, and by which way."""

    way: Way
    age_s: float


@dataclass(frozen=True)
class Revocation:
    """A revocation on record; its times are seconds of the Unix epoch, by the server's clock."""

    target: Target
    way: Way
    since: float
    until: float | None
    """None: it is held for ever."""

    age_s: float


class TakenBack(NamedTuple):
    """A revocation that was taken back ``age_s`` seconds ago."""

    target: Target
    age_s: float


class RecordUnavailableError(WorkerGuardError):
    """This result backend can't hold the record; the message says why.

    Use Redis as the result backend. Without a record, each worker still holds what it heard.
    """


class Record:
    """The revocations on record. ``lifetime_s`` None: they are held for ever.

    ``client`` returns bytes. Every method but :meth:`pages` and :meth:`taken_back` takes a few
    round trips at most; these two take one or two for each page. Errors are redis-py's own.
    """

    def __init__(self, client: Any, prefix: str, *, lifetime_s: float | None) -> None:
        self._client = client
        self._lifetime_s = lifetime_s
        self._until = f"{prefix}worker-guard-revocations"
        self._since = f"{self._until}-since"
        self._way = f"{self._until}-way"
        self._taken = f"{self._until}-taken-back"

    # -- write -----------------------------------------------------------------------------

    def put(self, made: Mapping[Target, Made]) -> set[Target]:
        """Record these revocations; returns those that were taken back since they were made."""
        members = {_member(target): target for target in made}
        if not members:
            return set()
        with self._client.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zmscore(self._taken, list(members))
            pipe.pttl(self._until)
            clock, taken_at, ttl_ms = pipe.execute()
        now = _seconds(clock)
        taken: set[Target] = set()
        until: dict[bytes, float] = {}
        since: dict[bytes, float] = {}
        ways: dict[bytes, str] = {}
        for (member, target), at in zip(members.items(), taken_at, strict=True):
            since_s = now - made[target].age_s
            if at is not None and at >= since_s:
                taken.add(target)
                continue
            since[member] = since_s
            until[member] = _FOR_EVER if self._lifetime_s is None else since_s + self._lifetime_s
            ways[member] = made[target].way.value
        if since:
            with self._client.pipeline(transaction=False) as pipe:
                # Until when last: what has no other entry yet is not listed yet.
                pipe.zadd(self._since, since, gt=True)
                pipe.hset(self._way, mapping=ways)
                pipe.zadd(self._until, until, gt=True)
                for key in (self._since, self._way, self._until):
                    self._keep(pipe, key, ttl_ms, self._lifetime_s)
                pipe.execute()
        return taken

    def take_back(self, targets: Sequence[Target]) -> None:
        """Take these revocations back, on record or not: what was made until now does not stand."""
        members = [_member(target) for target in targets]
        if not members:
            return
        with self._client.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.pttl(self._taken)
            clock, ttl_ms = pipe.execute()
        now = _seconds(clock)
        kept_s = None if self._lifetime_s is None else max(self._lifetime_s, _REMEMBERED_S)
        with self._client.pipeline(transaction=False) as pipe:
            pipe.zadd(self._taken, dict.fromkeys(members, now), gt=True)
            self._keep(pipe, self._taken, ttl_ms, kept_s)
            pipe.execute()

    def remove(self, targets: Sequence[Target]) -> None:
        """Remove these from the record; a worker that still holds one may record it again."""
        members = [_member(target) for target in targets]
        if members:
            with self._client.pipeline() as pipe:
                pipe.zrem(self._until, *members)
                pipe.zrem(self._since, *members)
                pipe.hdel(self._way, *members)
                pipe.execute()

    def purge(self) -> Iterator[None]:
        """Remove what has ended; yields after each page."""
        now = _seconds(self._client.time())
        ended_by = now - _ENDED_FOR_S
        while ended := self._client.zrangebyscore(self._until, "-inf", ended_by, start=0, num=PAGE):
            if not self._remove(ended, ended_by):
                return
            yield
        if self._lifetime_s is not None:
            # What was taken back longer ago than any worker can remember making it.
            yield from self._forget(now - max(self._lifetime_s, _REMEMBERED_S))

    def _forget(self, before: float) -> Iterator[None]:
        """Forget what was taken back before then.

        Not what still has an entry, which a longer lifetime of before has left: it would stand
        again.
        """
        kept = 0
        while old := self._client.zrangebyscore(self._taken, "-inf", before, start=kept, num=PAGE):
            entries = self._client.zmscore(self._until, old)
            gone = [m for m, until in zip(old, entries, strict=True) if until is None]
            if gone:
                self._client.zrem(self._taken, *gone)
            kept += len(old) - len(gone)
            yield

    def _remove(self, members: Sequence[bytes], ended_by: float) -> bool:
        """Remove these from all keys, unless another worker writes meanwhile: then next time."""
        from redis.exceptions import WatchError

        with self._client.pipeline() as pipe:
            try:
                pipe.watch(self._until)
                scores = pipe.zmscore(self._until, list(members))
                found = zip(members, scores, strict=True)
                still = [m for m, until in found if until is not None and until <= ended_by]
                if not still:
                    return True
                pipe.multi()
                pipe.zrem(self._until, *still)
                pipe.zrem(self._since, *still)
                pipe.hdel(self._way, *still)
                pipe.execute()
            except WatchError:
                return False
        return True

    def _keep(self, pipe: Any, key: str, ttl_ms: int, kept_s: float | None) -> None:
        """Let the key live as long as what it now holds, and never shorter than it would."""
        if kept_s is None or ttl_ms == -1:
            pipe.persist(key)
        else:
            pipe.pexpire(key, max(ttl_ms, int((kept_s + _SLACK_S) * 1000)))

    # -- read ------------------------------------------------------------------------------

    def ask_standing(self, pipe: Any, task_ids: Sequence[str]) -> None:
        """Ask in ``pipe`` for what :meth:`read_standing` needs: two answers."""
        members = [_member(task_id) for task_id in task_ids]
        pipe.zmscore(self._since, members)
        pipe.zmscore(self._taken, members)

    @staticmethod
    def read_standing(
        task_ids: Sequence[str], since: Sequence[float | None], taken: Sequence[float | None]
    ) -> tuple[set[str], set[str]]:
        """Of these ids, those that are revoked on record, and those that were taken back."""
        stand: set[str] = set()
        gone: set[str] = set()
        for task_id, made_at, taken_at in zip(task_ids, since, taken, strict=True):
            if made_at is not None and (taken_at is None or made_at > taken_at):
                stand.add(task_id)
            elif taken_at is not None:
                gone.add(task_id)
        return stand, gone

    def lost(self, targets: Sequence[Target]) -> list[Target]:
        """Those of these that are not on record; one round trip."""
        members = [_member(target) for target in targets]
        if not members:
            return []
        with self._client.pipeline(transaction=False) as pipe:
            pipe.zmscore(self._until, members)
            pipe.zmscore(self._since, members)
            scores = zip(*pipe.execute(), strict=True)
        return [t for t, found in zip(targets, scores, strict=True) if None in found]

    def pages(self) -> Iterator[list[Revocation]]:
        """All that stand, at least once each."""
        cursor = 0
        while True:
            cursor, found = self._client.zscan(self._until, cursor, count=PAGE)
            yield self._page(found)
            if cursor == 0:
                return

    def _page(self, found: Sequence[tuple[bytes, float]]) -> list[Revocation]:
        if not found:
            return []
        members = [member for member, _ in found]
        with self._client.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zmscore(self._since, members)
            pipe.zmscore(self._taken, members)
            pipe.hmget(self._way, members)
            clock, since, taken, ways = pipe.execute()
        now = _seconds(clock)
        page = []
        for (member, until), made_at, taken_at, way in zip(found, since, taken, ways, strict=True):
            if made_at is None or until <= now or (taken_at is not None and taken_at >= made_at):
                continue
            page.append(
                Revocation(
                    target=_target(member),
                    way=_way(way),
                    since=made_at,
                    until=None if until == _FOR_EVER else until,
                    age_s=now - made_at,
                )
            )
        return page

    def taken_back(self, *, last: bool = False) -> Iterator[list[TakenBack]]:
        """All that was taken back and does not stand again, at least once each, in pages.

        If ``last``, one page alone: what was taken back last.
        """
        if last:
            yield self._taken_page(
                self._client.zrevrange(self._taken, 0, PAGE - 1, withscores=True)
            )
            return
        cursor = 0
        while True:
            cursor, found = self._client.zscan(self._taken, cursor, count=PAGE)
            yield self._taken_page(found)
            if cursor == 0:
                return

    def _taken_page(self, found: Sequence[tuple[bytes, float]]) -> list[TakenBack]:
        if not found:
            return []
        with self._client.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zmscore(self._since, [member for member, _ in found])
            clock, since = pipe.execute()
        now = _seconds(clock)
        return [
            TakenBack(_target(member), now - taken_at)
            for (member, taken_at), made_at in zip(found, since, strict=True)
            if made_at is None or made_at <= taken_at
        ]


def open_record(backend: Any, *, lifetime_s: float | None, timeout_s: float) -> Record:
    """The record in this result backend. Connects to nothing yet.

    Raises:
        RecordUnavailableError: with the reason, for the start event.
    """
    kind = type(backend).__name__
    if not celery_internals.is_key_value(backend):
        raise RecordUnavailableError(f"the result backend {kind} is not a key-value store")
    if not celery_internals.is_redis(backend):
        raise RecordUnavailableError(
            f"the keys of the result backend {kind} can't be listed; with Redis they can"
        )
    return Record(
        celery_internals.results_client(backend, timeout_s),
        celery_internals.key_prefix(backend),
        lifetime_s=lifetime_s,
    )


_ID, _STAMP = b"id:", b"stamp:"


def _member(target: Target) -> bytes:
    if isinstance(target, Stamp):
        return _STAMP + json.dumps([target.header, target.value]).encode()
    # Whatever an operator gave as an id: a strange one must not block the others.
    return _ID + str(target).encode("utf-8", "surrogatepass")


def _target(member: bytes) -> Target:
    if member.startswith(_STAMP):
        return Stamp(*json.loads(member.removeprefix(_STAMP)))
    return member.removeprefix(_ID).decode("utf-8", "surrogatepass")


def _way(found: bytes | None) -> Way:
    try:
        return Way((found or b"").decode())
    except ValueError:
        return Way.REVOKE


def _seconds(clock: tuple[int, int]) -> float:
    seconds, microseconds = clock
    return seconds + microseconds / 1e6
