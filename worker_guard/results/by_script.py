"""The ways of a sweep that decide and change within a script, on the server."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from hashlib import sha1
from typing import Any

from worker_guard.results import scripts
from worker_guard.results.selection import Policy
from worker_guard.results.way import Actor, Cursor, Pace, Tally, scan


class _Script:
    """A script that is sent once, and known by its digest from then on."""

    def __init__(self, client: Any, source: str, arguments: Sequence[bytes | int]) -> None:
        self._client, self._source = client, source
        self._digest = sha1(source.encode()).hexdigest()  # noqa: S324 - what EVALSHA goes by
        self._arguments = arguments

    def call(
        self, *own: bytes | int, undeclared: Sequence[bytes] = ()
    ) -> Generator[Tally, None, Any]:
        """Call it without keys of its own; a server that forgot it is sent it again."""
        from redis.exceptions import NoScriptError

        given = (*own, *self._arguments, len(undeclared), *undeclared)
        try:
            return self._client.evalsha(self._digest, 0, *given)
        except NoScriptError:
            yield Tally()
            return self._client.eval(self._source, 0, *given)

    def send(self, keys: Sequence[bytes], *own: bytes | int) -> Generator[Tally, None, Any]:
        """Call it for a server that has just said that it does not know it."""
        yield Tally()
        return self._client.eval(self._source, len(keys), *keys, *own, *self._arguments)

    def queue(self, pipe: Any, keys: Sequence[bytes], *own: bytes | int) -> None:
        """Have a pipeline call it."""
        pipe.evalsha(self._digest, len(keys), *keys, *own, *self._arguments)


class _ByScript:
    def __init__(self, client: Any, policy: Policy, actor: Actor, pace: Pace) -> None:
        self._client, self._pace = client, pace
        self._script = _Script(client, actor.script, scripts.arguments(policy))
        self._budget_us = int(pace.budget_s * 1e6)

    def _taken(self, reply: Any, cursor: Cursor) -> Tally:
        _cursor, scanned, deleted, cleaned, unreadable, rest = reply
        cursor.pending = list(rest)
        return Tally(int(scanned), int(deleted), int(cleaned), int(unreadable))


class ScanScript(_ByScript):
    name = "scan-script"

    def turn(self, cursor: Cursor) -> Iterator[Tally]:
        at, count = (cursor.at, self._pace.page_keys) if not cursor.pending else (b"", 0)
        assert at is not None
        # Not declared: an ACL that leaves others' keys out would refuse the whole call for one.
        reply = yield from self._script.call(at, count, self._budget_us, undeclared=cursor.pending)
        if at:
            cursor.moved(reply[0])
        yield self._taken(reply, cursor)


class PageScript(_ByScript):
    name = "page-script"

    def turn(self, cursor: Cursor) -> Iterator[Tally]:
        """One page's script, with the SCAN for the next page on its heels."""
        from redis.exceptions import NoScriptError

        page_keys = self._pace.page_keys
        if not cursor.pending:
            yield from scan(self._client, cursor, page_keys)
            if not cursor.pending:
                return
        with self._client.pipeline(transaction=False) as pipe:
            self._script.queue(pipe, cursor.pending, b"", 0, self._budget_us)
            if cursor.at is not None and len(cursor.pending) <= page_keys:
                pipe.scan(int(cursor.at), count=page_keys)
            reply, *pages = pipe.execute(raise_on_error=False)
        if isinstance(reply, NoScriptError):
            reply = yield from self._script.send(cursor.pending, b"", 0, self._budget_us)
        for answer in (reply, *pages):
            if isinstance(answer, Exception):
                raise answer
        done = self._taken(reply, cursor)
        for at, keys in pages:
            cursor.moved(at)
            cursor.pending += keys
        yield done
