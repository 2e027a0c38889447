"""The rules on a table of configurations, good ones too, and the page that explains them."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from celery.app.defaults import DEFAULTS

from tests.screens.audit import AUDIT_SCREEN, audit_screen
from tests.screens.draw import SCREENS
from tests.unit.test_docs import DOCS, ROOT, sections
from worker_guard.commands.audit.facts import (
    BeatEntry,
    DeliveryFacts,
    Facts,
    Flaw,
    GuardFacts,
    Malformed,
    MemoryFacts,
    Moment,
    ResultsFacts,
    StoredEntries,
    TaskFacts,
    Unreadable,
    When,
)
from worker_guard.commands.audit.finding import LEVELS, Finding, apply_rules, reaches
from worker_guard.commands.audit.gaps import Gaps
from worker_guard.commands.audit.render import AuditReport, show
from worker_guard.commands.audit.rules import IDS, RULES
from worker_guard.commands.audit.rules.expiry import A_FEW
from worker_guard.commands.audit.spelling import Spelling, on_one_line, plain

MINUTE, HOUR, DAY, WEEK = 60.0, 3600.0, 86400.0, 7 * 86400.0

PAST = Moment("2026-01-01T00:00:00+00:00", -DAY, naive=False)
AHEAD = Moment("2036-01-01T00:00:00+00:00", 10 * 365 * DAY, naive=False)
YEAR_3600 = Moment("3600-01-01T00:00:00", 1574 * 365 * DAY, naive=True)
NAIVE = Moment("2036-01-01T00:00:00", 10 * 365 * DAY, naive=True)


def every(gap_s: float, expires: When = None, **more: Any) -> Facts:
    """One Beat entry that runs so often."""
    gaps = Gaps(gap_s, more.pop("longest_s", gap_s))
    entry = BeatEntry(
        name="entry",
        task=more.pop("task", "proj.task"),
        schedule=more.pop("schedule", "every so often"),
        gaps=more.pop("gaps", gaps),
        expires=expires,
        **more,
    )
    return Facts(entries=(entry,))


def ignored(gap_s: float, name: str, value: When, **more: Any) -> Facts:
    """The same with an expiry from which DatabaseScheduler takes none."""
    given = {"expires_option": "expire_seconds", "ignored_expires": (name, value), **more}
    facts = every(gap_s, given.pop("expires", None), **given)
    return replace(facts, scheduler="django-celery-beat's DatabaseScheduler")


def stored(*, assumed: bool) -> StoredEntries:
    """Entries of django-celery-beat where no setting names its scheduler."""
    named = "celery.beat:PersistentScheduler"
    return StoredEntries("django-celery-beat", 3, "proj.beat:Scheduler", named, assumed)


def tasks(*given: TaskFacts, **delivery: Any) -> Facts:
    """These tasks, under these settings of delivery."""
    return Facts(tasks=given, delivery=DeliveryFacts(**delivery))


def task(**given: Any) -> TaskFacts:
    """One task."""
    return TaskFacts(name=given.pop("name", "proj.task"), **given)


def with_entry(facts: Facts, **delivery: Any) -> Facts:
    """The same under other settings of delivery."""
    return replace(facts, delivery=DeliveryFacts(**delivery))


def memory(**given: Any) -> Facts:
    """These limits of memory, for children of 60 MB on a machine of 8 GB."""
    return Facts(memory=MemoryFacts(**given))


def guard(**given: Any) -> Facts:
    """This guard; other facts by their name."""
    own = {k: v for k, v in given.items() if k in GuardFacts.__dataclass_fields__}
    rest = {k: v for k, v in given.items() if k not in own}
    return Facts(guard=GuardFacts(**own), **rest)


def redis_results(**given: Any) -> ResultsFacts:
    """A Redis result backend."""
    return ResultsFacts(is_redis=True, backend="RedisBackend", **given)


CHILD_LIMIT = frozenset({"worker_guard_child_memory_limit"})
MAX_AGE = frozenset({"worker_guard_results_max_age"})
RECYCLING = frozenset({"worker_guard_recycle_concurrency"})
METRICS_PORT = frozenset({"worker_guard_metrics_port"})
METRICS_HOST = frozenset({"worker_guard_metrics_host"})
HEARTBEAT_INTERVAL = frozenset({"worker_guard_heartbeat_interval"})
HEARTBEAT_FILE = frozenset({"worker_guard_heartbeat_file"})
BROKER_SCHEDULE = frozenset({"worker_guard_broker_schedule"})
REDIS_MEMORY = frozenset({"worker_guard_alert_redis_memory"})

#: Rule, level, and facts in which it finds that.
BAD: list[tuple[str, str, Facts]] = [
    ("entry-not-loadable", "error", every(DAY, flaw=Flaw("ends-beat", "TypeError: no expires"))),
    ("entry-not-loadable", "error", every(DAY, flaw=Flaw("no-task", "the task is None"))),
    ("entry-not-loadable", "error", every(DAY, flaw=Flaw("left-out", "expires can't be 5"))),
    ("entry-not-loadable", "error", every(DAY, flaw=Flaw("never-sent", "the options are 5"))),
    (
        "setting-not-readable",
        "error",
        Facts(unreadable=(Unreadable("result_expires", "ValueError: '1 day'"),)),
    ),
    ("expires-shorter-than-interval", "warning", every(5 * MINUTE, MINUTE)),
    ("expires-shorter-than-interval", "warning", every(6 * HOUR, 2 * HOUR)),
    ("expires-shorter-than-interval", "warning", every(HOUR, HOUR - 1)),
    ("expires-shorter-than-interval", "note", every(WEEK, DAY)),
    # It may begin a second before it expires.
    ("expires-shorter-than-interval", "warning", every(MINUTE, MINUTE, countdown_s=59.0)),
    ("runs-pile-up", "note", every(10.0)),
    ("runs-pile-up", "note", every(59 * MINUTE)),
    ("runs-pile-up", "note", every(10.0, HOUR)),
    ("runs-pile-up", "note", every(10.0, 10 * MINUTE)),
    ("runs-pile-up", "note", every(MINUTE, HOUR - 1, expires_of_task=True)),
    ("runs-pile-up", "note", every(MINUTE, AHEAD, ends_at_expires=True)),
    ("expires-ignored-by-scheduler", "warning", ignored(DAY, "expires", HOUR)),
    ("expires-ignored-by-scheduler", "warning", ignored(MINUTE, "expires", PAST)),
    ("expires-ignored-by-scheduler", "warning", ignored(MINUTE, "expires", Malformed("'soon'"))),
    ("expires-ignored-by-scheduler", "warning", ignored(MINUTE, "expire_seconds", 0.0)),
    (
        "expires-ignored-by-scheduler",
        "warning",
        ignored(MINUTE, "expires", HOUR, expires=MINUTE, expires_of_task=True),
    ),
    ("options-ignored-by-scheduler", "warning", every(DAY, ignored_options=("task_id",))),
    ("interval-rounded-down", "error", every(0.0, gaps=None, interval_s=0.5)),
    ("interval-rounded-down", "warning", every(1.0, 1.0, interval_s=1.5)),
    ("stored-entries-not-run", "note", Facts(stored=(stored(assumed=True),))),
    ("stored-entries-not-run", "note", Facts(stored=(stored(assumed=False),))),
    ("expires-under-a-day", "warning", every(DAY, HOUR)),
    ("expires-under-a-day", "warning", every(DAY, 12 * HOUR, source="django-celery-beat")),
    ("expires-under-a-day", "warning", every(WEEK, HOUR, source="redbeat")),
    # A solar day, or the day on which the clocks are set.
    ("expires-under-a-day", "warning", every(DAY - 120, 23.5 * HOUR)),
    ("expires-under-a-day", "note", every(DAY, 12 * HOUR, task="celery.backend_cleanup")),
    ("expires-absolute", "error", every(DAY, PAST)),
    ("expires-absolute", "warning", every(DAY, AHEAD)),
    ("expires-absolute", "error", every(DAY, PAST, gaps=None)),
    ("expires-absolute", "error", tasks(task(expires=PAST))),
    ("expires-absolute", "warning", tasks(task(expires=AHEAD))),
    ("expires-before-start", "error", every(DAY, 0.0)),
    ("expires-before-start", "error", every(DAY, -5.0)),
    ("expires-before-start", "error", every(DAY, HOUR, countdown_s=HOUR)),
    ("expires-not-a-time", "error", every(DAY, Malformed("datetime.timedelta(days=1)"))),
    (
        "expires-not-a-time",
        "error",
        every(DAY, malformed_countdown="datetime.timedelta(1)"),
    ),
    ("expires-not-a-time", "warning", every(DAY, YEAR_3600)),
    ("expires-naive", "note", every(DAY, NAIVE)),
    ("expires-naive", "warning", with_entry(every(DAY, NAIVE), utc_offset_s=HOUR)),
    ("expires-naive", "warning", with_entry(every(DAY, eta=NAIVE), utc_offset_s=-HOUR)),
    ("expires-naive", "note", tasks(task(expires=NAIVE))),
    ("fixed-task-id", "warning", every(DAY, DAY, task_id="same")),
    (
        "fixed-task-id",
        "error",
        replace(every(DAY, DAY, task_id="same"), guard=GuardFacts(installed=False)),
    ),
    (
        "fixed-task-id",
        "error",
        replace(every(DAY, DAY, task_id="same"), guard=GuardFacts(dry_run=True)),
    ),
    ("fixed-task-id", "note", every(DAY, task_id="same")),
    ("acks-late-without-reject", "warning", tasks(acks_late=True)),
    ("acks-late-without-reject", "warning", tasks(task(acks_late=True), acks_late=True)),
    ("acks-late-without-reject", "warning", tasks(task(acks_late=True), task(name="other"))),
    (
        "reject-false-does-not-requeue",
        "warning",
        tasks(acks_late=True, reject_on_worker_lost=False),
    ),
    (
        "reject-false-does-not-requeue",
        "warning",
        tasks(task(acks_late=True, reject_on_worker_lost=False), reject_on_worker_lost=True),
    ),
    ("reject-without-acks-late", "warning", tasks(reject_on_worker_lost=True)),
    (
        "reject-without-acks-late",
        "warning",
        tasks(task(reject_on_worker_lost=True), reject_on_worker_lost=True),
    ),
    (
        "reject-without-acks-late",
        "warning",
        tasks(task(reject_on_worker_lost=True), task(name="other")),
    ),
    ("memory-limit-below-newborn", "error", memory(child_limit_kib=50_000.0)),
    ("memory-limit-unit", "error", memory(child_limit_kib=200.0)),
    ("memory-limit-unit", "error", memory(child_limit_kib=200_000_000.0)),
    ("memory-limit-unit", "error", memory(malformed_child_limit="'400MB'")),
    (
        "memory-limit-beside-guard",
        "warning",
        memory(child_limit_kib=300_000.0, guard_child_limit_bytes=400_000_000),
    ),
    (
        "memory-limit-beside-guard",
        "note",
        memory(child_limit_kib=500_000.0, guard_child_limit_bytes=400_000_000),
    ),
    ("result-expires-never", "warning", Facts(results=redis_results(expires_s=None))),
    ("result-expires-never", "warning", Facts(results=redis_results(expires_s=0.0))),
    (
        "result-expires-never",
        "warning",
        Facts(results=redis_results(expires_s=None, ignored=True), tasks=(task(),)),
    ),
    (
        "visibility-timeout-short",
        "error",
        with_entry(every(DAY, countdown_s=2 * HOUR), transport="redis", visibility_timeout_s=HOUR),
    ),
    (
        "visibility-timeout-short",
        "error",
        with_entry(every(DAY, eta=AHEAD), transport="redis", visibility_timeout_s=HOUR),
    ),
    (
        "visibility-timeout-short",
        "warning",
        tasks(
            task(acks_late=True, reject_on_worker_lost=True, time_limit_s=2 * HOUR),
            visibility_timeout_s=HOUR,
        ),
    ),
    (
        "visibility-timeout-short",
        "warning",
        tasks(task(retry_delay_s=2 * HOUR), visibility_timeout_s=HOUR),
    ),
    ("prefetch-outlasts-expires", "warning", with_entry(every(HOUR, HOUR), prefetch_multiplier=0)),
    (
        "prefetch-outlasts-expires",
        "warning",
        with_entry(every(HOUR, HOUR), prefetch_multiplier=100),
    ),
    ("prefetch-outlasts-expires", "note", with_entry(every(HOUR, 200.0), prefetch_multiplier=4)),
    (
        "prefetch-outlasts-expires",
        "note",
        tasks(task(expires=HOUR), task(name="long", time_limit_s=DAY)),
    ),
    ("statedb-without-guard", "warning", guard(installed=False, statedb="worker.state")),
    ("statedb-without-guard", "warning", guard(enabled=False, statedb="worker.state")),
    ("guard-not-installed", "note", guard(installed=False)),
    ("guard-not-installed", "warning", guard(installed=False, given=CHILD_LIMIT)),
    ("guard-settings-rejected", "error", guard(rejected="worker_guard_x is not a setting")),
    ("guard-settings-rejected", "warning", guard(installed=False, rejected="it is not a setting")),
    ("guard-changes-nothing", "note", guard(dry_run=True)),
    ("guard-changes-nothing", "note", guard(enabled=False)),
    ("guard-setting-without-effect", "warning", guard(given=MAX_AGE)),
    ("guard-setting-without-effect", "warning", guard(given=CHILD_LIMIT, pool="solo")),
    ("guard-setting-without-effect", "warning", guard(given=REDIS_MEMORY)),
    ("guard-setting-without-effect", "warning", guard(given=BROKER_SCHEDULE)),
    ("guard-setting-without-effect", "warning", guard(parent_action="shutdown")),
    ("guard-setting-without-effect", "warning", guard(given=RECYCLING)),
    (
        "guard-setting-without-effect",
        "warning",
        guard(memory=MemoryFacts(guard_child_limit_bytes=10**9, guard_total_limit_bytes=10**9)),
    ),
    ("guard-setting-without-effect", "warning", guard(given=METRICS_HOST)),
    ("guard-setting-without-effect", "warning", guard(given=HEARTBEAT_INTERVAL)),
]

#: Rules, and facts in which they find nothing at all.
GOOD: list[tuple[str, Facts]] = [
    ("all", Facts()),
    ("all", every(10.0, 10.0)),
    ("all", every(10.0, 50.0)),
    ("all", every(MINUTE, 2 * MINUTE)),
    # An hour's outage leaves one run.
    ("all", every(HOUR)),
    ("all", every(DAY)),
    ("all", every(HOUR, HOUR)),
    ("all", every(HOUR, DAY)),
    ("all", every(6 * HOUR, 6 * HOUR)),
    ("all", every(DAY, DAY)),
    ("all", every(WEEK, WEEK)),
    # Weekdays only: the shortest gap counts, not the weekend.
    ("all", every(DAY, DAY, longest_s=3 * DAY)),
    ("all", every(5 * MINUTE, 5 * MINUTE, longest_s=15 * HOUR)),
    ("all", every(MINUTE, HOUR, countdown_s=HOUR - MINUTE)),
    # Both spellings: the one that counts is there.
    ("all", ignored(MINUTE, "expires", HOUR, expires=MINUTE)),
    # Its lifetime can't be judged where nobody knows when it runs.
    ("all", every(0.0, HOUR, gaps=None)),
    # Where it ends a schedule, a fixed time is what is meant.
    ("expires-absolute", every(DAY, AHEAD, ends_at_expires=True, source="django-celery-beat")),
    # Said once, at the entry.
    ("expires-not-a-time", every(DAY, PAST)),
    ("expires-naive", every(DAY, AHEAD)),
    ("expires-absolute", every(DAY, YEAR_3600)),
    ("expires-naive", every(DAY, YEAR_3600)),
    (
        "all",
        tasks(
            task(acks_late=True, reject_on_worker_lost=True),
            acks_late=True,
            reject_on_worker_lost=True,
        ),
    ),
    ("all", tasks(task(acks_late=True, reject_on_worker_lost=True), task(name="other"))),
    # Set for all, it serves the tasks that acknowledge late.
    (
        "all",
        tasks(
            task(acks_late=True, reject_on_worker_lost=True),
            task(name="other", reject_on_worker_lost=True),
            reject_on_worker_lost=True,
        ),
    ),
    # Celery 5.7 sends it again as a retry.
    (
        "all",
        tasks(
            task(acks_late=True, retry_on_worker_lost=True),
            acks_late=True,
            retry_on_worker_lost=True,
        ),
    ),
    ("all", tasks(task(acks_late=True, retry_on_worker_lost=True), task(name="other"))),
    ("all", tasks(acks_late=True, retry_on_worker_lost=True)),
    ("all", tasks(acks_late=True, reject_on_worker_lost=False, retry_on_worker_lost=True)),
    # Without late acknowledgement False says nothing.
    ("all", tasks(task(reject_on_worker_lost=False), reject_on_worker_lost=False)),
    # Each task that acknowledges late has its own answer.
    ("all", tasks(task(acks_late=True, reject_on_worker_lost=True), acks_late=True)),
    # Without children nothing but the whole worker is lost, or has a limit.
    ("all", replace(tasks(acks_late=True), pool="threads")),
    ("all", replace(tasks(acks_late=True, reject_on_worker_lost=False), pool="gevent")),
    ("all", replace(memory(child_limit_kib=200.0), pool="solo")),
    ("all", replace(memory(child_limit_kib=20_000.0), pool="solo")),
    (
        "memory-limit-beside-guard",
        replace(
            memory(child_limit_kib=300_000.0, guard_child_limit_bytes=400_000_000), pool="solo"
        ),
    ),
    ("all", memory(child_limit_kib=400_000.0)),
    ("all", memory(guard_child_limit_bytes=400_000_000)),
    # A machine of 64 GB can mean 40 of them.
    ("all", memory(child_limit_kib=40_000_000.0, available_bytes=64_000_000_000)),
    # A limit above this machine's memory: the workers may have more.
    ("all", memory(child_limit_kib=12_000_000.0)),
    ("all", Facts(results=redis_results())),
    (
        "all",
        Facts(
            results=redis_results(expires_s=None, ignored=True), tasks=(task(ignore_result=True),)
        ),
    ),
    ("all", Facts(results=redis_results(expires_s=None), guard=GuardFacts(deletes_results=True))),
    ("all", Facts(results=ResultsFacts(expires_s=None))),
    # Acknowledged early, the message is gone while the task runs.
    ("all", tasks(task(time_limit_s=DAY), visibility_timeout_s=HOUR)),
    (
        "all",
        tasks(
            task(acks_late=True, reject_on_worker_lost=True, time_limit_s=HOUR),
            visibility_timeout_s=HOUR,
        ),
    ),
    ("all", with_entry(every(DAY, countdown_s=HOUR), visibility_timeout_s=HOUR)),
    ("all", with_entry(every(DAY, countdown_s=2 * HOUR))),
    ("all", with_entry(every(DAY, DAY, eta=PAST), visibility_timeout_s=HOUR)),
    ("all", with_entry(every(MINUTE, MINUTE), prefetch_multiplier=1)),
    ("all", with_entry(every(MINUTE, MINUTE), prefetch_multiplier=0, prefetch_disabled=True)),
    ("all", with_entry(every(HOUR, HOUR), prefetch_multiplier=16)),
    ("all", tasks(prefetch_multiplier=0)),
    ("all", guard(statedb="worker.state")),
    ("all", guard(given=MAX_AGE, results=redis_results())),
    ("all", guard(given=CHILD_LIMIT)),
    ("all", guard(given=CHILD_LIMIT | RECYCLING)),
    ("all", guard(given=METRICS_PORT)),
    ("all", guard(given=METRICS_PORT | METRICS_HOST)),
    ("all", guard(given=HEARTBEAT_FILE | HEARTBEAT_INTERVAL)),
    ("all", guard(parent_action="shutdown", parent_limit=True, pool="solo")),
]


def found(facts: Facts) -> dict[str, Finding]:
    """What the rules find, by the rule's id."""
    return {finding.rule: finding for finding in apply_rules(facts, RULES)}


