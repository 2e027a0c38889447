"""Rules: entries in a store, and the scheduler that reads it."""

from __future__ import annotations

from collections.abc import Iterator

from worker_guard.commands.audit.facts import Facts
from worker_guard.commands.audit.finding import Finding


def stored_entries_not_run(facts: Facts) -> Iterator[Finding]:
    """Entries of a scheduler that no setting names."""
    for store in facts.stored:
        happens = (
            "Beat sends these entries only if its command line names their scheduler; the audit "
            "assumes that it does, and applies that scheduler's rules."
            if store.assumed
            else "Beat sends none of these entries, unless its command line names their scheduler; "
            "the audit skips them."
        )
        yield Finding(
            level="note",
            subject=f"entries of {store.source}",
            happens=happens,
            evidence={"entries": store.count, "beat_scheduler": store.named},
            change=facts.spelling.line("beat_scheduler", f'"{store.scheduler}"'),
        )
