"""The part that watches the memory of a worker's processes."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

from worker_guard import celery_internals
from worker_guard.backoff import Backoff
from worker_guard.celery_internals import (
    MissingInternalError,
    PoolChildren,
    PoolStarts,
    RunningTask,
)
from worker_guard.memory.policy import ChildPolicy, Reading
from worker_guard.memory.reader import MemoryReader, available_bytes
from worker_guard.memory.recycler import Recycler
from worker_guard.memory.roster import Roster
from worker_guard.memory.start_watch import StartWatch
from worker_guard.memory.watchdog import Child, MemoryDryRun, MemoryWatchdog, NoChildren
from worker_guard.part import ON, Context, Part
from worker_guard.settings import Settings
from worker_guard.status_model import (
    ChildStatus,
    MemoryStatus,
    ProcessStatus,
    SuspensionStatus,
    TaskStatus,
)
from worker_guard.values.sizes import size_bytes


@dataclass(frozen=True)
class Acting:
    """Does what the watchdog decides. ``recycler`` is None if no child can be recycled."""

    recycler: Recycler | None

    def recycle(self, child: Child, reading: Reading) -> bool:
        """Have this child leave and be replaced."""
        if self.recycler is not None:
            self.recycler.begin(child, reading)
        return self.recycler is not None

    def shut_down(self) -> None:
        """Have the worker finish its running tasks and end."""
        celery_internals.shut_down_warmly()


class MemoryPart(Part):
    """Watches the memory of one worker's processes, and recycles children over their limit."""

    name: ClassVar[str] = "memory"
    also: ClassVar[tuple[str, ...]] = ("recycling",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        settings, report, monotonic = context.settings, context.report, context.monotonic
        scheduler = context.scheduler
        self._pool_hooks = Backoff("memory_pool", first_pause_s=settings.interval, report=report)
        self._hooks = ExitStack()
        self._pool: PoolChildren | None = None
        off = ""
        try:
            self._pool = PoolChildren(context.worker)
        except MissingInternalError as exc:
            off = str(exc)
        off = off or _reason_not_to_recycle(self._pool, settings)
        self.states["recycling"] = off or ON

        reader = MemoryReader(settings.memory_metric)
        available = available_bytes()
        limit_bytes = size_bytes(settings.child_memory_limit, available)
        policy = limit_bytes and ChildPolicy(
            limit_bytes=limit_bytes,
            strikes=settings.memory_strikes,
            concurrency=settings.recycle_concurrency if settings.dry_run or not off else 0,
            min_lifetime_s=settings.recycle_min_lifetime,
        )
        self._roster = Roster(
            policy=policy or None,
            reader=reader,
            report=report,
            disconnected_mono=lambda: scheduler.disconnected_mono,
        )
        self._starts = None if self._pool is None else PoolStarts(context.worker)
        self._recycler = None
        if self._pool is not None and self._starts is not None and not off:
            self._recycler = Recycler(
                exits=self._pool,
                starts=self._starts,
                roster=self._roster,
                report=report,
                run_soon=lambda: scheduler.run_soon(Recycler.name),
                monotonic=monotonic,
            )
        self._watchdog = MemoryWatchdog(
            interval_s=settings.memory_interval,
            pid=os.getpid(),
            children=NoChildren() if self._pool is None else self._pool,
            roster=self._roster,
            reader=reader,
            parent_limit_bytes=size_bytes(settings.parent_memory_limit, available),
            parent_action=settings.parent_action,
            strikes=settings.memory_strikes,
            actor=MemoryDryRun() if settings.dry_run else Acting(self._recycler),
            report=report,
            monotonic=monotonic,
        )
        self.jobs.append(self._watchdog)
        if self._recycler is not None:
            self.jobs.append(self._recycler)
        if self._pool is not None and self._starts is not None and self._pool.has_event_loop:
            self.jobs.append(
                StartWatch(
                    children=self._pool,
                    said_more=self._starts.said_more,
                    roster=self._roster,
                    monotonic=monotonic,
                )
            )

    def start(self) -> None:
        """Begin to watch which child runs which task, and when a child is up."""
        if self._pool is None:
            return
        try:
            self._hooks.callback(celery_internals.watch_accepted(self._began).undo)
        except MissingInternalError:
            # Without it there are no suspects, and no child is known to have run nothing yet.
            self._roster.knows_runs = False
        try:
            births = self._pool.watch_births(self._born)
        except MissingInternalError:
            births = None
        if births is not None and self._starts is not None:
            self._hooks.callback(births.undo)
            self._hooks.callback(self._starts.watch_forks(self._child_forked))
            self._hooks.callback(self._starts.restore)
            self._roster.hears_births, self._roster.has_work = True, self._has_work
            if self._roster.policy is not None and self._roster.policy.concurrency:
                self._roster.policy.gains.start_timeout_s = self._starts.configured_s
        if self._recycler is not None and not self._pool.has_event_loop:
            self._hooks.callback(celery_internals.keep_replacements_alive())

    def stop(self, *, cold: bool) -> None:  # noqa: ARG002
        """Undo every hook, and leave the pool as it was found."""
        try:
            if self._pool is not None:
                self._pool.let_stay()
        except Exception as exc:  # noqa: BLE001 - reported; those children leave all the same
            self._hook_failed(exc)
        # Undoes each hook, even if another raises.
        self._hooks.close()

    def status(self, *, quick: bool) -> dict[str, Any]:
        """The last reading of each process against its limit, and what each child runs.

        ``quick`` leaves out the suspects, which take milliseconds.
        """
        roster, parent = self._roster, self._watchdog.parent
        return {
            "memory": MemoryStatus(
                metric=roster.reader.metric,
                child_limit_bytes=roster.limit_bytes,
                parent_limit_bytes=self._watchdog.parent_limit_bytes,
                parent=ProcessStatus(**_values(parent)) if parent else None,
                children=self._children_status(),
                suspended=self._suspension_status(),
                suspects=None if quick else tuple(roster.suspects.top()),
            )
        }

    def _suspension_status(self) -> SuspensionStatus | None:
        gains = self._roster.policy.gains if self._roster.policy else None
        if gains is None or gains.current is None:
            return None
        return SuspensionStatus(
            reason=gains.current.reason,
            baseline_bytes=gains.current.baseline_bytes,
            limit_bytes=gains.current.limit_bytes,
            setting=gains.current.setting,
            retry_in_s=round(gains.retry_in_s(self.context.monotonic()), 1),
        )

    def _children_status(self) -> tuple[ChildStatus, ...]:
        roster, pool, now = self._roster, self._pool, self.context.monotonic()
        if pool is None:
            return ()
        waiting = self._recycler.waiting_for() if self._recycler is not None else {}
        leaving = self._recycler.leaving if self._recycler is not None else {}
        running = pool.running()
        found = []
        for child in pool.listed():
            reading = roster.readings.get(child.pid)
            found.append(
                ChildStatus(
                    **_values(reading) if reading else {"pid": child.pid},
                    age_s=round(now - roster.born_mono.get(child.pid, now), 1),
                    recycles=roster.recycles[child.slot],
                    processes=reading.processes if reading else 1,
                    leaving=child.pid in leaving,
                    waiting_for=waiting.get(child.slot),
                    task=_task_status(running.get(child.pid), now),
                )
            )
        return tuple(found)

    def _hook_failed(self, error: Exception) -> None:
        self._pool_hooks.noticed(error, self.context.monotonic())

    def _child_forked(self) -> None:
        self.context.scheduler.run_soon(StartWatch.name)

    def _began(self, pid: int, task: str) -> None:
        # Only queued here: without an event loop, this runs on a thread of the pool.
        self._roster.began.append((pid, task))

    def _born(self, pid: int) -> None:
        listed = self._pool.listed() if self._pool is not None else ()
        slot = next((child.slot for child in listed if child.pid == pid), None)
        try:
            self._roster.up(pid, self.context.monotonic(), slot=slot)
        except Exception as exc:  # noqa: BLE001 - in the pool's callback; it is read again
            self._hook_failed(exc)

    def _has_work(self, pid: int) -> bool:
        pool, starts = self._pool, self._starts
        return pool is None or starts is None or pool.is_busy(pid) or starts.said_more(pid)


def _values(reading: Reading) -> dict[str, Any]:
    return {
        "pid": reading.pid,
        "rss_bytes": reading.rss_bytes,
        "used_bytes": reading.used_bytes,
        "metric": reading.metric,
    }


def _task_status(task: RunningTask | None, now: float) -> TaskStatus | None:
    if task is None:
        return None
    since_mono = task.since_mono
    return TaskStatus(
        task_id=task.task_id,
        task_name=task.task_name,
        running_s=None if since_mono is None else round(max(0.0, now - since_mono), 1),
    )


def _reason_not_to_recycle(pool: PoolChildren | None, settings: Settings) -> str:
    if settings.child_memory_limit is None:
        return "worker_guard_child_memory_limit is None"
    if settings.dry_run:
        return "a dry run"
    return "" if pool is None else pool.why_not_to_recycle()
