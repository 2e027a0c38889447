"""Rules: when the messages of a Beat schedule expire."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import ceil, inf

from worker_guard.commands.audit.facts import BeatEntry, Facts, Malformed, Moment, When
from worker_guard.commands.audit.finding import Finding, Level
from worker_guard.commands.audit.spelling import Spelling, plain
from worker_guard.values.counts import some
from worker_guard.values.durations import duration

HOUR_S, DAY_S = 3600.0, 86400.0
#: The shortest gap of a daily entry: DST makes one an hour shorter, solar time a few minutes.
_DAILY_S = 23 * HOUR_S

#: The most runs of a frequent entry that may wait; further runs repeat the same work.
A_FEW = 5

#: Celery adds this entry itself. If one cleanup is left out, the next makes up for it.
_CELERYS_OWN = "celery.backend_cleanup"


def expires_absolute(facts: Facts) -> Iterator[Finding]:
    """An ``expires`` that is a fixed time, computed once at import and the same for all runs."""
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
            {"expires": expires.written, "from_now": _signed(expires.ahead_s)},
            _set_expires(facts, entry),
        )
    in_beat = {entry.task for entry in facts.entries if entry.expires_of_task}
    own = {t.name: t.expires for t in facts.tasks if t.name not in in_beat}
    fixed = {name: moment for name, moment in own.items() if isinstance(moment, Moment)}
    if fixed:
        over = any(moment.ahead_s <= 0 for moment in fixed.values())
        yield Finding(
            level="error" if over else "warning",
            subject=f"task {some(list(fixed))}",
            happens="From then on each message is born expired until its sender is started again.",
            evidence={"expires": some([f"{m.written} of {name}" for name, m in fixed.items()])},
            change=facts.spelling.task("expires=…") + _FROM_SENDING,
        )


def expires_before_start(facts: Facts) -> Iterator[Finding]:
    """A run that expires before it may begin."""
    for entry in facts.entries:
        if not isinstance(entry.expires, float) or entry.expires > _delay_s(entry):
            continue
        yield _finding(
            entry,
            "error",
            "No run is ever executed: each expires before it may begin.",
            {"expires": duration(entry.expires), "countdown": duration(_delay_s(entry))},
            _set_expires(facts, entry),
        )


def expires_not_a_time(facts: Facts) -> Iterator[Finding]:
    """An ``expires`` or ``countdown`` that Celery can't send, or reads as another time."""
    for entry in facts.entries:
        if isinstance(entry.expires, Moment) and entry.expires.never:
            yield _finding(
                entry,
                "warning",
                "A run never expires: Celery reads a text of four digits as a year.",
                {"expires": entry.expires.written},
                _set_expires(facts, entry),
            )
        if entry.malformed_countdown is not None:
            yield _finding(
                entry,
                "error",
                "Beat logs an error at each run and sends nothing: a countdown must be in seconds.",
                {"countdown": entry.malformed_countdown},
                _set_option(facts.spelling, entry, "countdown", "60") + "  # seconds",
            )
        if isinstance(entry.expires, Malformed):
            yield _finding(
                entry,
                "error",
                "Beat logs an error at each run and sends nothing: Celery takes seconds or a time "
                "before the year 10000.",
                {"expires": entry.expires.written},
                _set_expires(facts, entry),
            )


def expires_ignored_by_scheduler(facts: Facts) -> Iterator[Finding]:
    """An expiry in an option that only another scheduler reads."""
    for entry in facts.entries:
        if entry.ignored_expires is None:
            continue
        name, value = entry.ignored_expires
        if entry.expires is None:
            happens = f"Its runs never expire: {facts.scheduler} does not read this option."
        elif entry.expires_of_task:
            happens = f"The task's own expiry counts: {facts.scheduler} does not read this option."
        else:
            # The entry also has the expiry that counts.
            continue
        meant_s = value if isinstance(value, float) and _is_advisable(entry, value) else None
        yield _finding(
            entry,
            "warning",
            happens,
            {name: _written(value), "schedule": entry.schedule},
            _set_expires(facts, replace(entry, expires_of_task=False), meant_s),
        )


def options_ignored_by_scheduler(facts: Facts) -> Iterator[Finding]:
    """Options of an entry that Beat does not put into its messages."""
    for entry in facts.entries:
        if not entry.ignored_options:
            continue
        yield _finding(
            entry,
            "warning",
            f"They have no effect: {facts.scheduler} keeps the queue, the exchange, the routing "
            "key, the priority, the headers and expire_seconds, and drops all other options.",
            {"options": some(entry.ignored_options)},
            f"remove them from {_options(facts.spelling, entry)}; set task options, such as a time "
            f"limit, on the task: {facts.spelling.task('time_limit=…')}",
        )


