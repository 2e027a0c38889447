"""How the settings of the results part are read, and what they come to."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab, schedule

from tests.unit.test_settings import conf
from worker_guard.celery_internals import result_ttl_s
from worker_guard.results.backend import (
    BackendUnreadableError,
    NoPrefixError,
    open_result_backend,
)
from worker_guard.results.cleanup import (
    FullSpeedCleanup,
    NoAgeError,
)
from worker_guard.results.scheduled_cleanup import celery_schedule
from worker_guard.results.task_run import seconds_of
from worker_guard.settings import SettingError, Settings, read_settings
from worker_guard.values.masking import masked

PREFIX = "worker_guard_"


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("results_schedule", None, None),
        ("results_schedule", 60, 60.0),
        ("results_schedule", timedelta(hours=1), 3600.0),
        ("results_schedule", crontab(minute="*/5"), crontab(minute="*/5")),
        ("results_max_age", None, None),
        ("results_max_age", 0, 0.0),
        ("results_max_age", 0.0, 0.0),
        ("results_max_age", timedelta(0), 0.0),
        ("results_max_age", timedelta(days=2), 172_800.0),
        ("results_max_age", 90, 90.0),
        ("state_patterns", ["a:*"], ("a:*",)),
    ],
)
def test_a_value_is_converted(name: str, value: Any, read: Any) -> None:
    """To seconds, or to a schedule as it is."""
    assert getattr(read_settings(conf(**{PREFIX + name: value})), name) == read


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("results_schedule", 0, "a Celery schedule"),
        ("results_schedule", "daily", "a Celery schedule"),
        ("results_schedule", True, "a Celery schedule"),
        ("results_schedule", float("nan"), "a Celery schedule"),
        ("results_max_age", -1, "seconds or a timedelta"),
        ("results_max_age", "1d", "seconds or a timedelta"),
        ("results_max_age", False, "seconds or a timedelta"),
        ("results_max_age", float("inf"), "seconds or a timedelta"),
        ("results_max_age", timedelta(days=-1), "seconds or a timedelta"),
        ("state_patterns", "app:*", "a tuple or list"),
        ("state_patterns", ("*",), "nothing but wildcards"),
        ("state_patterns", ("a[",), "without its ']'"),
        ("state_patterns", (1,), "a tuple or list"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    """In the words of all settings."""
    with pytest.raises(SettingError) as caught:
        read_settings(conf(**{PREFIX + name: value}))
    assert f"{PREFIX}{name} is {value!r}; allowed: " in str(caught.value)
    assert allowed in str(caught.value)


def test_the_start_event_can_hold_every_setting() -> None:
    """A schedule stands there as Celery prints it."""
    for each in (crontab(hour=5, minute=0), schedule(60.0)):
        named = Settings(results_schedule=each).named()
        assert named["worker_guard_results_schedule"] == str(each)
        assert json.loads(json.dumps(named)) == named


def app(backend: str = "redis://", **values: Any) -> Celery:
    one = Celery("test", set_as_current=False, broker="memory://", backend=backend)
    one.conf.update(values)
    return one


def backend(one: Celery) -> Any:
    return open_result_backend(one, read_settings(one.conf), timeout_s=1.0)


@pytest.mark.parametrize(
    ("values", "max_age_s"),
    [
        ({}, 86_400.0),
        ({"result_expires": 60}, 60.0),
        ({"result_expires": timedelta(hours=1)}, 3600.0),
        ({"result_expires": None}, None),
        ({"result_expires": 0}, None),
        ({"result_expires": timedelta(0)}, None),
        ({"result_expires": -1}, None),
        ({"result_expires": 60, "worker_guard_results_max_age": timedelta(0)}, None),
        ({"result_expires": 0, "worker_guard_results_max_age": 5}, 5.0),
        ({"result_expires": 60, "worker_guard_results_max_age": 5}, 5.0),
        ({"worker_guard_results_max_age": 0}, None),
    ],
)
def test_the_age_is_the_settings_or_celerys(values: Any, max_age_s: float | None) -> None:
    """None: results are meant to stay."""
    assert backend(app(**values)).configured_max_age_s == max_age_s


def test_the_keys_names_are_the_backends() -> None:
    """With its global prefix, whichever strategy this release joins them; the broker's stay out."""
    one = app(
        result_backend_transport_options={"global_keyprefix": "proj"},
        broker_transport_options={"global_keyprefix": "{q}"},
        worker_guard_state_patterns=["app:*"],
    )
    found = backend(one)
    assert found.task_prefix == one.backend.task_keyprefix
    assert found.state_prefixes == (one.backend.group_keyprefix, one.backend.chord_keyprefix)
    patterns = [glob.pattern for glob in found.protected]
    assert {"celery", "{q}celery", "{q}celery\x06\x16[0-9]*", "redbeat:*"} <= set(patterns)


