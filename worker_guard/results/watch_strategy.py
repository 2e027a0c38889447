"""The strategy of a cleanup for servers that refuse scripts: it decides here, with WATCH."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from worker_guard.results.selection import (
    NO_KEY,
    VALUE_LIMIT_BYTES,
    KeyDecision,
    KeyVerdict,
    Kind,
    Policy,
    classify,
    judge,
)
from worker_guard.results.strategy import CleanupCounts, Cursor, Pace, ResultsActor, changing, scan

#: The most bytes of values that are read and parsed between two pauses.
READ_BYTES = VALUE_LIMIT_BYTES


@dataclass(frozen=True)
class _Seen:
    """What was read of a key: its PTTL, and what counts of its value.

    Two readings are equal whatever is left of the TTL; the key is judged anew each time anyway.
    """

    pttl_ms: int = field(compare=False)
    value: bytes | None = None
    first_item: bytes | None = None


class WatchStrategy:
    """Reads keys, and changes only those that nobody wrote to since then."""

    name = "watch"

    def __init__(
        self, client: Any, changer: Any, policy: Policy, actor: ResultsActor, pace: Pace
    ) -> None:
        self._client, self._changer, self._policy = client, changer, policy
        self._actor, self._pace = actor, pace
        self._begun_mono = time.monotonic()
        # It takes longer here than in a script on the server.
        self._read_keys = max(1, pace.page_keys // 4)

    def turn(self, cursor: Cursor) -> Iterator[CleanupCounts]:
        if not cursor.pending:
            yield from scan(self._client, cursor, self._pace.page_keys)
            if not cursor.pending:
                return
        keys = cursor.pending[: self._read_keys]
        seen = yield from self._look(keys)
        decisions = {key: self._judge(key, it) for key, it in seen.items()}
        done = CleanupCounts()
        # One after the other: the user may be allowed only one of them.
        for verdict in (KeyVerdict.DELETE, KeyVerdict.EXPIRE):
            due = {key: it for key, it in decisions.items() if it.verdict is verdict}
            if due:
                # Count it before anything else can fail.
                if done != CleanupCounts():
                    yield done
                done = yield from self._change_allowed(due, seen, cursor)
        cursor.pending = cursor.pending[len(seen) :]
        yield done + CleanupCounts(
            keys_scanned=len(seen),
            keys_unreadable=sum(it.unreadable for it in decisions.values()),
            keys_with_longer_ttl=sum(it.longer_ttl for it in decisions.values()),
        )

    def _judge(self, key: bytes, seen: _Seen) -> KeyDecision:
        return judge(
            classify(key, self._policy),
            seen.value,
            seen.pttl_ms,
            self._policy,
            elapsed_s=int(time.monotonic() - self._begun_mono),
            first_item=seen.first_item,
        )

    def _look(self, keys: Sequence[bytes]) -> Generator[CleanupCounts, None, dict[bytes, _Seen]]:
        """Read the first of these keys, as many as can be read at once."""
        kinds = {key: classify(key, self._policy) for key in keys}
        with self._client.pipeline(transaction=False) as pipe:
            for key, kind in kinds.items():
                if kind is not Kind.OTHERS:
                    pipe.pttl(key)
                if kind is Kind.RESULT:
                    pipe.strlen(key)
            answers = _answers(pipe)
        seen: dict[bytes, _Seen] = {}
        # The keys to read the content of: True for a string, False for what may be a list.
        reading: dict[bytes, bool] = {}
        total_bytes = 0
        for key, kind in kinds.items():
            if kind is Kind.OTHERS:
                seen[key] = _Seen(NO_KEY)
                continue
            pttl_ms = next(answers)
            length = next(answers) if kind is Kind.RESULT else None
            if length is not None and 0 < length <= VALUE_LIMIT_BYTES:
                total_bytes += length
                if total_bytes > READ_BYTES and any(reading.values()):
                    break
            if length is None or length <= VALUE_LIMIT_BYTES:
                reading[key] = length is not None
            seen[key] = _Seen(pttl_ms)
        if not reading:
            return seen
        yield CleanupCounts()
        for key, answer in self._contents(reading):
            seen[key] = (
                replace(seen[key], value=answer)
                if reading[key]
                else replace(seen[key], first_item=answer)
            )
        return seen

    def _contents(self, reading: dict[bytes, bool]) -> Iterator[tuple[bytes, bytes | None]]:
        with self._client.pipeline(transaction=False) as pipe:
            for key, is_string in reading.items():
                if is_string:
                    pipe.getrange(key, 0, VALUE_LIMIT_BYTES)
                else:
                    pipe.lindex(key, 0)
            yield from zip(reading, _answers(pipe), strict=True)

    def _change_allowed(
        self, due: dict[bytes, KeyDecision], seen: dict[bytes, _Seen], cursor: Cursor
    ) -> Generator[CleanupCounts, None, CleanupCounts]:
        from redis.exceptions import NoPermissionError

        try:
            return (yield from self._change(due, seen, cursor))
        except NoPermissionError as exc:
            cursor.refused = cursor.refused or exc
            return CleanupCounts()

    def _change(
        self, due: dict[bytes, KeyDecision], seen: dict[bytes, _Seen], cursor: Cursor
    ) -> Generator[CleanupCounts, None, CleanupCounts]:
        """Change these keys in one transaction, except those that were written to since then."""
        from redis.exceptions import WatchError

        yield CleanupCounts()
        with self._changer.pipeline() as pipe:
            pipe.watch(*due)
            yield CleanupCounts()
            # Read again, over another connection, now that Redis watches for writes.
            now = yield from self._look(list(due))
            same = {
                key: it
                for key, it in due.items()
                if key in now and now[key] == seen[key] and self._judge(key, now[key]) == it
            }
            yield CleanupCounts()
            pipe.multi()
            for key, decision in same.items():
                self._actor.queue(pipe, key, decision, self._policy)
            try:
                with changing(self._actor):
                    answers = _executed(pipe)
            except WatchError:
                answers = None
        if answers is not None:
            errors = [answer for answer in answers if isinstance(answer, Exception)]
            cursor.failed = cursor.failed or next(iter(errors), None)
            return _counted(same, answers if self._actor.changes else [1] * len(same))
        # Somebody wrote to one of them: try each alone.
        for key in same if len(due) > 1 else ():
            yield (yield from self._change({key: due[key]}, seen, cursor))
        return CleanupCounts()


def _executed(pipe: Any) -> list[Any]:
    """The answers to the commands of the transaction; an error for one that failed.

    Raises:
        redis.exceptions.WatchError: a key was written to, and nothing was changed.
        redis.exceptions.ConnectionError: the answer is lost. redis-py raises a WatchError then.
    """
    from redis import exceptions as redis

    try:
        return list(pipe.execute(raise_on_error=False))
    except redis.WatchError as exc:
        if isinstance(exc.__context__, redis.ConnectionError | redis.TimeoutError):
            raise exc.__context__ from None
        raise


def _counted(changed: dict[bytes, KeyDecision], answers: Sequence[Any]) -> CleanupCounts:
    """How many of these were changed; a key that just expired answers with 0."""
    verdicts = [
        it.verdict
        for it, answer in zip(changed.values(), answers, strict=True)
        if answer and not isinstance(answer, Exception)
    ]
    return CleanupCounts(
        expired_results_deleted=verdicts.count(KeyVerdict.DELETE),
        task_states_cleaned=verdicts.count(KeyVerdict.EXPIRE),
    )


def _answers(pipe: Any) -> Iterator[Any]:
    """The answers to the commands of the pipeline; None if a key has the wrong type."""
    from redis.exceptions import ResponseError

    answers = pipe.execute(raise_on_error=False)
    for place, answer in enumerate(answers):
        if isinstance(answer, ResponseError) and "WRONGTYPE" in str(answer):
            answers[place] = None
        elif isinstance(answer, Exception):
            raise answer
    return iter(answers)
