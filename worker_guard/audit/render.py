"""Findings as people read them, and as machines do."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any

from worker_guard.audit.finding import LEVELS, Finding

_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
_PLAIN_WIDTH = 100


@dataclass(frozen=True)
class Report:
    """What an audit came to."""

    findings: Sequence[Finding]
    #: Schedules that could not be read, a line for each.
    unread: Sequence[str]
    #: How much was looked at, by name.
    checked: Mapping[str, int]

    def counts(self) -> dict[str, int]:
        """How many findings of each level."""
        return {level: sum(f.level == level for f in self.findings) for level in LEVELS}


def as_json(report: Report) -> dict[str, Any]:
    """The report as one object; docs/reference/audit.schema.json describes it."""
    found = [{"id": one.pop("rule"), **one} for one in map(asdict, report.findings)]
    return {
        "findings": found,
        "counts": report.counts(),
        "checked": dict(report.checked),
        "unread": list(report.unread),
    }


def show(report: Report, *, color: bool, file: IO[str] | None = None) -> None:
    """Print the report: a block for each finding, and how many there are."""
    from rich.console import Console  # not at the top: for people only

    console = Console(
        file=file,
        highlight=False,
        markup=False,
        emoji=False,
        # Without this, "no colour" would leave the bold.
        color_system="auto" if color and "NO_COLOR" not in os.environ else None,
    )
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PLAIN_WIDTH
    for finding in report.findings:
        console.print(_block(finding))
    console.print(_summary(report))


def _block(finding: Finding) -> Any:
    from rich.table import Table
    from rich.text import Text

    block = Table.grid(padding=(0, 2, 0, 0), expand=False)
    block.add_column(no_wrap=True, min_width=len("warning"))
    block.add_column(overflow="fold")
    # Text, so that nothing in a name is taken for markup.
    block.add_row(
        Text(finding.level, style=_STYLES[finding.level]), Text(finding.rule, style="bold")
    )
    found = ", ".join(f"{name} {value}" for name, value in finding.evidence.items())
    for label, text in (
        ("where", finding.subject),
        ("", finding.happens),
        ("found", found),
        ("change", finding.change),
    ):
        if text:
            block.add_row(Text(label, style="dim"), Text(text))
    block.add_row("", "")
    return block


def _summary(report: Report) -> str:
    counted = [_plural(n, level) for level, n in report.counts().items() if n]
    looked = ", ".join(_plural(n, name) for name, n in report.checked.items())
    return f"{', '.join(counted) or 'No findings'} ({looked} checked)."


def _plural(number: int, name: str) -> str:
    name = name.replace("_", " ")
    if number == 1:
        return f"1 {name}"
    return f"{number} {name.removesuffix('y')}ies" if name.endswith("y") else f"{number} {name}s"
