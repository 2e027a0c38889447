"""What a cleanup of the results decides."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.results import DAY_S, MESSAGE, NOW, date, encoded, policy, record
from worker_guard.results.selection import (
    NO_TTL,
    VALUE_LIMIT_BYTES,
    KeyDecision,
    KeyVerdict,
    Kind,
    classify,
    judge,
    read_date,
)
from worker_guard.values.key_patterns import Glob

OLD = 2 * DAY_S


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (b"celery-task-meta-1", Kind.RESULT),
        (b"celery-taskset-meta-1", Kind.STATE),
        (b"celery-taskset-meta-1.j", Kind.STATE),
        (b"chord-unlock-1", Kind.STATE),
        (b"app-state:1", Kind.OWN),
        (b"app-state", Kind.OTHERS),
        (b"x-celery-task-meta-1", Kind.OTHERS),
        (b"worker-guard-history", Kind.OTHERS),
        (b"_kombu.binding.celery", Kind.OTHERS),
        (b"celery", Kind.OTHERS),
        (b"", Kind.OTHERS),
    ],
)
def test_a_key_is_known_by_its_name(key: bytes, kind: Kind) -> None:
    """Only Celery's prefixes and the application's patterns are touched."""
    assert classify(key, policy()) is kind


def test_no_pattern_reaches_a_protected_key() -> None:
    """The guard's own keys and the broker's stay others, whatever pattern fits them."""
    rules = policy(state_patterns=(Glob("*-h*"), Glob("_*.*"), Glob("un*d*")))
    for key in (b"worker-guard-history", b"_kombu.binding.celery", b"unacked_index"):
        assert classify(key, rules) is Kind.OTHERS


def test_a_list_of_messages_is_the_brokers_whatever_its_name() -> None:
    """A TTL on a queue that this app does not know would be the loss of its messages."""
    for kind in (Kind.RESULT, Kind.STATE, Kind.OWN):
        assert judge(kind, None, NO_TTL, policy(), first_item=MESSAGE) == KEEP
    for item in (b'{"body": 1}', b'[1, "id", "SUCCESS", ' + MESSAGE + b"]", b"", None):
        assert judge(Kind.STATE, None, NO_TTL, policy(), first_item=item) == EXPIRE
        assert judge(Kind.OWN, None, NO_TTL, policy(), first_item=item) == EXPIRE
        assert judge(Kind.RESULT, None, NO_TTL, policy(), first_item=item) == UNREADABLE


DELETE, KEEP = KeyDecision(KeyVerdict.DELETE), KeyDecision(KeyVerdict.KEEP)
LONGER = KeyDecision(KeyVerdict.KEEP, longer_ttl=True)
EXPIRE, UNREADABLE = KeyDecision(KeyVerdict.EXPIRE), KeyDecision(KeyVerdict.EXPIRE, unreadable=True)


@pytest.mark.parametrize(
    ("value", "decision"),
    [
        (encoded(age_s=OLD), DELETE),
        (encoded(status="FAILURE", age_s=OLD), DELETE),
        (encoded(status="REVOKED", age_s=OLD), DELETE),
        (encoded(age_s=DAY_S + 1), DELETE),
        (encoded(age_s=DAY_S), KEEP),
        (encoded(age_s=0), KEEP),
        (encoded(age_s=-OLD), KEEP),
        (encoded(status="STARTED", age_s=None), EXPIRE),
        (encoded(status="STARTED", age_s=OLD), EXPIRE),
        (encoded(status="MY-STATE", age_s=OLD), EXPIRE),
        (encoded(age_s=None), UNREADABLE),
        (encoded(age_s=0, result={"date_done": date(OLD), "status": "SUCCESS"}), KEEP),
        (encoded(age_s=OLD, result={"date_done": date(0)}), DELETE),
        (encoded(age_s=OLD, args=[1], kwargs={"date_done": date(0)}, retries=0), DELETE),
        (encoded(age_s=0, args=[date(OLD)], kwargs={"date_done": date(OLD)}), KEEP),
        (encoded(status="STARTED", age_s=None, kwargs={"date_done": date(OLD)}), EXPIRE),
        (encoded(age_s=OLD, result='é\n"\\ 😀'), DELETE),
        (encoded(age_s=OLD)[:-1], UNREADABLE),
        (encoded(age_s=OLD) + b"}", UNREADABLE),
        (encoded(age_s=OLD) + b"\0", UNREADABLE),
        (encoded(age_s=OLD).replace(b"null", b"01", 1), UNREADABLE),
        (b"[" + encoded(age_s=OLD) + b"]", UNREADABLE),
        (b"", UNREADABLE),
        (b"null", UNREADABLE),
        (b"\x80\x04}\x94.", UNREADABLE),
        (b"x\x9c\x03\x00\x00\x00\x00\x01", UNREADABLE),
        (None, UNREADABLE),
        (b" " * VALUE_LIMIT_BYTES + encoded(age_s=OLD), UNREADABLE),
        (json.dumps({"status": "SUCCESS", "date_done": 1}).encode(), UNREADABLE),
        (json.dumps({"status": 1, "date_done": date(OLD)}).encode(), UNREADABLE),
        (json.dumps({"date_done": date(OLD)}).encode(), UNREADABLE),
    ],
)
def test_a_result_is_deleted_only_when_it_is_ready_and_old(
    value: bytes | None, decision: KeyDecision
) -> None:
    """What has no date, or can't be read, gets a TTL where it has none, and no more."""
    assert judge(Kind.RESULT, value, -1, policy()) == decision
    deletes = decision.verdict is KeyVerdict.DELETE
    lasting = KeyDecision(KeyVerdict.KEEP, decision.unreadable, longer_ttl=deletes)
    assert judge(Kind.RESULT, value, 5_000, policy()) == lasting
    by_age_alone = DELETE if deletes else lasting
    assert judge(Kind.RESULT, value, 5_000, policy(ignore_ttl=True)) == by_age_alone
    assert judge(Kind.RESULT, value, -2, policy()) == KeyDecision(KeyVerdict.GONE)
    assert judge(Kind.OTHERS, value, -1, policy()) == KEEP


