"""Rules: what happens to a task whose child is killed."""

from __future__ import annotations

from collections.abc import Iterator

from worker_guard.commands.audit.facts import Facts, TaskFacts
from worker_guard.commands.audit.finding import Finding
from worker_guard.values.counts import some

_LATE, _REJECT = "task_acks_late", "task_reject_on_worker_lost"
_BOTH = "acks_late=True, reject_on_worker_lost=True"


def acks_late_without_reject(facts: Facts) -> Iterator[Finding]:
    """Late acknowledgement alone does not bring a killed task back."""
    tasks = [task for task in _unprotected(facts) if task.reject_on_worker_lost is None]
    conf = facts.delivery
    everywhere = conf.acks_late and conf.reject_on_worker_lost is None
    if (everywhere and conf.retry_on_worker_lost) or not facts.has_children:
        return
    if tasks or (everywhere and not facts.tasks):
        yield Finding(
            level="warning",
            subject=_LATE if everywhere else _subject(tasks),
            happens="A task whose child is killed (out of memory, a signal) is acknowledged as "
            "FAILURE and does not run again; only the loss of the whole worker brings it back.",
            evidence=_evidence(facts, tasks),
            change=facts.spelling.line(_REJECT, "True")
            if everywhere
            else facts.spelling.task(_BOTH),
        )


def reject_false_does_not_requeue(facts: Facts) -> Iterator[Finding]:
    """``False`` is common advice to run a killed task again. ``True`` does that."""
    tasks = [task for task in _unprotected(facts) if task.reject_on_worker_lost is False]
    conf = facts.delivery
    everywhere = conf.acks_late and conf.reject_on_worker_lost is False
    if (everywhere and conf.retry_on_worker_lost) or not facts.has_children:
        return
    if tasks or (everywhere and not facts.tasks):
        yield Finding(
            level="warning",
            subject=_REJECT if everywhere else _subject(tasks),
            happens="With False a task whose child is killed is acknowledged as FAILURE; only True "
            "puts it back into the queue.",
            evidence=_evidence(facts, tasks),
            change=facts.spelling.line(_REJECT, "True")
            if everywhere
            else facts.spelling.task(_BOTH),
        )


def reject_without_acks_late(facts: Facts) -> Iterator[Finding]:
    """``reject_on_worker_lost`` alone has no message left to reject."""
    conf = facts.delivery
    everywhere = bool(conf.reject_on_worker_lost) and not conf.acks_late
    tasks = [task for task in facts.tasks if task.reject_on_worker_lost and not task.acks_late]
    # As a setting it works for the tasks that acknowledge late.
    if everywhere and len(tasks) < len(facts.tasks):
        return
    if tasks or everywhere:
        yield Finding(
            level="warning",
            subject=_REJECT if everywhere else _subject(tasks),
            happens="It has no effect: the message is acknowledged when the task begins, so a task "
            "whose child is killed is lost.",
            evidence=_evidence(facts, tasks),
            change=facts.spelling.line(_LATE, "True  # for tasks that may run twice")
            if everywhere
            else facts.spelling.task(_BOTH),
        )


def _unprotected(facts: Facts) -> list[TaskFacts]:
    return [
        task
        for task in facts.tasks
        if task.acks_late and not task.reject_on_worker_lost and not task.retry_on_worker_lost
    ]


def _subject(tasks: list[TaskFacts]) -> str:
    return f"task {some([task.name for task in tasks])}"


def _evidence(facts: Facts, tasks: list[TaskFacts]) -> dict[str, object]:
    conf = facts.delivery
    settings = (conf.acks_late, conf.reject_on_worker_lost)
    own = {(task.acks_late, task.reject_on_worker_lost) for task in tasks}
    named = {"tasks": some([task.name for task in tasks])} if tasks else {}
    if len(own) == 1 and own != {settings}:
        # The tasks' own values, which override the settings.
        ((late, reject),) = own
        return {"acks_late": late, "reject_on_worker_lost": reject, **named}
    return {_LATE: settings[0], _REJECT: settings[1], **named}
