"""What a cleanup of the results is held against: clients such as people write by hand.

None of them is safe: a result that is written between the check and the delete is lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timezone
from itertools import islice
from typing import Any

from tests.harness.results import TASK_PREFIX, policy

#: Keys that a client asks for at once: the page that the guard's own cleanup takes.
PAGE_KEYS = 400
TAIL_BYTES = 320

_HEAD = re.compile(rb'\{"status": "(?:SUCCESS|FAILURE|REVOKED)"')
_DATE = re.compile(rb'"date_done": "([-T:.0-9]+)\+00:00"')
_DONE_BEFORE = (
    datetime.fromtimestamp(policy().done_before, timezone.utc).isoformat()[:19].encode("ascii")
)


def bare_scan(client: Any) -> None:
    """The limit: every key's name, and nothing read."""
    for _ in _pages(client):
        pass


def one_at_a_time(client: Any, count: int) -> None:
    """SCAN, then GET, TTL and DEL for each of the first ``count`` keys."""
    for key in islice(_keys(client), count):
        value = client.get(key)
        if _is_old(value[-TAIL_BYTES:]) and _HEAD.match(value) and client.ttl(key) != -2:
            client.delete(key)


def pipelined(client: Any) -> None:
    """SCAN pages, with PTTL, head and tail of each key in one round trip, and one UNLINK."""
    for keys in _pages(client):
        with client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.pttl(key)
                pipe.getrange(key, 0, 63)
                pipe.getrange(key, -TAIL_BYTES, -1)
            answers = iter(pipe.execute())
        read = zip(keys, answers, answers, answers, strict=True)
        _unlink(
            client,
            [key for key, pttl, head, tail in read if pttl != -2 and _old(head, tail)],
        )


def tails_only(client: Any) -> None:
    """The leanest: SCAN pages, with one GETRANGE for each key, and one UNLINK."""
    for keys in _pages(client):
        with client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.getrange(key, -TAIL_BYTES, -1)
            tails = pipe.execute()
        _unlink(client, [key for key, tail in zip(keys, tails, strict=True) if _is_old(tail)])


def _old(head: bytes, tail: bytes) -> bool:
    return _HEAD.match(head) is not None and _is_old(tail)


def _is_old(tail: bytes) -> bool:
    date = _DATE.search(tail)
    return date is not None and date[1] < _DONE_BEFORE


def _unlink(client: Any, keys: list[bytes]) -> None:
    if keys:
        client.unlink(*keys)


def _pages(client: Any) -> Iterator[list[bytes]]:
    cursor = 0
    while True:
        cursor, keys = client.scan(cursor, count=PAGE_KEYS)
        yield [key for key in keys if key.startswith(TASK_PREFIX)]
        if not cursor:
            return


def _keys(client: Any) -> Iterator[bytes]:
    for keys in _pages(client):
        yield from keys