@pytest.mark.parametrize(("rule", "level", "facts"), BAD)
def test_a_configuration_that_will_hurt(rule: str, level: str, facts: Facts) -> None:
    """The rule finds it, at its level, in one sentence, with evidence and the line to change."""
    finding = found(facts)[rule]
    assert finding.level == level
    assert finding.happens.endswith(".")
    assert ". " not in finding.happens
    assert finding.subject
    assert finding.change
    assert finding.evidence or rule == "guard-not-installed"
    # Names of entries and tasks are values, which can be searched for, and masked.
    assert all(re.fullmatch(r"\w+", name) for name in finding.evidence)


@pytest.mark.parametrize(("rule", "facts"), GOOD)
def test_a_good_configuration(rule: str, facts: Facts) -> None:
    """Nothing is found in it, not even a note."""
    findings = found(facts)
    assert not findings if rule == "all" else rule not in findings


def test_celerys_defaults_are_nothing_above_a_note() -> None:
    """The facts of an app that sets nothing, and has no guard."""
    defaults = Facts(
        tasks=(task(),),
        delivery=DeliveryFacts(transport="redis", visibility_timeout_s=HOUR),
        results=redis_results(),
        guard=GuardFacts(installed=False),
    )
    assert [(f.rule, f.level) for f in apply_rules(defaults, RULES)] == [
        ("guard-not-installed", "note")
    ]


