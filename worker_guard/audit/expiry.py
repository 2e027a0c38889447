"""Rules: when the messages of a Beat schedule expire."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from worker_guard.audit.facts import BeatEntry, Facts, Moment, Odd
from worker_guard.audit.finding import Finding, Level
from worker_guard.audit.spelling import names, seconds

HOUR_S, DAY_S = 3600.0, 86400.0
#: A daily entry is an hour shorter once a year, and a solar one a few minutes.
_DAILY_S = 23 * HOUR_S

#: Celery adds this entry by itself; a cleanup that is left out is made up by the next one.
_CELERYS_OWN = "celery.backend_cleanup"


def expires_absolute(facts: Facts) -> Iterator[Finding]:
    """An ``expires`` that is a fixed time: computed once, at import, and then the same for all."""
    for entry in facts.entries:
        expires = entry.expires
        if not isinstance(expires, Moment) or entry.ends_at_expires or expires.never:
            continue
        over = expires.ahead_s <= 0
        happens = (
            "Each run is born expired: workers discard it, and keep its id."
            if over
            else f"From {expires.written} on, each run is born expired until Beat is started again."
        )
        yield _finding(
            entry,
            "error" if over else "warning",
            happens,
            {"expires": expires.written, "from_now": _ahead(expires.ahead_s)},
            _set_expires(
                entry, DAY_S if entry.gaps is None else _lifetime_s(entry.gaps.shortest_s)
            ),
        )
    in_beat = {entry.task for entry in facts.entries if entry.expires_of_task}
    own = {t.name: t.expires for t in facts.tasks if t.name not in in_beat}
    fixed = {name: moment for name, moment in own.items() if isinstance(moment, Moment)}
    if fixed:
        over = any(moment.ahead_s <= 0 for moment in fixed.values())
        yield Finding(
            level="error" if over else "warning",
            subject=f"task {names(list(fixed))}",
            happens="From then on each message is born expired until its sender is started again.",
            evidence={"expires": names([f"{m.written} of {name}" for name, m in fixed.items()])},
            change=f"@app.task(expires={DAY_S:.0f})  # seconds from when it is sent",
        )


def expires_before_start(facts: Facts) -> Iterator[Finding]:
    """An entry that has expired before it may begin."""
    for entry in facts.entries:
        begins_s = entry.countdown_s or 0.0
        if not isinstance(entry.expires, float) or entry.expires > begins_s:
            continue
        yield _finding(
            entry,
            "error",
            "No run is ever executed: it has expired by the time at which it may begin.",
            {"expires": seconds(entry.expires), "countdown": seconds(begins_s)},
            _set_expires(entry, begins_s + HOUR_S),
        )


def expires_not_a_time(facts: Facts) -> Iterator[Finding]:
    """An ``expires`` or a ``countdown`` that Celery can't send, or reads as another time."""
    for entry in facts.entries:
        if isinstance(entry.expires, Moment) and entry.expires.never:
            yield _finding(
                entry,
                "warning",
                "A run never expires: Celery reads a text of four digits as a year.",
                {"expires": entry.expires.written},
                _set_expires(entry, HOUR_S),
            )
        if entry.countdown_odd is not None:
            yield _finding(
                entry,
                "error",
                "Beat logs an error at each run and sends nothing: a countdown is in seconds.",
                {"countdown": entry.countdown_odd},
                f'{_options(entry)}["countdown"] = 60  # seconds',
            )
        if isinstance(entry.expires, Odd):
            yield _finding(
                entry,
                "error",
                "Beat logs an error at each run and sends nothing: Celery takes seconds or a time "
                "before the year 10000.",
                {"expires": entry.expires.written},
                _set_expires(entry, HOUR_S),
            )


def expires_shorter_than_interval(facts: Facts) -> Iterator[Finding]:
    """A run that expires before the next one is sent: while workers are behind, none is left."""
    for entry, expires_s, gap_s in _lasting(facts):
        if expires_s >= gap_s or (gap_s >= _DAILY_S and expires_s < DAY_S):
            continue
        rare = gap_s >= _DAILY_S
        yield _short(
            entry,
            expires_s,
            "note" if rare else "warning",
            f"A run that waits for {seconds(expires_s)} is discarded, and there is none in its "
            f"place until the next one, {seconds(gap_s)} after it.",
        )


def expires_under_an_hour(facts: Facts) -> Iterator[Finding]:
    """A frequent entry whose runs do not outlive a short outage."""
    for entry, expires_s, gap_s in _lasting(facts):
        if gap_s <= expires_s < HOUR_S:
            yield _short(
                entry,
                expires_s,
                "warning",
                f"After {seconds(expires_s)} without a free worker every run that waits is "
                "discarded, one by one, and each leaves its id in the workers' revoked sets.",
            )


