"""How facts are read: how often a schedule runs, when a message expires, what a pool is."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from celery.concurrency.solo import TaskPool as SoloPool
from celery.schedules import crontab, schedule
from redbeat.schedules import rrule

from worker_guard.commands.audit.beat_entries import gaps_of, when
from worker_guard.commands.audit.facts import Malformed, Moment
from worker_guard.commands.audit.gaps import Gaps, gaps_between
from worker_guard.commands.audit.gather import gather

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
START = datetime(2026, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("given", "shortest_s", "longest_s"),
    [
        (30, 30.0, 30.0),
        (timedelta(minutes=5), 5 * MINUTE, 5 * MINUTE),
        (schedule(90.0), 90.0, 90.0),
        (crontab(), MINUTE, MINUTE),
        (crontab(minute="*/5"), 5 * MINUTE, 5 * MINUTE),
        # Seven does not divide sixty: the last of an hour is four minutes before the next.
        (crontab(minute="*/7"), 4 * MINUTE, 7 * MINUTE),
        (crontab(minute=0), HOUR, HOUR),
        (crontab(minute=0, hour="6,18"), 12 * HOUR, 12 * HOUR),
        (crontab(minute=0, hour="8,9"), HOUR, 23 * HOUR),
        (crontab(minute=0, hour=4), DAY, DAY),
        (crontab(minute=0, hour=4, day_of_week="mon-fri"), DAY, 3 * DAY),
        (crontab(minute="*/10", hour="9-17", day_of_week="mon-fri"), 600.0, 63 * HOUR + 600),
        (crontab(minute=0, hour=4, day_of_week="sun"), 7 * DAY, 7 * DAY),
        (crontab(minute=0, hour=4, day_of_month=1), 28 * DAY, 31 * DAY),
        (crontab(minute=0, hour=0, day_of_month=29, month_of_year=2), 1461 * DAY, 1461 * DAY),
        (rrule("HOURLY", dtstart=START), HOUR, HOUR),
        (rrule("WEEKLY", dtstart=START, byweekday=(0, 2)), 2 * DAY, 5 * DAY),
        (rrule("DAILY", dtstart=START, count=3), DAY, DAY),
    ],
    ids=str,
)
def test_the_time_between_two_runs(given: Any, shortest_s: float, longest_s: float) -> None:
    """The shortest and the longest, over weekends and months."""
    assert gaps_of(given) == Gaps(shortest_s, longest_s)


@pytest.mark.parametrize(
    "given",
    [None, 0, object(), "later", rrule("DAILY", dtstart=START, count=1)],
    ids=["none", "zero", "unknown", "text", "once"],
)
def test_where_nobody_can_tell(given: Any) -> None:
    """No gaps, so that no lifetime is judged by them."""
    assert gaps_of(given) is None


def test_a_sequence_of_moments() -> None:
    """Two or more make gaps."""
    moments = [START, START + timedelta(hours=1), START + timedelta(hours=3)]
    assert gaps_between(moments) == Gaps(HOUR, 2 * HOUR)
    assert gaps_between(moments[:1]) is None


def test_what_an_expires_is() -> None:
    """Seconds, a fixed time as Celery reads it, or nothing that Celery could send."""
    assert when(None) is None
    assert when(60) == 60.0
    past = when(START)
    assert isinstance(past, Moment)
    assert past.ahead_s < 0
    assert not past.naive
    naive = when("2036-01-01T00:00:00")
    assert isinstance(naive, Moment)
    assert naive.naive
    zulu = when("2036-01-01T00:00:00Z")
    assert isinstance(zulu, Moment)
    assert not zulu.naive
    # As UTC, wherever this runs.
    utc = when("2036-01-01T00:00:00+00:00")
    assert isinstance(utc, Moment)
    assert naive.ahead_s == pytest.approx(utc.ahead_s, abs=5)
    assert when(timedelta(hours=1)) == Malformed("datetime.timedelta(seconds=3600)")
    assert when("soon") == Malformed("'soon'")
    for beyond in (float("inf"), float("nan"), 1e12):
        assert isinstance(when(beyond), Malformed)
    year = when("3600")
    assert isinstance(year, Moment)
    assert year.never
    assert not zulu.never
    # Celery takes it for a number.
    assert when(True) == 1.0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("prefork", True),
        ("processes", True),
        ("celery.concurrency.prefork:TaskPool", True),
        ("solo", False),
        ("threads", False),
        ("celery.concurrency.thread:TaskPool", False),
        ("celery.concurrency.gevent.TaskPool", False),
        (SoloPool, False),
    ],
    ids=str,
)
def test_whether_a_pool_has_children(given: Any, expected: bool) -> None:
    """By alias, by the class's path, and by the class."""
    app = Celery("pool", set_as_current=False)
    app.conf.worker_pool = given
    facts, unread = gather(app)
    assert facts.has_children is expected
    assert unread == []


