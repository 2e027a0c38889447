"""The rules of a cleanup: whom a key belongs to, and what becomes of a result. Without any I/O.

Nearly every result is judged on the server, by the two ends of its value, in the script of
:mod:`worker_guard.results.scripts`. :func:`judge` judges those that have another layout.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from worker_guard.values.key_patterns import Glob

#: So much of a value's end shows whether it was written to: it holds the date of Celery's layouts.
TAIL_BYTES = 320

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

_DATE = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:\.\d+)?"
    r"(?:(Z)|([+-])([01]\d|2[0-3]):?([0-5]\d)(?::([0-5]\d))?)?",
    re.ASCII,
)


class Verdict(enum.Enum):
    """What becomes of a result."""

    DELETE = "delete"
    EXPIRE = "expire"
    KEEP = "keep"


@dataclass(frozen=True)
class Judgement:
    """A verdict, and for a result that is old its ``date_done``, as it stands in the value."""

    verdict: Verdict
    unreadable: bool = False
    done_at: int = 0
    quoted_date: bytes = b""


_KEEP, _FORGOTTEN = Judgement(Verdict.KEEP), Judgement(Verdict.EXPIRE)
_UNREADABLE = Judgement(Verdict.EXPIRE, unreadable=True)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The parameters of one cleanup.

    ``now`` (epoch, s) is its start, and ``done_before`` the age limit as a moment; ``ttl_ms`` is
    the TTL for a key that has none. A ``date_done`` without a UTC offset may mean up to
    ``naive_ahead_s`` later than it says. A key that matches ``protected`` is never touched.

    A result with a TTL is deleted only if the TTL that it was given lies in one of
    ``backend_ttls_s`` (from, to): those that the backend gives to every result, and that are
    longer than the age. With ``ignore_ttl`` only the age counts.
    """

    task_prefix: bytes
    state_prefixes: tuple[bytes, ...]
    state_patterns: tuple[Glob, ...]
    protected: tuple[Glob, ...]
    ready_states: frozenset[str]
    now: int
    done_before: int
    ttl_ms: int
    naive_ahead_s: int = 0
    backend_ttls_s: tuple[tuple[int, int], ...] = ()
    ignore_ttl: bool = False


def results_and_states(
    keys: Sequence[bytes], policy: Policy
) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """The results among these keys, and the keys that get a TTL whatever they hold."""
    prefix = policy.task_prefix
    results = tuple([key for key in keys if key.startswith(prefix)])
    if len(results) == len(keys):
        return results, ()
    others = [key for key in keys if not key.startswith(prefix)]
    return results, tuple([key for key in others if _is_state(key, policy)])


def _is_state(key: bytes, policy: Policy) -> bool:
    reached = key.startswith(policy.state_prefixes) or any(
        glob.matches(key) for glob in policy.state_patterns
    )
    return reached and not any(glob.matches(key) for glob in policy.protected)


def judge(value: bytes, policy: Policy) -> Judgement:
    """Decide on the value of a result, whatever its layout; raises nothing.

    An old one has to show its date at one place only: there the script looks whether it is still
    the same, before it deletes the key.
    """
    record = _read(value)
    if record is None:
        return _UNREADABLE
    if record["status"] not in policy.ready_states:
        return _FORGOTTEN
    done_at = read_date(record.get("date_done"), policy.naive_ahead_s)
    if done_at is None:
        return _UNREADABLE
    if done_at >= policy.done_before:
        # It needs no TTL: a later cleanup deletes it by its date.
        return _KEEP
    quoted = b'"%b"' % record["date_done"].encode()
    if value.count(quoted) != 1:
        return _UNREADABLE
    return Judgement(Verdict.DELETE, done_at=done_at, quoted_date=quoted)


def _read(value: bytes) -> dict[str, Any] | None:
    try:
        # The numbers don't count, and Python refuses long ones.
        record = json.loads(value.decode("utf-8", "surrogatepass"), parse_int=float)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("status"), str):
        return None
    return record


def read_date(date: Any, naive_ahead_s: int) -> int | None:
    """The moment (epoch, s) by which a ``date_done`` was over, or None.

    Celery 5.3 writes naive UTC (``datetime.utcnow``), 5.4 UTC with its offset, 5.5 and later the
    app's time zone with its offset (``Backend._get_result_meta``).
    """
    found = _DATE.fullmatch(date) if isinstance(date, str) else None
    if found is None:
        return None
    year, month, day, hour, minute, second = map(int, found.group(1, 2, 3, 4, 5, 6))
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc)
    except ValueError:
        return None
    # Its second is over.
    at = (moment - _EPOCH) // timedelta(seconds=1) + 1
    if found[7]:
        return at
    if not found[8]:
        return at + naive_ahead_s
    offset_s = int(found[9]) * 3600 + int(found[10]) * 60 + int(found[11] or 0)
    return at - offset_s if found[8] == "+" else at + offset_s
