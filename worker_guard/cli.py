"""What worker_guard adds to the ``celery`` command.

Every celery command imports this module, also if its app has no guard. So the top of this module
imports nothing that registers anything with Celery.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import COMMA_SEPARATED_LIST, CeleryOption
from celery.bin.worker import worker

if TYPE_CHECKING:
    from worker_guard.commands.audit.finding import Level

_NOT_WRITTEN = (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT, errno.EBADF)

_NO_STEP = (
    "--guard-dry-run needs the guard, and this app has none. Add to the module of the app:\n\n"
    "    from worker_guard import WorkerGuard\n"
    '    app.steps["worker"].add(WorkerGuard)'
)


def _needs_the_step(ctx: click.Context, _param: click.Parameter, value: bool) -> bool:
    if value:
        from worker_guard.bootstep import WorkerGuard

        if WorkerGuard not in ctx.obj.app.steps["worker"]:
            raise click.UsageError(_NO_STEP, ctx=ctx)
    return value


def _extend_worker() -> None:
    """Give ``celery worker`` its option; its value reaches the step as ``guard_dry_run``."""
    if all(option.name != "guard_dry_run" for option in worker.params):
        worker.params.append(
            CeleryOption(
                ["--guard-dry-run"],
                is_flag=True,
                default=False,
                callback=_needs_the_step,
                help_group="Worker Guard Options",
                help="The guard measures, decides and logs, but changes nothing.",
            )
        )


_extend_worker()


class _Answering(click.Group):
    """Commands that answer on stdout; if they can't write the answer, they say so and fail."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OSError as exc:
            # If only the reader of a pipe went away, click ends the command by itself.
            if exc.errno not in _NOT_WRITTEN:
                raise
            # Python would try to write the rest of the buffer when it ends, and fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            click.echo(f"The answer can't be written: {exc.strerror}", err=True)
            ctx.exit(1)


@click.group(name="guard", cls=_Answering)
@click.pass_context
def guard(ctx: click.Context) -> None:
    """See the guards of the workers, revoke tasks, audit the configuration, clean up."""


def _asks_workers(command: Any) -> Any:
    """Add the options of a command that asks the workers, named as those of ``celery inspect``."""
    destination = click.option(
        *("-d", "--destination"),
        type=COMMA_SEPARATED_LIST,
        callback=lambda _ctx, _param, names: [name for name in names or () if name],
        help="Comma separated names of the workers to ask; all by default.",
    )
    return _waits(destination(command))


def _waits(command: Any) -> Any:
    timeout = click.option(
        *("-t", "--timeout"),
        type=float,
        default=1.0,
        show_default=True,
        metavar="SECONDS",
        callback=_seconds(0.1, 60.0),
        help="How long to wait for one more worker to answer.",
    )
    return timeout(command)


def _seconds(low: float, high: float) -> Callable[..., float]:
    def bounded(_ctx: click.Context, _param: click.Parameter, seconds: float) -> float:
        # The comparison is also false for a NaN.
        if not low <= seconds <= high:
            raise click.BadParameter(f"{seconds:g}; allowed: seconds from {low:g} to {high:g}")
        return seconds

    return bounded


@guard.command()
@_asks_workers
@click.option("-j", "--json", "as_json", is_flag=True, help="The answers as one JSON object.")
@click.option("--all", "everything", is_flag=True, help="Each worker and each child in full.")
@click.option(
    "--expect",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many workers must answer; fewer are trouble.",
)
@click.pass_context
def status(
    ctx: click.Context,
    timeout: float,
    destination: list[str],
    as_json: bool,
    everything: bool,
    expect: int | None,
) -> None:
    """Show what the guards of the workers see and did."""
    from worker_guard.commands.status.command import run_status

    ctx.exit(
        run_status(
            ctx.obj.app,
            destination=destination,
            timeout_s=timeout,
            as_json=as_json,
            everything=everything,
            no_color=ctx.obj.no_color,
            expected=expect,
        )
    )


@guard.command()
@_asks_workers
@click.option(
    "--interval",
    type=float,
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    callback=_seconds(0.5, 3600.0),
    help="How often to ask.",
)
@click.pass_context
def watch(ctx: click.Context, timeout: float, destination: list[str], interval: float) -> None:
    """Show the same live, until q or Ctrl-C."""
    from worker_guard.commands.status.command import run_watch

    ctx.exit(
        run_watch(
            ctx.obj.app,
            destination=destination,
            timeout_s=timeout,
            interval_s=interval,
            no_color=ctx.obj.no_color,
        )
    )