@pytest.mark.parametrize(
    ("declared", "longest_s"),
    [
        ({}, None),
        ({"default_retry_delay": 7200}, 2 * HOUR),
        # 1, 2 and 4 s; the maximum is far away.
        ({"retry_backoff": True, "retry_backoff_max": 7200}, 4.0),
        ({"retry_backoff": True, "retry_backoff_max": 7200, "max_retries": 20}, 2 * HOUR),
        ({"retry_backoff": True, "retry_backoff_max": 7200, "max_retries": None}, 2 * HOUR),
        ({"retry_backoff": 600, "retry_kwargs": {"max_retries": 5}}, 600.0),
        ({"retry_backoff": 600, "retry_backoff_max": 7200, "max_retries": 2}, 1200.0),
    ],
    ids=str,
)
def test_the_longest_delay_of_a_retry(declared: dict[str, Any], longest_s: float | None) -> None:
    """What a task declares; with a backoff, as many doublings as it has retries."""
    app = Celery("retry", set_as_current=False)
    errors = {"autoretry_for": (OSError,)} if "retry_backoff" in declared else {}

    # Shared, it would be a task of all other tests' apps too.
    @app.task(name="retries", shared=False, **errors, **declared)
    def retries() -> None:
        """Do nothing."""

    facts, unread = gather(app)
    assert not unread
    delays = {task.name: task.retry_delay_s for task in facts.tasks}
    assert delays["retries"] == longest_s


def test_a_setting_that_is_none_is_not_set() -> None:
    """None is how a part is switched off on purpose; it is not to take effect."""
    app = Celery("none", set_as_current=False)
    app.conf.worker_guard_results_schedule = None
    app.conf.worker_guard_alert_redis_memory = None
    app.conf.worker_guard_results_max_age = 60
    facts, unread = gather(app)
    assert not unread
    assert facts.guard.given == {"worker_guard_results_max_age"}


ENTRY = {"task": "proj.task", "schedule": 1.0}


@pytest.mark.parametrize(
    ("entry", "kind", "says"),
    [
        (ENTRY, None, ""),
        ({**ENTRY, "args": (1,), "kwargs": {}, "options": {}, "relative": True}, None, ""),
        # Other schedulers know it, and Beat's command line can name one.
        ({**ENTRY, "enabled": True}, None, ""),
        ({**ENTRY, "expires": 30}, "ends-beat", "unexpected keyword argument 'expires'"),
        ({**ENTRY, "schedule": "30"}, "ends-beat", "'str' object has no attribute 'app'"),
        ({**ENTRY, "schedule": START}, "ends-beat", "has no attribute 'app'"),
        ({**ENTRY, "schedule": float("inf")}, "ends-beat", "OverflowError"),
        ({"task": "proj.task"}, "ends-beat", "the schedule is None"),
        (5, "ends-beat", "'int' object is not iterable"),
        ({"schedule": 1.0}, "no-task", "the task is None"),
        ({**ENTRY, "options": 5}, "never-sent", "the options are 5"),
    ],
    ids=str,
)
def test_what_beat_makes_of_an_entry(entry: Any, kind: str | None, says: str) -> None:
    """What keeps it from running the entry, in its own words."""
    app = Celery("entries", set_as_current=False)
    app.conf.beat_schedule = {"entry": entry, "good": ENTRY}
    facts, unread = gather(app)
    assert (unread, facts.unreadable) == ([], ())
    first, good = facts.entries
    assert (first.flaw.kind if first.flaw else None) == kind
    assert first.flaw is None or says in first.flaw.says
    assert good.flaw is None


def test_entries_of_another_scheduler() -> None:
    """They have keys of their own."""
    app = Celery("entries", set_as_current=False)
    app.conf.beat_scheduler = "proj.beat:Scheduler"
    app.conf.beat_schedule = {"entry": {**ENTRY, "jitter": 5}}
    facts, _ = gather(app)
    assert facts.entries[0].flaw is None


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("beat_schedule", 5, "beat_schedule"),
        ("worker_prefetch_multiplier", "x", "worker_prefetch_multiplier"),
        ("result_expires", "1 day", "result_expires"),
        ("result_backend", "nonsense://", "result_backend"),
        ("broker_transport_options", 5, "broker_url, broker_transport_options"),
    ],
)
def test_a_setting_of_another_kind(setting: str, value: Any, named: str) -> None:
    """It is named once, and all others are read."""
    app = Celery("malformed", set_as_current=False)
    app.conf.task_acks_late = True
    app.conf.worker_max_memory_per_child = 200
    setattr(app.conf, setting, value)
    facts, _ = gather(app)
    assert [one.setting for one in facts.unreadable] == [named]
    assert facts.delivery.acks_late
    assert facts.memory.child_limit_kib == 200.0


@pytest.mark.parametrize("countdown", [timedelta(seconds=5), "5", float("nan"), 1e12], ids=str)
def test_a_countdown_that_cannot_be_sent(countdown: Any) -> None:
    """It is kept as it is written."""
    app = Celery("entries", set_as_current=False)
    app.conf.beat_schedule = {"entry": {**ENTRY, "options": {"countdown": countdown}}}
    (entry,) = gather(app)[0].entries
    assert (entry.countdown_s, entry.malformed_countdown) == (None, repr(countdown))
