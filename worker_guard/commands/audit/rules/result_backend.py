"""Rules: how long results stay."""

from __future__ import annotations

from collections.abc import Iterator

from worker_guard.commands.audit.facts import Facts
from worker_guard.commands.audit.finding import Finding


def result_expires_never(facts: Facts) -> Iterator[Finding]:
    """Results on Redis without a TTL, if nothing else deletes them."""
    results = facts.results
    if not results.is_redis or results.expires_s or facts.guard.deletes_results:
        return
    if results.ignored and all(task.ignore_result for task in facts.tasks):
        return
    yield Finding(
        level="warning",
        subject="result_expires",
        happens="No result ever expires in Redis, so its memory grows with each task.",
        evidence={"result_expires": results.expires_s, "result_backend": results.backend},
        change=facts.spelling.line("result_expires", "86400  # seconds; Celery's default"),
    )
