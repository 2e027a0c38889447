"""The answers of all workers as rows: one for each worker, with its troubles. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from worker_guard.commands.status import troubles
from worker_guard.commands.status.loading import BrokenReplyError, load_status
from worker_guard.commands.status.troubles import Trouble, leave
from worker_guard.status_model import ChildStatus, GuardStatus
from worker_guard.values.counts import count, some
from worker_guard.values.durations import duration

#: Seconds for which a worker that stopped answering stays on screen.
REMEMBERED_S = 600.0

#: Workers in trouble that the verdict names.
_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The workers that are there, in the order heard, and what each answered.

    ``asked`` are the workers that were asked by name. ``left`` have said, since the last answers,
    that they shut down.
    """

    present: Sequence[str]
    replies: Sequence[tuple[str, object]]
    asked: Sequence[str] = ()
    left: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class WorkerRow:
    """One worker. ``answer`` is the unchanged answer of its guard, ``old_s`` ago.

    ``is_gone``: the worker said that it shuts down, which is no trouble.
    """

    name: str
    guard: GuardStatus | None = None
    answer: object = None
    troubles: tuple[Trouble, ...] = ()
    old_s: float = 0.0
    is_gone: bool = False


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """All workers that were asked or answered, by name; ``expected`` is how many should answer."""

    workers: tuple[WorkerRow, ...] = ()
    answered: int = 0
    expected: int | None = None

    @property
    def too_few(self) -> bool:
        """Whether fewer answered than are expected."""
        return self.expected is not None and self.answered < self.expected

    @property
    def trouble(self) -> bool:
        """Whether any worker is in trouble, or too few answered."""
        return self.too_few or any(worker.troubles for worker in self.workers)

    @property
    def all_gone(self) -> bool:
        """Whether there were workers, and each of them shut down."""
        return bool(self.workers) and all(worker.is_gone for worker in self.workers)

    def worst_first(self) -> list[WorkerRow]:
        """Workers in trouble, then the others, then those that are gone."""
        return sorted(self.workers, key=lambda worker: (worker.is_gone, not worker.troubles))

    def verdict(self) -> str:
        """The state of all workers in one line."""
        there = [worker for worker in self.workers if not worker.is_gone]
        ill = [worker for worker in there if worker.troubles]
        facts = []
        if self.too_few:
            were = "was" if self.expected == 1 else "were"
            facts.append(f"{self.answered} answered, {self.expected} {were} expected")
        if ill:
            named = some((f"{w.name} ({troubles.kinds(w.troubles)})" for w in ill), _NAMED)
            facts.append(f"{len(ill)} of {count(len(there), 'worker')}: {named}")
        if facts:
            return f"trouble: {'; '.join(facts)}"
        facts = [count(len(there), "worker")]
        if gone := len(self.workers) - len(there):
            facts.append(f"{gone} shut down")
        return f"ok: {', '.join(facts)}; {_outlook(there)}nothing to do"


def _outlook(workers: Sequence[WorkerRow]) -> str:
    """What the guards will do without help."""
    guards = [w.guard for w in workers if w.guard is not None and not w.guard.dry_run]
    waiting = [guard.revoked for guard in guards if leave(guard)]
    known = [revoked for revoked in waiting if revoked is not None]
    if not known:
        return ""
    ids = sum(revoked.clearing or 0 for revoked in known)
    last_s = max(revoked.next_clear_s or 0.0 for revoked in known)
    return f"{count(ids, 'id')} will be cleared in {duration(last_s)}; "


def read_fleet(answers: Answers, *, expected: int | None = None) -> Fleet:
    """One row for each worker that answered or was asked by its name."""
    replies: dict[str, object] = {}
    for name, reply in answers.replies:
        replies.setdefault(name, reply)
    heard = Counter(answers.present)
    names = {*heard, *replies, *answers.asked}
    return Fleet(
        workers=tuple(_row(name, replies, heard[name]) for name in sorted(names)),
        answered=len(answers.present),
        expected=expected,
    )


def _row(name: str, replies: Mapping[str, object], heard: int) -> WorkerRow:
    if name not in replies:
        return WorkerRow(name=name, troubles=(troubles.no_answer(is_there=heard > 0),))
    twice = (troubles.shared_name(heard),) if heard > 1 else ()
    answer = replies[name]
    error = answer.get("error") if isinstance(answer, Mapping) else None
    if isinstance(error, str):
        unknown = is_unknown_command(answer)
        trouble = troubles.not_loaded() if unknown else troubles.not_running(error)
        return WorkerRow(name=name, troubles=(trouble, *twice))
    try:
        guard = load_status(answer)
    except BrokenReplyError as exc:
        return WorkerRow(name=name, troubles=(troubles.broken_reply(str(exc)), *twice))
    found = (*troubles.troubles_of(guard), *twice)
    return WorkerRow(name=name, guard=guard, answer=answer, troubles=found)


def is_unknown_command(answer: object) -> bool:
    """Whether a worker says that it has no such command: it never imported worker_guard.

    kombu's mailbox answers with the error, and logs a traceback in the worker.
    """
    error = answer.get("error") if isinstance(answer, Mapping) else None
    return isinstance(error, str) and error.startswith(("KeyError(", "Unknown control command"))


def document(fleet: Fleet) -> dict[str, Any]:
    """What ``--json`` prints; ``guard`` is what ``inspect guard`` answers."""
    return {
        "trouble": fleet.trouble,
        "answered": fleet.answered,
        "expected": fleet.expected,
        "workers": {
            worker.name: {
                "guard": worker.answer,
                "troubles": [
                    {"kind": t.kind, "text": t.text, "to_do": t.to_do} for t in worker.troubles
                ],
            }
            for worker in fleet.workers
        },
    }


@dataclass
class Remembered:
    """The workers that were seen, so that one that stops answering stays on screen."""

    _seen: dict[str, tuple[WorkerRow, float]] = field(default_factory=dict)
    _left: set[str] = field(default_factory=set)

    def add(self, fleet: Fleet, now: float, left: Sequence[str] = ()) -> Fleet:
        """These workers, and those that answered before and no longer do.

        ``left`` are those that said that they shut down. One that answers is back.
        """
        answered = {w.name: w for w in fleet.workers if w.guard is not None}
        self._seen.update({name: (worker, now) for name, worker in answered.items()})
        self._seen = {
            name: seen for name, seen in self._seen.items() if now - seen[1] <= REMEMBERED_S
        }
        self._left = ({*self._left, *left} - answered.keys()) & self._seen.keys()
        rows = {worker.name: worker for worker in fleet.workers}
        for name, (worker, seen_mono) in self._seen.items():
            if name not in rows or _is_silent(rows[name]):
                rows[name] = self._silent(worker, now - seen_mono)
        return replace(fleet, workers=tuple(rows[name] for name in sorted(rows)))

    def _silent(self, worker: WorkerRow, for_s: float) -> WorkerRow:
        if worker.name in self._left:
            return replace(worker, troubles=(), old_s=for_s, is_gone=True)
        return replace(worker, troubles=(troubles.fell_silent(for_s),), old_s=for_s)


def _is_silent(worker: WorkerRow) -> bool:
    return any(trouble.kind == "no_answer" for trouble in worker.troubles)


def biggest(children: Sequence[ChildStatus], most: int | None) -> list[ChildStatus]:
    """The leaving children, then those that use most memory; all of them if ``most`` is None."""
    ordered = sorted(children, key=lambda c: (not c.leaving, -(c.used_bytes or 0), c.pid or 0))
    return ordered[:most]
