"""What one worker's guard answered, read into plain values. Pure.

The answer comes from another process, perhaps of another release: what is missing is unknown
(None), and what has the wrong type makes the whole answer a broken one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from worker_guard.errors import WorkerGuardError

T = TypeVar("T")


class BrokenReplyError(WorkerGuardError):
    """A worker answered with something that is not the state of a guard.

    Another program may answer under that name, or a release that this one can't read.
    """


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task that a child runs."""

    task_id: str
    task_name: str
    running_s: float | None


@dataclass(frozen=True, kw_only=True)
class Process:
    """The main process or a child. ``used_bytes`` is None before the first reading.

    ``metric`` is what was read of it: RSS alone where that is within the limit.
    """

    pid: int | None
    used_bytes: int | None
    metric: str = ""
    age_s: float | None = None
    recycles: int | None = None
    leaving: bool = False
    task: Task | None = None


@dataclass(frozen=True, kw_only=True)
class Suspension:
    """Why no child is recycled for now; ``setting`` is what to change."""

    reason: str | None
    baseline_bytes: int | None
    limit_bytes: int | None
    setting: str | None
    retry_in_s: float | None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The processes of a worker; without a limit (None) they are only watched."""

    main: Process
    main_limit_bytes: int | None
    children: tuple[Process, ...]
    child_limit_bytes: int | None
    suspended: Suspension | None
    suspects: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Revoked:
    """The ids of the revoked set, by origin: None each where the set is not watched.

    ``clearing`` of them are on their way out, and gone in ``next_clear_s``.
    """

    total: int | None
    operator: int | None
    expired: int | None
    proven: int | None
    unproven: int | None
    would_clear: int | None
    stamps: int | None
    clearing: int | None
    next_clear_s: float | None


@dataclass(frozen=True, kw_only=True)
class Cleanup:
    """A sweep: its three figures, and how long ago it ended."""

    age_s: float | None
    trigger: str | None
    revoked_tasks_cleared: int | None
    expired_results_deleted: int | None
    task_states_cleaned: int | None


@dataclass(frozen=True, kw_only=True)
class Backfill:
    """Tasks that expired in the queue, how long they had waited, and why; told ``age_s`` ago."""

    age_s: float | None
    expired_tasks: int | None
    tasks: Mapping[str, int]
    waited_s_p50: float | None
    waited_s_max: float | None
    causes: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Alert:
    """An alert that is active."""

    alert: str
    value: float | None
    threshold: float | None
    since_s: float | None


@dataclass(frozen=True, kw_only=True)
class GuardState:
    """The state of one worker's guard; ``off`` and ``failing`` hold the parts that are not well."""

    version: str
    pool: str | None
    concurrency: int | None
    uptime_s: float | None
    active_tasks: int | None
    dry_run: bool
    off: Mapping[str, str]
    failing: Mapping[str, int]
    revoked: Revoked | None
    memory: Memory | None
    totals: Mapping[str, int]
    last_cleanup: Cleanup | None
    last_clearing: Cleanup | None
    last_results_cleanup: Cleanup | None
    last_backfill: Backfill | None
    alerts: tuple[Alert, ...]


def read_guard(answer: object) -> GuardState:
    """The state that this answer holds.

    Raises:
        BrokenReplyError: it is not the answer of a guard.
    """
    _check_json(answer)
    reply = _Object(answer, "the answer")
    version = reply.text("version")
    if version is None:
        raise BrokenReplyError(f"the answer has no version: {_short(answer)}")
    uptime_s = reply.number("uptime_s")
    parts = reply.inner("parts") or _Object({}, "parts")
    return GuardState(
        version=version,
        pool=reply.text("pool"),
        concurrency=reply.whole("concurrency"),
        uptime_s=uptime_s,
        active_tasks=reply.whole("active_tasks"),
        dry_run=bool(reply.flag("dry_run")),
        off={name: why for name in parts.names() if (why := parts.text(name) or "") != "on"},
        failing={
            name: count for name, count in reply.counts("consecutive_failures").items() if count
        },
        revoked=reply.read("revoked", _revoked),
        memory=reply.read("memory", lambda memory: _memory(memory, uptime_s=uptime_s)),
        totals=reply.counts("totals"),
        last_cleanup=reply.read("last_cleanup", _cleanup),
        last_clearing=reply.read("last_clearing", _cleanup),
        last_results_cleanup=reply.read("last_results_cleanup", _cleanup),
        last_backfill=reply.read("last_backfill", _backfill),
        alerts=tuple(map(_alert, reply.inners("alerts"))),
    )