def test_each_rule_has_rows() -> None:
    """A rule that no row finds, or that finds something everywhere, is held by nothing."""
    assert {rule for rule, _, _ in BAD} == set(IDS)
    assert len(set(IDS)) == len(RULES)
    assert {rule for rule, _ in GOOD} <= {"all", *IDS}


def test_each_expiry_is_said_once() -> None:
    """The three rules of a lifetime never name the same entry twice."""
    lifetimes = {"expires-shorter-than-interval", "runs-pile-up", "expires-under-a-day"}
    for gap in (10.0, MINUTE, HOUR, 5 * HOUR, DAY, WEEK):
        for expires in (1.0, 30.0, MINUTE, HOUR, DAY, WEEK):
            assert len(lifetimes & found(every(gap, expires)).keys()) <= 1, (gap, expires)


def test_a_killed_task_is_said_once() -> None:
    """Where nothing is said of it, and where False is: one rule for each."""
    both = tasks(task(acks_late=True), task(name="no", acks_late=True, reject_on_worker_lost=False))
    assert {rule: finding.subject for rule, finding in found(both).items()} == {
        "acks-late-without-reject": "task proj.task",
        "reject-false-does-not-requeue": "task no",
    }


def test_the_values_are_the_tasks_own() -> None:
    """Where a task says other than the settings, the settings explain nothing."""
    own = found(tasks(task(acks_late=True), task(name="other")))["acks-late-without-reject"]
    assert own.evidence == {
        "acks_late": True,
        "reject_on_worker_lost": None,
        "tasks": "proj.task",
    }
    everywhere = found(tasks(task(acks_late=True), acks_late=True))["acks-late-without-reject"]
    assert everywhere.evidence["task_acks_late"] is True


