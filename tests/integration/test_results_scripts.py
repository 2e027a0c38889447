"""The script decides as Python's ``json`` does, on a real server, and a weaker one does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import celery
import pytest
from celery import Celery, states
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tests.harness.redis_server import RedisServer
from tests.harness.result_layouts import FRESH, OLD, RELEASES, STORED, fate, meta
from tests.harness.results import DAY_S, MESSAGE, NOW, cleanup, date, encoded, policy, record, run
from worker_guard.results import scripts
from worker_guard.results.cleanup_run import (
    FULL_SPEED,
    REAL,
    CleanupCounts,
    CleanupRun,
    ResultsActor,
)
from worker_guard.results.scripts import Script
from worker_guard.values.key_patterns import Glob, literal

RULES = policy(backend_ttls_s=())
LONG_ID = "d4b8aa5c-90a2-4a6c-8d8c-2d1f8b1b5d3e"
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
SETTINGS = settings(max_examples=300, deadline=None, suppress_health_check=CHECKS)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with RedisServer() as server:
        yield server.client


def check_fate(client: Any, task_id: str, value: bytes, actor: ResultsActor = REAL) -> None:
    """Clean this result alone, and see that the oracle agrees with what became of it."""
    key = f"celery-task-meta-{task_id}"
    client.flushdb()
    client.set(key, value)
    counts = cleanup(client, RULES, actor=actor)
    gone = not client.exists(key)
    expected = fate(value, RULES.done_before)
    if expected != "either":
        assert gone == (expected == "go"), (expected, value)
    assert counts.expired_results_deleted == gone


def without_its_id(task_id: str) -> bytes:
    """A later date, where an old result has its id; as long as that."""
    ending = f', "task_id": "{task_id}"}}'.encode()
    instead = f', "date_done": "{FRESH}"'.encode().ljust(len(ending) - 1) + b"}"
    assert len(instead) == len(ending)
    return encoded(task_id).replace(ending, instead)


@SETTINGS
@given(STORED)
@example((LONG_ID, without_its_id(LONG_ID)))
@example(("id", encoded(result="x" * 3_000_000)))
@example(("id", encoded(result=float("nan"))))
@example(("id", encoded(result=json.loads("[" * 900 + "]" * 900))))
@example(("id", encoded(result="n").replace(b'"n"', b"1" * 5000)))
@example(("id", encoded(args=["y" * 9000], kwargs={"date_done": OLD, "task_id": "id"}, queue="q")))
@example(("id", encoded(age_s=0, args=["y" * 9000], kwargs={"date_done": OLD, "task_id": "id"})))
def test_results_meet_the_fate_that_json_gives_them(client: Any, one: tuple[str, bytes]) -> None:
    """As each release of Celery writes them, and with attacks."""
    check_fate(client, *one)


@pytest.mark.slow
@settings(SETTINGS, max_examples=100_000)
@given(STORED)
def test_100_000_results_meet_the_fate_that_json_gives_them(
    client: Any, one: tuple[str, bytes]
) -> None:
    """The same, for as long as it takes."""
    check_fate(client, *one)


#: What the rule would be without one of its checks: a piece of the script, and what stands there.
WEAKER = {
    "no depth proof": (
        "        if byte(text, at) == 125 then return at end\n",
        "while byte(text, at) == 125 do at = at + 1 end; if at == ending_at then break end\n",
    ),
    "no walk": ("    while at ~= ending_at do\n", "    while false do\n"),
    "no second date": ("key == 'date_done' or ", ""),
    "no second state": ("key == 'status' or ", ""),
    "no strings in values": ("if c == 34 then\n", "if c == 34 and depth == 0 then\n"),
    "no escapes in strings": ("        at = at + 2\n", "        at = at + 1\n"),
    "any state": ("    if not ready[status] then return 'forgotten' end\n", ""),
    "any day": ("d >= 1 and d <= lengths[m]", "true"),
    "any time": (" or h1 == 50 and h2 > 51 then", " then"),
    "any offset": ("ahead_s(sub(text, behind, behind + 6))", "0"),
    "a day early": ("done_at < done_before", "done_at < done_before + 86400"),
}  # fmt: skip
SOON = {"no depth proof", "no walk", "no second date", "any state", "any offset"}


@pytest.mark.parametrize(
    "name",
    [name if name in SOON else pytest.param(name, marks=pytest.mark.slow) for name in WEAKER],
)
def test_a_weaker_rule_is_caught(client: Any, name: str) -> None:
    """By the same fuzz: so it would catch a mistake."""
    piece, instead = WEAKER[name]
    assert scripts.REAL_PAGE.source.count(piece) == 1
    weak = Script(scripts.REAL_PAGE.source.replace(piece, instead))
    actor = ResultsActor(page=weak, recheck=scripts.REAL_RECHECK, changes=True)

    @settings(SETTINGS, max_examples=30_000, phases=[Phase.generate], database=None)
    @given(STORED)
    def fuzz(one: tuple[str, bytes]) -> None:
        check_fate(client, *one, actor)

    with pytest.raises(AssertionError):
        fuzz()


def test_another_id_is_never_judged_by_the_script(client: Any) -> None:
    """Nor another layout: the client gets it, and it costs the round trips for that."""
    for task_id, known in (("id", True), ("other", False)):
        client.flushdb()
        client.set(f"celery-task-meta-{task_id}", encoded("id"))
        client.script_load(REAL.page.source)
        one = CleanupRun(client, RULES, actor=REAL, pace=FULL_SPEED)
        steps = 0
        while not one.finished:
            one.step()
            steps += 1
        # The scan and the script, which the server knows by now.
        assert (steps == 2) == known
        assert one.counts == CleanupCounts(1, expired_results_deleted=1)


def release() -> tuple[int, int]:
    """The layout of the installed release."""
    installed = tuple(int(part) for part in celery.__version__.split(".")[:2])
    return max(each for each in RELEASES if each <= installed)


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("status", ["SUCCESS", "FAILURE", "REVOKED", "STARTED", "RETRY", "MINE"])
def test_the_layouts_are_those_of_the_installed_release(
    client: Any, status: str, extended: bool
) -> None:
    """As ``store_result`` writes them; only the date is another one."""
    client.flushdb()
    port = client.connection_pool.connection_kwargs["port"]
    app = Celery("test", set_as_current=False, backend=f"redis://127.0.0.1:{port}/0")
    app.conf.result_extended = extended
    request = {
        "group": "g",
        "parent_id": "p",
        "task": "proj.task",
        "args": [1, "é", "\ud800"],
        "kwargs": {"a": {"date_done": OLD}},
        "hostname": "w@host",
        "retries": 1,
        "delivery_info": {"routing_key": "q"},
        "stamps": {"tenant": ["t"], "queue": ["s"]},
        "stamped_headers": ["tenant"],
        "children": [],
    }
    result: Any = {"date_done": OLD, "n": float("nan")}
    if status in states.PROPAGATE_STATES | {"RETRY"}:
        result = ValueError("x")
    app.backend.store_result("id", result, status, request=SimpleNamespace(**request))
    value = client.get("celery-task-meta-id")
    found = json.loads(value)
    expected = meta(
        release(),
        status=status,
        result=found["result"],
        done=found["date_done"],
        request=request,
        extended=extended,
    )
    assert json.dumps({**expected, "task_id": "id"}).encode() == value
    if found["date_done"]:
        check_fate(client, "id", value.replace(found["date_done"].encode(), OLD.encode()))
        assert not client.exists("celery-task-meta-id")
    app.close()


def counted(client: Any, rules: Any) -> CleanupCounts:
    """What a cleanup counts, without what it scanned."""
    counts = run(CleanupRun(client, rules, actor=REAL, pace=FULL_SPEED))
    return CleanupCounts(0, *list(vars(counts).values())[1:])


EXPIRE, UNREADABLE = CleanupCounts(0, 0, 1), CleanupCounts(0, 0, 1, 1)


@pytest.mark.parametrize(
    ("value", "counts"),
    [
        (encoded("1", age_s=DAY_S + 2), CleanupCounts(0, 1)),
        (encoded("1", age_s=DAY_S), CleanupCounts()),
        (encoded("1", age_s=-2 * DAY_S), CleanupCounts()),
        (encoded("1", "STARTED", None), EXPIRE),
        (encoded("1", "STARTED"), EXPIRE),
        (encoded("1", age_s=None), UNREADABLE),
        (json.dumps({**record("1"), "date_done": "soon"}).encode(), UNREADABLE),
        (json.dumps({"status": 1, "date_done": date(2 * DAY_S)}).encode(), UNREADABLE),
        (json.dumps({"date_done": OLD, "status": "SUCCESS"}).encode(), CleanupCounts(0, 1)),
        (encoded("1")[:-1], UNREADABLE),
        (b"[" + encoded("1") + b"]", UNREADABLE),
        (b"\x80\x04}\x94.", UNREADABLE),
        (b"", UNREADABLE),
    ],
)  # fmt: skip
def test_what_is_not_deleted_gets_a_ttl_where_it_has_none(
    client: Any, value: bytes, counts: CleanupCounts
) -> None:
    """And what has one is left alone."""
    key = "celery-task-meta-1"
    client.flushdb()
    client.set(key, value)
    assert counted(client, RULES) == counts
    client.set(key, value, px=5_000_000)
    lasting = counted(client, RULES)
    assert (lasting.expired_results_deleted, lasting.task_states_cleaned) == (0, 0)
    assert client.get(key) == value
    by_age_alone = counted(client, policy(ignore_ttl=True))
    assert by_age_alone.expired_results_deleted == counts.expired_results_deleted


HOUR_S = 3600


@pytest.mark.parametrize("task_id", ["1", "another"], ids=["known", "unknown"])
@pytest.mark.parametrize(
    ("age_s", "left_s", "backend_ttls_s", "deletes"),
    [
        # result_expires is a day, the age an hour: that is what the age was set for.
        (2 * HOUR_S, 22 * HOUR_S, [DAY_S], True),
        (23 * HOUR_S, HOUR_S, [DAY_S], True),
        (2 * HOUR_S, 22 * HOUR_S + 200, [DAY_S], True),
        (2 * HOUR_S, 22 * HOUR_S - 200, [DAY_S], True),
        # Another one, longer or shorter than the backend's, at its begin and at its end.
        (2 * HOUR_S, 30 * DAY_S, [DAY_S], False),
        (29 * DAY_S, DAY_S, [DAY_S], False),
        (2 * HOUR_S, 22 * HOUR_S + 400, [DAY_S], False),
        (2 * HOUR_S, 4 * HOUR_S, [DAY_S], False),
        # Celery 5.7 keeps failures and chords for longer, where it is told to.
        (2 * HOUR_S, 46 * HOUR_S, [DAY_S, 2 * DAY_S], True),
        (2 * HOUR_S, 10 * HOUR_S, [DAY_S, 2 * DAY_S], False),
        # The age is the backend's: what is older and still there was given another one.
        (2 * HOUR_S, 100, [], False),
    ],
)
@pytest.mark.parametrize("offset", ["+00:00", "-03:30"])
def test_a_ttl_of_its_own_keeps_an_old_result(
    client: Any,
    task_id: str,
    age_s: int,
    left_s: int,
    backend_ttls_s: list[int],
    deletes: bool,
    offset: str,
) -> None:
    """One that is not the backend's; without any TTL, or by hand, the age decides alone."""
    bands = tuple((ttl_s - 300, ttl_s + 300) for ttl_s in backend_ttls_s)
    rules = policy(done_before=NOW - HOUR_S, backend_ttls_s=bands)
    by_age = policy(done_before=NOW - HOUR_S, ignore_ttl=True)
    done = date(age_s + (12_600 if offset == "-03:30" else 0)).replace("+00:00", offset)
    value = json.dumps({**record(task_id), "date_done": done}).encode()
    for ttl_s, given_rules, goes in (
        (left_s, rules, deletes),
        (None, rules, True),
        (left_s, by_age, True),
    ):
        client.flushdb()
        client.set("celery-task-meta-1", value, ex=ttl_s)
        counts = counted(client, given_rules)
        assert counts.expired_results_deleted == goes
        # With no TTL of the backend's above the age, what the script does not know is not read.
        is_read = bool(bands) or task_id == "1"
        assert counts.keys_with_longer_ttl == (not goes and is_read)


