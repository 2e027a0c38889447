"""The audit's screen in the documentation: a fixed report with findings of each level."""

from __future__ import annotations

import io

from worker_guard.commands.audit.facts import (
    BeatEntry,
    DeliveryFacts,
    Facts,
    GuardFacts,
    MemoryFacts,
    ResultsFacts,
)
from worker_guard.commands.audit.finding import apply_rules
from worker_guard.commands.audit.gaps import Gaps
from worker_guard.commands.audit.render import AuditReport, show
from worker_guard.commands.audit.rules import RULES

AUDIT_SCREEN = "audit-80.txt"


def report() -> AuditReport:
    """What the rules say where one Beat entry expires too soon, and another never."""
    minute, crontab = Gaps(60.0, 60.0), "<crontab: */10 * * * * (m/h/dM/MY/d)>"
    facts = Facts(
        entries=(
            BeatEntry(
                name="sync",
                task="proj.sync",
                schedule="every 1 min",
                gaps=minute,
                expires=30.0,
                task_id="nightly",
            ),
            BeatEntry(name="mails", task="proj.mails", schedule=crontab, gaps=Gaps(600.0, 600.0)),
        ),
        delivery=DeliveryFacts(acks_late=True),
        memory=MemoryFacts(child_limit_kib=200.0),
        results=ResultsFacts(is_redis=True, backend="RedisBackend", expires_s=None),
        guard=GuardFacts(dry_run=True),
    )
    return AuditReport(
        findings=apply_rules(facts, RULES), unread=(), rules=len(RULES), beat_entries=2, tasks=0
    )


def audit_screen() -> str:
    """What the command prints of it on 80 columns."""
    out = io.StringIO()
    show(report(), color=False, file=out, width=80)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())
