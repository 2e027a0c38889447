"""``celery guard sweep`` and ``celery guard history``."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import click
from redis.exceptions import NoPermissionError, RedisError

from worker_guard import celery_internals
from worker_guard.commands.console import (
    EX_OK,
    EX_TROUBLE,
    failed,
    naming,
    reason,
    say,
    set_up_django,
)
from worker_guard.commands.server_names import Server, broker, result_backend
from worker_guard.results.backend import TIMEOUT_S, ResultBackend, open_result_backend, this_process
from worker_guard.results.cleanup import FullSpeedCleanup
from worker_guard.results.history import History, Outcome
from worker_guard.results.strategy import CleanupCounts
from worker_guard.results.task_run import seconds_of
from worker_guard.settings import read_settings


def run_sweep(
    app: Any,
    *,
    dry_run: bool,
    max_age_hours: float | None,
    as_json: bool,
    purge_queues: bool,
    yes: bool,
    ignore_ttl: bool = False,
) -> int:
    """CleanupRun, say what came of it, and return the exit code."""
    try:
        set_up_django()
        settings = read_settings(app.conf, dry_run=dry_run)
        target = open_result_backend(app, settings, timeout_s=TIMEOUT_S)
        job = FullSpeedCleanup(
            target,
            max_age_s=seconds_of(max_age_hours),
            dry_run=settings.dry_run,
            by=this_process(),
            trigger="cli",
            ignore_ttl=ignore_ttl,
        )
    except Exception as exc:  # noqa: BLE001 - one line, and what kind of trouble it was
        return failed(exc, naming(app, "sweep"), server=result_backend(app))
    if purge_queues and not yes and not settings.dry_run:
        try:
            confirmed = _confirmed(app)
        except Exception as exc:  # noqa: BLE001 - one line, and what kind of trouble it was
            return failed(exc, naming(app, "sweep"), server=broker(app))
        if not confirmed:
            say("Nothing was done.")
            return EX_TROUBLE
    code = _swept(job, target, quiet=as_json, server=result_backend(app))
    purged: int | None = None
    if purge_queues and code == EX_OK:
        purged, code = _purged(app, dry_run=settings.dry_run)
    outcome = job.outcome()
    # One that failed before it came to anything has said so, and has nothing to tell.
    if outcome is not None and _came_to_something(outcome, job.refused):
        _show(outcome, purged, as_json=as_json)
        if not settings.dry_run:
            _remember(target, outcome)
    return code


def _came_to_something(outcome: Outcome, refused: Exception | None) -> bool:
    counts = outcome.counts
    if refused is not None:
        return bool(counts.expired_results_deleted or counts.task_states_cleaned)
    return outcome.complete or counts != CleanupCounts()


def run_history(app: Any, *, as_json: bool) -> int:
    """Show the last cleanups, and return the exit code."""
    try:
        set_up_django()
        target = open_result_backend(app, read_settings(app.conf), timeout_s=TIMEOUT_S)
        target.check()
        entries = History(target.client, target.own_prefix).entries()
    except Exception as exc:  # noqa: BLE001 - one line, and what kind of trouble it was
        return failed(exc, naming(app, "history"), server=result_backend(app))
    if as_json:
        click.echo(json.dumps(entries))
    elif not entries:
        click.echo("No cleanup of this result backend has been recorded.")
    else:
        # In a pipe nothing is left out.
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        click.echo("\n".join(_table(entries, columns)))
    return EX_OK


def _swept(job: FullSpeedCleanup, target: ResultBackend, *, quiet: bool, server: Server) -> int:
    stopped = False
    try:
        with _stopped_by_ctrl_c(job), _progress(target, quiet=quiet) as progress:
            job.run(progress)
    except KeyboardInterrupt:
        stopped = True
    except Exception as exc:  # noqa: BLE001 - one line, and what kind of trouble it was
        return failed(exc, server=server)
    outcome = job.outcome()
    if stopped or outcome is None or not outcome.complete:
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
def _progress(target: ResultBackend, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    keys = None if quiet or not sys.stderr.isatty() else _size(target)
    if keys is None:
        yield lambda _scanned: None
        return
    with click.progressbar(
        length=max(keys, 1), label="Sweeping", file=sys.stderr, update_min_steps=5000
    ) as bar:
        yield bar.update
        bar.update(max(0, bar.length - bar.pos) if bar.length else 0)


def _size(target: ResultBackend) -> int | None:
    try:
        return int(target.client.dbsize())
    except NoPermissionError:
        return None


def _confirmed(app: Any) -> bool:
    waiting = celery_internals.waiting_messages(app)
    try:
        question = f"Drop the {waiting} messages that wait in this app's queues?"
        return click.confirm(question, err=True)  # stdout holds the answer alone
    except click.Abort:
        say("--purge-queues asks first; --yes answers it.")
        return False


def _purged(app: Any, *, dry_run: bool) -> tuple[int | None, int]:
    try:
        return (celery_internals.waiting_messages(app) if dry_run else app.control.purge()), EX_OK
    except Exception as exc:  # noqa: BLE001 - one line, and what kind of trouble it was
        return None, failed(exc, server=broker(app))


def _remember(target: ResultBackend, outcome: Outcome) -> None:
    try:
        History(target.client, target.own_prefix).add(outcome)
    except RedisError as exc:
        say(f"This cleanup is not in the history: {reason(exc)}")


def _show(outcome: Outcome, purged: int | None, *, as_json: bool) -> None:
    if as_json:
        more = {} if purged is None else {"messages_purged": purged}
        click.echo(json.dumps({**outcome.statistics(), **more}))
        return
    counts = outcome.counts
    age_h = outcome.max_age_s / 3600
    would = "would be " if outcome.dry_run else ""
    lines = [
        f"{counts.keys_scanned} keys in {outcome.duration_s:.1f} s, by {outcome.strategy}",
        f"{counts.expired_results_deleted} results {would}deleted, older than {age_h:g} h",
        f"{counts.task_states_cleaned} keys {would}given a lifetime",
        f"{counts.keys_unreadable} results can't be read, and were not deleted",
    ]
    if counts.keys_with_longer_ttl:
        lines.append(
            f"{counts.keys_with_longer_ttl} old results have a longer TTL of their own, and were "
            "left alone; --ignore-ttl deletes them"
        )
    if purged is not None:
        lines.append(f"{purged} waiting messages {would}dropped")
    click.echo("\n".join(lines))


_COLUMNS = (
    ("started (UTC)", lambda e: _time(e.get("at"))),
    ("by", lambda e: e.get("by", "?")),
    ("trigger", lambda e: e.get("trigger", "?")),
    ("scanned", lambda e: e.get("keys_scanned", "?")),
    ("deleted", lambda e: e.get("expired_results_deleted", "?")),
    ("lifetimes", lambda e: e.get("task_states_cleaned", "?")),
    ("unreadable", lambda e: e.get("keys_unreadable", "?")),
    ("own ttl", lambda e: e.get("keys_with_longer_ttl", "?")),
    ("seconds", lambda e: _rounded(e.get("duration_s"))),
    ("strategy", lambda e: e.get("strategy", "?")),
    ("to the end", lambda e: "yes" if e.get("complete") else "no"),
)


#: What a narrow terminal has no room for.
_WIDE_ONLY = ("by", "unreadable", "own ttl", "strategy")


def _table(entries: list[dict[str, Any]], columns: int | None) -> list[str]:
    """The table's lines; on a terminal of fewer ``columns`` than it needs, without some of them."""
    rows = [[title for title, _ in _COLUMNS]]
    rows += [[str(of(entry)) for _, of in _COLUMNS] for entry in entries]
    lines = _aligned(rows, "  ")
    if columns is None or max(map(len, lines)) <= columns:
        return lines
    kept = [place for place, title in enumerate(rows[0]) if title not in _WIDE_ONLY]
    left_out = f"Not shown: {', '.join(_WIDE_ONLY)}; a wider terminal and --json have them."
    return [*_aligned([[row[place] for place in kept] for row in rows], " "), left_out]


def _aligned(rows: list[list[str]], gap: str) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        gap.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _rounded(duration_s: Any) -> str:
    return f"{duration_s:.2f}" if isinstance(duration_s, int | float) else "?"


def _time(at: Any) -> str:
    try:
        return datetime.fromtimestamp(float(at), timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    except (TypeError, ValueError, OverflowError, OSError):
        return "?"
