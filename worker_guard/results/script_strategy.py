"""The strategies of a cleanup that decide and change in a script, on the server."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from hashlib import sha1
from typing import Any

from worker_guard.results import scripts
from worker_guard.results.selection import Policy
from worker_guard.results.strategy import (
    CleanupCounts,
    Cursor,
    Pace,
    ResultsActor,
    changing,
    is_refusal,
    scan,
)


class _Script:
    """A script that is sent once, and from then on called by its digest."""

    def __init__(self, client: Any, actor: ResultsActor, arguments: Sequence[bytes | int]) -> None:
        self._client, self._actor, self._source = client, actor, actor.script
        self._digest = sha1(self._source.encode()).hexdigest()  # noqa: S324 - what EVALSHA goes by
        self._arguments = arguments

    def call(
        self, *own: bytes | int, undeclared: Sequence[bytes] = ()
    ) -> Generator[CleanupCounts, None, Any]:
        """Call it without declared keys; send it again if the server does not know it."""
        from redis.exceptions import NoScriptError

        given = (*own, *self._arguments, len(undeclared), *undeclared)
        try:
            with changing(self._actor):
                return self._client.evalsha(self._digest, 0, *given)
        except NoScriptError:
            yield CleanupCounts()
            with changing(self._actor):
                return self._client.eval(self._source, 0, *given)

    def send(self, keys: Sequence[bytes], *own: bytes | int) -> Generator[CleanupCounts, None, Any]:
        """Send it and call it, after the server said that it does not know it."""
        yield CleanupCounts()
        with changing(self._actor):
            return self._client.eval(self._source, len(keys), *keys, *own, *self._arguments)

    def queue(self, pipe: Any, keys: Sequence[bytes], *own: bytes | int) -> None:
        """Add a call to a pipeline."""
        pipe.evalsha(self._digest, len(keys), *keys, *own, *self._arguments)


class _ByScript:
    def __init__(
        self, client: Any, changer: Any, policy: Policy, actor: ResultsActor, pace: Pace
    ) -> None:
        self._client, self._changer, self._actor, self._pace = client, changer, actor, pace
        self._script = _Script(changer, actor, scripts.arguments(policy))
        self._begun_at, self._begun_mono = policy.now, time.monotonic()

    def _limits(self) -> tuple[int, int]:
        """The limits of a call: the time that it may take (µs), and the time now (epoch, s)."""
        elapsed_s = int(time.monotonic() - self._begun_mono)
        return int(self._pace.budget_s * 1e6), self._begun_at + elapsed_s

    def _taken(self, reply: Any, cursor: Cursor) -> CleanupCounts:
        """The counts of a call, also if the server refused some of its changes."""
        from redis.exceptions import NoPermissionError, ResponseError

        _cursor, *counts, rest, refused = reply
        cursor.pending = list(rest)
        text = refused.decode("utf-8", "replace")
        done = CleanupCounts(*map(int, counts))
        if is_refusal(text):
            cursor.refused = cursor.refused or NoPermissionError(text)
        elif text:
            cursor.failed = ResponseError(text)
            if not (done.expired_results_deleted or done.task_states_cleaned):
                return CleanupCounts()
        return done


class ScanScript(_ByScript):
    name = "scan-script"

    def turn(self, cursor: Cursor) -> Iterator[CleanupCounts]:
        at, count = (cursor.at, self._pace.page_keys) if not cursor.pending else (b"", 0)
        assert at is not None
        # No declared keys: for one key that its ACL excludes, Redis would refuse the whole call.
        reply = yield from self._script.call(at, count, *self._limits(), undeclared=cursor.pending)
        if at:
            cursor.moved(reply[0])
        yield self._taken(reply, cursor)


class PageScript(_ByScript):
    name = "page-script"

    def turn(self, cursor: Cursor) -> Iterator[CleanupCounts]:
        """Send the script for one page, and with it the SCAN for the next page."""
        from redis.exceptions import NoScriptError

        page_keys = self._pace.page_keys
        if not cursor.pending:
            yield from scan(self._client, cursor, page_keys)
            if not cursor.pending:
                return
        with self._changer.pipeline(transaction=False) as pipe:
            self._script.queue(pipe, cursor.pending, b"", 0, *self._limits())
            if cursor.at is not None and len(cursor.pending) <= page_keys:
                pipe.scan(int(cursor.at), count=page_keys)
            with changing(self._actor):
                reply, *pages = pipe.execute(raise_on_error=False)
        if isinstance(reply, NoScriptError):
            reply = yield from self._script.send(cursor.pending, b"", 0, *self._limits())
        if isinstance(reply, Exception):
            raise reply
        done = self._taken(reply, cursor)
        for page in pages:
            if isinstance(page, Exception):
                cursor.failed = cursor.failed or page
                break
            at, keys = page
            cursor.moved(at)
            cursor.pending += keys
        yield done
