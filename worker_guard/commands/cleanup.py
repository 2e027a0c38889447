"""``celery guard cleanup``."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import click
from redis.exceptions import NoPermissionError, RedisError

from worker_guard import celery_internals
from worker_guard.broker.by_hand import LookByHand
from worker_guard.broker.server import open_broker
from worker_guard.commands.console import (
    EX_OK,
    EX_TROUBLE,
    EX_UNAVAILABLE,
    failed,
    naming,
    reason,
    say,
    set_up_django,
)
from worker_guard.commands.server_names import Server, broker, result_backend
from worker_guard.commands.status.asking import BrokerUnusableError
from worker_guard.commands.sweeps import Sweep, ask_for_sweeps, wait_for_sweeps
from worker_guard.errors import WorkerGuardError
from worker_guard.events import CleanupCompleted
from worker_guard.results.backend import (
    TIMEOUT_S,
    NoRedisResultsError,
    ResultBackend,
    open_result_backend,
    this_process,
)
from worker_guard.results.cleanup import FullSpeedCleanup, NoAgeError, open_history
from worker_guard.results.cleanup_run import CleanupCounts
from worker_guard.results.history import Outcome
from worker_guard.results.task_run import seconds_of
from worker_guard.settings import Settings, read_settings
from worker_guard.values.counts import count
from worker_guard.values.moments import to_the_minute


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The options of the command. Without ``only`` it cleans every target."""

    only: Collection[str]
    destination: Sequence[str]
    timeout: float
    dry_run: bool
    max_age: float | None
    ignore_ttl: bool
    as_json: bool
    purge_queues: bool
    yes: bool

    def wants(self, target: str) -> bool:
        """Whether to clean this target."""
        return not self.only or target in self.only


def run_cleanup(app: Any, wanted: Wanted) -> int:
    """Clean, print what was done, and return the exit code.

    A failure of one target does not stop the others.
    """
    try:
        set_up_django()
        settings = read_settings(app.conf, dry_run=wanted.dry_run)
    except Exception as exc:  # noqa: BLE001 - one line, and the exit code for its kind
        return failed(exc, naming(app, "cleanup"), server=result_backend(app))
    command = _Command(app, replace(wanted, dry_run=settings.dry_run))
    command.run(settings)
    return max(command.codes)


