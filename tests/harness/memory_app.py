"""The tests' app with tasks that hold memory, and with a ledger in Redis of who ran how often."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import billiard.pool
import psutil
import redis
from celery import bootsteps, signals
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.worker.control import control_command, inspect_command
from celery.worker.request import Request

from tests.harness.app import app
from worker_guard.celery_internals import PoolChildren, empty_jobs
from worker_guard.memory import recycler, suspension

__all__ = ["app"]

#: Megabytes that the main process allocates before it forks.
PRELOAD = "WORKER_GUARD_TEST_PRELOAD_MB"
LEDGER = "WORKER_GUARD_TEST_LEDGER"
#: Shut down warmly when an idle child was woken, before anything that it answers can be read; the
#: value is the signal that the child is sent before (0: none).
STOP_AT_WAKE = "WORKER_GUARD_TEST_STOP_AT_WAKE"

#: How the pool gives jobs to its children; "fast" gives one more while they run one. The command
#: line of Celery does not know it, ``app.Worker(optimization="fast")`` does.
OPTIMIZATION = "WORKER_GUARD_TEST_OPTIMIZATION"

#: What is to happen when an idle child was woken: a name of :data:`ACTS`.
AT_WAKE = "WORKER_GUARD_TEST_AT_WAKE"
#: Have the start of the memory parts fail, after their first hook.
FAIL_AT_START = "WORKER_GUARD_TEST_FAIL_AT_START"

#: Have each child sleep before it is up for as many seconds as :data:`START_S` holds.
SLOW_STARTS = "WORKER_GUARD_TEST_SLOW_STARTS"
#: Never take a replacement that holds as much again for one that gained nothing.
ALWAYS_GAINS = "WORKER_GUARD_TEST_ALWAYS_GAINS"
#: A number by which the times are divided after which a suspension is tried again, and others no
#: longer wait for a child that waits for its task.
HASTE = "WORKER_GUARD_TEST_HASTE"

STARTED, FINISHED, FREE = "ledger:started", "ledger:finished", "ledger:free"
GROW, COUNTING = "ledger:grow", "ledger:counting"
START_S, MODEL_LOADS = "ledger:start_s", "ledger:model_loads"

_MB = 1_000_000

#: How many leaks a child of the load holds at most.
KEPT = 20

preloaded = bytearray(os.urandom(4096)) * (int(os.environ.get(PRELOAD, "0")) * _MB // 4096)
held: list[bytearray] = []
models: dict[str, bytearray] = {}
helpers: list[subprocess.Popen[bytes]] = []
disconnected: set[int] = set()


@cache
def _ledger(pid: int) -> Any:
    # By process: a connection must not be shared with the child that is forked later.
    return redis.Redis.from_url(os.environ[LEDGER])


def ledger() -> Any:
    return _ledger(os.getpid())


def hold(megabytes: int) -> None:
    held.append(bytearray(b"x") * (megabytes * _MB))


@app.task(name="harness.work", bind=True)
def work(self: Any, seconds: float, megabytes: int = 0) -> int:
    """Leak so much, sleep so long, and write down that it was done."""
    ledger().hincrby(STARTED, self.request.id, 1)
    if megabytes:
        hold(megabytes)
        # Far above every limit: where nobody recycles, the load is not to fill the machine.
        del held[:-KEPT]
    time.sleep(seconds)
    ledger().hincrby(FINISHED, self.request.id, 1)
    return os.getpid()


@app.task(name="harness.fill")
def fill(megabytes: int) -> int:
    """Let this process hold so much in all, and no more."""
    held.clear()
    hold(megabytes)
    return os.getpid()


@app.task(name="harness.leak")
def leak(megabytes: int) -> int:
    hold(megabytes)
    return os.getpid()


@app.task(name="harness.clean")
def clean() -> int:
    bytearray(b"x") * (5 * _MB)
    return os.getpid()


@app.task(name="harness.spike")
def spike(megabytes: int) -> int:
    """Use much, and give it back."""
    bytearray(b"x") * (megabytes * _MB)
    return os.getpid()


@app.task(name="harness.wait")
def wait(megabytes: int) -> int:
    """Leak so much, then run until the test lets it go on; leak more where the test says so."""
    hold(megabytes)
    ledger().hset(STARTED, f"pid:{os.getpid()}", 1)
    while not ledger().exists(FREE):
        hold(int(ledger().getdel(GROW) or 0))
        time.sleep(0.02)
    return os.getpid()


@app.task(name="harness.infer")
def infer(megabytes: int, name: str = "model") -> int:
    """Load a model once in each process, and use it."""
    if name not in models:
        ledger().incr(MODEL_LOADS)
        models[name] = bytearray(b"x") * (megabytes * _MB)
    return os.getpid()


@app.task(name="harness.helper")
def helper(megabytes: int, forked: bool = False) -> tuple[int, int]:
    """Start a process that holds so much; ``forked``: it shares what this one holds."""
    if forked:
        hold(megabytes)
        pid = os.fork()
        if not pid:
            time.sleep(600)
            os._exit(0)
        return os.getpid(), pid
    code = f"import time; held = bytearray(b'x') * {megabytes * _MB}; print(flush=True); "
    process = subprocess.Popen(
        [sys.executable, "-c", code + "time.sleep(600)"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    helpers.append(process)
    return os.getpid(), process.pid


@app.task(name="harness.stamp")
def stamp(megabytes: int, seconds: float) -> tuple[int, float, float]:
    """Hold so much in all for so long; returns the process and when it began and ended."""
    began_at = time.time()
    held.clear()
    hold(megabytes)
    time.sleep(seconds)
    return os.getpid(), began_at, time.time()


@control_command(args=[("megabytes", int)])
def grow_parent(state: Any, megabytes: int) -> dict[str, str]:
    """Let the main process hold so much more."""
    hold(megabytes)
    return {"ok": "grown"}


def at_wake(act: Callable[[PoolChildren, int], None]) -> None:
    """Do this right after an idle child was woken, before the event loop reads anything."""
    wake = PoolChildren.wake

    def wake_and_act(self: PoolChildren, pid: int) -> None:
        was_busy = self.is_busy(pid)
        held = act in (stop_while_read, stop_when_replaced) and not was_busy
        if held:
            hold_still(pid)
        wake(self, pid)
        if not was_busy and self.is_busy(pid):
            act(self, pid)
        elif held:
            os.kill(pid, signal.SIGCONT)

    PoolChildren.wake = wake_and_act  # type: ignore[method-assign]


def say_woken(pid: int) -> None:
    print(f"woken: {pid}", flush=True)


def stop(children: PoolChildren, pid: int) -> None:
    say_woken(pid)
    os.kill(pid, int(os.environ[STOP_AT_WAKE]))
    # What a signal leads to when the loop next looks; so nothing is read between.
    raise WorkerShutdown(0)


def hold_still(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.001)


def stop_while_read(children: PoolChildren, pid: int) -> None:
    """Shut down warmly after the child was killed that has read the first bytes of its job."""
    say_woken(pid)
    os.read(children._process(pid).inq._reader.fileno(), 4)  # in its stead: it was held still
    os.kill(pid, signal.SIGKILL)
    raise WorkerShutdown(0)


def stop_while_accepted(children: PoolChildren, pid: int) -> None:
    """Shut down warmly after the child was killed that has begun with its empty job."""
    pool = children._task_pool._pool
    process = children._process(pid)
    while not process.outq._reader.poll(0.01):
        if not process._is_alive():
            return  # it was on its way out when it was woken; the next one then
    say_woken(pid)
    pool.handle_result_event(process.outqR_fd)  # one message: that it has accepted the job
    assert [job.accepted() for job in pool._cache.values()] == [True]
    os.kill(pid, signal.SIGKILL)
    raise WorkerShutdown(0)


def stop_when_replaced(children: PoolChildren, pid: int) -> None:
    """Shut down warmly when the child left without reading its empty job, and was replaced."""
    process = children._process(pid)
    say_woken(pid)
    # It was held still: one that is killed when it has answered can hold its counter's lock, for
    # which the pool would wait for ever.
    os.kill(pid, signal.SIGKILL)
    while process._is_alive():
        time.sleep(0.01)
    children.maintain()
    waits_for_answer = empty_jobs._waits_for_answer

    def say_whether_it_waits(pool: Any, job: Any) -> bool:
        waits = waits_for_answer(pool, job)
        print(f"waits: {waits}", flush=True)
        return waits

    empty_jobs._waits_for_answer = say_whether_it_waits
    raise WorkerShutdown(0)


def stop_while_counting(children: PoolChildren, pid: int) -> None:
    """Shut down warmly; the child dies with its counter's lock while its answer is read."""
    process = children._process(pid)
    while not ledger().exists(COUNTING):
        if not process._is_alive():
            return  # it was on its way out when it was woken; the next one then
        time.sleep(0.01)
    say_woken(pid)
    waits_for_answer, looks = empty_jobs._waits_for_answer, []

    def die_when_looked_at_again(pool: Any, job: Any) -> bool:
        waits = waits_for_answer(pool, job)
        looks.append(waits)
        if len(looks) == 2:
            os.kill(pid, signal.SIGKILL)
        return waits

    empty_jobs._waits_for_answer = die_when_looked_at_again
    raise WorkerShutdown(0)


