"""A cleanup of the result backend in Redis, page by page.

A page of keys is scanned; a script checks and changes its keys in one atomic step, and returns
those whose layout it does not know. These are read and judged here, and a second script changes
those that are still the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, NoReturn

from worker_guard.errors import WorkerGuardError
from worker_guard.events import CleanupCompleted, Trigger
from worker_guard.results import scripts
from worker_guard.results.scripts import Script
from worker_guard.results.selection import (
    TAIL_BYTES,
    Judgement,
    Policy,
    Verdict,
    judge,
    results_and_states,
)


class CleanupImpossibleError(WorkerGuardError):
    """A cleanup of this result backend is not possible; the message says why.

    Nothing was changed.
    """


@dataclass(frozen=True)
class CleanupCounts:
    """What a cleanup did; in a dry run, what it would have done."""

    keys_scanned: int = 0
    expired_results_deleted: int = 0
    task_states_cleaned: int = 0
    keys_unreadable: int = 0
    keys_with_longer_ttl: int = 0

    def __add__(self, other: CleanupCounts) -> CleanupCounts:
        return CleanupCounts(
            self.keys_scanned + other.keys_scanned,
            self.expired_results_deleted + other.expired_results_deleted,
            self.task_states_cleaned + other.task_states_cleaned,
            self.keys_unreadable + other.keys_unreadable,
            self.keys_with_longer_ttl + other.keys_with_longer_ttl,
        )

    def event(self, *, trigger: Trigger, duration_s: float) -> CleanupCompleted:
        """The event for a cleanup with these counts."""
        return CleanupCompleted(
            target="results", trigger=trigger, duration_s=duration_s, **asdict(self)
        )


@dataclass(frozen=True, kw_only=True)
class ResultsActor:
    """Changes keys for a cleanup, by two scripts."""

    page: Script
    recheck: Script
    changes: bool


REAL = ResultsActor(page=scripts.REAL_PAGE, recheck=scripts.REAL_RECHECK, changes=True)
DRY_RUN = ResultsActor(page=scripts.DRY_PAGE, recheck=scripts.DRY_RECHECK, changes=False)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How much one step asks for: keys of a call, and bytes of values that are read and parsed.

    A larger value is read by itself, but not beyond ``largest_bytes``: then it is unreadable.
    """

    page_keys: int
    read_bytes: int
    largest_bytes: int


#: For a process that does nothing else. Parsing a value can take 15 times its size.
FULL_SPEED = Pace(page_keys=400, read_bytes=1024 * 1024, largest_bytes=16 * 1024 * 1024)

#: For a worker's event loop, which waits for the answer, and for the parser.
IN_WORKER = Pace(page_keys=200, read_bytes=128 * 1024, largest_bytes=128 * 1024)


class _Unknown(NamedTuple):
    key: bytes
    length: int


