"""What is wrong with a worker, and what to do about it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from worker_guard.status_model import (
    AlertStatus,
    ChildStatus,
    GuardStatus,
    KilledStatus,
    MemoryStatus,
    ProcessStatus,
    StallStatus,
    SuspensionStatus,
)
from worker_guard.values.counts import count, some
from worker_guard.values.durations import duration
from worker_guard.values.sizes import size

TroubleKind = Literal[
    "alert",
    "over_limit",
    "stalled",
    "child_killed",
    "part_fails",
    "recycling_suspended",
    "no_guard",
    "unknown_command",
    "broken_reply",
    "no_answer",
    "duplicate_name",
]

#: Of more processes or tasks only so many are named.
_NAMED = 3

#: Seconds for which a child that was killed is trouble.
_KILLED_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Something that is wrong with a worker, and what to do about it."""

    kind: TroubleKind
    text: str
    to_do: str


def not_running(reason: str) -> Trouble:
    """No guard runs in the worker."""
    to_do = "if it should run there, fix that and restart the worker"
    return Trouble(kind="no_guard", text=reason, to_do=to_do)


def not_loaded() -> Trouble:
    """The worker never loaded the package."""
    to_do = 'put app.steps["worker"].add(WorkerGuard) into the module of its app, then restart it'
    return Trouble(kind="unknown_command", text="worker_guard is not loaded there", to_do=to_do)


def broken_reply(why: str) -> Trouble:
    """Another program answered, or a release that this one can't read."""
    text = f"the answer is not a guard's status: {why}"
    to_do = "run the same release of worker_guard there and here"
    return Trouble(kind="broken_reply", text=text, to_do=to_do)


def shared_name(workers: int) -> Trouble:
    """Workers share a mailbox, so the figures may be those of either."""
    text = f"{workers} workers answer to this name"
    return Trouble(kind="duplicate_name", text=text, to_do="give each its own with -n")


def no_answer(*, is_there: bool) -> Trouble:
    """The guard did not answer; if ``is_there``, the worker answered a ping."""
    if is_there:
        text = "answers a ping, but its guard did not answer in time"
        to_do = "try a longer --timeout; if that does not help, it hangs: see its log"
    else:
        text, to_do = "no answer in time", "check whether it runs: its supervisor, its log"
    return Trouble(kind="no_answer", text=text, to_do=to_do)


def fell_silent(for_s: float) -> Trouble:
    """The worker answered before, and did not say that it shuts down."""
    text = f"no answer for {duration(for_s)}; its figures are old"
    to_do = "check whether it runs: its supervisor, its log"
    return Trouble(kind="no_answer", text=text, to_do=to_do)


def troubles_of(guard: GuardStatus) -> Iterator[Trouble]:
    """What is wrong by the guard's own answer."""
    if guard.stall is not None and guard.stall.stalled:
        yield _stalled(guard.stall, guard)
    for alert in guard.alerts:
        yield _alert(alert, guard)
    if guard.memory is not None:
        yield from _over_limit(guard.memory, guard)
        if guard.memory.suspended is not None:
            yield _suspended(guard.memory.suspended)
    if guard.last_killed is not None and (guard.last_killed.age_s or 0) < _KILLED_S:
        yield _killed(guard.last_killed)
    for part, failures in guard.failing.items():
        text = f"{part} failed {count(failures, 'time')}{'' if failures == 1 else ' in a row'}"
        to_do = "see why: grep worker_guard.part_failed in the worker's log"
        yield Trouble(kind="part_fails", text=text, to_do=to_do)


# -- the consumer ------------------------------------------------------------------------------


def _stalled(stall: StallStatus, guard: GuardStatus) -> Trouble:
    waits = "waits" if stall.waiting_messages == 1 else "wait"
    where = "" if stall.queue is None else f" in the queue {stall.queue}"
    messages = count(stall.waiting_messages, "message") if stall.waiting_messages else "messages"
    since = "" if stall.idle_s is None else f", and none has come for {duration(stall.idle_s)}"
    text = f"the consumer has stalled: {messages} {waits}{where}{since}"
    to_do = "restart the worker; worker_guard_stall_action can have it connect again by itself"
    if guard.dry_run:
        to_do = "restart the worker: in a dry run the guard does nothing"
    elif stall.action == "reconnect":
        to_do = "nothing; the guard has it connect again"
    elif stall.action == "wait":
        tasks = count(stall.held_back_by, "task") if stall.held_back_by else "its tasks"
        to_do = f"nothing; it connects again when {tasks} would no longer run twice by that"
    elif stall.action == "shutdown":
        to_do = "nothing; it shuts down when its tasks have ended"
    return Trouble(kind="stalled", text=text, to_do=to_do)


