"""``celery guard cleanup``."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import click
from redis.exceptions import NoPermissionError, RedisError

from worker_guard import celery_internals
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
from worker_guard.commands.sweeps import Sweep, ask_for_sweeps, wait_for_sweeps
from worker_guard.events import CleanupCompleted
from worker_guard.results.backend import (
    TIMEOUT_S,
    NoRedisResultsError,
    ResultBackend,
    open_result_backend,
    this_process,
)
from worker_guard.results.cleanup import FullSpeedCleanup, NoAgeError
from worker_guard.results.history import History, Outcome
from worker_guard.results.strategy import CleanupCounts
from worker_guard.results.task_run import seconds_of
from worker_guard.settings import Settings, read_settings


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The options of the command. Without ``only`` every target is cleaned."""

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
        """Whether this target is to be cleaned."""
        return not self.only or target in self.only


@dataclass
class _Done:
    """What was done, and the exit code of each step."""

    sweeps: Mapping[str, Sweep] = field(default_factory=dict)
    outcome: Outcome | None = None
    messages_purged: int | None = None
    codes: list[int] = field(default_factory=lambda: [EX_OK])

    @property
    def anything(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.sweeps or self.outcome) or self.messages_purged is not None

    def totals(self) -> dict[str, int]:
        """The statistics of all targets together."""
        event = CleanupCompleted() if self.outcome is None else self.outcome.event
        return {
            "revoked_tasks_cleared": sum(sweep.cleared for sweep in self.sweeps.values()),
            "expired_results_deleted": event.expired_results_deleted,
            "task_states_cleaned": event.task_states_cleaned,
            "broker_keys_cleaned": event.broker_keys_cleaned,
            "keys_scanned": event.keys_scanned,
            "keys_unreadable": event.keys_unreadable,
        }


_Job = tuple[FullSpeedCleanup, ResultBackend]


def run_cleanup(app: Any, wanted: Wanted) -> int:
    """Clean, say what came of it, and return the exit code.

    What can't be done for one target does not stop the others.
    """
    try:
        set_up_django()
        settings = read_settings(app.conf, dry_run=wanted.dry_run)
    except Exception as exc:  # noqa: BLE001 - one line, and what kind of trouble it was
        return failed(exc, naming(app, "cleanup"), server=result_backend(app))
    wanted = replace(wanted, dry_run=settings.dry_run)
    done = _Done()
    job = _open(app, settings, wanted, done) if wanted.wants("results") else None
    if job is None and set(wanted.only) == {"results"}:
        return max(done.codes)
    if wanted.purge_queues and not (wanted.yes or wanted.dry_run):
        code = _confirmed(app)
        if code != EX_OK:
            return code
    started = time.monotonic()
    try:
        _clean_all(app, job, wanted, done)
    except KeyboardInterrupt:
        say("Stopped; the counts are those up to here." if done.anything else "Stopped.")
        done.codes.append(EX_TROUBLE)
    if done.anything:
        _show(done, wanted, took_s=time.monotonic() - started)
    if job is not None and done.outcome is not None and not wanted.dry_run:
        _remember(job[1], done.outcome)
    return max(done.codes)


def _clean_all(app: Any, job: _Job | None, wanted: Wanted, done: _Done) -> None:
    asked_mono = time.monotonic()
    if wanted.wants("revoked"):
        _sweep(app, wanted, done)
    if job is not None:
        done.codes.append(_clean(*job, quiet=wanted.as_json, server=result_backend(app)))
        done.outcome = _worth_telling(job[0])
        if job[0].stopped:
            return
    if not wanted.dry_run:
        _wait(app, wanted, done, asked_mono)
    if wanted.purge_queues:
        done.messages_purged, code = _purged(app, dry_run=wanted.dry_run)
        done.codes.append(code)


# -- the revoked sets ------------------------------------------------------------------------


def _sweep(app: Any, wanted: Wanted, done: _Done) -> None:
    hint = naming(app, "cleanup")
    try:
        done.sweeps = ask_for_sweeps(
            app,
            destination=wanted.destination,
            timeout_s=wanted.timeout,
            dry_run=wanted.dry_run,
        )
    except Exception as exc:  # noqa: BLE001 - one line, and what kind of trouble it was
        done.codes.append(failed(exc, hint, server=broker(app)))
        return
    if not done.sweeps:
        who = f"None of {', '.join(wanted.destination)}" if wanted.destination else "No worker"
        say(f"{who} answered within {wanted.timeout:g} s; --timeout waits longer{hint}")
        done.codes.append(EX_UNAVAILABLE)
    for name, sweep in done.sweeps.items():
        if sweep.error is not None:
            say(f"{name}: {sweep.error}")
            done.codes.append(EX_TROUBLE)


def _wait(app: Any, wanted: Wanted, done: _Done, asked_mono: float) -> None:
    """Get the figures of big sets, which were still swept while this process cleaned results."""
    try:
        done.sweeps = wait_for_sweeps(
            app, done.sweeps, timeout_s=wanted.timeout, asked_mono=asked_mono
        )
    except Exception as exc:  # noqa: BLE001 - one line, and what kind of trouble it was
        done.codes.append(failed(exc, server=broker(app)))


# -- the results -----------------------------------------------------------------------------


def _open(app: Any, settings: Settings, wanted: Wanted, done: _Done) -> _Job | None:
    """The cleanup of the results; None: it can't be done, and why was said."""
    try:
        backend = open_result_backend(app, settings, timeout_s=TIMEOUT_S)
        job = FullSpeedCleanup(
            backend,
            max_age_s=seconds_of(wanted.max_age),
            dry_run=wanted.dry_run,
            by=this_process(),
            trigger="cli",
            ignore_ttl=wanted.ignore_ttl,
        )
    except Exception as exc:  # noqa: BLE001 - one line, and what kind of trouble it was
        if "results" not in wanted.only and isinstance(exc, NoRedisResultsError | NoAgeError):
            # There is nothing to clean, which is no failure.
            say(f"The results are not cleaned: {reason(exc)}")
            return None
        done.codes.append(failed(exc, naming(app, "cleanup"), server=result_backend(app)))
        return None
    return job, backend