class CleanupRun:
    """One cleanup of one database. Call :meth:`step` until it is :attr:`finished`.

    Each step is one round trip. :attr:`counts` says what was done so far. After an error the
    cleanup is over.

    ``changer`` is the client that changes keys. It must not retry: after a lost answer, the counts
    would be those of the second call.
    """

    def __init__(
        self, client: Any, policy: Policy, *, actor: ResultsActor, pace: Pace, changer: Any = None
    ) -> None:
        self._client, self._changer = client, client if changer is None else changer
        self._policy, self._actor, self._pace = policy, actor, pace
        self._common = scripts.common_arguments(policy)
        self._of_a_page = scripts.page_arguments(policy)
        self._begun_mono = time.monotonic()
        self._cursor: int | None = 0
        self._keys: list[bytes] = []
        self._trips = self._run()
        self.counts = CleanupCounts()
        #: Whether every key was looked at.
        self.finished = False
        #: The first change that the server refused to this user, if any. All others were made.
        self.refused: Exception | None = None

    def step(self) -> None:
        """Make one more round trip.

        Raises:
            redis.exceptions.RedisError: the server is away, or refuses a command.
            CleanupImpossibleError: the server is a node of a cluster after all.
        """
        next(self._trips, None)

    def _run(self) -> Iterator[None]:
        """The round trips, with a yield before each but the first."""
        self._scanned(self._client.scan(0, count=self._pace.page_keys))
        while self._keys or self._cursor is not None:
            if self._keys:
                yield from self._clean_a_page()
            else:
                yield
                self._scanned(self._client.scan(self._cursor, count=self._pace.page_keys))
        self.finished = True

    def _scanned(self, answer: Any) -> None:
        cursor, keys = answer
        self._cursor = int(cursor) or None
        self._keys += keys

    def _clean_a_page(self) -> Iterator[None]:
        """Clean the next keys, and scan the page after them in the same round trip."""
        keys, self._keys = (
            self._keys[: self._pace.page_keys],
            self._keys[self._pace.page_keys :],
        )
        results, states = results_and_states(keys, self._policy)
        ours = results + states
        if not ours:
            self.counts += CleanupCounts(len(keys))
            return
        yield
        arguments = (*self._arguments(len(results)), *self._of_a_page)
        with self._changer.pipeline(transaction=False) as pipe:
            pipe.evalsha(self._actor.page.digest, len(ours), *ours, *arguments)
            scans = self._cursor is not None and not self._keys
            if scans:
                pipe.scan(self._cursor, count=self._pace.page_keys)
            with _changing(self._actor):
                answer, *pages = pipe.execute(raise_on_error=False)
        if scans and not isinstance(pages[0], Exception):
            self._scanned(pages[0])
        answer = yield from self._sent_again(answer, self._actor.page, ours, arguments)
        unknown = self._taken(answer)
        if scans and isinstance(pages[0], Exception):
            raise pages[0]
        found = [
            _Unknown(results[place - 1], length)
            for place, length in zip(unknown[::2], unknown[1::2], strict=True)
        ]
        for batch in self._batches(found):
            yield from self._judge(batch)
        self.counts += CleanupCounts(len(keys))

    def _batches(self, found: Sequence[_Unknown]) -> Iterator[list[_Unknown]]:
        """These results in batches that can be read at once."""
        batch: list[_Unknown] = []
        for one in found:
            if batch and sum(it.length for it in batch) + one.length > self._pace.read_bytes:
                yield batch
                batch = []
            batch.append(one)
        if batch:
            yield batch

    def _judge(self, batch: Sequence[_Unknown]) -> Iterator[None]:
        """Read these results, judge them here, and change those that are still the same."""
        yield
        with self._client.pipeline(transaction=False) as pipe:
            for key, length in batch:
                # One byte more, which shows that it has grown.
                if length <= self._pace.largest_bytes:
                    pipe.getrange(key, 0, length)
                else:
                    pipe.getrange(key, -TAIL_BYTES, -1)
            values = pipe.execute(raise_on_error=False)
        keys: list[bytes] = []
        arguments: list[bytes | int] = []
        unreadable = 0
        for (key, length), value in zip(batch, values, strict=True):
            if isinstance(value, Exception):
                if "WRONGTYPE" in str(value):
                    continue
                raise value
            if length > self._pace.largest_bytes:
                judgement = Judgement(Verdict.EXPIRE, unreadable=True)
            elif len(value) == length:
                judgement = judge(value, self._policy)
            else:
                continue
            unreadable += judgement.unreadable
            if judgement.verdict is not Verdict.KEEP:
                keys.append(key)
                arguments += _witness(value, length, judgement)
        self.counts += CleanupCounts(keys_unreadable=unreadable)
        if not keys:
            return
        yield
        script, arguments = self._actor.recheck, [*self._arguments(len(keys)), *arguments]
        with _changing(self._actor):
            answer = self._evaluate(self._changer.evalsha, script.digest, keys, arguments)
        self._taken((yield from self._sent_again(answer, script, keys, arguments)))

    def _arguments(self, count: int) -> list[bytes | int]:
        elapsed_s = int(time.monotonic() - self._begun_mono)
        return [count, self._policy.now + elapsed_s, *self._common]

    def _evaluate(
        self, command: Any, script: str, keys: Sequence[bytes], arguments: Sequence[bytes | int]
    ) -> Any:
        """The answer, or the error that the server answered."""
        from redis.exceptions import ResponseError

        try:
            return command(script, len(keys), *keys, *arguments)
        except ResponseError as exc:
            return exc

    def _sent_again(
        self, answer: Any, script: Script, keys: Sequence[bytes], arguments: Sequence[bytes | int]
    ) -> Any:
        """The answer; if the server does not know the script, send it and call it once more."""
        from redis.exceptions import NoScriptError

        if isinstance(answer, NoScriptError):
            yield
            with _changing(self._actor):
                answer = self._evaluate(self._changer.eval, script.source, keys, arguments)
        if isinstance(answer, Exception):
            _raise(answer)
        return answer

    def _taken(self, answer: Any) -> list[int]:
        """Count what a call did, also if the server refused some of it; the unknown results."""
        from redis.exceptions import NoPermissionError, ResponseError

        deleted, cleaned, unreadable, longer, refused, unknown = answer
        text = refused.decode("utf-8", "replace")
        if not text or _is_refusal(text) or deleted or cleaned:
            self.counts += CleanupCounts(0, deleted, cleaned, unreadable, longer)
        if _is_refusal(text):
            self.refused = self.refused or NoPermissionError(text)
        elif text:
            raise ResponseError(text)
        return list(unknown)