def interval_rounded_down(facts: Facts) -> Iterator[Finding]:
    """An interval that the scheduler rounds down to whole seconds."""
    for entry in facts.entries:
        if entry.interval_s is None:
            continue
        given, whole = f"{plain(entry.interval_s)} s", f"{int(entry.interval_s)} s"
        level: Level = "warning"
        happens = f"The entry runs every {whole}: {facts.scheduler} keeps whole seconds."
        if entry.interval_s < 1:
            level = "error"
            happens = (
                f"Beat sends it without a pause once it reads the database again: there "
                f"{given} is 0 s."
            )
        yield _finding(
            entry,
            level,
            happens,
            {"interval": given, "kept": whole},
            f'{_entry(facts.spelling, entry)}["schedule"] = {ceil(entry.interval_s)}',
        )


def expires_shorter_than_interval(facts: Facts) -> Iterator[Finding]:
    """A run that expires before the next one is sent: if workers are behind, none is left."""
    for entry, lives_s, gap_s in _waiting_runs(facts):
        if lives_s >= gap_s or (gap_s >= _DAILY_S and lives_s < DAY_S):
            continue
        yield _expiry_finding(
            facts,
            entry,
            "note" if gap_s >= _DAILY_S else "warning",
            f"A run that waits for {duration(lives_s)} is discarded, and the next one is "
            f"sent {duration(gap_s)} after it.",
        )


def expires_under_a_day(facts: Facts) -> Iterator[Finding]:
    """A daily entry whose run does not outlive a night without workers."""
    for entry, lives_s, gap_s in _waiting_runs(facts):
        if gap_s >= _DAILY_S and lives_s < DAY_S:
            yield _expiry_finding(
                facts,
                entry,
                "note" if entry.task == _CELERYS_OWN else "warning",
                f"If no worker takes it within {duration(lives_s)}, the day's run is lost, and the "
                f"next one comes {duration(gap_s)} after it.",
            )


def runs_pile_up(facts: Facts) -> Iterator[Finding]:
    """A frequent entry whose runs outlive many later runs."""
    for entry, lives_s, gap_s in _waiting_runs(facts, also_for_ever=True):
        if gap_s >= HOUR_S or A_FEW * gap_s >= lives_s:
            continue
        if entry.ignored_expires is not None and entry.expires is None:
            continue
        waiting = int(min(lives_s, HOUR_S) / gap_s)
        yield _expiry_finding(
            facts,
            entry,
            "note",
            "If no worker takes them while Beat is up, runs pile up: after an hour there are "
            f"{waiting}, and when the workers are back they run all of them.",
            runs_after_an_hour=waiting,
        )


def expires_naive(facts: Facts) -> Iterator[Finding]:
    """A time without a zone: Celery reads it as UTC, even with ``enable_utc`` off."""
    offset_s = facts.delivery.utc_offset_s
    level: Level = "warning" if offset_s else "note"
    shift = f"{duration(abs(offset_s))} {'later' if offset_s > 0 else 'earlier'}"
    happens = "Celery reads a datetime without a zone as UTC: a local time takes effect " + (
        f"{shift} than it says." if offset_s else "at another time if its zone is not UTC."
    )
    for entry in facts.entries:
        given = {"expires": entry.expires, "eta": entry.eta}
        fixed = {k: v for k, v in given.items() if isinstance(v, Moment) and not v.never}
        found = {name: moment.written for name, moment in fixed.items() if moment.naive}
        if found and not (entry.expires_of_task and "eta" not in found):
            change = "datetime.now(timezone.utc) in place of datetime.now(), or seconds"
            if entry.source == "django-celery-beat":
                change = "USE_TZ = True in Django's settings, or expire_seconds"
            yield _finding(
                entry, level, happens, {**found, "utc_offset": _signed(offset_s)}, change
            )
    for task in facts.tasks:
        if isinstance(task.expires, Moment) and task.expires.naive:
            yield Finding(
                level=level,
                subject=f"task {task.name}",
                happens=happens,
                evidence={"expires": task.expires.written, "utc_offset": _signed(offset_s)},
                change=facts.spelling.task("expires=…") + _FROM_SENDING,
            )


def fixed_task_id(facts: Facts) -> Iterator[Finding]:
    """An entry that gives each run the same id."""
    for entry in facts.entries:
        if entry.task_id is None:
            continue
        heals = facts.guard.installed and facts.guard.enabled and not facts.guard.dry_run
        level: Level = "note"
        happens = "Each run overwrites the result of the run before, and revoking one revokes all."
        if entry.expires is not None:
            level = "warning" if heals else "error"
            happens = "Once a run has expired, every worker that saw it discards all later ones" + (
                " until the guard has cleared the id." if heals else ", whether expired or not."
            )
        evidence = {"task_id": entry.task_id, "expires": _written(entry.expires)}
        change = (
            f"remove task_id from {_options(facts.spelling, entry)}: Celery then gives each run a "
            "new one"
        )
        yield _finding(entry, level, happens, {**evidence, "guard_heals": heals}, change)