def _above_zero(_ctx: click.Context, _param: click.Parameter, hours: float | None) -> float | None:
    # The comparison is also false for a NaN. A TTL of over a thousand years overflows.
    if hours is not None and not 0 < hours < 8.8e6:
        raise click.BadParameter("hours, above 0")
    return hours


@guard.command()
@_asks_workers
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(["revoked", "results", "broker"]),
    help="Clean only this: the revoked sets, the result backend, the broker; can be repeated.",
)
@click.option("--dry-run", is_flag=True, help="Count what a cleanup would do, and change nothing.")
@click.option(
    "--max-age",
    type=float,
    metavar="HOURS",
    callback=_above_zero,
    help="Delete results older than this; else worker_guard_results_max_age or result_expires.",
)
@click.option(
    "--ignore-ttl",
    is_flag=True,
    help="Also delete old results that have a longer TTL of their own.",
)
@click.option("--json", "as_json", is_flag=True, help="The statistics as one JSON object.")
@click.option("--purge-queues", is_flag=True, help="Also drop the messages that wait for workers.")
@click.option("--yes", is_flag=True, help="Don't ask before --purge-queues.")
@click.pass_context
def cleanup(ctx: click.Context, /, **given: Any) -> None:
    """Make the workers sweep their revoked sets; clean the result backend and the broker."""
    from worker_guard.commands.cleanup import Wanted, run_cleanup

    wanted = Wanted(**given)
    if wanted.yes and not wanted.purge_queues:
        raise click.UsageError("--yes answers the question of --purge-queues", ctx=ctx)
    if not wanted.wants("results") and (wanted.ignore_ttl or wanted.max_age is not None):
        raise click.UsageError("--max-age and --ignore-ttl are about results", ctx=ctx)
    if not wanted.wants("revoked") and wanted.destination:
        raise click.UsageError("--destination is about revoked sets", ctx=ctx)
    ctx.exit(run_cleanup(ctx.obj.app, wanted))


def _about_tasks(command: Any) -> Any:
    """Add the ids of a command that tells all workers about tasks."""
    ids = click.argument(
        "task_ids", metavar="ID...", nargs=-1, required=True, callback=_distinct_ids
    )
    return ids(_waits(command))


def _distinct_ids(
    _ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]
) -> list[str]:
    if not all(task_id.strip() for task_id in given):
        raise click.BadParameter("an id is empty")
    return list(dict.fromkeys(given))


@guard.command()
@_about_tasks
@click.option("--terminate", is_flag=True, help="Also end the tasks if they run.")
@click.pass_context
def revoke(ctx: click.Context, task_ids: list[str], timeout: float, terminate: bool) -> None:
    """Revoke tasks at all workers, also at those that are not there."""
    from worker_guard.commands.revocations import run_revoke

    ctx.exit(run_revoke(ctx.obj.app, task_ids, terminate=terminate, timeout_s=timeout))


@guard.command()
@_about_tasks
@click.pass_context
def unrevoke(ctx: click.Context, task_ids: list[str], timeout: float) -> None:
    """Take the revocation of tasks back, on record and at every worker."""
    from worker_guard.commands.revocations import run_unrevoke

    ctx.exit(run_unrevoke(ctx.obj.app, task_ids, timeout_s=timeout))


@guard.command()
@click.option("--json", "as_json", is_flag=True, help="The revocations as a JSON array.")
@click.pass_context
def revocations(ctx: click.Context, as_json: bool) -> None:
    """Show the operators' revocations on record."""
    from worker_guard.commands.revocation_list import run_revocations

    ctx.exit(run_revocations(ctx.obj.app, as_json=as_json))


@guard.command()
@click.option("--json", "as_json", is_flag=True, help="The entries as a JSON array.")
@click.pass_context
def history(ctx: click.Context, as_json: bool) -> None:
    """Show the last cleanups, and the last sweeps that cleared something."""
    from worker_guard.commands.history import run_history

    ctx.exit(run_history(ctx.obj.app, as_json=as_json))


@guard.command()
@click.option("--json", "as_json", is_flag=True, help="The findings as one JSON object.")
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "note"]),
    default="warning",
    show_default=True,
    help="Exit with 1 if a finding has this level or a worse one.",
)
@click.pass_context
def audit(ctx: click.Context, as_json: bool, fail_on: Level) -> None:
    """Report settings and Beat entries that will cause trouble."""
    from worker_guard.commands.audit.command import run_audit

    ctx.exit(
        run_audit(ctx.obj.app, json_wanted=as_json, fail_on=fail_on, color=not ctx.obj.no_color)
    )
