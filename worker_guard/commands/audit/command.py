"""``celery guard audit``."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

import click

from worker_guard.commands.audit.finding import Finding, Level, apply_rules, reaches
from worker_guard.commands.audit.gather import gather
from worker_guard.commands.audit.render import AuditReport, as_json, show
from worker_guard.commands.audit.rules import RULES
from worker_guard.commands.console import (
    EX_OK,
    EX_TROUBLE,
    EX_UNAVAILABLE,
    EX_USAGE,
    is_default_app,
    say,
    set_up_django,
    told,
)
from worker_guard.values.masking import masked


def run_audit(app: Any, *, json_wanted: bool, fail_on: Level, color: bool) -> int:
    """Audit the app, print the findings, and return the exit code.

    1: a finding reaches ``fail_on``; else 69: a schedule could not be read.
    """
    try:
        # What the app's modules print while they load does not belong to the answer.
        with redirect_stdout(sys.stderr):
            set_up_django()
            facts, unread = gather(app)
    except Exception as exc:  # noqa: BLE001 - any error of the app's modules, in one line
        say(f"The app can't be loaded: {told(exc)[0]}")
        return EX_USAGE
    if is_default_app(app):
        say("There is no app to audit. Name it: celery -A proj guard audit")
        return EX_USAGE
    report = AuditReport(
        findings=[_without_passwords(finding) for finding in apply_rules(facts, RULES)],
        unread=unread,
        rules=len(RULES),
        beat_entries=len(facts.entries),
        tasks=len(facts.tasks),
    )
    if json_wanted:
        click.echo(json.dumps(as_json(report)))
    else:
        show(report, color=color)
    for line in unread:
        say(f"This schedule could not be read, and was not audited: {line}")
    if any(reaches(finding, fail_on) for finding in report.findings):
        return EX_TROUBLE
    return EX_UNAVAILABLE if unread else EX_OK


def _without_passwords(finding: Finding) -> Finding:
    return replace(
        finding,
        subject=masked(finding.subject),
        happens=masked(finding.happens),
        evidence=masked(finding.evidence),
        change=masked(finding.change),
    )