@pytest.mark.parametrize("prefix", ["task_keyprefix", "group_keyprefix", "chord_keyprefix"])
@pytest.mark.parametrize("shared", ["", "proj_"])
def test_a_backend_whose_keys_have_no_name_is_refused(prefix: str, shared: str) -> None:
    """Every key of the database would be a result."""
    from celery.backends.redis import RedisBackend

    class Nameless(RedisBackend):
        pass

    setattr(Nameless, prefix, "")
    one = app(result_backend_transport_options={"global_keyprefix": shared})
    one._local.backend = Nameless(app=one, url="redis://")
    with pytest.raises(NoPrefixError, match="any key could be a result"):
        backend(one)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:zeb/ra@h:6379/0",
        "redis://:zeb#ra@h:6379/0",
        "redis://h:port/0",
        "rediss://:zeb@h:6379/0",
    ],
)
def test_a_backend_whose_url_is_none_is_refused(url: str) -> None:
    """Without a piece of it in the line, which may be one of the password."""
    with pytest.raises(BackendUnreadableError) as caught:
        backend(app(url))
    assert "has to look like" in str(caught.value)
    assert "ssl_cert_reqs" in str(caught.value)
    # What hides passwords takes the advice for none.
    assert masked(str(caught.value)) == str(caught.value)
    assert not any(piece in str(caught.value) for piece in ("zeb", "ra@h"))


@pytest.mark.parametrize(
    ("values", "age_s", "ttl_s"),
    [
        ({}, 60, 86_400),
        ({}, 200_000, 200_000),
        ({"result_expires": 3600}, 60, 3600),
        ({"result_expires": 3600}, 3600, 3600),
        ({"worker_guard_results_max_age": 7200}, 60, 7200),
        ({"result_expires": None}, 60, 86_400),
        ({"result_expires": 0, "worker_guard_results_max_age": 0}, 200_000, 200_000),
    ],
)
def test_a_short_age_by_hand_is_no_short_ttl(values: Any, age_s: float, ttl_s: float) -> None:
    """It says which results are old; a state that a task still needs is not to go in minutes."""
    rules = backend(app(**values))._policy(1_000_000, float(age_s))
    assert (rules.done_before, rules.ttl_ms) == (1_000_000 - age_s, ttl_s * 1000)


@pytest.mark.parametrize(
    ("values", "ahead_s"),
    [
        ({}, 0),
        ({"timezone": "America/New_York"}, 0),
        ({"timezone": "America/New_York", "enable_utc": False}, 5 * 3600),
        ({"timezone": "Asia/Tokyo", "enable_utc": False}, 0),
    ],
)
def test_a_naive_date_is_ambiguous_only_without_utc(values: Any, ahead_s: int) -> None:
    """By the most that the zone is behind in any month."""
    assert backend(app(**values)).naive_ahead_s == ahead_s


def test_a_cleanup_needs_an_age() -> None:
    """Given or configured."""
    found = backend(app(result_expires=None))
    with pytest.raises(NoAgeError, match="how old"):
        FullSpeedCleanup(found, max_age_s=None, dry_run=False, by="x", trigger="cli")
    FullSpeedCleanup(found, max_age_s=1.0, dry_run=False, by="x", trigger="cli")


@pytest.mark.parametrize("hours", [0, -1, float("nan"), float("inf"), "24", True])
def test_an_age_that_is_none_is_refused(hours: Any) -> None:
    """By the task, which takes whatever a message says."""
    with pytest.raises(ValueError, match="hours, above 0"):
        seconds_of(hours)


@pytest.mark.parametrize(
    ("value", "due_after_s"), [(60.0, 60), (crontab(minute="*"), 60), (schedule(10.0), 10)]
)
def test_any_schedule_of_celery_says_when(value: Any, due_after_s: float) -> None:
    """By the app's clock."""
    ask = celery_schedule(value, app())
    due, wait_s = ask(time.time() - 2 * due_after_s)
    assert due
    assert 0 < wait_s <= due_after_s
    due, wait_s = ask(time.time() + 3600)
    assert not due


@pytest.mark.parametrize(
    ("lifetimes", "longest_s"),
    [
        ({"expires": 60}, 60.0),
        ({"expires": 60, "failure_expires": 600, "chord_expires": 60}, 600.0),
        ({"expires": 60, "failure_expires": 60, "chord_expires": 6000}, 6000.0),
        # For ever, for one as for all.
        ({"expires": None}, None),
        ({"expires": 0}, None),
        ({"expires": 60, "failure_expires": 0, "chord_expires": 60}, None),
        ({"expires": 60, "failure_expires": 60, "chord_expires": 0}, None),
        ({"expires": None, "failure_expires": 60}, None),
        ({"expires": -1}, None),
    ],
)
def test_the_longest_lifetime_that_celery_gives_counts(
    lifetimes: dict[str, Any], longest_s: float | None
) -> None:
    """Celery 5.7 can keep failures and chords for longer than results."""
    assert result_ttl_s(SimpleNamespace(**lifetimes)) == longest_s