def test_what_a_fixed_expires_does() -> None:
    """What is over is over; what is ahead will be."""
    assert "Each run is born expired" in found(every(DAY, PAST))["expires-absolute"].happens
    ahead = found(every(DAY, AHEAD))["expires-absolute"].happens
    assert ahead.startswith(f"From {AHEAD.written} on")


@pytest.mark.parametrize("gap", [0.25, 10.0, MINUTE, HOUR, 5 * HOUR, DAY - 120, DAY, WEEK])
@pytest.mark.parametrize(
    "expires",
    [None, -1.0, 1.0, MINUTE, 10 * MINUTE, HOUR, DAY, PAST, AHEAD, YEAR_3600, Malformed("'soon'")],
    ids=str,
)
@pytest.mark.parametrize("countdown_s", [None, 30.0, 2 * HOUR])
def test_the_line_to_change_is_a_cure(gap: float, expires: When, countdown_s: float | None) -> None:
    """With the lifetime that it names, nothing is found any more, and few runs pile up."""
    facts = every(gap, expires, countdown_s=countdown_s)
    for finding in apply_rules(facts, RULES):
        if finding.rule not in ("prefetch-outlasts-expires", "expires-naive"):
            wanted = float(finding.change.rpartition("= ")[2])
            assert not apply_rules(every(gap, wanted, countdown_s=countdown_s), RULES)
            assert min(wanted - (countdown_s or 0), HOUR) / gap <= A_FEW