def _witness(value: bytes, length: int, judgement: Judgement) -> list[bytes | int]:
    """What the second script compares and needs to know."""
    return [
        judgement.verdict.value.encode(),
        length,
        judgement.done_at,
        value.find(judgement.quoted_date),
        judgement.quoted_date,
        value[-TAIL_BYTES:],
    ]


@contextmanager
def _changing(actor: ResultsActor) -> Iterator[None]:
    """Wrap a call that changes keys: if its answer is lost, the error says so."""
    from redis import exceptions as redis

    try:
        yield
    except (redis.AuthenticationError, redis.BusyLoadingError):
        raise  # the server answered, and did nothing
    except (redis.ConnectionError, redis.TimeoutError) as exc:
        if not actor.changes:
            raise
        raise type(exc)(
            f"{exc} The answer is lost: what this last call changed, if anything, is not counted."
        ) from exc


def _is_refusal(text: str) -> bool:
    """Whether a server's error says that this user may not run the command on these keys.

    Redis 7 and Valkey begin it with NOPERM; Redis 6 says it in a sentence if it is in a script.
    """
    return "NOPERM" in text or "The user executing the script can't" in text


#: What a node of a cluster begins such an error with.
_OF_A_CLUSTER = ("CLUSTERDOWN", "CROSSSLOT", "MOVED", "ASK", "TRYAGAIN")

_CLUSTER = (
    "the result backend is a node of a Redis Cluster, where a script may use the keys of one slot "
    "only; worker_guard cleans a page of keys at once, so it does not clean a cluster"
)


def _raise(error: Exception) -> NoReturn:
    """Raise what the server answered to a script."""
    from redis import exceptions as redis

    cluster = redis.AskError | redis.ClusterCrossSlotError | redis.ClusterDownError
    # An older redis-py knows no class of its own for some of them.
    if isinstance(error, cluster | redis.TryAgainError) or str(error).startswith(_OF_A_CLUSTER):
        raise CleanupImpossibleError(_CLUSTER) from error
    if not isinstance(error, redis.NoPermissionError) and _is_refusal(str(error)):
        raise redis.NoPermissionError(str(error)) from error
    raise error


def check_server(client: Any, own_prefix: str) -> None:
    """Make sure that the server runs the script for this user, before anything is changed.

    ``own_prefix`` is the prefix of the guard's keys, which this user may read.

    Raises:
        CleanupImpossibleError: the server is a node of a cluster.
        redis.exceptions.RedisError: the server is away, or refuses scripts or a command that they
            run; the message names it.
    """
    from redis.exceptions import ResponseError

    # Two keys that lie in two slots, and that don't exist.
    keys = [f"{own_prefix}{{slot-{number}}}" for number in (1, 2)]
    try:
        client.eval(scripts.DRY_PAGE.source, 2, *keys, 1, 0, 0, 0, TAIL_BYTES, "", 0, 0, 0, "")
    except ResponseError as exc:
        _raise(exc)


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