def hold_the_counter() -> None:
    """Have a woken child stay where it looks whether its answer was read."""
    ensure = billiard.pool.Worker._ensure_messages_consumed

    def ensure_or_hold(self: Any, completed: int) -> Any:
        if completed < 2:  # one that was woken has done its task and an empty job
            return ensure(self, completed)
        self.on_ready_counter.get_lock().acquire()
        ledger().set(COUNTING, os.getpid())
        return time.sleep(600)

    billiard.pool.Worker._ensure_messages_consumed = ensure_or_hold


def terminate(children: PoolChildren, pid: int) -> None:
    say_woken(pid)
    raise WorkerTerminate(1)


def disconnect(children: PoolChildren, pid: int) -> None:
    """Once for each child: after a reconnect it is woken anew."""
    say_woken(pid)
    if pid in disconnected:
        return
    disconnected.add(pid)
    with redis.Redis.from_url(app.conf.broker_url) as broker:
        for kind in ("normal", "pubsub"):
            broker.client_kill_filter(_type=kind, skipme=True)


ACTS = {
    act.__name__: act
    for act in (
        terminate,
        disconnect,
        stop_when_replaced,
        stop_while_read,
        stop_while_accepted,
        stop_while_counting,
    )
}


def fail_at_start() -> None:
    def watch_births(self: PoolChildren, on_born: Any) -> None:
        raise RuntimeError("nobody tells of births")

    PoolChildren.watch_births = watch_births  # type: ignore[method-assign]