@pytest.mark.parametrize(
    ("gap", "expires", "waiting"),
    [(10.0, None, 360), (10.0, HOUR, 360), (10.0, DAY, 360), (10.0, 600.0, 60), (1800.0, None, 2)],
)
def test_how_many_runs_pile_up(gap: float, expires: When, waiting: int) -> None:
    """As many as were sent in an hour and have not expired."""
    finding = found(every(gap, expires))["runs-pile-up"]
    assert finding.evidence["runs_after_an_hour"] == waiting
    assert f"after an hour there are {waiting}," in finding.happens


def test_where_nobody_knows_how_often_it_runs_no_number_is_made_up() -> None:
    """Any would be a pile for an entry that is frequent enough."""
    for facts in (
        every(0.0, PAST, gaps=None),
        tasks(task(expires=PAST)),
        tasks(task(expires=NAIVE)),
    ):
        for finding in apply_rules(facts, RULES):
            if finding.rule.startswith("expires"):
                assert "expires=…" in finding.change or '["expires"] = …' in finding.change


@pytest.mark.parametrize("kib", [200.0, 20_000.0, 50_000.0, 200_000_000.0])
def test_the_limit_to_change_is_a_cure(kib: float) -> None:
    """With the limit that it names, nothing is found any more."""
    (finding,) = apply_rules(memory(child_limit_kib=kib), RULES)
    wanted = float(finding.change.split("= ")[1].split(" ")[0])
    assert not apply_rules(memory(child_limit_kib=wanted), RULES)


