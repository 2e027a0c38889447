"""What the memory tests share: a worker with a small limit, and a ledger of who ran how often."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from celery.states import READY_STATES, SUCCESS

from tests.harness.memory_app import FINISHED, FREE, GROW, LEDGER, PRELOAD, STARTED
from tests.harness.redis_server import RedisServer
from tests.harness.workers import NEVER_DUE, Fleet, Worker, fleet, wait_for

MB = 1_000_000

#: Above what a new child of the harness uses (about 15 MB), below that and one leaking task.
LIMIT = 50 * MB
LEAK_MB = 60

#: A guard that acts at once.
EAGER: dict[str, Any] = {
    "worker_guard_child_memory_limit": LIMIT,
    "worker_guard_memory_interval": 0.1,
    "worker_guard_memory_strikes": 1,
    "worker_guard_recycle_min_lifetime": 0,
    # Celery kills a child that does not say in 4 s that it is up: where many are forked on a busy
    # machine that hits sound ones. One that is stuck is still killed, and seen.
    "worker_proc_alive_timeout": 30.0,
    **NEVER_DUE,
}


class Sent:
    """A task that was sent. Its result is polled for.

    Celery's own object listens on a connection: 5.3 tries to open that again when the object is
    collected after its server has gone, and with a newer redis-py warns each time.
    """

    def __init__(self, workers: Fleet, task_id: str) -> None:
        self.id = task_id
        self._backend = workers.results.backend

    def get(self, timeout: float = 60.0) -> Any:
        """What the task returned, or raise what it raised."""

        def ready() -> Any:
            record = self._backend.get_task_meta(self.id, cache=False)
            return record if record["status"] in READY_STATES else None

        record = wait_for(ready, f"{self.id} to have a result", timeout)
        if record["status"] != SUCCESS:
            raise record["result"]
        return record["result"]


class Site:
    """Workers on one Redis, with what their tasks wrote down."""

    def __init__(self, server: RedisServer, workers: Fleet) -> None:
        self.redis: Any = server.client
        self.fleet = workers
        self.url = f"redis://127.0.0.1:{server.port}/0"

    def start(self, *options: str, preload_mb: int = 0, **arguments: Any) -> Worker:
        """Start a worker that has the memory tasks, and wait until it takes tasks."""
        return self.launch(*options, preload_mb=preload_mb, **arguments).ready()

    def launch(self, *options: str, preload_mb: int = 0, **arguments: Any) -> Worker:
        """Start a worker that has the memory tasks."""
        environ = {LEDGER: self.url, PRELOAD: str(preload_mb), **arguments.pop("environ", {})}
        return self.fleet.launch(
            "w",
            "--without-mingle",
            *options,
            app_module=arguments.pop("app_module", "tests.harness.memory_app"),
            environ=environ,
            **arguments,
        )

    def send(self, task: str, *args: Any, **options: Any) -> Sent:
        """Publish a task of the harness."""
        return Sent(self.fleet, self.fleet.send(task, *args, **options))

    def grow_at_work(self, worker: Worker) -> Sent:
        """A ``wait`` task that leaks once the worker knows that it runs.

        A child can leak before the worker has read what task it accepted, and can be read then.
        """
        sent = self.send("wait", 0)
        wait_for(
            lambda: sent.id in {task["id"] for task in worker.ask("active")}, "the task to be known"
        )
        self.redis.set(GROW, LEAK_MB)
        return sent

    def run(self, task: str, *args: Any, **options: Any) -> Any:
        """The result of a task."""
        return self.send(task, *args, **options).get(timeout=60)

    def started(self) -> dict[str, int]:
        """How often each task began."""
        return {k.decode(): int(v) for k, v in self.redis.hgetall(STARTED).items()}

    def finished(self) -> dict[str, int]:
        """How often each task came to its end."""
        return {k.decode(): int(v) for k, v in self.redis.hgetall(FINISHED).items()}

    def runs(self, worker: Worker, sent: Sent) -> int:
        """The process id of the child that runs this task, once the worker knows."""

        def pid() -> int:
            active = {task["id"]: task["worker_pid"] for task in worker.ask("active")}
            return int(active.get(sent.id) or 0)

        return wait_for(pid, f"{sent.id} to run")

    def free(self) -> None:
        """Let the waiting tasks go on, now and later."""
        self.redis.set(FREE, 1)

    def waiting(self, count: int = 1) -> list[int]:
        """The processes in which a ``wait`` task runs, once there are so many."""

        def pids() -> list[int]:
            return [int(k.split(":")[1]) for k in self.started() if k.startswith("pid:")]

        return wait_for(lambda: pids() if len(pids()) >= count else [], "tasks that wait")


@contextlib.contextmanager
def memory_site(server: RedisServer, directory: Path, **conf: Any) -> Iterator[Site]:
    """A site whose workers end with the block; its settings are :data:`EAGER` and these."""
    server.client.flushall()
    url = f"redis://127.0.0.1:{server.port}/0"
    settings = {"broker_url": url, "result_backend": url, **EAGER, **conf}
    with fleet(directory, **settings) as workers:
        try:
            yield Site(server, workers)
        finally:
            for worker in workers.workers:
                # A test that cares for how it ends has ended it; the children go with it.
                worker.process.kill()


def file_broker(directory: Path) -> dict[str, Any]:
    """Settings for a broker of files, a transport without an event loop."""
    queues = directory / "queues"
    queues.mkdir()
    folders = {"data_folder_in": str(queues), "data_folder_out": str(queues)}
    folders["control_folder"] = str(directory / "control")
    return {"broker_url": "filesystem://", "broker_transport_options": folders}


def happened(worker: Worker, event: str, count: int = 1) -> list[dict[str, Any]]:
    """The worker's events of this name, once there are so many."""
    return wait_for(
        lambda: events if len(events := worker.events(event)) >= count else [],
        f"{count} {event} of {worker.name}:\n{worker.text()[-3000:]}",
    )


def children(worker: Worker) -> list[dict[str, Any]]:
    """The worker's children, by the guard."""
    found: list[dict[str, Any]] = worker.ask("guard")["memory"]["children"]
    return found


def assert_unharmed(worker: Worker) -> None:
    """The log holds no sign of a task that was lost or of a child that was killed."""
    text = worker.text()
    for sign in ("WorkerLostError", "Traceback", "exited with", "part_failed"):
        assert sign not in text, text[-5000:]