def expires_under_a_day(facts: Facts) -> Iterator[Finding]:
    """A daily entry whose run does not outlive a night without workers."""
    for entry, expires_s, gap_s in _lasting(facts):
        if gap_s >= _DAILY_S and expires_s < DAY_S:
            yield _short(
                entry,
                expires_s,
                "note" if entry.task == _CELERYS_OWN else "warning",
                f"Where no worker takes it within {seconds(expires_s)} the day's run is lost, and "
                f"the next comes {seconds(gap_s)} after it.",
            )


def expires_naive(facts: Facts) -> Iterator[Finding]:
    """A time without a zone: Celery reads it as UTC, also with ``enable_utc`` off."""
    offset_s = facts.delivery.utc_offset_s
    level: Level = "warning" if offset_s else "note"
    shift = f"{seconds(abs(offset_s))} {'later' if offset_s > 0 else 'earlier'}"
    happens = "Celery reads a datetime without a zone as UTC: one of local time takes effect " + (
        f"{shift} than it says." if offset_s else "at another time where the zone is not UTC."
    )
    for entry in facts.entries:
        given = {"expires": entry.expires, "eta": entry.eta}
        fixed = {k: v for k, v in given.items() if isinstance(v, Moment) and not v.never}
        found = {name: moment.written for name, moment in fixed.items() if moment.naive}
        if found and not (entry.expires_of_task and "eta" not in found):
            change = "datetime.now(timezone.utc) in place of datetime.now(), or seconds"
            yield _finding(entry, level, happens, {**found, "utc_offset": _ahead(offset_s)}, change)
    for task in facts.tasks:
        if isinstance(task.expires, Moment) and task.expires.naive:
            yield Finding(
                level=level,
                subject=f"task {task.name}",
                happens=happens,
                evidence={"expires": task.expires.written, "utc_offset": _ahead(offset_s)},
                change="@app.task(expires=3600)  # seconds from when it is sent",
            )


def fixed_task_id(facts: Facts) -> Iterator[Finding]:
    """An entry that gives each run the same id."""
    for entry in facts.entries:
        if entry.task_id is None:
            continue
        heals = facts.guard.installed and facts.guard.enabled and not facts.guard.dry_run
        level: Level = "note"
        happens = "Each run overwrites the result of the one before, and to revoke one revokes all."
        if entry.expires is not None:
            level = "warning" if heals else "error"
            happens = "Once a run has expired, every worker that saw it discards all later ones" + (
                " until the guard has cleared the id." if heals else ", whether expired or not."
            )
        evidence = {"task_id": entry.task_id, "expires": _written(entry), "guard_heals": heals}
        change = f"remove task_id from {_options(entry)}: Celery then makes a new one for each run"
        yield _finding(entry, level, happens, evidence, change)


def _lasting(facts: Facts) -> Iterator[tuple[BeatEntry, float, float]]:
    """The entries whose runs can expire in the queue, with their lifetime and interval."""
    for entry in facts.entries:
        expires = entry.expires
        if entry.gaps is None or not isinstance(expires, float):
            continue
        if expires > (entry.countdown_s or 0.0):
            yield entry, expires, entry.gaps.shortest_s


def _lifetime_s(gap_s: float) -> float:
    """How long a run should live: until the next one is there, and an hour at least."""
    return max(gap_s, HOUR_S)


def _short(entry: BeatEntry, expires_s: float, level: Level, happens: str) -> Finding:
    assert entry.gaps is not None
    shortest_s, longest_s = entry.gaps.shortest_s, entry.gaps.longest_s
    interval = seconds(shortest_s)
    if longest_s > shortest_s:
        interval += f" to {seconds(longest_s)}"
    evidence = {"schedule": entry.schedule, "interval": interval, "expires": seconds(expires_s)}
    change = _set_expires(entry, _lifetime_s(shortest_s))
    return _finding(entry, level, happens, evidence, change)


def _finding(
    entry: BeatEntry, level: Level, happens: str, evidence: Mapping[str, object], change: str
) -> Finding:
    return Finding(
        level=level,
        subject=f"Beat entry {entry.name}",
        happens=happens,
        evidence={"task": entry.task, **evidence, "source": entry.source},
        change=change,
    )


def _set_expires(entry: BeatEntry, wanted_s: float) -> str:
    if entry.expires_of_task:
        return f'@app.task(name="{entry.task}", expires={wanted_s:.0f})'
    if entry.source == "django-celery-beat":
        return f'PeriodicTask "{entry.name}": expire_seconds = {wanted_s:.0f}'
    return f'{_options(entry)}["expires"] = {wanted_s:.0f}'


def _options(entry: BeatEntry) -> str:
    if entry.source == "redbeat":
        return f'RedBeatSchedulerEntry "{entry.name}": options'
    return f'app.conf.beat_schedule["{entry.name}"]["options"]'


def _ahead(ahead_s: float) -> str:
    return ("-" if ahead_s < 0 else "+") + seconds(abs(ahead_s))


def _written(entry: BeatEntry) -> str | None:
    expires = entry.expires
    if isinstance(expires, Moment | Odd):
        return expires.written
    return None if expires is None else seconds(expires)
