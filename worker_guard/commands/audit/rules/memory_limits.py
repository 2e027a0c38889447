"""Rules: Celery's own memory limit for a child."""

from __future__ import annotations

from collections.abc import Iterator

from worker_guard.commands.audit.facts import Facts
from worker_guard.commands.audit.finding import Finding
from worker_guard.commands.audit.spelling import plain
from worker_guard.values.sizes import size

_SETTING = "worker_max_memory_per_child"
_KIB = 1024

#: No process that imports Celery is this small: such a number was meant in another unit.
_SMALLEST_KIB = 8 * 1024
#: From here on a number makes sense as bytes, but not as KiB.
_BYTES_FROM = 20_000_000


def memory_limit_unit(facts: Facts) -> Iterator[Finding]:
    """The limit is in KiB, but the number looks like bytes or megabytes."""
    memory = facts.memory
    if not facts.has_children:
        return
    if memory.malformed_child_limit is not None:
        yield Finding(
            level="error",
            subject=_SETTING,
            happens="Each child dies after its first task: Celery can only compare with a number.",
            evidence={_SETTING: memory.malformed_child_limit},
            change=facts.spelling.line(_SETTING, "400_000  # KiB, a plain number: 410 MB"),
        )
        return
    limit_kib = memory.child_limit_kib
    if limit_kib is None or not (_is_bytes(facts) or limit_kib < _SMALLEST_KIB):
        return
    evidence: dict[str, object] = {
        _SETTING: plain(limit_kib),
        "as_KiB": size(limit_kib * _KIB),
        "this_machine_has": size(memory.available_bytes),
    }
    if _is_bytes(facts):
        yield Finding(
            level="error",
            subject=_SETTING,
            happens="The limit is never reached: the number is in KiB, but looks like bytes.",
            evidence=evidence,
            change=facts.spelling.line(_SETTING, f"{limit_kib / _KIB:.0f}  # KiB"),
        )
    else:
        yield Finding(
            level="error",
            subject=_SETTING,
            happens="Every child is replaced after every task: the number is in KiB, but looks "
            "like megabytes.",
            evidence=evidence,
            change=facts.spelling.line(_SETTING, f"{limit_kib * 1000:.0f}  # KiB"),
        )


def memory_limit_below_newborn(facts: Facts) -> Iterator[Finding]:
    """A limit that a child exceeds before its first task."""
    memory = facts.memory
    limit_kib = memory.child_limit_kib
    if limit_kib is None or limit_kib < _SMALLEST_KIB or not facts.has_children:
        return
    if limit_kib * _KIB < memory.newborn_bytes:
        wanted_kib = 2 * memory.newborn_bytes / _KIB
        yield Finding(
            level="error",
            subject=_SETTING,
            happens="Every child is replaced after every task: a new child inherits the main "
            "process's size, and exceeds the limit from its start.",
            evidence={
                _SETTING: f"{plain(limit_kib)} KiB, which is {size(limit_kib * _KIB)}",
                "newborn_estimate": f"{size(memory.newborn_bytes)}, the RSS of this process, "
                "which has loaded the app as a worker does",
            },
            change=facts.spelling.line(_SETTING, f"{wanted_kib:.0f}  # KiB; or ")
            + facts.spelling.name("worker_guard_child_memory_limit")
            + ", which counts a child's own memory",
        )


def memory_limit_beside_guard(facts: Facts) -> Iterator[Finding]:
    """Celery's limit beside the guard's; Celery's compares the peak."""
    memory = facts.memory
    limit_kib, guard_bytes = memory.child_limit_kib, memory.guard_child_limit_bytes
    if limit_kib is None or guard_bytes is None or _is_bytes(facts) or not facts.has_children:
        return
    first = limit_kib * _KIB <= guard_bytes
    yield Finding(
        level="warning" if first else "note",
        subject=_SETTING,
        happens=(
            "Celery's limit is reached first, by a child's peak with the shared pages, and the "
            "guard seldom acts."
            if first
            else "Celery's limit compares a child's peak, which includes shared pages: it can "
            "replace a child that the guard would leave alone."
        ),
        evidence={
            _SETTING: size(limit_kib * _KIB),
            "worker_guard_child_memory_limit": size(guard_bytes),
        },
        change=facts.spelling.line(_SETTING, "None"),
    )


def _is_bytes(facts: Facts) -> bool:
    limit_kib = facts.memory.child_limit_kib
    return (
        limit_kib is not None
        and limit_kib >= _BYTES_FROM
        and limit_kib * _KIB > facts.memory.available_bytes
    )