@pytest.mark.parametrize("microsecond", [0, 999_999])
def test_the_age_is_met_to_the_second_in_each_zone(client: Any, microsecond: int) -> None:
    """By the script alone; a date without an offset may mean later than it says."""
    client.flushdb()
    rules = policy(backend_ttls_s=(), naive_ahead_s=3600)
    goes = set()
    for offset_min in [None, *range(-12 * 60, 14 * 60 + 1, 15)]:
        for early_s in (1, 2):
            at = datetime.fromtimestamp(rules.done_before - early_s, timezone.utc)
            at = at.replace(microsecond=microsecond)
            if offset_min is None:
                written = (at - timedelta(seconds=3600)).replace(tzinfo=None).isoformat()
            else:
                written = at.astimezone(timezone(timedelta(minutes=offset_min))).isoformat()
            name = f"{offset_min}-{early_s}"
            value = json.dumps({**record(name), "date_done": written})
            client.set(f"celery-task-meta-{name}", value)
            goes |= {f"celery-task-meta-{name}".encode()} if early_s == 2 else set()
    all_keys = set(client.keys("*"))
    client.script_load(REAL.page.source)
    one = CleanupRun(client, rules, actor=REAL, pace=FULL_SPEED)
    for _ in range(2):
        one.step()
    assert one.finished
    assert all_keys - set(client.keys("*")) == goes