#: If it is not known how often a message is sent, no number can be advised.
_FROM_SENDING = "  # seconds from when it is sent, for as long as a run is useful"


def _delay_s(entry: BeatEntry) -> float:
    """Seconds from when a run is sent until it may begin."""
    return max(entry.countdown_s or 0.0, 0.0)


def _waiting_runs(
    facts: Facts, *, also_for_ever: bool = False
) -> Iterator[tuple[BeatEntry, float, float]]:
    """The entries whose runs can wait in the queue, how long they can wait, and their interval."""
    for entry in facts.entries:
        if entry.gaps is None:
            continue
        expires, gap_s = entry.expires, entry.gaps.shortest_s
        if isinstance(expires, float):
            if expires > _delay_s(entry):
                yield entry, expires - _delay_s(entry), gap_s
        elif also_for_ever and (expires is None or entry.ends_at_expires):
            yield entry, inf, gap_s


def has_successors(entry: BeatEntry) -> bool:
    """Whether a run of this frequent entry lives until the next one is sent."""
    if entry.gaps is None or not isinstance(entry.expires, float):
        return False
    gap_s = entry.gaps.shortest_s
    return gap_s < HOUR_S and entry.expires - _delay_s(entry) >= gap_s


def _is_advisable(entry: BeatEntry, expires_s: float) -> bool:
    """Whether no rule finds anything with this expiry."""
    if entry.gaps is None:
        return expires_s > _delay_s(entry)
    lives_s, gap_s = expires_s - _delay_s(entry), entry.gaps.shortest_s
    return lives_s >= _enough_s(gap_s) and (gap_s >= HOUR_S or lives_s <= A_FEW * gap_s)


def _enough_s(gap_s: float) -> float:
    """How long a run should live: until the next one is sent, and a daily run for a day."""
    return max(gap_s, DAY_S) if gap_s >= _DAILY_S else gap_s


def _expiry_finding(
    facts: Facts, entry: BeatEntry, level: Level, happens: str, **evidence: object
) -> Finding:
    assert entry.gaps is not None
    shortest_s, longest_s = entry.gaps.shortest_s, entry.gaps.longest_s
    interval = duration(shortest_s)
    if longest_s > shortest_s:
        interval += f" to {duration(longest_s)}"
    found = {
        "schedule": entry.schedule,
        "interval": interval,
        "expires": _written(entry.expires),
        **evidence,
    }
    return _finding(entry, level, happens, found, _set_expires(facts, entry))


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


def _set_expires(facts: Facts, entry: BeatEntry, wanted_s: float | None = None) -> str:
    """The line that sets the entry's expiry: to ``wanted_s``, or to one interval."""
    if wanted_s is None and entry.gaps is not None:
        wanted_s = _delay_s(entry) + _enough_s(entry.gaps.shortest_s)
    # In whole seconds, as the database stores it.
    wanted = "…" if wanted_s is None else f"{ceil(wanted_s)}"
    why = _FROM_SENDING if wanted_s is None else ""
    if entry.ends_at_expires:
        why = ", instead of its expires: only one of them can be set"
    if entry.expires_of_task:
        return facts.spelling.task(f'name="{entry.task}", expires={wanted}') + why
    if entry.source == "django-celery-beat":
        return f'PeriodicTask "{entry.name}": expire_seconds = {wanted}{why}'
    return _set_option(facts.spelling, entry, entry.expires_option, wanted) + why


def _set_option(spelling: Spelling, entry: BeatEntry, option: str, value: str) -> str:
    if entry.has_options:
        return f'{_options(spelling, entry)}["{option}"] = {value}'
    return f'{_options(spelling, entry)} = {{"{option}": {value}}}'


def _options(spelling: Spelling, entry: BeatEntry) -> str:
    if entry.source == "redbeat":
        return f'RedBeatSchedulerEntry "{entry.name}": options'
    return f'{_entry(spelling, entry)}["options"]'


def _entry(spelling: Spelling, entry: BeatEntry) -> str:
    return f'{spelling.name("beat_schedule")}["{entry.name}"]'


def _signed(ahead_s: float) -> str:
    return ("-" if ahead_s < 0 else "+") + duration(abs(ahead_s))


def _written(value: When) -> str | None:
    if isinstance(value, Moment | Malformed):
        return value.written
    return None if value is None else duration(value)