def _revoked(given: _Object) -> Revoked:
    return Revoked(
        total=given.whole("total"),
        operator=given.whole("operator"),
        expired=given.whole("expired"),
        proven=given.whole("proven"),
        unproven=given.whole("unproven"),
        would_clear=given.whole("would_clear"),
        stamps=given.whole("stamps"),
        clearing=given.whole("clearing"),
        next_clear_s=given.number("next_clear_s"),
    )


def _memory(given: _Object, *, uptime_s: float | None) -> Memory:
    parent = given.inner("parent") or _Object({}, "memory.parent")
    return Memory(
        main=Process(
            pid=parent.whole("pid"),
            used_bytes=parent.whole("used_bytes"),
            metric=parent.text("metric") or "",
            age_s=uptime_s,
        ),
        main_limit_bytes=given.whole("parent_limit_bytes"),
        children=tuple(map(_child, given.inners("children"))),
        child_limit_bytes=given.whole("child_limit_bytes"),
        suspended=given.read("suspended", _suspension),
        suspects=tuple(name for s in given.inners("suspects") if (name := s.text("task"))),
    )


def _suspension(given: _Object) -> Suspension:
    return Suspension(
        reason=given.text("reason"),
        baseline_bytes=given.whole("baseline_bytes"),
        limit_bytes=given.whole("limit_bytes"),
        setting=given.text("setting"),
        retry_in_s=given.number("retry_in_s"),
    )


def _child(given: _Object) -> Process:
    return Process(
        pid=given.whole("pid"),
        used_bytes=given.whole("used_bytes"),
        metric=given.text("metric") or "",
        age_s=given.number("age_s"),
        recycles=given.whole("recycles"),
        leaving=bool(given.flag("leaving")),
        task=given.read("task", _task),
    )


def _task(given: _Object) -> Task:
    return Task(
        task_id=given.text("task_id") or "",
        task_name=given.text("task_name") or "",
        running_s=given.number("running_s"),
    )


def _cleanup(given: _Object) -> Cleanup:
    return Cleanup(
        age_s=given.number("age_s"),
        trigger=given.text("trigger"),
        revoked_tasks_cleared=given.whole("revoked_tasks_cleared"),
        expired_results_deleted=given.whole("expired_results_deleted"),
        task_states_cleaned=given.whole("task_states_cleaned"),
    )


def _backfill(given: _Object) -> Backfill:
    return Backfill(
        age_s=given.number("age_s"),
        expired_tasks=given.whole("expired_tasks"),
        tasks=given.counts("tasks"),
        waited_s_p50=given.number("waited_s_p50"),
        waited_s_max=given.number("waited_s_max"),
        causes=given.counts("causes"),
    )


def _alert(given: _Object) -> Alert:
    return Alert(
        alert=given.text("alert") or "?",
        value=given.number("value"),
        threshold=given.number("threshold"),
        since_s=given.number("since_s"),
    )


class _Object:
    """A JSON object whose values are asked for by their type; what is null or absent is None."""

    def __init__(self, given: object, path: str) -> None:
        if not isinstance(given, Mapping):
            raise BrokenReplyError(f"{path} is not an object: {_short(given)}")
        self._given, self._path = given, path

    def names(self) -> list[str]:
        return sorted(map(str, self._given))

    def text(self, name: str) -> str | None:
        value: str | None = self._typed(name, str)
        return value

    def flag(self, name: str) -> bool | None:
        value: bool | None = self._typed(name, bool)
        return value

    def whole(self, name: str) -> int | None:
        value: int | None = self._typed(name, int)
        return value

    def number(self, name: str) -> float | None:
        value = self._typed(name, (int, float))
        return None if value is None else float(value)

    def counts(self, name: str) -> dict[str, int]:
        """An object of counts; what is null counts as 0."""
        inner = self.inner(name) or _Object({}, name)
        return {key: inner.whole(key) or 0 for key in inner.names()}

    def inner(self, name: str) -> _Object | None:
        value = self._given.get(name)
        return None if value is None else _Object(value, name)

    def read(self, name: str, reader: Callable[[_Object], T]) -> T | None:
        given = self.inner(name)
        return None if given is None else reader(given)

    def inners(self, name: str) -> list[_Object]:
        return [_Object(value, name) for value in self._typed(name, list) or ()]

    def _typed(self, name: str, kind: type | tuple[type, ...]) -> Any:
        value = self._given.get(name)
        # A bool is an int to Python, and none to JSON.
        if value is None or (isinstance(value, kind) and (kind is bool) == isinstance(value, bool)):
            return value
        raise BrokenReplyError(f"{name} in {self._path} is {_short(value)}")


def _check_json(answer: object) -> None:
    """Make sure that the answer can be printed as it is: JSON has no NaN, and no bytes."""
    try:
        json.dumps(answer, allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise BrokenReplyError(f"{_short(answer)} is not JSON ({exc})") from exc


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
