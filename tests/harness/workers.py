"""Real workers in processes of their own, and what a test waits for."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from celery import Celery

from tests.harness.app import CONFIGURATION, UNGUARDED

ROOT = Path(__file__).parents[2]

#: A results sweep is due a year after the first look, and not when the clock strikes five.
NEVER_DUE = {"worker_guard_results_schedule": 365 * 86_400}

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, timeout_s: float = 60.0) -> T:
    """What ``condition`` returns, as soon as that is true.

    The timeout is a deadline against hanging, far beyond what is expected; no test passes or
    fails by how long something took.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s in vain: {what}")
        time.sleep(0.05)


class Worker:
    """One ``celery worker`` process."""

    def __init__(
        self,
        app: Celery,
        name: str,
        log: Path,
        *options: str,
        conf: Mapping[str, Any] | None = None,
        guarded: bool = True,
        environ: Mapping[str, str] | None = None,
        app_module: str = "tests.harness.app",
        to_logfile: bool = False,
    ) -> None:
        self.app, self.name, self.log = app, f"{name}@test", log
        self.fleet: Any = None
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CELERY")}
        environment |= {CONFIGURATION: json.dumps({**app.conf["harness"], **(conf or {})})}
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
        environment |= {} if guarded else {UNGUARDED: "1"}
        environment |= environ or {}
        command = [sys.executable, "-m", "celery", "-A", app_module, "worker"]
        command += ["-n", self.name, "--loglevel", "INFO", "--without-gossip", *options]
        if to_logfile:
            command += ["--logfile", str(log)]
        if not any(option.startswith("--concurrency") for option in options):
            command.append("--concurrency=1")
        with open(f"{log}.stderr" if to_logfile else log, "ab") as stderr:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=stderr, stderr=stderr
            )

    def ready(self) -> Worker:
        """Wait until it takes tasks and remote commands (gevent's mailbox opens later)."""
        self.logged(" ready.", "the worker to be ready")
        self.ask("ping")
        return self

    def logged(self, text: str, what: str = "") -> Worker:
        """Wait until its log holds this text."""
        wait_for(
            lambda: text in self.text() or self.process.poll() is not None,
            f"{what or text!r} in the log of {self.name}",
        )
        assert text in self.text(), f"{self.name} ended:\n{self.text()}"
        return self

    def text(self) -> str:
        """All that it has logged."""
        # What is being written can end in mid-character.
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def events(self, event: str = "") -> list[dict[str, Any]]:
        """The guard's events in its log; those of one name where one is given."""
        # What stands after the last line break is still being written.
        whole, _, _ = self.text().rpartition("\n")
        lines = [line for line in whole.splitlines() if line.startswith('{"event"')]
        found = [json.loads(line) for line in lines]
        return [e for e in found if not event or e["event"] == f"worker_guard.{event}"]

    def failure(self, part: str) -> dict[str, Any]:
        """Wait until this part has failed, whatever else fails first, and return its event."""

        def failed() -> list[dict[str, Any]]:
            return [event for event in self.events("part_failed") if event["part"] == part]

        return wait_for(failed, f"{part} to fail in {self.name}")[0]

    def cleared(self) -> int:
        """The ids that its sweeps have cleared, by its log."""
        return sum(e["revoked_tasks_cleared"] for e in self.events("cleanup_completed"))

    def ask(self, command: str, **arguments: Any) -> Any:
        """Its reply to a remote command, through the Python API."""

        def reply() -> Any:
            # A connection of its own: one of the pool's is stale after a broker restart.
            with self.app.connection_for_write() as connection:
                replies = self.app.control.broadcast(
                    command,
                    arguments=arguments,
                    destination=[self.name],
                    reply=True,
                    timeout=2,
                    connection=connection,
                )
            return [r[self.name] for r in replies or [] if self.name in r]

        return wait_for(reply, f"{self.name} to answer {command}")[0]

    def revoked(self) -> set[str]:
        """The ids in its revoked set."""
        return set(self.ask("revoked"))

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Shut it down, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.ends()

    def ends(self, timeout_s: float = 60.0) -> int:
        """Wait until it has ended, and return its exit code. One that hangs is shown where."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            before = len(self.text())
            self.process.send_signal(signal.SIGUSR1)  # Celery then logs what each thread does
            with contextlib.suppress(AssertionError):
                wait_for(lambda: len(self.text()) > before, "its threads", 5)
            self.process.kill()
            self.process.wait(10)
            raise AssertionError(f"{self.name} did not end:\n{self.text()[-10_000:]}") from None


class Fleet:
    """The workers of one test on one broker, with the app to send them tasks."""

    def __init__(self, directory: Path, **conf: Any) -> None:
        self.directory = directory
        self.app = Celery("client", set_as_current=False)
        # Without results of its own: in Celery 5.3 a result that is collected while another is
        # asked for deadlocks on the connection by which it unsubscribes.
        ours = {k: v for k, v in conf.items() if k != "result_backend"}
        self.app.conf.update(ours, harness=conf, task_default_queue="work")
        self.results = Celery("results", set_as_current=False)
        self.results.conf.update(conf, task_default_queue="work")
        self.workers: list[Worker] = []

    def start(self, name: str, *options: str, **arguments: Any) -> Worker:
        """Start a worker and wait until it takes tasks."""
        return self.launch(name, *options, **arguments).ready()

    def launch(self, name: str, *options: str, **arguments: Any) -> Worker:
        """Start a worker."""
        log = arguments.pop("log", self.directory / f"{name}-{len(self.workers)}.log")
        worker = Worker(self.app, name, log, *options, **arguments)
        self.workers.append(worker)
        return worker

    def send(self, task: str, *args: Any, **options: Any) -> str:
        """Publish a task by its name in the harness; returns its id."""
        # Celery 5.6 goes by what the sender says, and takes False for said.
        options.setdefault("ignore_result", bool(self.app.conf.task_ignore_result))
        return str(self.app.send_task(f"harness.{task}", args, **options).id)

    def succeeds(self, task: str, *args: Any, **options: Any) -> Any:
        """Publish a task, wait until it has succeeded, and return what it returned.

        Of a reused id the backend still has the record "expired", which is ready, too.
        """
        task_id = self.send(task, *args, **options)

        def succeeded() -> Any:
            record = self.results.backend.get_task_meta(task_id, cache=False)
            return record if record["status"] == "SUCCESS" else None

        return wait_for(succeeded, f"{task_id} to succeed")["result"]

    def expire(self, *task_ids: str, task: str = "add") -> None:
        """Publish tasks that will have expired by the time any worker looks at them."""
        for task_id in task_ids:
            self.send(task, 1, 2, task_id=task_id, expires=0.05)
        time.sleep(0.1)

    def close(self) -> None:
        """End all workers."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.terminate()
        for worker in self.workers:
            with contextlib.suppress(AssertionError):
                worker.stop()
        self.app.close()
        self.results.close()


@contextlib.contextmanager
def fleet(directory: Path, **conf: Any) -> Iterator[Fleet]:
    """A fleet that ends with the block."""
    workers = Fleet(directory, **conf)
    try:
        yield workers
    finally:
        workers.close()


@contextlib.contextmanager
def bare_worker(name: str, url: str) -> Iterator[None]:
    """A worker that never heard of worker_guard, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.harness.bare_worker", name, url],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)
