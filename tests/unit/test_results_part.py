"""When the results are cleaned in a worker, and why they are not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from tests.harness.context import make_context
from worker_guard.events import CleanupCompleted
from worker_guard.results.backend import NoRedisResultsError
from worker_guard.results.history_writer import HistoryWriter
from worker_guard.results.part import ResultsPart
from worker_guard.results.scheduled_cleanup import ScheduledCleanup
from worker_guard.settings import read_settings


def app(backend: str = "redis://127.0.0.1:1/0", **conf: Any) -> Celery:
    made = Celery("test", set_as_current=False, broker="memory://", backend=backend)
    made.conf.update(conf)
    return made


def opened(one: Celery) -> ResultsPart:
    worker = SimpleNamespace(app=one, hostname="w@test")
    return ResultsPart(make_context(worker, read_settings(one.conf)))


def job(part: ResultsPart, kind: type[Any]) -> Any:
    return next((job for job in part.jobs if isinstance(job, kind)), None)


@pytest.mark.parametrize(
    ("backend", "reason"),
    [("cache+memory://", "no Redis result backend"), ("disabled://", "DisabledBackend")],
)
def test_the_part_is_off_without_a_redis(backend: str, reason: str) -> None:
    """What it raises stands in the start event."""
    with pytest.raises(NoRedisResultsError, match=reason):
        opened(app(backend))


@pytest.mark.parametrize(
    ("conf", "reason"),
    [
        ({"worker_guard_results_schedule": None}, "worker_guard_results_schedule is None"),
        ({"result_expires": None}, "results are meant to stay"),
    ],
)
def test_without_a_cleanup_the_history_is_written_all_the_same(
    conf: dict[str, Any], reason: str
) -> None:
    """Sweeps of the revoked set stand in it, too."""
    part = opened(app(**conf))
    assert part.states["results"].startswith(reason)
    assert [type(each) for each in part.jobs] == [HistoryWriter]


def test_both_jobs_are_on() -> None:
    """The age is that of the configuration."""
    part = opened(app())
    assert part.states == {"results": "on"}
    assert job(part, ScheduledCleanup).max_age_s == 86_400.0


def test_the_writer_hears_of_sweeps() -> None:
    """Of those that cleared something."""
    part = opened(app())
    part.context.report(CleanupCompleted())
    part.context.report(CleanupCompleted(revoked_tasks_cleared=3))
    (pending,) = job(part, HistoryWriter)._pending
    assert (pending.by, pending.event.revoked_tasks_cleared) == ("w@test", 3)


def test_a_dry_run_by_schedule_begins_at_a_moment_of_its_own() -> None:
    """A fleet of them has no lease between them; and it writes no history."""
    due, _ = job(opened(app()), ScheduledCleanup).schedule(1.0)
    assert due
    part = opened(app(worker_guard_dry_run=True))
    due, _wait_s = job(part, ScheduledCleanup).schedule(1.0)
    assert not due
    assert job(part, HistoryWriter) is None
