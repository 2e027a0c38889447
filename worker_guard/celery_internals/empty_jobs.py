"""Empty jobs: what makes an idle child of a prefork pool look at its sentinel."""

from __future__ import annotations

import os
import time
from typing import Any

from celery.utils.functional import noop

#: A woken child answers within milliseconds; one that does not in this time is stopped or stuck.
ANSWER_S = 5.0

#: Between two looks whether a woken child still lives.
LOOK_S = 0.05

#: How long an answer is waited for where the woken child has left, and it can't be told whether its
#: replacement was given the job.
MOVED_S = 0.25


class EmptyJobs:
    """Gives empty jobs to children, and reads at a warm shutdown what they answer.

    Relies on what :class:`~worker_guard.celery_internals.children.PoolChildren` names.
    """

    def __init__(self, worker: Any, *, has_event_loop: bool) -> None:
        self._worker = worker
        self._has_event_loop = has_event_loop
        #: Each empty job with the child that it is for; None: for whichever takes it.
        self._given: dict[Any, Any] = {}

    def give(self, pool: Any, process: Any) -> None:
        """Give one to this child, which is idle; with threads, to each child that is."""
        if self._has_event_loop:
            self._give_by_loop(pool, process)
        else:
            self._give_by_queue(pool)

    def _give_by_loop(self, pool: Any, process: Any) -> None:
        fd = process.inqW_fd
        free = (
            fd in pool._all_inqueues
            and fd not in pool._busy_workers
            and fd not in pool._active_writes
        )
        # A waiting task wakes the child as well; and a slot is taken as a task would take it,
        # since the pool gives one back when the empty job is done.
        if not free or pool.outbound_buffer or pool._putlock.value <= 0:
            return
        hub = self._worker.hub  # kombu's own get_event_loop() can be None after a reconnect
        if hub is None or hub.consolidate_callback is None:
            return
        # One whose child has left may have been put back, and be on its way to another.
        self._given = {
            job: child
            for job, child in self._given.items()
            if not job.ready() and job._write_to in pool._pool
        }
        pool._putlock.acquire(self._put, pool, process)
        # The job is the only one that waits, so that it is written to this child.
        hub.consolidate_callback([fd])

    def _put(self, pool: Any, process: Any) -> None:
        job = pool.apply_async(noop)
        if job is not None:
            self._given[job] = process

    def _give_by_queue(self, pool: Any) -> None:
        # All children read one queue, in turns: each idle one has to get an empty job for this
        # one to get its own.
        self._given = {job: None for job in self._given if not job.ready()}
        if self._given:
            return
        for _ in range(len(pool._pool)):
            if not pool._putlock.acquire(False):
                return
            job = pool.apply_async(noop, waitforslot=False)
            if job is None:
                return
            self._given[job] = None

    def hear(self, pool: Any) -> None:
        """Read what the children answer that were just given one.

        ``AsynPool.flush`` has by now dropped the empty jobs that were not accepted yet, so that
        the pool would read no answer to them, and billiard's child waits 30 s for its answer to be
        read. An empty job is in the books only while this reads: left there it could outlast its
        child, and the pool would wait 10 s for the answer of one that was killed. With threads the
        pool reads by itself.
        """
        if not self._has_event_loop:
            return
        end = time.monotonic() + ANSWER_S
        for job, child in self._given.items():
            # A child may have left without reading its job, which the pool then puts back; and it
            # takes the replacement for the one that was given it (``on_process_up``).
            moved = job._write_to is not child
            until = min(end, time.monotonic() + MOVED_S) if moved else end
            pool._cache[job._job] = job
            try:
                while _waits_for_answer(pool, job) and time.monotonic() < until:
                    process = job._write_to
                    # Its messages are small enough to be written whole, so to be read whole.
                    if process.outq._reader.poll(LOOK_S):
                        _read_answer(pool, process)
            finally:
                job.discard()
                _clear_pipe_of_the_dead(pool, job)


def _waits_for_answer(pool: Any, job: Any) -> bool:
    """Whether the child that this job was written to lives and has not answered it.

    One that is not up yet was given nothing.
    """
    process = job._write_to
    given = process in pool._pool and process not in pool._waiting_to_start
    return not job.ready() and given and bool(process._is_alive())


def _clear_pipe_of_the_dead(pool: Any, job: Any) -> None:
    """Take from its pipe what a child that was killed has not read of this job.

    Celery before 5.7 reads such pipes as it ends, message by message: the rest of one makes it
    wait for ever. One that is not in the pool any more may have left its pipe to another.
    """
    process = job._write_to
    if process in pool._pool and not process._is_alive():
        reader = process.inq._reader
        while reader.poll(0):
            os.read(reader.fileno(), 65536)


def _read_answer(pool: Any, process: Any) -> None:
    """Read one message of a child, unless the lock of its counter of answers can't be had.

    The pool takes that lock without a limit, the child each time that it looks whether its answer
    was read; one that is killed just then holds it for ever.
    """
    counter = pool._on_ready_counters.get(process.pid)
    lock = None if counter is None else counter.get_lock()
    if lock is not None and not lock.acquire(True, LOOK_S):
        return
    try:
        pool.handle_result_event(process.outqR_fd)
    finally:
        if lock is not None:
            lock.release()