class _Command:
    """One run of the command: what is done so far, and the exit code of each step."""

    def __init__(self, app: Any, wanted: Wanted) -> None:
        self._app, self._wanted = app, wanted
        self._hint = naming(app, "cleanup")
        self._sweeps: Mapping[str, Sweep] = {}
        self._outcome: Outcome | None = None
        self._look: LookByHand | None = None
        self._messages_purged: int | None = None
        self._failed: set[Callable[[Any], Server]] = set()
        self.codes = [EX_OK]

    def run(self, settings: Settings) -> None:
        """Clean each target, print what was done, and add it to the history."""
        wanted = self._wanted
        job = self._open_results(settings) if wanted.wants("results") else None
        look = self._open_broker(settings) if wanted.wants("broker") else None
        if job is None and look is None and wanted.only and not wanted.wants("revoked"):
            return
        if wanted.purge_queues and not (wanted.yes or wanted.dry_run) and not self._confirmed():
            return
        started = time.monotonic()
        try:
            self._clean_all(job, look)
        except KeyboardInterrupt:
            say("Stopped; the counts are those up to here." if self._did_anything else "Stopped.")
            self.codes.append(EX_TROUBLE)
        if self._did_anything:
            self._show(took_s=time.monotonic() - started)
        self._record(settings, job)

    def _record(self, settings: Settings, job: FullSpeedCleanup | None) -> None:
        """Add what was cleaned to the history, if there is a result backend that holds one."""
        outcomes = [] if self._outcome is None else [self._outcome]
        if self._look is not None and self._look.found.deleted:
            look = self._look
            outcomes.append(
                Outcome(at=look.at, by=this_process(), complete=look.complete, event=look.event)
            )
        if self._wanted.dry_run or not outcomes:
            return
        try:
            backend = job.backend if job is not None else None
            if backend is None:
                backend = open_result_backend(self._app, settings, timeout_s=TIMEOUT_S)
            history = open_history(backend, dry_run=False)
            for outcome in outcomes:
                history.add(outcome)
        except NoRedisResultsError:
            return
        except (RedisError, WorkerGuardError) as exc:
            say(f"This cleanup is not in the history: {reason(exc)}")

    def _clean_all(self, job: FullSpeedCleanup | None, look: LookByHand | None) -> None:
        asked_mono = time.monotonic()
        if self._wanted.wants("revoked"):
            self._sweep()
        if job is not None:
            self._clean(job)
        if look is not None and broker not in self._failed:
            self._clean_broker(look)
        if not self._wanted.dry_run:
            # Meanwhile the workers went on with big sets.
            with self._reported(broker):
                self._sweeps = wait_for_sweeps(
                    self._app,
                    self._sweeps,
                    timeout_s=self._wanted.timeout,
                    asked_mono=asked_mono,
                )
        if self._wanted.purge_queues and self._failed:
            say("The waiting messages were not dropped: an earlier step failed.")
        elif self._wanted.purge_queues:
            with self._reported(broker):
                self._messages_purged = (
                    celery_internals.waiting_messages(self._app)
                    if self._wanted.dry_run
                    else self._app.control.purge()
                )

    @property
    def _did_anything(self) -> bool:
        done = self._sweeps or self._outcome or self._look
        return bool(done) or self._messages_purged is not None

    @contextmanager
    def _reported(self, server: Callable[[Any], Server], hint: str = "") -> Iterator[None]:
        """Print an error in one line, note its exit code, and go on with the next step."""
        try:
            yield
        except Exception as exc:  # noqa: BLE001 - one line, and the exit code for its kind
            self._failed.add(server)
            self.codes.append(failed(exc, hint, server=server(self._app)))

    # -- the steps -----------------------------------------------------------------------------

    def _open_results(self, settings: Settings) -> FullSpeedCleanup | None:
        """The cleanup of the results; None if it can't run, after printing why."""
        wanted = self._wanted
        with self._reported(result_backend, self._hint):
            try:
                return FullSpeedCleanup(
                    open_result_backend(self._app, settings, timeout_s=TIMEOUT_S),
                    max_age_s=seconds_of(wanted.max_age),
                    dry_run=wanted.dry_run,
                    by=this_process(),
                    trigger="cli",
                    ignore_ttl=wanted.ignore_ttl,
                )
            except (NoRedisResultsError, NoAgeError) as exc:
                if "results" in wanted.only:
                    raise
                # There is nothing to clean, which is no failure.
                say(f"The results are not cleaned: {reason(exc)}")
        return None

    def _open_broker(self, settings: Settings) -> LookByHand | None:
        """The look at the broker; None if it can't run, after printing why."""
        wanted = self._wanted
        with self._reported(broker, self._hint):
            try:
                return LookByHand(
                    open_broker(self._app, timeout_s=TIMEOUT_S),
                    by=this_process(),
                    dry_run=wanted.dry_run,
                    schedule_s=settings.broker_schedule,
                )
            except celery_internals.MissingInternalError as exc:
                if "broker" in wanted.only:
                    raise
                # There is nothing to clean, which is no failure.
                say(f"The broker is not cleaned: {reason(exc)}")
            except ValueError:
                if wanted.wants("revoked"):
                    return None  # the sweep says so
                # Without its text, which may quote a part of a password.
                raise BrokerUnusableError(
                    f"The broker can't be used: {broker(self._app)}: it is not a URL that can be "
                    "read, or an option is wrong"
                ) from None
        return None

    def _confirmed(self) -> bool:
        """Ask whether to drop the messages. If the answer is no, nothing is cleaned at all."""
        waiting = None
        with self._reported(broker, self._hint):
            waiting = celery_internals.waiting_messages(self._app)
        if waiting is None:
            return False
        try:
            question = f"Drop the {waiting} messages that wait in this app's queues?"
            if click.confirm(question, err=True):  # stdout is for the answer alone
                return True
        except click.Abort:
            say("--purge-queues asks first; --yes answers it.")
        say("Nothing was done.")
        self.codes.append(EX_TROUBLE)
        return False

    def _sweep(self) -> None:
        wanted = self._wanted
        with self._reported(broker, self._hint):
            self._sweeps = ask_for_sweeps(
                self._app,
                destination=wanted.destination,
                timeout_s=wanted.timeout,
                dry_run=wanted.dry_run,
            )
            if not self._sweeps:
                names = ", ".join(wanted.destination)
                who = f"None of {names}" if names else "No worker"
                answered = f"{who} answered within {wanted.timeout:g} s"
                say(f"{answered}; --timeout waits longer{self._hint}")
                self.codes.append(EX_UNAVAILABLE)
        for name, sweep in self._sweeps.items():
            if sweep.error is not None:
                say(f"{name}: {sweep.error}")
                self.codes.append(EX_TROUBLE)

    def _clean(self, job: FullSpeedCleanup) -> None:
        with self._reported(result_backend):
            try:
                with (
                    _stopped_by_ctrl_c(job),
                    _progress(job.backend, quiet=self._wanted.as_json) as progress,
                ):
                    job.run(progress)
            except KeyboardInterrupt:
                job.stop()
            if job.refused is not None and not job.stopped:
                raise job.refused
        self._outcome = _worth_showing(job)
        if job.stopped:
            raise KeyboardInterrupt

    def _clean_broker(self, look: LookByHand) -> None:
        with self._reported(broker):
            try:
                look.run()
            finally:
                if look.complete or look.found.deleted:
                    self._look = look

    # -- the answer ----------------------------------------------------------------------------

    def _show(self, *, took_s: float) -> None:
        event = CleanupCompleted() if self._outcome is None else self._outcome.event
        totals = {
            "revoked_tasks_cleared": sum(
                sweep.cleared
                for sweep in self._sweeps.values()
                # In a real cleanup, what a worker in a dry run would clear is not cleared.
                if self._wanted.dry_run or not sweep.dry_run
            ),
            "expired_results_deleted": event.expired_results_deleted,
            "task_states_cleaned": event.task_states_cleaned,
            "broker_keys_cleaned": self._look.found.deleted if self._look else 0,
            "keys_scanned": event.keys_scanned + (self._look.found.lists if self._look else 0),
            "keys_unreadable": event.keys_unreadable,
        }
        if self._wanted.as_json:
            document: dict[str, Any] = {**totals, "duration_s": round(took_s, 6)}
            if self._messages_purged is not None:
                document["messages_purged"] = self._messages_purged
            click.echo(json.dumps({**document, "targets": self._targets()}))
        else:
            click.echo("\n".join(self._lines(totals)))

    def _targets(self) -> dict[str, Any]:
        targets: dict[str, Any] = {}
        if self._sweeps:
            targets["revoked"] = {name: sweep.document() for name, sweep in self._sweeps.items()}
        if self._outcome is not None:
            targets["results"] = self._outcome.statistics()
        if self._look is not None:
            targets["broker"] = self._look.document()
        return targets

    def _lines(self, totals: Mapping[str, int]) -> Iterator[str]:
        would = "would be " if self._wanted.dry_run else ""
        if self._sweeps:
            yield "Revoked sets"
            width = max(map(len, self._sweeps))
            for name, sweep in self._sweeps.items():
                yield f"  {name.ljust(width)}  {sweep.text()}"
        if self._outcome is not None:
            yield from _result_lines(self._outcome, would)
        if self._look is not None:
            yield from _broker_lines(self._look, would)
        if self._messages_purged is not None:
            yield "Queues"
            yield f"  {self._messages_purged} waiting messages {would}dropped"
        at_least = "at least " if any(each.goes_on for each in self._sweeps.values()) else ""
        yield (
            f"Total: {at_least}{totals['revoked_tasks_cleared']} revoked tasks {would}cleared, "
            f"{totals['expired_results_deleted']} expired results {would}deleted, "
            f"{totals['task_states_cleaned']} task states {would}cleaned, "
            f"{totals['broker_keys_cleaned']} orphaned replies {would}deleted"
        )


