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

import psutil
import redis
from celery import bootsteps, signals
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.worker.control import control_command, inspect_command
from celery.worker.request import Request

from tests.harness.app import app
from worker_guard.celery_internals import PoolChildren
from worker_guard.memory import growth, growth_watch, recycler, suspension

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
#: With ``replace``: half of the nudge was read.
HALF_READ = "WORKER_GUARD_TEST_HALF_READ"
#: Have a child that ends wait in its ``worker_process_shutdown`` until :data:`END` is set.
SLOW_END = "WORKER_GUARD_TEST_SLOW_END"
#: The same for so many seconds.
SLOW_END_S = "WORKER_GUARD_TEST_SLOW_END_S"
#: Have the start of the memory parts fail, after their first hook.
FAIL_AT_START = "WORKER_GUARD_TEST_FAIL_AT_START"

#: Have each child sleep before it is up for as many seconds as :data:`START_S` holds.
SLOW_STARTS = "WORKER_GUARD_TEST_SLOW_STARTS"
#: Never take a replacement that holds as much again for one that gained nothing.
ALWAYS_GAINS = "WORKER_GUARD_TEST_ALWAYS_GAINS"
#: A number by which the times are divided after which a suspension is tried again, others no longer
#: wait for a child that waits for its task, and a process is seen to grow.
HASTE = "WORKER_GUARD_TEST_HASTE"

STARTED, FINISHED, FREE = "ledger:started", "ledger:finished", "ledger:free"
GROW, ENDING, END = "ledger:grow", "ledger:ending", "ledger:end"
START_S, MODEL_LOADS = "ledger:start_s", "ledger:model_loads"

_MB = 1_000_000

#: How many leaks a child of the load holds at most.
KEPT = 20

preloaded = bytearray(os.urandom(4096)) * (int(os.environ.get(PRELOAD, "0")) * _MB // 4096)
held: list[bytearray] = []
replaced: set[int] = set()
models: dict[str, bytearray] = {}
helpers: list[subprocess.Popen[bytes]] = []


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


@app.task(name="harness.grow")
def grow(megabytes: int) -> float:
    """Leak so much; returns when it began."""
    began_at = time.time()
    hold(megabytes)
    return began_at


@app.task(name="harness.wait")
def wait(megabytes: int) -> int:
    """Leak so much, then run until the test lets it go on; leak more where the test says so."""
    hold(megabytes)
    ledger().hset(STARTED, f"pid:{os.getpid()}", 1)
    while not ledger().exists(FREE):
        hold(int(ledger().getdel(GROW) or 0))
        time.sleep(0.02)
    return os.getpid()


@app.task(name="harness.end")
def end(signum: int, exitcode: int = 0) -> None:
    """End this process: by a signal to itself, or if that is 0 with an exit code."""
    if signum:
        os.kill(os.getpid(), signum)
    os._exit(exitcode)


@app.task(name="harness.drip")
def drip(seconds: float) -> int:
    """Leak 1 MB each so many seconds until the test lets it end."""
    ledger().hset(STARTED, f"pid:{os.getpid()}", 1)
    while not ledger().exists(FREE):
        hold(1)
        time.sleep(seconds)
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


def end_slowly(**_: Any) -> None:
    """What flushes telemetry, or closes connections, and takes its time."""
    ledger().hset(ENDING, os.getpid(), 1)
    while not ledger().exists(END):
        time.sleep(0.02)


@control_command(args=[("megabytes", int)])
def grow_parent(state: Any, megabytes: int) -> dict[str, str]:
    """Let the main process hold so much more."""
    hold(megabytes)
    return {"ok": "grown"}


def at_wake(act: Callable[[PoolChildren, int], None]) -> None:
    """Do this right after an idle child was asked, and so woken, before the loop reads anything."""
    ask_to_leave = PoolChildren.ask_to_leave

    def ask_and_act(self: PoolChildren, pid: int) -> bool:
        idle = not self.is_busy(pid)
        held = idle and act in (stop_while_read, replace)
        if held:
            hold_still(pid)
        asked = ask_to_leave(self, pid)
        if asked and idle:
            act(self, pid)
        elif held:
            os.kill(pid, signal.SIGCONT)
        return asked

    PoolChildren.ask_to_leave = ask_and_act  # type: ignore[method-assign]


def say_woken(pid: int) -> None:
    print(f"woken: {pid}", flush=True)


def kill(children: PoolChildren, pid: int) -> None:
    """Kill a child, and wait until it is dead; the pool has not noticed yet."""
    process = children._process(pid)
    os.kill(pid, signal.SIGKILL)
    while process._is_alive():
        time.sleep(0.01)


def stop(children: PoolChildren, pid: int) -> None:
    say_woken(pid)
    if int(os.environ[STOP_AT_WAKE]) == signal.SIGKILL:
        kill(children, pid)
    # What a signal leads to when the loop next looks; so nothing is read between.
    raise WorkerShutdown(0)


def hold_still(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.001)


def stop_while_read(children: PoolChildren, pid: int) -> None:
    """Shut down warmly after the child was killed that has read the first bytes of its nudge."""
    say_woken(pid)
    os.read(children._process(pid).inq._reader.fileno(), 4)  # in its stead: it was held still
    kill(children, pid)
    raise WorkerShutdown(0)


def replace(children: PoolChildren, pid: int) -> None:
    """Have the child replaced, for once, before it has read its nudge, or after half of it."""
    if replaced:
        os.kill(pid, signal.SIGCONT)
        return
    replaced.add(pid)
    process = children._process(pid)
    if HALF_READ in os.environ:
        os.read(process.inq._reader.fileno(), 4)  # in its stead: it was held still
    kill(children, pid)
    children.maintain()
    say_woken(pid)


def terminate(children: PoolChildren, pid: int) -> None:
    say_woken(pid)
    raise WorkerTerminate(1)


def disconnect(children: PoolChildren, pid: int) -> None:
    say_woken(pid)
    with redis.Redis.from_url(app.conf.broker_url) as broker:
        for kind in ("normal", "pubsub"):
            broker.client_kill_filter(_type=kind, skipme=True)


ACTS = {
    act.__name__: act
    for act in (
        terminate,
        disconnect,
        replace,
        stop_while_read,
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
    growth.WINDOW_S /= float(os.environ[HASTE])
    growth.SHORTEST_S /= float(os.environ[HASTE])
    growth_watch.SAMPLE_S /= float(os.environ[HASTE])
    growth_watch.SHARED_S /= float(os.environ[HASTE])

if OPTIMIZATION in os.environ:
    app.steps["worker"].add(Optimized)

if STOP_AT_WAKE in os.environ:
    at_wake(stop)

if AT_WAKE in os.environ:
    at_wake(ACTS[os.environ[AT_WAKE]])

if SLOW_END in os.environ:
    signals.worker_process_shutdown.connect(end_slowly, weak=False)

if SLOW_END_S in os.environ:
    signals.worker_process_shutdown.connect(
        lambda **_: time.sleep(float(os.environ[SLOW_END_S])), weak=False
    )

if FAIL_AT_START in os.environ:
    fail_at_start()
