"""The findings as text for people, and as JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any

import click

from worker_guard.commands.audit.finding import LEVELS, Finding
from worker_guard.values.counts import count

_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
_PLAIN_WIDTH = 100
#: The width of the level or label, and of the space after it.
_LABEL_COLUMNS = len("warning") + 2


@dataclass(frozen=True)
class AuditReport:
    """The result of an audit."""

    findings: Sequence[Finding]
    #: A line for each schedule that could not be read.
    unread: Sequence[str]
    #: How much was audited.
    rules: int
    beat_entries: int
    tasks: int

    def counts(self) -> dict[str, int]:
        """The number of findings of each level."""
        return {level: sum(f.level == level for f in self.findings) for level in LEVELS}


def as_json(report: AuditReport) -> dict[str, Any]:
    """The report as one object; docs/reference/audit.schema.json describes it."""
    found = [{"id": one.pop("rule"), **one} for one in map(asdict, report.findings)]
    return {
        "findings": found,
        "counts": report.counts(),
        "checked": {
            "rules": report.rules,
            "beat_entries": report.beat_entries,
            "tasks": report.tasks,
        },
        "unread": list(report.unread),
    }


def show(
    report: AuditReport, *, color: bool, file: IO[str] | None = None, width: int | None = None
) -> None:
    """Print the report: a block for each finding, then a summary.

    ``width`` is in columns; None: the terminal's width, or a fixed one without a terminal.
    """
    from rich.console import Console  # slow to import, and only people need it
    from rich.text import Text

    console = Console(
        file=file,
        width=width,
        # Otherwise "no colour" would still print bold text.
        color_system="auto" if color and "NO_COLOR" not in os.environ else None,
    )
    if not (width or console.is_terminal or "COLUMNS" in os.environ):
        console.width = _PLAIN_WIDTH
    with console.capture() as captured:
        for finding in report.findings:
            console.print(_block(finding, console.width))
        console.print(Text(_summary(report)))
    text = "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
    click.echo(text, file=file, nl=False, color=True)


def _packed(items: Sequence[str], columns: int) -> str:
    """The items, as many on each line as fit. An item that fits on one line is not broken."""
    lines: list[str] = []
    for position, item in enumerate(items, start=1):
        text = item if position == len(items) else f"{item},"
        if lines and len(lines[-1]) + 1 + len(text) <= columns:
            lines[-1] += f" {text}"
        else:
            lines.append(text)
    return "\n".join(lines)


def _block(finding: Finding, width: int) -> Any:
    from rich.table import Table
    from rich.text import Text

    block = Table.grid(padding=(0, 2, 0, 0), expand=False)
    block.add_column(no_wrap=True, min_width=_LABEL_COLUMNS - 2)
    block.add_column(overflow="fold")
    # Text, so that rich reads nothing in a name as markup.
    block.add_row(
        Text(finding.level, style=_STYLES[finding.level]), Text(finding.rule, style="bold")
    )
    found = [f"{name} {value}" for name, value in finding.evidence.items()]
    for label, text in (
        ("where", finding.subject),
        ("", finding.happens),
        ("found", _packed(found, width - _LABEL_COLUMNS)),
        ("change", finding.change),
    ):
        if text:
            block.add_row(Text(label, style="dim"), Text(text))
    block.add_row("", "")
    return block


def _summary(report: AuditReport) -> str:
    counted = [count(n, level) for level, n in report.counts().items() if n]
    entries = count(report.beat_entries, "Beat entry", "Beat entries")
    looked = f"{report.rules} rules on {count(report.tasks, 'task')} and {entries}"
    return f"{', '.join(counted) or 'No findings'}; {looked}."
