"""``celery guard history``."""

from __future__ import annotations

import json
import shutil
import sys
from datetime import datetime, timezone
from typing import Any

import click

from worker_guard.commands.console import EX_OK, failed, naming, set_up_django
from worker_guard.commands.server_names import result_backend
from worker_guard.results.backend import TIMEOUT_S, open_result_backend
from worker_guard.results.history import History
from worker_guard.settings import read_settings


def run_history(app: Any, *, as_json: bool) -> int:
    """Show the last sweeps and cleanups, and return the exit code."""
    try:
        set_up_django()
        backend = open_result_backend(app, read_settings(app.conf), timeout_s=TIMEOUT_S)
        entries = History(backend.client, backend.own_prefix).entries()
    except Exception as exc:  # noqa: BLE001 - one line, and the exit code for its kind
        return failed(exc, naming(app, "history"), server=result_backend(app))
    if as_json:
        click.echo(json.dumps(entries))
    elif not entries:
        click.echo("No cleanup has been recorded in this result backend.")
    else:
        # A pipe gets all columns.
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        click.echo("\n".join(_table(entries, columns)))
    return EX_OK


#: What the cleanup of another target than the results deletes.
_DELETED = {"broker": "broker_keys_cleaned"}

_COLUMNS = (
    ("started (UTC)", lambda e: _time(e.get("at"))),
    ("target", lambda e: _text(e.get("target"))),
    ("by", lambda e: _text(e.get("by"))),
    ("trigger", lambda e: _text(e.get("trigger"))),
    ("cleared", lambda e: _text(e.get("revoked_tasks_cleared"))),
    ("scanned", lambda e: _text(e.get("keys_scanned"))),
    ("deleted", lambda e: _text(e.get(_DELETED.get(e.get("target"), "expired_results_deleted")))),
    ("given TTL", lambda e: _text(e.get("task_states_cleaned"))),
    ("unreadable", lambda e: _text(e.get("keys_unreadable"))),
    ("longer TTL", lambda e: _text(e.get("keys_with_longer_ttl"))),
    ("seconds", lambda e: _rounded(e.get("duration_s"))),
    ("complete", lambda e: "yes" if e.get("complete") else "no"),
)


#: Columns that a narrow terminal has no room for.
_WIDE_ONLY = ("by", "scanned", "unreadable", "longer TTL")


def _table(entries: list[dict[str, Any]], columns: int | None) -> list[str]:
    """The lines of the table, without some columns if the terminal has too few ``columns``."""
    rows = [[title for title, _ in _COLUMNS]]
    rows += [[of(entry) for _, of in _COLUMNS] for entry in entries]
    lines = _aligned(rows, "  ")
    if columns is None or max(map(len, lines)) <= columns:
        return lines
    kept = [place for place, title in enumerate(rows[0]) if title not in _WIDE_ONLY]
    left_out = f"Not shown: {', '.join(_WIDE_ONLY)}; --json has them."
    return [*_aligned([[row[place] for place in kept] for row in rows], " "), left_out]


def _aligned(rows: list[list[str]], gap: str) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        gap.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


def _rounded(duration_s: Any) -> str:
    return f"{duration_s:.2f}" if isinstance(duration_s, int | float) else "-"


def _time(at: Any) -> str:
    try:
        return datetime.fromtimestamp(float(at), timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    except (TypeError, ValueError, OverflowError, OSError):
        return "-"
