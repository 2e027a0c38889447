"""The rules of a cleanup: what it does with a key of the result backend. Without any I/O.

The scripts of :mod:`worker_guard.results.scripts` hold the same rules in Lua; a test compares both.
"""

from __future__ import annotations

import enum
import json
import re
from dataclasses import dataclass
from typing import Any

from worker_guard.values.key_patterns import Glob

#: A cleanup reads no longer value: to parse one would hold the server for more than 5 ms.
VALUE_LIMIT_BYTES = 64 * 1024

#: How Redis's PTTL says "no TTL" and "no such key".
NO_TTL = -1
NO_KEY = -2

_DATE = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(\.\d+)?"
    r"(?:(Z)|([+-])(\d\d):?(\d\d)(?::(\d\d))?)?",
    re.ASCII,
)

#: An escaped pair of surrogates (1), a lone one (2), or any other escape.
_ESCAPE = re.compile(
    r"\\(?:(u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|(u[dD][89a-fA-F])|.)",
    re.DOTALL,
)

_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|[^\s\[\]{},:"]+', re.DOTALL)

#: An int with more digits than Python may be set to read.
_LONG_INT = re.compile(r"(?<!\d)\d{640}", re.ASCII)

#: A longer value with a loose number counts as unreadable: to read it would hold the event loop.
_LENIENT_LIMIT = 2048

_MAYBE_LOOSE = re.compile(r"\d\.(?!\d)|-\.\d", re.ASCII)

#: ``1.`` and ``-.5``.
_LOOSE = re.compile(r"-?(?:0|[1-9]\d*)\.(?:[eE][+-]?\d+)?|-\.\d+(?:[eE][+-]?\d+)?", re.ASCII)


class Kind(enum.Enum):
    """Whom a key belongs to."""

    RESULT = "result"
    STATE = "state"
    OWN = "the application's own"
    OTHERS = "others"


class KeyVerdict(enum.Enum):
    """What a cleanup does with a key."""

    DELETE = "delete"
    EXPIRE = "expire"
    KEEP = "keep"
    GONE = "gone"


@dataclass(frozen=True)
class KeyDecision:
    """A verdict, and whether the result is unreadable, or kept for a TTL of its own."""

    verdict: KeyVerdict
    unreadable: bool = False
    longer_ttl: bool = False


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


def classify(key: bytes, policy: Policy) -> Kind:
    """Whom the key belongs to, by its name alone."""
    if key.startswith(policy.task_prefix):
        return Kind.RESULT
    if key.startswith(policy.state_prefixes):
        kind = Kind.STATE
    elif any(glob.matches(key) for glob in policy.state_patterns):
        kind = Kind.OWN
    else:
        return Kind.OTHERS
    return Kind.OTHERS if any(glob.matches(key) for glob in policy.protected) else kind


def judge(
    kind: Kind,
    value: bytes | None,
    pttl_ms: int,
    policy: Policy,
    *,
    elapsed_s: int = 0,
    first_item: bytes | None = None,
) -> KeyDecision:
    """Decide on one key.

    ``value`` is the content of a result; None if it is longer than :data:`VALUE_LIMIT_BYTES`, or
    the key is no string. ``first_item`` is that of a list; None if the key is no list. ``pttl_ms``
    is what PTTL returned ``elapsed_s`` after the cleanup began.
    """
    if kind is Kind.OTHERS or (first_item is not None and is_message(first_item)):
        return KeyDecision(KeyVerdict.KEEP)
    if pttl_ms == NO_KEY:
        return KeyDecision(KeyVerdict.GONE)
    forgotten = KeyVerdict.EXPIRE if pttl_ms == NO_TTL else KeyVerdict.KEEP
    if kind is not Kind.RESULT:
        return KeyDecision(forgotten)
    record = read_result(value)
    if record is not None and record["status"] not in policy.ready_states:
        return KeyDecision(forgotten)
    done_at = read_date(record.get("date_done"), policy.naive_ahead_s) if record else None
    if done_at is None:
        return KeyDecision(forgotten, unreadable=True)
    return _judge_done(done_at, pttl_ms, policy, elapsed_s)


def _judge_done(done_at: int, pttl_ms: int, policy: Policy, elapsed_s: int) -> KeyDecision:
    if done_at >= policy.done_before:
        # It needs no TTL: a later cleanup deletes it by its date.
        return KeyDecision(KeyVerdict.KEEP)
    # The TTL that the result was given. It is longer than the age: the result is older, and exists.
    given_s = policy.now + elapsed_s - done_at + pttl_ms / 1000
    by_age_alone = (
        pttl_ms < 0
        or policy.ignore_ttl
        or any(least <= given_s <= most for least, most in policy.backend_ttls_s)
    )
    return (
        KeyDecision(KeyVerdict.DELETE)
        if by_age_alone
        else KeyDecision(KeyVerdict.KEEP, longer_ttl=True)
    )


def is_message(item: bytes) -> bool:
    """Whether an item of a list is a message of kombu's Redis transport.

    Such a payload (``kombu.transport.virtual.Channel.prepare_message``) is an object with both of
    these names. Celery's own lists, with the results of a chord, hold arrays.
    """
    return item.startswith(b"{") and b'"delivery_tag"' in item and b'"body"' in item


def read_result(value: bytes | None) -> dict[str, Any] | None:
    """The record of a result in JSON; None for any other value. Raises nothing."""
    if value is None or len(value) > VALUE_LIMIT_BYTES or b"\0" in value:
        return None
    # Latin-1 fails on no byte, and reads the ASCII that counts here the same.
    text = value.decode("latin-1")
    if "\\u" in text and any(escape[2] for escape in _ESCAPE.finditer(text)):
        return None
    try:
        record = _parse(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("status"), str):
        return None
    return record


def _parse(text: str) -> Any:
    try:
        return json.loads(text, strict=False, parse_constant=_refuse)
    except ValueError:
        loose = len(text) <= _LENIENT_LIMIT and _MAYBE_LOOSE.search(text)
        if not loose and not _LONG_INT.search(text):
            raise
    if loose:
        # The parser of the scripts takes these for numbers, so this one has to as well.
        text = _TOKEN.sub(lambda token: "0" if _LOOSE.fullmatch(token[0]) else token[0], text)
    return json.loads(text, strict=False, parse_int=float, parse_constant=_refuse)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def read_date(date: object, naive_ahead_s: int) -> int | None:
    """The latest moment (epoch, s, rounded up) that a ``date_done`` can mean, or None.

    Celery 5.3 writes naive UTC (``datetime.utcnow``), 5.4 UTC with its offset, 5.5 and later the
    app's time zone with its offset (``Backend._get_result_meta``).
    """
    found = _DATE.fullmatch(date) if isinstance(date, str) else None
    if found is None:
        return None
    year, month, day, hour, minute, second = map(int, found.group(1, 2, 3, 4, 5, 6))
    fraction, zulu, sign = found.group(7, 8, 9)
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 62):
        return None
    # Days since 1970-01-01 in the Gregorian calendar; years begin in March here.
    march_year = year - (month <= 2)
    leap_days = march_year // 4 - march_year // 100 + march_year // 400
    days = 365 * march_year + leap_days + (153 * ((month + 9) % 12) + 2) // 5 + day - 719469
    at = days * 86400 + hour * 3600 + minute * 60 + second + (fraction is not None)
    if zulu:
        return at
    if not sign:
        return at + naive_ahead_s
    offset_s = int(found[10]) * 3600 + int(found[11]) * 60 + int(found[12] or 0)
    return at - offset_s if sign == "+" else at + offset_s