@pytest.mark.parametrize("countdown_s", [2 * HOUR, 5 * DAY])
def test_the_visibility_timeout_to_change_is_a_cure(countdown_s: float) -> None:
    """With the one that it names nothing is found any more; other options stay."""
    entry = every(DAY, countdown_s=countdown_s)
    short = with_entry(entry, transport="redis", visibility_timeout_s=HOUR)
    change = found(short)["visibility-timeout-short"].change
    before, _, wanted = change.partition('"visibility_timeout": ')
    assert before == "app.conf.broker_transport_options = {"
    cured = with_entry(entry, transport="redis", visibility_timeout_s=float(wanted.rstrip("}")))
    assert "visibility-timeout-short" not in found(cured)
    spelling = Spelling(given=frozenset({"broker_transport_options"}))
    change = found(replace(short, spelling=spelling))["visibility-timeout-short"].change
    assert change == (
        f'app.conf.broker_transport_options["visibility_timeout"] = {wanted.rstrip("}")}'
    )


def test_the_worst_come_first() -> None:
    """Errors, then warnings, then notes."""
    facts = replace(
        every(DAY, PAST, task_id="same"),
        guard=GuardFacts(installed=False),
        statedb="worker.state",
    )
    levels = [LEVELS.index(finding.level) for finding in apply_rules(facts, RULES)]
    assert levels == sorted(levels)
    assert len(set(levels)) == 3


