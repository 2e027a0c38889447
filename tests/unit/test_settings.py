"""How settings are read."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from worker_guard.errors import WorkerGuardError
from worker_guard.settings import SettingError, Settings, read_settings


def conf(**values: Any) -> Any:
    app = Celery("test", set_as_current=False)
    app.conf.update(values)
    return app.conf


def test_defaults_are_the_contracts() -> None:
    """Without any setting the defaults hold."""
    assert read_settings(conf()) == Settings()


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("enabled", "yes", "True or False"),
        ("dry_run", 1, "True or False"),
        ("interval", 0, "seconds, above 0"),
        ("interval", "30", "seconds, above 0"),
        ("interval", True, "seconds, above 0"),
        ("interval", float("nan"), "seconds, above 0"),
        ("interval", float("inf"), "seconds, above 0"),
        ("revoked_grace", -1, "seconds, 0 or more"),
        ("revoked_verify", None, "True or False"),
        ("stall_after", 0, "None (never), or seconds, above 0"),
        ("stall_after", "2m", "None (never), or seconds, above 0"),
        ("stall_action", "restart", "'log' or 'reconnect' or 'shutdown'"),
        ("unblock_after", 29.9, "None (never), or seconds, 30 or more"),
        ("unblock_after", True, "None (never), or seconds, 30 or more"),
        ("log_format", "xml", "'json' or 'console' or 'inherit'"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    """The error says the setting, the value, and what is allowed."""
    with pytest.raises(SettingError) as caught:
        read_settings(conf(**{f"worker_guard_{name}": value}))
    message = str(caught.value)
    assert f"worker_guard_{name} is {value!r}" in message
    assert f"allowed: {allowed}" in message


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("worker_guard_intervall", "worker_guard_interval"),
        ("worker_guard_grace", "worker_guard_revoked_grace"),
        ("worker_guard_dryrun", "worker_guard_dry_run"),
        # Without a namespace Celery reads lower-case keys only.
        ("WORKER_GUARD_INTERVAL", "worker_guard_interval"),
    ],
)
def test_a_misspelt_setting_is_answered_with_the_nearest_one(given: str, near: str) -> None:
    """It is never ignored: a guard that runs with other settings than meant is a trap."""
    with pytest.raises(SettingError) as caught:
        read_settings(conf(**{given: 5}))
    assert str(caught.value) == f"{given} is not a setting of worker_guard; did you mean {near}?"


def namespaced(**values: Any) -> Any:
    app = Celery("test", set_as_current=False)
    app.config_from_object(SimpleNamespace(**values), namespace="CELERY")
    return app.conf


def test_under_djangos_namespace() -> None:
    """``CELERY_WORKER_GUARD_*`` is read, and named as it was written; other keys are not ours."""
    settings = read_settings(
        namespaced(CELERY_WORKER_GUARD_INTERVAL=5, DEBUG=True, WORKER_GUARD_INTERVAL="not Celery's")
    )
    assert settings.interval == 5.0
    with pytest.raises(SettingError, match=r"^CELERY_WORKER_GUARD_INTERVAL is 0; allowed: seconds"):
        read_settings(namespaced(CELERY_WORKER_GUARD_INTERVAL=0))
    with pytest.raises(SettingError, match="did you mean CELERY_WORKER_GUARD_INTERVAL"):
        read_settings(namespaced(CELERY_WORKER_GUARD_INTERVALL=5))


def test_the_flag_switches_a_dry_run_on_and_never_off() -> None:
    """The command line and the setting are joined by "or"."""
    assert read_settings(conf(), dry_run=True).dry_run is True
    assert read_settings(conf(worker_guard_dry_run=True), dry_run=False).dry_run is True


def test_where_the_application_configured_structlog_its_format_is_the_default() -> None:
    """A format that is set explicitly wins."""
    assert read_settings(conf(), structlog_configured=True).log_format == "inherit"
    explicit = read_settings(conf(worker_guard_log_format="json"), structlog_configured=True)
    assert explicit.log_format == "json"


def test_the_error_is_one_of_celerys_and_a_line_on_the_command_line() -> None:
    """Python code catches ImproperlyConfigured; ``celery`` prints one line and exits with 2."""
    error = SettingError("worker_guard_interval is 0")
    assert isinstance(error, ImproperlyConfigured)
    assert isinstance(error, WorkerGuardError)
    assert error.exit_code == 2
    shown = io.StringIO()
    error.show(shown)
    assert shown.getvalue() == "ImproperlyConfigured: worker_guard_interval is 0\n"