HOUR_S = 3600


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
        (2 * HOUR_S, 1, [DAY_S], False),
        # Celery 5.7 keeps failures and chords for longer, where it is told to.
        (2 * HOUR_S, 46 * HOUR_S, [DAY_S, 2 * DAY_S], True),
        (2 * HOUR_S, 10 * HOUR_S, [DAY_S, 2 * DAY_S], False),
        # The age is the backend's: what is older and still there was given another one.
        (2 * HOUR_S, 1, [HOUR_S], False),
        (2 * HOUR_S, 1, [], False),
    ],
)
def test_a_ttl_of_its_own_keeps_an_old_result(
    age_s: float, left_s: float, backend_ttls_s: list[int], deletes: bool
) -> None:
    """One that is not the backend's; without any TTL, or by hand, the age decides alone."""
    bands = tuple((ttl_s - 300, ttl_s + 300) for ttl_s in backend_ttls_s if ttl_s > HOUR_S)
    rules = policy(done_before=NOW - HOUR_S, backend_ttls_s=bands)
    value, left_ms = encoded(age_s=age_s), int(left_s * 1000)
    assert judge(Kind.RESULT, value, left_ms, rules) == (DELETE if deletes else LONGER)
    # A cleanup that takes its time sees the same of it.
    later = judge(Kind.RESULT, value, left_ms - 900, rules, elapsed_s=1)
    assert later == (DELETE if deletes else LONGER)
    assert judge(Kind.RESULT, value, NO_TTL, rules) == DELETE
    by_hand = policy(done_before=NOW - HOUR_S, ignore_ttl=True)
    assert judge(Kind.RESULT, value, left_ms, by_hand) == DELETE
    assert judge(Kind.RESULT, encoded(age_s=60), left_ms, rules) == KEEP


def test_a_state_key_gets_a_ttl_once() -> None:
    """Whatever it holds; it is never deleted."""
    assert judge(Kind.STATE, None, -1, policy()) == EXPIRE
    assert judge(Kind.STATE, None, 1, policy()) == KEEP


@given(
    st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30)),  # noqa: DTZ001
    st.none() | st.integers(-1439, 1439),
)
def test_a_date_is_read_as_datetime_reads_it(moment: datetime, offset_min: int | None) -> None:
    """Of every moment and offset, rounded up to the second; a naive one is UTC."""
    zone = timezone.utc if offset_min is None else timezone(timedelta(minutes=offset_min))
    written = (moment if offset_min is None else moment.replace(tzinfo=zone)).isoformat()
    whole = moment.replace(microsecond=0, tzinfo=zone).timestamp()
    assert read_date(written, 0) == whole + (moment.microsecond > 0)


def test_a_naive_date_that_may_be_local_is_read_as_late_as_it_can_be() -> None:
    """West of Greenwich a local time looks older than it is."""
    assert read_date("2027-01-15T08:00:00", 5 * 3600) == NOW + 5 * 3600
    assert read_date("2027-01-15T08:00:00+00:00", 5 * 3600) == NOW
    assert read_date("2027-01-15T08:00:00Z", 5 * 3600) == NOW


@pytest.mark.parametrize(
    "written",
    ["", "2027-01-15", "2027-13-15T08:00:00", "2027-01-15T24:00:00", "2027-01-15T08:00:00 x",
     "٢027-01-15T08:00:00", "now", None, 5, ["2027-01-15T08:00:00"]],
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


@pytest.mark.parametrize(
    ("number", "count", "readable"),
    [
        ("1.", 1, True),
        ("-.5e1", 1, True),
        # What takes long to read is not worth the event loop's time.
        ("1.", 2000, False),
        ("1" * 5000, 1, True),
        ("1", 30_000, True),
        ("1.5", 10_000, True),
        ("01", 1, False),
    ],
)
def test_numbers_as_encoders_write_them_are_read(number: str, count: int, readable: bool) -> None:
    """As the scripts' parser reads them, as far as that is quick here too."""
    numbers = ",".join([number] * count)
    value = f'{{"status": "SUCCESS", "result": [{numbers}], "date_done": "{date(OLD)}"}}'
    expected = DELETE if readable else UNREADABLE
    assert judge(Kind.RESULT, value.encode(), NO_TTL, policy()) == expected