def test_other_types_and_lists_of_messages(client: Any) -> None:
    """No queue is touched, whatever its name; anything else that can't be read gets a TTL."""
    client.flushdb()
    for prefix in ("celery-task-meta-", "celery-taskset-meta-", "app-state:", "other:"):
        client.rpush(prefix + "list", 1)
        client.rpush(prefix + "queue", MESSAGE)
        client.hset(prefix + "hash", "a", 1)
        client.zadd(prefix + "zset", {"a": 1})
        client.xadd(prefix + "stream", {"a": 1})
    assert cleanup(client) == CleanupCounts(20, task_states_cleaned=12, keys_unreadable=4)
    lasting = {key for key in client.keys("*") if client.ttl(key) == -1}
    assert lasting == {
        key for key in client.keys("*") if key.endswith(b"queue") or key.startswith(b"other:")
    }


class Writing:
    """A client behind whose back this value is written before the last look at a result."""

    def __init__(self, client: Any, key: str, value: bytes) -> None:
        self._client, self._key, self._value = client, key, value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def evalsha(self, *args: Any) -> Any:
        self._client.set(self._key, self._value)
        return self._client.evalsha(*args)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param((OLD.encode(), FRESH.encode()), id="another date"),
        pytest.param((b"WERT", b"WERTVOLL"), id="another length"),
        pytest.param((b"LAST", b"NEXT"), id="other last bytes"),
        pytest.param(None, id="the same"),
    ],
)
def test_what_the_client_judged_goes_only_if_it_is_still_the_same(
    client: Any, change: tuple[bytes, bytes] | None
) -> None:
    """By its length, its date and its last bytes."""
    client.flushdb()
    done = {"status": "SUCCESS", "date_done": OLD, "result": "WERT", "pad": "p" * 999, "z": "LAST"}
    value = json.dumps(done).encode()
    client.set("celery-task-meta-1", value)
    now = value.replace(*change) if change else value
    counts = cleanup(Writing(client, "celery-task-meta-1", now), RULES)
    assert client.exists("celery-task-meta-1") == bool(change)
    assert counts == CleanupCounts(1, expired_results_deleted=not change)


