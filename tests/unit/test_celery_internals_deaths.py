"""Which children count as killed, of a pool that is none."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.pool import CLOSE, RUN
from celery.concurrency import asynpool

from worker_guard.celery_internals import deaths
from worker_guard.celery_internals.deaths import PoolDeaths


class Process:
    """A child that has ended so."""

    def __init__(self, exitcode: int | None, **more: Any) -> None:
        self.pid, self.exitcode = 7, exitcode
        vars(self).update(more)


class Job:
    """A job that the child accepted."""

    def __init__(self, pid: int = 7) -> None:
        self.pid, self.correlation_id, self._worker_lost = pid, "id", None
        self.has_result = False

    def accepted(self) -> bool:
        return True

    def ready(self) -> bool:
        return self.has_result

    def worker_pids(self) -> list[int]:
        return [self.pid]


class Site:
    """A pool, and what was seen of it."""

    def __init__(self, *, loop: bool = True, **more: Any) -> None:
        self.killed: list[int] = []
        self.errors: list[Exception] = []
        self.pool = SimpleNamespace(
            _pool=[],
            _cache={},
            _state=RUN,
            _waiting_to_start=set(),
            _timeout_handler=SimpleNamespace(_trywaitkill=lambda process: None),
            process_flush_queues=lambda process: "flushed",
        )
        vars(self.pool).update(more)
        worker = SimpleNamespace(pool=SimpleNamespace(_pool=self.pool))
        self.deaths = PoolDeaths(worker, has_event_loop=loop)
        self.undo = self.deaths.watch(self.killed.append, self.errors.append)

    def seen(self, process: Process) -> list[str]:
        """The signals of those that count as killed after this one was found dead."""
        assert self.pool.process_flush_queues(process) == "flushed"
        self.undo()
        return [death.signal for death in self.deaths.killed()]


@pytest.mark.parametrize(
    ("exitcode", "expected"),
    [
        (-signal.SIGKILL, ["SIGKILL"]),
        (-signal.SIGSEGV, ["SIGSEGV"]),
        (-signal.SIGRTMIN - 1, [str(signal.SIGRTMIN + 1)]),
        # It asks a child to end; billiard sends it to each that says that it exits.
        (-signal.SIGTERM, []),
        (0, []),
        (3, []),
        (155, []),
        (None, []),
    ],
)
def test_only_a_signal_kills(exitcode: int | None, expected: list[str]) -> None:
    """Not an exit code, and not one that still runs."""
    site = Site()
    assert site.seen(Process(exitcode)) == expected
    assert site.killed == [7] * len(expected)


def test_one_that_was_terminated_was_not_killed() -> None:
    """``terminate_job`` and ``shrink`` leave a mark on it."""
    assert Site().seen(Process(-signal.SIGKILL, _controlled_termination=True)) == []


def test_one_that_the_pool_killed_at_its_time_limit_was_not_killed() -> None:
    """After it did not end by a SIGTERM."""
    site, process = Site(), Process(-signal.SIGKILL)
    site.pool._timeout_handler._trywaitkill(process)
    assert site.seen(process) == []


@pytest.mark.parametrize(("waiting", "expected"), [(True, []), (False, ["SIGKILL"])])
def test_one_that_was_not_up_in_time_was_not_killed(waiting: bool, expected: list[str]) -> None:
    """The pool logs which one it is about to kill. It logs other errors about others."""
    process = Process(-signal.SIGKILL)
    site = Site(_waiting_to_start={process} if waiting else set())
    asynpool.error("about %r", process)
    assert site.seen(process) == expected


def test_once_the_pool_shuts_down_none_was_killed() -> None:
    """Children end with it."""
    assert Site(_state=CLOSE).seen(Process(-signal.SIGKILL)) == []


def test_each_counts_once() -> None:
    """The pool flushes a child's queues twice, and the deaths are taken out."""
    site, process = Site(), Process(-signal.SIGKILL)
    site.pool.process_flush_queues(process)
    assert site.seen(process) == ["SIGKILL"]
    assert site.deaths.killed() == []


@pytest.mark.parametrize("loop", [True, False])
@pytest.mark.parametrize("has_result", [True, False])
def test_a_result_that_comes_late_is_one(
    monkeypatch: pytest.MonkeyPatch, loop: bool, has_result: bool
) -> None:
    """Without an event loop another thread reads it after the child was reaped."""
    monkeypatch.setattr(deaths, "SETTLE_S", 0.0)
    job = Job()
    site = Site(loop=loop, _cache={1: job, 2: Job(pid=8)})
    site.pool.process_flush_queues(Process(-signal.SIGKILL))
    job.has_result = has_result
    site.undo()
    (death,) = site.deaths.killed()
    assert (death.task is None) == (has_result and not loop)


def test_without_an_event_loop_it_waits_for_what_others_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who sent the signal marks the process after that."""
    site, process = Site(loop=False), Process(-signal.SIGKILL)
    assert site.seen(process) == []
    process._controlled_termination = True  # type: ignore[attr-defined]
    with monkeypatch.context() as later:
        later.setattr("time.monotonic", lambda: float("inf"))
        assert site.deaths.killed() == []


def test_what_it_raises_stays_with_it() -> None:
    """The pool goes on."""
    site = Site(_cache=None)
    assert site.seen(Process(-signal.SIGKILL)) == []
    assert [type(error) for error in site.errors] == [AttributeError]
