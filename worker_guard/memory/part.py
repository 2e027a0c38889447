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
    PoolDeaths,
    PoolStarts,
    RunningTask,
)
from worker_guard.memory import cgroups
from worker_guard.memory.death_watch import DeathWatch
from worker_guard.memory.growth_watch import GrowthWatch
from worker_guard.memory.policy import ChildPolicy, Reading
from worker_guard.memory.reader import MemoryReader, available_bytes
from worker_guard.memory.recycler import Recycler
from worker_guard.memory.roster import Roster
from worker_guard.memory.start_watch import StartWatch
from worker_guard.memory.total import TotalPolicy
from worker_guard.memory.total_watch import TotalWatch
from worker_guard.memory.watchdog import Child, MemoryDryRun, MemoryWatchdog, NoChildren
from worker_guard.part import ON, Context, Part
from worker_guard.settings import Settings
from worker_guard.status_model import (
    ChildStatus,
    MemoryStatus,
    OwnProcessStatus,
    ProcessStatus,
    SuspensionStatus,
    TaskStatus,
)
from worker_guard.values.sizes import size_bytes

#: Of the processes that a child started, the status names so many, the biggest.
OWN_PROCESSES = 5


@dataclass(frozen=True)
class Acting:
    """Does what the watchdog decides. ``recycler`` is None if no child can be recycled."""

    worker: Any
    recycler: Recycler | None

    def recycle(self, child: Child, reading: Reading) -> bool:
        """Have this child leave and be replaced."""
        if self.recycler is not None:
            self.recycler.begin(child, reading)
        return self.recycler is not None

    def shut_down(self) -> None:
        """Have the worker finish its running tasks and end."""
        celery_internals.shut_down_warmly(self.worker)


class MemoryPart(Part):
    """Watches the memory of one worker's processes, and recycles children over their limit."""

    name: ClassVar[str] = "memory"
    also: ClassVar[tuple[str, ...]] = ("recycling", "killed_children")

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        settings, report, monotonic = context.settings, context.report, context.monotonic
        scheduler = context.scheduler
        self._pool_hooks = Backoff("memory_pool", first_pause_s=settings.interval, report=report)
        self._hooks = ExitStack()
        self._pool: PoolChildren | None = None
        self._deaths: PoolDeaths | None = None
        off = why = ""
        try:
            self._pool = PoolChildren(context.worker)
        except MissingInternalError as exc:
            off = why = str(exc)
        else:
            why = self._find_deaths(self._pool)
        off = off or _reason_not_to_recycle(self._pool, settings)
        self.states["recycling"] = off or ON
        self.states["killed_children"] = why or ON

        reader = MemoryReader(settings.memory_metric)
        available = available_bytes()
        limit_bytes = size_bytes(settings.child_memory_limit, available)
        self._total_limit_bytes = size_bytes(settings.total_memory_limit, available)
        policy = (limit_bytes or self._total_limit_bytes) and ChildPolicy(
            limit_bytes=limit_bytes,
            total_limit_bytes=self._total_limit_bytes,
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
            actor=MemoryDryRun() if settings.dry_run else Acting(context.worker, self._recycler),
            report=report,
            monotonic=monotonic,
        )
        self._total = None if self._pool is None else self._total_watch(self._pool)
        self._growth = GrowthWatch(
            roster=self._roster,
            reader=reader,
            parent=lambda: self._watchdog.parent,
            parent_limit_bytes=self._watchdog.parent_limit_bytes,
            report=report,
            monotonic=monotonic,
        )
        self._death_watch = None
        self.jobs.append(self._watchdog)
        if self._total is not None:
            self.jobs.append(self._total)
        if (limit_bytes and self._pool) or self._watchdog.parent_limit_bytes is not None:
            self.jobs.append(self._growth)
        if self._deaths is not None:
            self._death_watch = DeathWatch(
                deaths=self._deaths,
                read_count=cgroups.oom_kills,
                report=report,
                monotonic=monotonic,
            )
            self.jobs.append(self._death_watch)
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
        if self._deaths is not None and self._death_watch is not None:
            self._hooks.callback(self._deaths.watch(self._was_killed, self._hook_failed))
            self._death_watch.start()
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
        if self._death_watch is not None:
            self._death_watch.look()  # else those that were killed just now are never reported

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
                parent=ProcessStatus(**self._values(parent)) if parent else None,
                children=self._children_status(),
                total_bytes=self._total.used_bytes if self._total else None,
                total_limit_bytes=self._total.policy.limit_bytes if self._total else None,
                suspended=self._suspension_status(),
                suspects=None if quick else tuple(roster.suspects.top()),
            )
        }

    def _suspension_status(self) -> SuspensionStatus | None:
        """The one for the children's limit, else the one for that of the worker."""
        known = [self._roster.policy.gains] if self._roster.policy else []
        known += [self._total.policy.gains] if self._total else []
        gains = next((each for each in known if each.current is not None), None)
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
                    **self._values(reading) if reading else {"pid": child.pid},
                    age_s=round(now - roster.born_mono.get(child.pid, now), 1),
                    recycles=roster.recycles[child.slot],
                    processes=reading.processes if reading else 1,
                    own_processes=_own_processes(reading) if reading else (),
                    leaving=child.pid in leaving,
                    waiting_for=waiting.get(child.slot),
                    task=_task_status(running.get(child.pid), now),
                )
            )
        return tuple(found)

    def _values(self, reading: Reading) -> dict[str, Any]:
        return {
            "pid": reading.pid,
            "rss_bytes": reading.rss_bytes,
            "used_bytes": reading.used_bytes,
            "metric": reading.metric,
            "limit_in_s": self._growth.limit_in_s(reading.pid),
        }

    def _hook_failed(self, error: Exception) -> None:
        self._pool_hooks.noticed(error, self.context.monotonic())

    def _total_watch(self, pool: PoolChildren) -> TotalWatch | None:
        """The job for the limit of the worker, if there is one."""
        settings = self.context.settings
        if self._total_limit_bytes is None:
            return None
        return TotalWatch(
            interval_s=settings.memory_interval,
            pid=os.getpid(),
            children=pool,
            roster=self._roster,
            reader=MemoryReader("pss", with_relatives=True),
            policy=TotalPolicy(
                limit_bytes=self._total_limit_bytes, strikes=settings.memory_strikes
            ),
            request=self._watchdog.request,
            monotonic=self.context.monotonic,
        )

    def _find_deaths(self, pool: PoolChildren) -> str:
        """Why the children that are killed can't be seen; empty if they can."""
        try:
            self._deaths = PoolDeaths(self.context.worker, has_event_loop=pool.has_event_loop)
        except MissingInternalError as exc:
            return str(exc)
        return ""

    def _was_killed(self, pid: int) -> None:
        reading = self._roster.readings.get(pid)
        if reading is not None and self._death_watch is not None:
            self._death_watch.used_bytes[pid] = reading.used_bytes
        if self._pool is not None and self._pool.has_event_loop:  # else a thread of the pool calls
            self.context.scheduler.run_soon(DeathWatch.name)

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


def _own_processes(reading: Reading) -> tuple[OwnProcessStatus, ...]:
    return tuple(
        OwnProcessStatus(
            pid=each.pid, command=each.command, used_bytes=used_bytes, metric=reading.metric
        )
        for each, used_bytes in reading.biggest(OWN_PROCESSES)
    )


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
    if settings.child_memory_limit is None and settings.total_memory_limit is None:
        return "worker_guard_child_memory_limit and worker_guard_total_memory_limit are None"
    if settings.dry_run:
        return "a dry run"
    return "" if pool is None else pool.why_not_to_recycle()