glob_parts = st.sampled_from([*"ab-^%.*?[]\\", "[ab]", "[^a]", "[a-z]", "**", "é", "a"])


@SETTINGS
@given(
    st.lists(glob_parts, min_size=1, max_size=6).map("".join), st.text("ab-^%.*[]\\é", max_size=6)
)
def test_a_pattern_fits_what_it_fits_in_redis(client: Any, pattern: str, name: str) -> None:
    """As in Redis's own SCAN."""
    try:
        glob = Glob(pattern)
    except ValueError:
        return
    client.flushdb()
    client.set(name, b"1")
    fits = bool(list(client.scan_iter(match=pattern)))
    assert glob.matches(name.encode()) == fits
    counts = cleanup(client, policy(state_patterns=(glob,), protected=()))
    assert counts.task_states_cleaned == fits
    if name:
        client.persist(name)
        rules = policy(state_patterns=(Glob(literal(name)),), protected=(glob,))
        assert cleanup(client, rules).task_states_cleaned == (not fits)


@SETTINGS
@given(st.text("ab*?[]\\^-.%", min_size=1, max_size=6), st.text("ab*?[]\\^-.%", max_size=6))
def test_a_literal_fits_itself_alone(text: str, other: str) -> None:
    """Whatever of its characters mean something in a pattern."""
    for name in {text, other}:
        assert Glob(literal(text)).matches(name.encode()) == (name == text)