@pytest.mark.parametrize(
    ("level", "asked", "expected"),
    [
        ("error", "error", True),
        ("error", "note", True),
        ("warning", "error", False),
        ("warning", "warning", True),
        ("note", "warning", False),
        ("note", "note", True),
    ],
)
def test_what_an_audit_fails_on(level: Any, asked: Any, expected: bool) -> None:
    """A finding of the level that is asked for, or of a worse one."""
    finding = Finding(level=level, subject="s", happens="h", evidence={}, change="c")
    assert reaches(finding, asked) is expected


def test_where_the_line_stands() -> None:
    """The line names the place where this entry's expires is kept."""

    def change(**more: Any) -> str:
        return found(every(MINUTE, 1.0, **more))["expires-shorter-than-interval"].change

    assert change() == 'app.conf.beat_schedule["entry"]["options"]["expires"] = 60'
    assert change(has_options=False) == (
        'app.conf.beat_schedule["entry"]["options"] = {"expires": 60}'
    )
    assert change(expires_option="expire_seconds") == (
        'app.conf.beat_schedule["entry"]["options"]["expire_seconds"] = 60'
    )
    assert change(expires_of_task=True) == '@app.task(name="proj.task", expires=60)'
    assert change(source="redbeat") == 'RedBeatSchedulerEntry "entry": options["expires"] = 60'
    assert change(source="django-celery-beat") == 'PeriodicTask "entry": expire_seconds = 60'


def test_what_a_scheduler_ignores_is_kept_where_it_is_good() -> None:
    """The lifetime that was meant, unless a rule would say something of it."""

    def change(gap_s: float, expires_s: float) -> str:
        facts = ignored(gap_s, "expires", expires_s)
        return found(facts)["expires-ignored-by-scheduler"].change.rpartition("= ")[2]

    assert change(MINUTE, 2 * MINUTE) == "120"
    assert change(MINUTE, HOUR) == "60"
    assert change(MINUTE, 1.0) == "60"
    assert change(DAY, HOUR) == "86400"