# -- alerts ------------------------------------------------------------------------------------


def _alert(alert: AlertStatus, guard: GuardStatus) -> Trouble:
    since = "" if alert.since_s is None else f", for {duration(alert.since_s)}"
    value, threshold = _number(alert.value), _number(alert.threshold)
    text, to_do = f"{alert.alert} is {value}, the threshold is {threshold}", "see the worker's log"
    if alert.alert == "revoked_tasks":
        ids = "id" if alert.value == 1 else "ids"
        text = f"the guard will not clear {value} {ids}, the threshold is {threshold}"
        to_do = _about_ids(guard)
    elif alert.alert == "redis_memory":
        value, threshold = _percent(alert.value), _percent(alert.threshold)
        text = (
            f"the result backend's Redis uses {value} of its memory, the threshold is {threshold}"
        )
        to_do = "celery guard cleanup --dry-run says which old results would go"
    elif alert.alert == "recycles_per_hour":
        were = "child was" if alert.value == 1 else "children were"
        text = f"{value} {were} replaced in the last hour, the threshold is {threshold}"
        suspects = (guard.memory and guard.memory.suspects) or ()
        named = f": {some((s.task for s in suspects), _NAMED)}" if suspects else ""
        to_do = f"fix the task whose memory grows{named}"
    elif alert.alert == "unacked_without_index":
        text, to_do = _lost_messages(int(alert.value or 0))
    return Trouble(kind="alert", text=f"{text}{since}", to_do=to_do)


def _lost_messages(messages: int) -> tuple[str, str]:
    """Entries of ``unacked`` without an index: what that means, and what to do."""
    have, them, they = ("has", "it", "it is") if messages == 1 else ("have", "them", "they are")
    text = (
        f"{count(messages, 'unacknowledged message')} in the broker {have} no index: if no worker "
        f"holds {them} any more, {they} never delivered again"
    )
    return text, "give each an index: the how-to page, “Put messages back into unacked_index”"


def leave(guard: GuardStatus) -> str:
    """``56 ids will be cleared in 24 s``; empty if no id will be cleared."""
    revoked = guard.revoked
    if revoked is None or not revoked.clearing:
        return ""
    would = "would be" if guard.dry_run else "will be"
    when = "" if revoked.next_clear_s is None else f" in {duration(revoked.next_clear_s)}"
    return f"{count(revoked.clearing, 'id')} {would} cleared{when}"


def _about_ids(guard: GuardStatus) -> str:
    """The alert counts ids that are neither an operator's nor about to be cleared."""
    if "revoked_verify" in guard.failing:
        return "make the result backend answer again; then the guard clears them"
    return "see why they stay: the how-to page, “Find out why an id stays”"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:g}"


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{share:.0%}".replace("%", " %")


# -- memory ------------------------------------------------------------------------------------


def share(process: ProcessStatus, limit_bytes: int | None) -> float | None:
    """How much of its limit a process uses; None if it has no limit, or was not read yet."""
    if not limit_bytes or process.used_bytes is None:
        return None
    return process.used_bytes / limit_bytes


def _over_limit(memory: MemoryStatus, guard: GuardStatus) -> Iterator[Trouble]:
    parent, parent_limit, limit = memory.parent, memory.parent_limit_bytes, memory.child_limit_bytes
    if parent and parent_limit and (share(parent, parent_limit) or 0) > 1:
        yield Trouble(
            kind="over_limit",
            text=f"the main process uses {_used(parent, parent_limit)}, its limit is "
            f"{size(parent_limit, parent_limit)}",
            to_do="restart the worker, unless worker_guard_parent_action is shutdown",
        )
    total, total_limit = memory.total_bytes, memory.total_limit_bytes
    if total and total_limit and total > total_limit:
        yield Trouble(
            kind="over_limit",
            text=f"all processes together use {size(total, total_limit)}, their limit is "
            f"{size(total_limit, total_limit)}",
            to_do=_about_children([c for c in memory.children if c.leaving], memory, guard),
        )
    over = [child for child in memory.children if (share(child, limit) or 0) > 1]
    if not over or not limit:
        return
    over.sort(key=lambda child: -(child.used_bytes or 0))
    if len(over) == 1:
        text = (
            f"child {over[0].pid} uses {_used(over[0], limit)}, its limit is {size(limit, limit)}"
        )
    else:
        each = some((f"{child.pid} ({_used(child, limit)})" for child in over), _NAMED)
        text = f"{len(over)} children use more than their limit of {size(limit, limit)}: {each}"
    yield Trouble(kind="over_limit", text=text, to_do=_about_children(over, memory, guard))