def _worth_telling(job: FullSpeedCleanup) -> Outcome | None:
    """What it came to; None if it failed before it came to anything, which was said."""
    outcome, counts = job.outcome(), job.counts
    if job.refused is not None:
        return outcome if counts.expired_results_deleted or counts.task_states_cleaned else None
    if outcome is None or outcome.complete or counts != CleanupCounts():
        return outcome
    return None


def _clean(job: FullSpeedCleanup, backend: ResultBackend, *, quiet: bool, server: Server) -> int:
    try:
        with _stopped_by_ctrl_c(job), _progress(backend, quiet=quiet) as progress:
            job.run(progress)
    except KeyboardInterrupt:
        job.stop()
    except Exception as exc:  # noqa: BLE001 - one line, and what kind of trouble it was
        return failed(exc, server=server)
    if job.stopped:
        say("Stopped; the counts are those up to here.")
        return EX_TROUBLE
    return EX_OK if job.refused is None else failed(job.refused, server=server)


@contextmanager
def _stopped_by_ctrl_c(job: FullSpeedCleanup) -> Iterator[None]:
    """The first Ctrl-C lets the call that is under way end, and be counted; the next doesn't."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        # A shell's background job ignores it.
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


def _confirmed(app: Any) -> int:
    """Ask whether the messages are to be dropped; the exit code if they are not."""
    try:
        waiting = celery_internals.waiting_messages(app)
    except Exception as exc:  # noqa: BLE001 - one line, and what kind of trouble it was
        return failed(exc, naming(app, "cleanup"), server=broker(app))
    try:
        question = f"Drop the {waiting} messages that wait in this app's queues?"
        if click.confirm(question, err=True):  # stdout holds the answer alone
            return EX_OK
    except click.Abort:
        say("--purge-queues asks first; --yes answers it.")
    say("Nothing was done.")
    return EX_TROUBLE


def _purged(app: Any, *, dry_run: bool) -> tuple[int | None, int]:
    try:
        return (celery_internals.waiting_messages(app) if dry_run else app.control.purge()), EX_OK
    except Exception as exc:  # noqa: BLE001 - one line, and what kind of trouble it was
        return None, failed(exc, server=broker(app))


def _remember(backend: ResultBackend, outcome: Outcome) -> None:
    try:
        History(backend.client, backend.own_prefix).add(outcome)
    except RedisError as exc:
        say(f"This cleanup is not in the history: {reason(exc)}")


# -- the answer ------------------------------------------------------------------------------


def _show(done: _Done, wanted: Wanted, *, took_s: float) -> None:
    if wanted.as_json:
        click.echo(json.dumps(_document(done, took_s)))
        return
    would = "would be " if wanted.dry_run else ""
    totals = done.totals()
    lines = []
    if done.sweeps:
        lines += ["Revoked sets", *_sweep_lines(done.sweeps)]
    if done.outcome is not None:
        lines += _result_lines(done.outcome, would)
    if done.messages_purged is not None:
        lines += ["Queues", f"  {done.messages_purged} waiting messages {would}dropped"]
    lines.append(
        f"Total: {totals['revoked_tasks_cleared']} revoked tasks {would}cleared, "
        f"{totals['expired_results_deleted']} expired results {would}deleted, "
        f"{totals['task_states_cleaned']} task states {would}cleaned"
    )
    click.echo("\n".join(lines))


def _sweep_lines(sweeps: Mapping[str, Sweep]) -> Iterator[str]:
    width = max(map(len, sweeps))
    for name, sweep in sweeps.items():
        if sweep.error is not None:
            said = "not swept"
        elif sweep.done is None:
            said = "sweeping; its log will say what came of it"
        else:
            would = "would be " if sweep.dry_run else ""
            kept = sweep.done.get("revoked_tasks_kept") or {}
            said = (
                f"{sweep.cleared} ids {would}cleared; left: {kept.get('operator', 0)} revoked by "
                f"operators, {kept.get('unproven', 0)} unproven, {kept.get('grace', 0)} in grace"
            )
        yield f"  {name.ljust(width)}  {said}"


def _result_lines(outcome: Outcome, would: str) -> Iterator[str]:
    event, age_h = outcome.event, (outcome.max_age_s or 0.0) / 3600
    yield "Results"
    yield f"  {event.keys_scanned} keys in {event.duration_s:.1f} s, by {outcome.strategy}"
    yield f"  {event.expired_results_deleted} results {would}deleted, older than {age_h:g} h"
    yield f"  {event.task_states_cleaned} keys {would}given a TTL"
    yield f"  {event.keys_unreadable} results can't be read, and were not deleted"
    if event.keys_with_longer_ttl:
        yield (
            f"  {event.keys_with_longer_ttl} old results have a longer TTL of their own, and were "
            "left alone; --ignore-ttl deletes them"
        )


def _document(done: _Done, took_s: float) -> dict[str, Any]:
    purged = {} if done.messages_purged is None else {"messages_purged": done.messages_purged}
    targets: dict[str, Any] = {}
    if done.sweeps:
        targets["revoked"] = {name: sweep.document() for name, sweep in done.sweeps.items()}
    if done.outcome is not None:
        targets["results"] = done.outcome.statistics()
    return {**done.totals(), "duration_s": round(took_s, 6), **purged, "targets": targets}