#: How Django's settings write what Celery has in lower case.
DJANGO = Spelling(
    in_source={setting: f"CELERY_{setting.upper()}" for setting in DEFAULTS},
    namespace="CELERY_",
    decorator="@shared_task",
)


@pytest.mark.parametrize(("rule", "level", "facts"), BAD)
def test_every_line_is_in_djangos_spelling(rule: str, level: str, facts: Facts) -> None:
    """Each rule's line, without an exception."""
    change = found(replace(facts, spelling=DJANGO))[rule].change
    assert "app.conf" not in change
    assert "@app.task" not in change
    if "app.conf." in (plain := found(facts)[rule].change):
        setting = plain.partition("app.conf.")[2].split(" ")[0].partition("[")[0].strip(",")
        assert f"CELERY_{setting.upper()}" in change


def test_how_a_setting_is_spelt() -> None:
    """On the app, in a module, in Django's settings; the guard's own too."""
    assert Spelling().line("task_acks_late", "True") == "app.conf.task_acks_late = True"
    module = Spelling(in_source={"task_acks_late": "task_acks_late"})
    assert module.line("task_acks_late", "True") == "task_acks_late = True"
    assert module.name("worker_guard_interval") == "worker_guard_interval"
    old = Spelling(in_source={"task_acks_late": "CELERY_ACKS_LATE"})
    assert old.line("task_acks_late", "True") == "CELERY_ACKS_LATE = True"
    assert DJANGO.line("task_acks_late", "True") == "CELERY_TASK_ACKS_LATE = True"
    assert DJANGO.name("worker_guard_interval") == "CELERY_WORKER_GUARD_INTERVAL"
    # What is set on the app outweighs the settings.
    on_app = replace(DJANGO, on_app=frozenset({"task_acks_late"}))
    assert on_app.name("task_acks_late") == "app.conf.task_acks_late"


def test_how_values_are_spelt() -> None:
    """A number in full, however large; a crontab on one line."""
    assert [plain(x) for x in (419_430_400.0, 90.5)] == ["419430400", "90.5"]
    assert on_one_line("<crontab: 0 4\n         * * *\n>\n") == "<crontab: 0 4 * * * >"


# -- the page ------------------------------------------------------------------------------


def test_each_rule_has_its_section() -> None:
    """In the catalogue's order, and no other; each names the test that is its experiment."""
    page = sections(DOCS / "audit.md")
    assert list(page) == list(IDS)
    texts = (path.read_text() for path in (ROOT / "tests/integration").glob("test_*.py"))
    known = set(re.findall(r"^def (test_\w+)", "\n".join(texts), re.MULTILINE))
    for rule, text in page.items():
        assert "Experiment" in text, rule
        named = set(re.findall(r"`(test_\w+)`", text))
        assert named, rule
        assert named <= known, rule


def test_the_screen_in_the_documentation() -> None:
    """It is what the command prints of such facts on 80 columns."""
    drawn = audit_screen()
    assert max(map(len, drawn.splitlines())) <= 80
    assert drawn == (SCREENS / AUDIT_SCREEN).read_text()


@pytest.mark.parametrize("columns", [64, 70, 80, 90, 100, 140])
def test_a_crontab_is_printed_on_one_line(columns: int) -> None:
    """Whatever stands before it, where a line is wide enough."""
    crontab = "<crontab: 0,15,30,45 4 * * * (m/h/dM/MY/d)>"
    for longer in range(0, 40, 7):
        name = "proj." + "x" * longer
        findings = apply_rules(every(10.0, task=name, schedule=crontab), RULES)
        out = io.StringIO()
        report = AuditReport(findings=findings, unread=(), rules=1, beat_entries=1, tasks=0)
        show(report, color=False, file=out, width=columns)
        assert crontab in out.getvalue()
        assert max(map(len, out.getvalue().splitlines())) <= columns


def test_the_audit_is_loaded_by_nobody_else() -> None:
    """Every celery command imports the group; what the audit needs comes with the audit."""
    code = "import sys, worker_guard.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    heavy = ("worker_guard.commands.audit", "rich", "redbeat", "django_celery_beat", "psutil")
    assert "worker_guard.cli" in loaded
    assert not [name for name in loaded if name.startswith(heavy)]