def _about_children(over: list[ChildStatus], memory: MemoryStatus, guard: GuardStatus) -> str:
    """What to do about the first of them: the guard replaces one child at a time."""
    off = guard.off.get("recycling")
    if off is not None:
        return f"restart the worker: recycling is off: {off}"
    if guard.dry_run:
        return "nothing in a dry run: it would be replaced"
    if memory.suspended is not None:
        return "see recycling suspended"
    leaving = [child for child in over if child.leaving]
    if not leaving:
        return "nothing; it is replaced soon"
    task = leaving[0].task
    if task is None:
        return "nothing; it is on its way out"
    since = "" if task.running_s is None else f", which has run for {duration(task.running_s)}"
    return f"nothing; it leaves when its task ends ({task.task_name}{since})"


def _used(process: ProcessStatus, limit_bytes: int) -> str:
    return size(process.used_bytes or 0, limit_bytes)


def _killed(killed: KilledStatus) -> Trouble:
    """Which task ran when it was killed, and by whom."""
    task = f", running {killed.task_name or '?'} {killed.task_id}" if killed.task_id else ""
    used = "" if killed.used_bytes is None else f"; it last used {size(killed.used_bytes)}"
    by = f"by {killed.signal}"
    if killed.oom:
        by = "by the kernel, which had no memory left"
        to_do = "set worker_guard_total_memory_limit, give it more memory, or run fewer children"
    elif killed.signal == "SIGKILL":
        to_do = "find out who sends SIGKILL: the kernel's log, a supervisor, a person"
    else:
        to_do = "if the task calls native code, look there; see the kernel's log"
    when = "" if killed.age_s is None else f", {duration(killed.age_s)} ago"
    text = f"child {killed.child_pid} was killed {by}{when}{task}{used}"
    return Trouble(kind="child_killed", text=text, to_do=to_do)


def _suspended(suspension: SuspensionStatus) -> Trouble:
    limit = suspension.limit_bytes
    of_limit = f" of {size(limit, limit)}" if limit else ""
    setting = suspension.setting or "worker_guard_child_memory_limit"
    to_do = f"raise {setting}"
    match suspension.reason:
        case "regrows_at_once":
            text = f"each new child is over the limit{of_limit} again after its first tasks"
        case "replacement_not_up":
            if suspension.setting is None:
                text = "each new child ends before it is up"
                to_do = "see its error in the worker's log"
            else:
                text = "a replacement is not up within the time that Celery gives it"
                to_do = f"raise {suspension.setting}, or make children start faster"
        case _ if suspension.setting == "worker_guard_total_memory_limit":
            used = suspension.baseline_bytes
            use = "" if used is None else f", {size(used, limit)},"
            text = (
                f"all processes together{use} would be over the limit{of_limit} with new children"
            )
            to_do += ", load less before the fork, or run fewer children"
        case _:
            used = suspension.baseline_bytes
            uses = "" if used is None else f" uses {size(used, limit)} and so"
            text = f"a new child{uses} is already over the limit{of_limit}"
    if suspension.retry_in_s is not None:
        text += f"; it is tried again in {duration(suspension.retry_in_s)}"
    return Trouble(kind="recycling_suspended", text=f"no child is replaced: {text}", to_do=to_do)


def kinds(troubles: Iterable[Trouble]) -> str:
    """The kinds of these troubles, in short."""
    return ", ".join(dict.fromkeys(words(trouble.kind) for trouble in troubles))


#: Kinds that need another word.
_WORDS: Mapping[str, str] = {"unknown_command": "not loaded"}


def words(kind: str) -> str:
    """A kind, for people."""
    return _WORDS.get(kind, kind.replace("_", " "))