def _worth_showing(job: FullSpeedCleanup) -> Outcome | None:
    """What the cleanup did; None if it failed before it did anything."""
    outcome, counts = job.outcome(), job.counts
    if job.refused is not None:
        return outcome if counts.expired_results_deleted or counts.task_states_cleaned else None
    if outcome is None or outcome.complete or counts != CleanupCounts():
        return outcome
    return None


@contextmanager
def _stopped_by_ctrl_c(job: FullSpeedCleanup) -> Iterator[None]:
    """Let the first Ctrl-C stop the cleanup after the current call, so that its counts are kept.

    A second one ends the command at once.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        # A background job of a shell ignores SIGINT.
        yield
        return

    def stop(_signum: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        job.stop()

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _progress(backend: ResultBackend, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    keys = None if quiet or not sys.stderr.isatty() else _size(backend)
    if keys is None:
        yield lambda _scanned: None
        return
    with click.progressbar(
        length=max(keys, 1), label="Cleaning", file=sys.stderr, update_min_steps=5000
    ) as bar:
        yield bar.update
        bar.update(max(0, bar.length - bar.pos) if bar.length else 0)


def _size(backend: ResultBackend) -> int | None:
    try:
        return int(backend.client.dbsize())
    except NoPermissionError:
        return None


def _result_lines(outcome: Outcome, would: str) -> Iterator[str]:
    event, age_h = outcome.event, (outcome.max_age_s or 0.0) / 3600
    yield "Results"
    yield f"  {event.keys_scanned} keys in {event.duration_s:.1f} s"
    yield f"  {event.expired_results_deleted} results {would}deleted, older than {age_h:g} h"
    yield f"  {event.task_states_cleaned} keys {would}given a TTL"
    yield f"  {event.keys_unreadable} results can't be read, and were not deleted"
    if event.keys_with_longer_ttl:
        yield (
            f"  {event.keys_with_longer_ttl} old results have a longer TTL of their own, and were "
            "left alone; --ignore-ttl deletes them"
        )


def _broker_lines(look: LookByHand, would: str) -> Iterator[str]:
    event, found = look.event, look.found
    yield "Broker"
    yield f"  {count(found.lists, 'list')} of control replies in {event.duration_s:.1f} s"
    yield f"  {found.deleted} orphaned replies {would}deleted"
    if found.unread and look.dry_run:
        yield f"  {found.unread} unread so far; a real cleanup notes that, and a later one deletes"
    elif found.next_delete_at is not None:
        # One that becomes orphaned within this minute is not deletable in its first second.
        at = to_the_minute(found.next_delete_at + 60)
        them = "it if it is" if found.unread == 1 else "those that are"
        yield f"  {found.unread} unread so far; a look from {at} UTC on deletes {them} still unread"
    if found.without_index:
        messages = count(found.without_index, "unacknowledged message")
        have = "has" if found.without_index == 1 else "have"
        yield f"  {messages} {have} no index, and may never be delivered again; nothing was changed"
