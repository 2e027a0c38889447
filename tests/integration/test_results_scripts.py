"""The scripts decide as the rules in Python do, on a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.harness.redis_server import RedisServer
from tests.harness.results import DAY_S, MESSAGE, date, encoded, policy, record
from worker_guard.results import scripts
from worker_guard.results.selection import VALUE_LIMIT_BYTES, KeyVerdict, Kind, classify, judge
from worker_guard.values.key_patterns import Glob, literal

SETTINGS = settings(
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with RedisServer() as server:
        yield server.client


def decided(client: Any, key: bytes, rules: Any) -> tuple[int, int, int, int]:
    """The script's counts for this key alone: deleted, given a TTL, unreadable, longer TTL."""
    limits = (b"", 0, 10**9, rules.now)
    reply = client.eval(scripts.DRY_RUN, 1, key, *limits, *scripts.arguments(rules))
    _cursor, scanned, *counts, rest, refused = reply
    assert (scanned, rest, refused) == (1, [], b"")
    return tuple(map(int, counts))  # type: ignore[return-value]


def expected(client: Any, key: bytes, rules: Any) -> tuple[int, int, int, int]:
    """The same by the rules in Python."""
    kind = classify(key, rules)
    of_type = client.type(key)
    value = first_item = None
    if kind is Kind.RESULT and of_type in (b"string", b"none"):
        value = client.getrange(key, 0, VALUE_LIMIT_BYTES)
    elif of_type == b"list":
        first_item = client.lindex(key, 0)
    decision = judge(kind, value, client.pttl(key), rules, first_item=first_item)
    return (
        int(decision.verdict is KeyVerdict.DELETE),
        int(decision.verdict is KeyVerdict.EXPIRE),
        int(decision.unreadable),
        int(decision.longer_ttl),
    )


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["SUCCESS", date(2 * DAY_S), date(0), '{"date_done": "x"}']),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["date_done", "status", "a", "result"]) | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
dates = st.sampled_from(
    [
        None, 7, "", "x", date(0), date(2 * DAY_S), date(DAY_S), date(DAY_S + 1),
        date(DAY_S - 0.5), date(DAY_S + 0.5), date(2 * DAY_S, None), date(DAY_S, None),
        date(DAY_S).replace("+00:00", "+01:30"), date(DAY_S).replace("+00:00", "-0130"),
        date(DAY_S).replace("+00:00", "+00:00:01"), date(DAY_S).replace("+00:00", "Z"),
        "2020-02-31T00:00:00", "2020-13-01T00:00:00", "0000-01-01T00:00:00",
        "2020-01-01T00:00:00.", "2020-01-01T00:00:00.5+1:00", "2020-01-01 00:00:00",
        "2020-01-01T00:00:00\n",
    ]
)  # fmt: skip
statuses = st.sampled_from(["SUCCESS", "FAILURE", "REVOKED", "STARTED", "RETRY", "", "ready"])
records = st.builds(
    lambda status, done, result, more, compact, ascii_only: json.dumps(
        {**record(status=status), "date_done": done, "result": result, **more},
        separators=(",", ":") if compact else None,
        ensure_ascii=ascii_only,
    ).encode("utf-8", "surrogatepass"),
    statuses,
    dates,
    json_values,
    st.dictionaries(st.sampled_from(["args", "kwargs", "name", "group_id"]), json_values),
    st.booleans(),
    st.booleans(),
)


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A record with one stretch of it taken out, or something put into it."""
    value = draw(records)
    start = draw(st.integers(0, len(value)))
    end = draw(st.integers(start, min(len(value), start + 6)))
    junk = draw(
        st.binary(max_size=3)
        | st.sampled_from(
            [
                b"0",
                b"01",
                b"+1",
                b"-",
                b".",
                b"1.",
                b"-.5",
                b"0x1",
                b"nan",
                b"NaN",
                b"inf",
                b"\0",
                b"e",
                b"\\",
                b"\\u",
                b"\\ud800",
                b'"',
                b",",
                b"{",
                b"]",
                b":",
                b"null",
                b" ",
                b"\t",
            ]
        )
    )
    return value[:start] + junk + value[end:]


#: None, another one than the backend's, and what is left of the backend's after two days and one.
ttls_s = st.sampled_from([None, 1000, DAY_S, 2 * DAY_S, 30 * DAY_S])
keys = st.sampled_from([b"celery-task-meta-", b"celery-taskset-meta-", b"app-state:", b"other:"])


@SETTINGS
@given(keys, records | broken() | st.binary(max_size=50), ttls_s)
@example(b"celery-task-meta-", encoded(result="x" * (VALUE_LIMIT_BYTES - 100)), None)
@example(b"celery-task-meta-", encoded(result="x" * VALUE_LIMIT_BYTES), None)
@example(b"celery-task-meta-", encoded(result="x" * 3_000_000), None)
@example(b"celery-task-meta-", encoded(result="\ud800"), None)
@example(b"celery-task-meta-", encoded(result=float("nan")), None)
@example(b"celery-task-meta-", encoded(result=1.0).replace(b"1.0", b"1."), None)
@example(b"celery-task-meta-", encoded(result=1.0).replace(b"1.0", b"-.5e1"), None)
@example(b"celery-task-meta-", encoded(result="n").replace(b'"n"', b"1" * 5000), 1000)
@example(b"celery-task-meta-", encoded(result=[1] * 20_000), 1000)
@example(b"celery-task-meta-", encoded(result=json.loads("[" * 300 + "]" * 300)), None)
def test_the_script_decides_as_the_rules_do(
    client: Any, prefix: bytes, value: bytes, ttl_s: int | None
) -> None:
    """On records, on broken ones, and on any bytes."""
    key = prefix + b"1"
    client.set(key, value, ex=ttl_s)
    rules = policy(naive_ahead_s=3600)
    assert decided(client, key, rules) == expected(client, key, rules)


def test_the_script_decides_as_the_rules_do_on_other_types(client: Any) -> None:
    """And on a key that is gone."""
    client.flushdb()
    for prefix in (b"celery-task-meta-", b"celery-taskset-meta-", b"app-state:", b"other:"):
        client.rpush(prefix + b"list", 1)
        client.rpush(prefix + b"queue", MESSAGE)
        client.hset(prefix + b"hash", "a", 1)
        client.sadd(prefix + b"set", 1)
        client.zadd(prefix + b"zset", {"a": 1})
        client.xadd(prefix + b"stream", {"a": 1})
        client.set(prefix + b"string", encoded())
        for key in [*client.keys(prefix + b"*"), prefix + b"gone"]:
            for ttl in (None, 1000):
                if ttl:
                    client.expire(key, ttl)
                assert decided(client, key, policy()) == expected(client, key, policy())


glob_parts = st.sampled_from([*"ab-^%.*?[]\\", "[ab]", "[^a]", "[a-z]", "**", "é", "a"])


@SETTINGS
@given(
    st.lists(glob_parts, min_size=1, max_size=6).map("".join), st.text("ab-^%.*[]\\é", max_size=6)
)
def test_a_pattern_fits_what_it_fits_in_redis(client: Any, pattern: str, name: str) -> None:
    """In Python and in Lua, as in Redis's own SCAN."""
    try:
        glob = Glob(pattern)
    except ValueError:
        return
    client.flushdb()
    client.set(name, b"1")
    fits = bool(list(client.scan_iter(match=pattern)))
    assert glob.matches(name.encode()) == fits
    rules = policy(state_patterns=(glob,), protected=())
    assert classify(name.encode(), rules) is (Kind.OWN if fits else Kind.OTHERS)
    assert decided(client, name.encode(), rules) == (0, int(fits), 0, 0)
    if not name:
        return
    rules = policy(state_patterns=(Glob(literal(name)),), protected=(glob,))
    assert classify(name.encode(), rules) is (Kind.OTHERS if fits else Kind.OWN)
    assert decided(client, name.encode(), rules) == (0, int(not fits), 0, 0)


@SETTINGS
@given(st.text("ab*?[]\\^-.%", min_size=1, max_size=6), st.text("ab*?[]\\^-.%", max_size=6))
def test_a_literal_fits_itself_alone(client: Any, text: str, other: str) -> None:
    """Whatever of its characters mean something in a pattern."""
    for name in {text, other}:
        key = name.encode()
        assert Glob(literal(text)).matches(key) == (name == text)
        client.set(key, b"1")
        rules = policy(state_patterns=(Glob(literal(text)),), protected=())
        assert decided(client, key, rules) == (0, int(name == text), 0, 0)
