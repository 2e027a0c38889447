"""The answers of all workers as what is shown: one row each, with what is the matter. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from worker_guard.status.reply import BrokenReplyError, GuardState, Process, read_guard

Kind = Literal[
    "alert",
    "part_fails",
    "recycling_suspended",
    "no_guard",
    "unknown_command",
    "broken_reply",
    "no_answer",
    "duplicate_name",
]

#: A worker that stopped to answer is shown for so long.
REMEMBERED_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Something that is the matter with a worker."""

    kind: Kind
    text: str


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Who is there, in the order heard, and what each said.

    ``asked`` are those asked by name; ``left`` said since the answers before that they shut down.
    """

    present: Sequence[str]
    replies: Sequence[tuple[str, object]]
    asked: Sequence[str] = ()
    left: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class WorkerRow:
    """One worker. ``answer`` is what its guard said, as it was said."""

    name: str
    guard: GuardState | None = None
    answer: object = None
    troubles: tuple[Trouble, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """All workers that were asked, or answered, by name."""

    workers: tuple[WorkerRow, ...] = ()

    @property
    def trouble(self) -> bool:
        """Whether something is the matter with any of them."""
        return any(worker.troubles for worker in self.workers)

    def worst_first(self) -> list[WorkerRow]:
        """Those that something is the matter with, then the others."""
        return sorted(self.workers, key=lambda worker: not worker.troubles)


def read_fleet(answers: Answers) -> Fleet:
    """One row for each worker that answered or was asked by its name."""
    replies: dict[str, object] = {}
    for name, reply in answers.replies:
        replies.setdefault(name, reply)
    heard = Counter(answers.present)
    names = {*heard, *replies, *answers.asked}
    return Fleet(workers=tuple(_row(name, replies, heard[name]) for name in sorted(names)))


def _row(name: str, replies: Mapping[str, object], heard: int) -> WorkerRow:
    if name not in replies:
        text = "is there, but its guard did not answer in time" if heard else "no answer in time"
        return WorkerRow(name=name, troubles=(Trouble(kind="no_answer", text=text),))
    twice: tuple[Trouble, ...] = ()
    if heard > 1:
        text = f"{heard} workers answer to this name; give each its own with -n"
        twice = (Trouble(kind="duplicate_name", text=text),)
    answer = replies[name]
    error = answer.get("error") if isinstance(answer, Mapping) else None
    if isinstance(error, str):
        return WorkerRow(name=name, troubles=(_error(error), *twice))
    try:
        guard = read_guard(answer)
    except BrokenReplyError as exc:
        broken = Trouble(kind="broken_reply", text=f"not the answer of a guard: {exc}")
        return WorkerRow(name=name, troubles=(broken, *twice))
    return WorkerRow(name=name, guard=guard, answer=answer, troubles=(*_troubles_of(guard), *twice))


def is_unknown_command(answer: object) -> bool:
    """Whether a worker says that it has no such command: worker_guard was never imported there.

    kombu's mailbox answers with the error that it met, and puts a traceback into the worker's log.
    """
    error = answer.get("error") if isinstance(answer, Mapping) else None
    return isinstance(error, str) and error.startswith(("KeyError(", "Unknown control command"))


def _error(error: str) -> Trouble:
    if is_unknown_command({"error": error}):
        return Trouble(kind="unknown_command", text="worker_guard is not loaded there")
    return Trouble(kind="no_guard", text=error)


def _troubles_of(guard: GuardState) -> Iterable[Trouble]:
    for alert in guard.alerts:
        value = "?" if alert.value is None else f"{alert.value:g}"
        threshold = "?" if alert.threshold is None else f"{alert.threshold:g}"
        since = "" if alert.since_s is None else f", for {duration(alert.since_s)}"
        text = f"{alert.alert} is {value}, the threshold is {threshold}{since}"
        yield Trouble(kind="alert", text=text)
    for part, failures in guard.failing.items():
        times = "time" if failures == 1 else "times in a row"
        text = f"{part} failed {failures} {times}; the worker's log says why"
        yield Trouble(kind="part_fails", text=text)
    if guard.memory is not None and guard.memory.suspended_baseline_bytes is not None:
        text = "recycling is suspended: a new child already uses more than the limit"
        yield Trouble(kind="recycling_suspended", text=text)


def document(fleet: Fleet) -> dict[str, Any]:
    """What ``--json`` prints; ``guard`` is what ``inspect guard`` answers."""
    return {
        "trouble": fleet.trouble,
        "workers": {
            worker.name: {
                "guard": worker.answer,
                "troubles": [{"kind": t.kind, "text": t.text} for t in worker.troubles],
            }
            for worker in fleet.workers
        },
    }


@dataclass
class Remembered:
    """The workers that were seen, so that one which stops to answer does not just vanish."""

    _seen: dict[str, tuple[WorkerRow, float]] = field(default_factory=dict)

    def add(self, fleet: Fleet, now: float) -> Fleet:
        """These workers, and those that answered before and don't any more."""
        answered = {w.name: w for w in fleet.workers if w.guard is not None}
        self._seen.update({name: (worker, now) for name, worker in answered.items()})
        self._seen = {
            name: seen for name, seen in self._seen.items() if now - seen[1] <= REMEMBERED_S
        }
        rows = {worker.name: worker for worker in fleet.workers}
        for name, (worker, seen_mono) in self._seen.items():
            if name not in rows or _is_silent(rows[name]):
                text = f"no answer for {duration(now - seen_mono)}; this is its last one"
                rows[name] = replace(worker, troubles=(Trouble(kind="no_answer", text=text),))
        return Fleet(workers=tuple(rows[name] for name in sorted(rows)))


def _is_silent(worker: WorkerRow) -> bool:
    return any(trouble.kind == "no_answer" for trouble in worker.troubles)


def share(process: Process, limit_bytes: int | None) -> float | None:
    """How much of its limit a process uses; None: it has no limit, or was not read yet."""
    if not limit_bytes or process.used_bytes is None:
        return None
    return process.used_bytes / limit_bytes


def biggest(children: Sequence[Process], count: int | None) -> list[Process]:
    """The children that use most, with those on their way out first; all where count is None."""
    ordered = sorted(children, key=lambda c: (not c.leaving, -(c.used_bytes or 0), c.pid or 0))
    return ordered[:count]


def duration(seconds: float) -> str:
    """A time span for people, in its two largest units."""
    whole = max(0, int(seconds))
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    for (name, size), (next_name, next_size) in pairwise(units):
        if whole >= size:
            rest = whole % size // next_size
            more = f" {rest} {next_name}" if rest and name != "min" else ""
            return f"{whole // size} {name}{more}"
    return f"{whole} s"
