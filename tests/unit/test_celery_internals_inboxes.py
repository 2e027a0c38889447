"""Which children of an event-loop pool get jobs, and what billiard's child makes of a nudge."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.pool import EX_FAILURE, Worker
from billiard.queues import _SimpleQueue
from celery import Celery
from celery.concurrency import prefork

from worker_guard.celery_internals import PoolChildren
from worker_guard.celery_internals.inboxes import NUDGE

PID = 10


class FakeJob:
    """A job of the pool's books."""

    correlation_id = "id"
    _scheduled_for = None

    def __init__(self, process: Any, *, accepted: bool) -> None:
        self._write_to, self._accepted = process, accepted

    def ready(self) -> bool:
        return False

    def accepted(self) -> bool:
        return self._accepted

    def worker_pids(self) -> list[int]:
        return [self._write_to.pid] if self._accepted else []


class FakeLock:
    def __init__(self, *, free: bool = True) -> None:
        self.free = free

    def acquire(self, block: bool = True) -> bool:
        return self.free

    def release(self) -> None:
        pass


class OneChild:
    """A pool with one child, whose inbox is a real pipe."""

    def __init__(self, *, up: bool = True, lock_free: bool = True) -> None:
        self.queue = _SimpleQueue(wnonblock=True)
        self.fd = self.queue._writer.fileno()
        self.alive = True
        self.process = SimpleNamespace(
            pid=PID, index=0, inqW_fd=self.fd, inq=self.queue, _is_alive=lambda: self.alive
        )
        self.sentinel = SimpleNamespace(_cond=FakeLock(free=lock_free), _flag=FakeLock())
        self.pool = SimpleNamespace(
            threads=False,
            _pool=[self.process],
            _cache={},
            _processes=1,
            _poolctrl={PID: self.sentinel},
            _waiting_to_start=set(),
            _result_handler=None,
            _all_inqueues={self.fd} if up else set(),
            _busy_workers=set(),
            _active_writes=set(),
            _fileno_to_inq={self.fd: self.process} if up else {},
        )
        task_pool = prefork.TaskPool(1, app=Celery("unit", set_as_current=False))
        task_pool._pool = self.pool
        self.children = PoolChildren(SimpleNamespace(pool=task_pool, pool_cls=prefork.TaskPool))

    def give_job(self, *, accepted: bool) -> None:
        self.pool._cache[1] = FakeJob(self.process, accepted=accepted)
        self.pool._busy_workers.add(self.fd)

    def known(self) -> tuple[bool, bool]:
        """Whether the pool chooses this child, and whether it takes it for busy."""
        return self.fd in self.pool._all_inqueues, self.fd in self.pool._busy_workers

    def in_pipe(self) -> bytes:
        reader = self.queue._reader
        return os.read(reader.fileno(), 65536) if reader.poll(0) else b""


@pytest.fixture
def made() -> Iterator[list[OneChild]]:
    pools: list[OneChild] = []
    yield pools
    for one in pools:
        one.queue.close()


def test_an_idle_child_is_nudged_and_not_chosen_any_more(made: list[OneChild]) -> None:
    """All at once, so that nothing depends on the guard's next look."""
    made.append(one := OneChild())
    assert one.children.ask_to_leave(PID)
    assert one.known() == (False, False)
    assert one.in_pipe() == NUDGE


def test_a_busy_child_is_no_more_counted_among_the_busy(made: list[OneChild]) -> None:
    """The pool compares how many are busy with how many there are."""
    made.append(one := OneChild())
    one.give_job(accepted=True)
    assert one.children.ask_to_leave(PID)
    assert one.known() == (False, False)


def test_a_job_that_is_half_written_is_not_interrupted(made: list[OneChild]) -> None:
    """A job ahead of the one that runs: the pool goes on writing it, and nothing comes between."""
    made.append(one := OneChild())
    one.give_job(accepted=True)
    one.pool._active_writes.add(one.fd)
    assert one.children.ask_to_leave(PID)
    assert one.known() == (False, False)
    assert one.in_pipe() == b""
    assert one.fd in one.pool._active_writes