@inspect_command()
def watches_tasks(state: Any) -> bool:
    """Whether somebody has wrapped what the worker does when a task is accepted."""
    return hasattr(Request.on_accepted, "__wrapped__")


class Optimized(bootsteps.Step):
    """Sets what ``app.Worker(optimization=…)`` sets."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        pool = worker.blueprint.steps["celery.worker.components.Pool"]
        pool.optimization = os.environ[OPTIMIZATION]


def wait_for_ever() -> None:
    """Have a child wait without end for its answer to be read, where billiard's waits 30 s.

    So that a shutdown that waits for such a child is told from a slow one.
    """
    billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = 10**6


def start_slowly(**_: Any) -> None:
    time.sleep(float(ledger().get(START_S) or 0))


# Who waits for a child to be woken fills one after the other until that happens.
if {STOP_AT_WAKE, AT_WAKE, ALWAYS_GAINS} & os.environ.keys():
    suspension.REGROWN_IN_A_ROW = 10**6

if SLOW_STARTS in os.environ:
    signals.worker_process_init.connect(start_slowly, weak=False)

if HASTE in os.environ:
    suspension.RETRY_S /= float(os.environ[HASTE])
    recycler.WAITING_S /= float(os.environ[HASTE])

if OPTIMIZATION in os.environ:
    app.steps["worker"].add(Optimized)

if {STOP_AT_WAKE, AT_WAKE} & os.environ.keys():
    wait_for_ever()

if STOP_AT_WAKE in os.environ:
    at_wake(stop)

if AT_WAKE in os.environ:
    at_wake(ACTS[os.environ[AT_WAKE]])
    if os.environ[AT_WAKE] == stop_while_counting.__name__:
        hold_the_counter()

if FAIL_AT_START in os.environ:
    fail_at_start()
