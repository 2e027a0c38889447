"""What a cleanup of the results decides here: whose a key is, and what the script does not know."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.results import DAY_S, NOW, date, encoded, policy, record
from worker_guard.results.selection import (
    Judgement,
    Verdict,
    judge,
    read_date,
    results_and_states,
)
from worker_guard.values.key_patterns import Glob

OLD = 2 * DAY_S


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (b"celery-task-meta-1", "result"),
        (b"celery-taskset-meta-1", "state"),
        (b"celery-taskset-meta-1.j", "state"),
        (b"chord-unlock-1", "state"),
        (b"app-state:1", "state"),
        (b"app-state", ""),
        (b"x-celery-task-meta-1", ""),
        (b"worker-guard-history", ""),
        (b"_kombu.binding.celery", ""),
        (b"celery", ""),
        (b"", ""),
    ],
)
def test_a_key_is_known_by_its_name(key: bytes, kind: str) -> None:
    """Only Celery's prefixes and the application's patterns are touched."""
    results, states = results_and_states([key], policy())
    assert results == ((key,) if kind == "result" else ())
    assert states == ((key,) if kind == "state" else ())


def test_no_pattern_reaches_a_protected_key() -> None:
    """The guard's own keys and the broker's stay others, whatever pattern fits them."""
    rules = policy(state_patterns=(Glob("*-h*"), Glob("_*.*"), Glob("un*d*")))
    keys = [b"worker-guard-history", b"_kombu.binding.celery", b"unacked_index"]
    assert results_and_states(keys, rules) == ((), ())


KEEP, EXPIRE = Judgement(Verdict.KEEP), Judgement(Verdict.EXPIRE)
UNREADABLE = Judgement(Verdict.EXPIRE, unreadable=True)


def deleted(age_s: int = OLD) -> Judgement:
    """That of a result of this age."""
    quoted = f'"{date(age_s)}"'.encode()
    return Judgement(Verdict.DELETE, done_at=NOW - age_s + 1, quoted_date=quoted)


@pytest.mark.parametrize(
    ("value", "judgement"),
    [
        (encoded(), deleted()),
        (encoded(status="FAILURE"), deleted()),
        (encoded(status="REVOKED"), deleted()),
        (encoded(age_s=DAY_S + 2), deleted(DAY_S + 2)),
        (encoded(age_s=DAY_S + 1), KEEP),
        (encoded(age_s=-OLD), KEEP),
        (encoded(status="STARTED", age_s=None), EXPIRE),
        (encoded(status="MY-STATE"), EXPIRE),
        (encoded(age_s=None), UNREADABLE),
        (encoded(age_s=0, result={"date_done": date(OLD), "status": "SUCCESS"}), KEEP),
        (encoded(result={"date_done": date(0)}), deleted()),
        (encoded(result='é\n"\\ 😀'), deleted()),
        (encoded(result=float("nan")), deleted()),
        (encoded(result="n").replace(b'"n"', b"1" * 5000), deleted()),
        # The second script could not tell which of the two is the date.
        (encoded(result=date(OLD)), UNREADABLE),
        (encoded().replace(b"+00:00", rb"\u002b00:00"), UNREADABLE),
        (encoded()[:-1], UNREADABLE),
        (encoded() + b"\0", UNREADABLE),
        (b"[" * 100_000, UNREADABLE),
        (b"[" + encoded() + b"]", UNREADABLE),
        (b"\xff" + encoded(), UNREADABLE),
        (json.dumps({"status": "SUCCESS", "date_done": 1}).encode(), UNREADABLE),
        (json.dumps({"status": 1, "date_done": date(OLD)}).encode(), UNREADABLE),
    ],
)
def test_a_result_is_deleted_only_when_it_is_ready_and_old(
    value: bytes, judgement: Judgement
) -> None:
    """Whatever its layout; what has no date, or can't be read, is not."""
    assert judge(value, policy()) == judgement


@given(
    st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30)),  # noqa: DTZ001
    st.none() | st.integers(-1439, 1439),
)
def test_a_date_is_read_as_datetime_reads_it(moment: datetime, offset_min: int | None) -> None:
    """Of every moment and offset, as the end of its second; a naive one is UTC."""
    zone = timezone.utc if offset_min is None else timezone(timedelta(minutes=offset_min))
    written = (moment if offset_min is None else moment.replace(tzinfo=zone)).isoformat()
    whole = moment.replace(microsecond=0, tzinfo=zone).timestamp()
    assert read_date(written, 0) == whole + 1


def test_a_naive_date_that_may_be_local_is_read_as_late_as_it_can_be() -> None:
    """West of Greenwich a local time looks older than it is."""
    assert read_date("2027-01-15T08:00:00", 5 * 3600) == NOW + 1 + 5 * 3600
    assert read_date("2027-01-15T08:00:00+00:00", 5 * 3600) == NOW + 1
    assert read_date("2027-01-15T08:00:00Z", 5 * 3600) == NOW + 1


@pytest.mark.parametrize(
    "written",
    ["", "2027-01-15", "2027-13-15T08:00:00", "2027-02-29T08:00:00", "2027-01-15T24:00:00",
     "2027-01-15T08:00:00 x", "2027-01-15T08:00:00+99:00", "٢027-01-15T08:00:00", "now",
     None, 5, ["2027-01-15T08:00:00"]],
)  # fmt: skip
def test_what_is_no_date_is_none(written: Any) -> None:
    """It is not guessed at."""
    assert read_date(written, 0) is None


def test_the_record_of_the_tests_is_that_of_celery() -> None:
    """So that what holds for it holds for Celery's own."""
    from celery import Celery

    app = Celery("test", set_as_current=False, backend="cache+memory://")
    meta = app.backend._get_result_meta(None, "SUCCESS", None, None)
    assert list(record()) == [*meta, "task_id"]