def test_a_full_pipe_holds_nothing_up(made: list[OneChild]) -> None:
    """Its child looks at its sentinel between what it reads."""
    made.append(one := OneChild())
    one.give_job(accepted=True)
    with contextlib.suppress(BlockingIOError):
        while os.write(one.fd, b"x" * 4096):
            pass
    assert one.children.ask_to_leave(PID)
    assert one.known() == (False, False)


@pytest.mark.parametrize("case", ["job on its way", "not up", "lock held", "gone"])
def test_a_child_that_is_not_asked_stays_as_it_is(made: list[OneChild], case: str) -> None:
    """It is asked again later, and until then it is chosen as ever."""
    made.append(one := OneChild(up=case != "not up", lock_free=case != "lock held"))
    if case == "job on its way":
        one.give_job(accepted=False)
    before = one.known()
    assert not one.children.ask_to_leave(PID + 1 if case == "gone" else PID)
    assert one.known() == before
    assert one.in_pipe() == b""


@pytest.mark.parametrize("busy", [False, True])
def test_a_child_that_has_not_left_when_the_guard_stops_is_given_back(
    made: list[OneChild], busy: bool
) -> None:
    """As the pool would have it: known, and busy where it runs a task."""
    made.append(one := OneChild())
    if busy:
        one.give_job(accepted=True)
    before = one.known()
    one.children.ask_to_leave(PID)
    one.children.let_stay()
    assert one.known() == before == (True, busy)


def test_the_pipe_of_a_child_that_was_killed_is_emptied(made: list[OneChild]) -> None:
    """It may have read a nudge in part, and Celery before 5.7 reads such pipes as it ends."""
    made.append(one := OneChild())
    one.children.ask_to_leave(PID)
    os.read(one.queue._reader.fileno(), 4)
    one.alive = False
    one.children.let_stay()
    assert one.in_pipe() == b""
    assert one.known() == (False, False)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_child_that_has_left_is_not_given_back(made: list[OneChild], replaced: bool) -> None:
    """Its pipe may be another child's by now, of which the pool knows whether it is busy."""
    made.append(one := OneChild())
    one.children.ask_to_leave(PID)
    heir = SimpleNamespace(pid=PID + 1, index=0, inqW_fd=one.fd)
    one.pool._pool[:] = [heir] if replaced else []
    one.pool._fileno_to_inq = {one.fd: heir} if replaced else {}
    one.children.let_stay()
    assert one.known() == (False, False)


def test_billiards_child_passes_over_a_nudge() -> None:
    """It gets a request that is false, which its loop does not look into, and waits for the next.

    What a child that was killed has left of one ends the next reader, and nobody waits for more.
    """
    inq, outq = _SimpleQueue(), _SimpleQueue()
    try:
        worker = Worker(inq, outq)
        worker._make_child_methods()
        inq._writer.send_bytes(NUDGE[4:])
        assert inq._reader.poll(0)
        assert worker.wait_for_job() == ()
        os.write(inq._writer.fileno(), NUDGE)
        assert worker.wait_for_job() == ()
        os.write(inq._writer.fileno(), NUDGE[4:])
        with pytest.raises(SystemExit) as ended:
            worker.wait_for_job()
        assert ended.value.code == EX_FAILURE
        assert not inq._reader.poll(0)
    finally:
        inq.close()
        outq.close()


def test_billiards_loop_runs_nothing_for_a_nudge() -> None:
    """No job is accepted, and none is counted: after it the next one is."""
    inq, outq = _SimpleQueue(), _SimpleQueue()
    try:
        worker = Worker(inq, outq, maxtasks=1)
        worker._make_child_methods()
        os.write(inq._writer.fileno(), NUDGE)
        inq.put((2, (7, None, abs, (-3,), {})))  # a TASK
        worker.workloop()
        accepted, done = outq.get(), outq.get()
        assert accepted[1][0] == done[1][0] == 7
        assert done[1][2] == (True, 3)
        assert not outq._reader.poll(0)
    finally:
        inq.close()
        outq.close()
