"""What the commands say where a server is away, refuses, or is not what it is taken for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.harness.redis_server import RedisServer, free_port
from tests.harness.terminal import environ_of
from tests.harness.workers import ROOT

PASSWORD = "hunter2-is-no-password"
GONE = "/gone/ca.pem"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A server that asks for a password."""
    with RedisServer() as one:
        one.client.config_set("requirepass", PASSWORD)
        yield one


@pytest.fixture(scope="module")
def silent() -> Iterator[int]:
    """The port of something that says nothing."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield one.getsockname()[1]


def guard(
    command: str, configuration: Mapping[str, Any], app: str = "tests.harness.app", **environ: str
) -> tuple[int, str]:
    """The exit code and the one line of ``celery guard …``; nothing stands on stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", app, "guard", *command.split()],
        cwd=ROOT,
        env=environ_of(configuration, **environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "", done
    assert done.stderr.count("\n") == 1, done.stderr
    assert PASSWORD not in done.stderr
    return done.returncode, done.stderr


def broker(url: str, **more: Any) -> dict[str, Any]:
    return {"broker_url": url, "result_backend": "redis://127.0.0.1:1/9", **more}


def results(url: str, **more: Any) -> dict[str, Any]:
    return {"broker_url": "redis://127.0.0.1:1/9", "result_backend": url, **more}


@pytest.mark.parametrize(
    ("command", "server_is", "what", "setting"),
    [
        ("status", broker, "broker", "broker_url"),
        ("cleanup --only results", results, "result backend", "result_backend"),
        ("history", results, "result backend", "result_backend"),
        ("revocations", results, "result backend", "result_backend"),
    ],
)
def test_a_message_says_which_server_it_is_about(
    server: RedisServer, command: str, server_is: Any, what: str, setting: str
) -> None:
    """With its address, the setting that names it, and the exit code of before."""
    port, bad = free_port(), f"redis://:{PASSWORD}-no@127.0.0.1:{server.port}/0"
    shown = f"redis://:**@127.0.0.1:{port}/0"
    assert guard(command, server_is(f"redis://:{PASSWORD}@127.0.0.1:{port}/0")) == (
        69,
        f"The {what} can't be reached: {shown} ({setting}): Connection refused\n",
    )
    code, line = guard(command, server_is("redis://nowhere.invalid:6379/0"))
    assert code == 69
    assert line.startswith(
        f"The {what} can't be reached: redis://nowhere.invalid:6379/0 ({setting}): "
    )
    code, line = guard(command, server_is(bad))
    shown = f"redis://:**@127.0.0.1:{server.port}/0"
    assert code == 1
    assert line.startswith(f"The {what} refuses: {shown} ({setting}): ")


@pytest.mark.parametrize(
    ("command", "server_is", "what", "setting"),
    [
        ("status", broker, "broker", "broker_url"),
        ("cleanup --only results", results, "result backend", "result_backend"),
    ],
)
def test_a_file_that_is_missing_is_no_server_that_is_away(
    server: RedisServer, command: str, server_is: Any, what: str, setting: str
) -> None:
    """The line names the file, and the setting that names it."""
    url = f"rediss://127.0.0.1:{server.port}/0?ssl_cert_reqs=required"
    line = f"A file for TLS to the {what} can't be read: {GONE} ({{}}): No such file or directory\n"
    said = guard(command, server_is(f"{url}&ssl_ca_certs={GONE}"))
    assert said == (2, line.format(setting))
    options = "broker_use_ssl" if setting == "broker_url" else "redis_backend_use_ssl"
    # The verify mode as a number, for the configuration of the tests is JSON.
    more = {options: {"ssl_certfile": GONE, "ssl_cert_reqs": 0}}
    assert guard(command, server_is(url, **more)) == (2, line.format(options))


@pytest.mark.parametrize(
    ("command", "server_is"),
    [("status", broker), ("cleanup --only results", results)],
    ids=["status", "cleanup"],
)
def test_tls_to_a_port_without_it(silent: int, command: str, server_is: Any) -> None:
    """A handshake that nobody answers is a hint."""
    code, line = guard(command, server_is(f"rediss://127.0.0.1:{silent}/0?ssl_cert_reqs=none"))
    assert code == 69
    assert line.endswith("; perhaps the server there does not use TLS\n")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ridis://h/0", "ridis://h/0 (broker_url): 'No such transport"),
        ("mongodb://h/0", "mongodb://h/0 (broker_url): No module named 'pymongo'"),
        ("redis://:a/b@h:1/0", "redis://:**@h:1/0 (broker_url): it is not a URL that can be read"),
        ("sentinel://h:1", "sentinel://h:1 (broker_url): 'master_name' transport option must be"),
    ],
)
def test_a_broker_that_cannot_be_used(url: str, why: str) -> None:
    """No server was asked."""
    code, line = guard("status", broker(url))
    assert code == 2
    assert line.startswith(f"The broker can't be used: {why}")


def test_a_broker_that_nobody_named() -> None:
    """Celery then takes RabbitMQ on this machine."""
    code, line = guard("status", {})
    assert code == 69
    assert "amqp://guest@localhost:5672// (broker_url is not set): " in line


def test_the_setting_is_spelt_as_the_app_spells_it() -> None:
    """Under Django's namespace; and the environment variable that Celery puts before it."""
    django = "tests.harness.django_style_app"
    away = f"redis://127.0.0.1:{free_port()}/0"
    assert f"{away} (CELERY_BROKER_URL): " in guard("status", broker(away), django)[1]
    assert (
        f"{away} (CELERY_RESULT_BACKEND): "
        in guard("cleanup --only results", results(away), django)[1]
    )
    other = f"redis://127.0.0.1:{free_port()}/1"
    said = guard("status", broker(away), CELERY_BROKER_URL=other)[1]
    assert f"{other} (environment variable CELERY_BROKER_URL): " in said


def test_the_broker_and_the_result_backend_can_be_one_server(server: RedisServer) -> None:
    """The question of --purge-queues is about the broker, though the results were meant."""
    results_url = f"redis://:{PASSWORD}@127.0.0.1:{server.port}/1"
    away = f"redis://127.0.0.1:{server.port}/0"
    code, line = guard(
        "cleanup --purge-queues", {"broker_url": away, "result_backend": results_url}
    )
    assert code == 1
    assert line.startswith(f"The broker refuses: {away} (broker_url): ")


# -- Django ----------------------------------------------------------------------------------

NEEDS_MODELS = """
import os
from celery import Celery
app = Celery("project", broker="memory://")
{settings}
app.conf.imports = ["needs_models"]
"""

MODELS = """
from django_celery_beat.models import PeriodicTask
"""


def project(directory: Path, settings: str) -> dict[str, str]:
    """An app whose tasks import Django's models, and the environment to find it."""
    (directory / "project.py").write_text(NEEDS_MODELS.format(settings=settings))
    (directory / "needs_models.py").write_text(MODELS)
    return {"PYTHONPATH": f"{directory}{os.pathsep}{ROOT}"}


def test_django_is_set_up_where_it_has_settings(tmp_path: Path) -> None:
    """Also where the app names them after it was made, so that Celery's own fixup is not there."""
    named = 'os.environ["DJANGO_SETTINGS_MODULE"] = "tests.harness.audit_django_settings"'
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "project", "guard", "audit"],
        cwd=ROOT,
        env=environ_of({}, **project(tmp_path, named)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # That the project has no database is another matter.
    assert "can't be loaded" not in done.stderr
    assert "rules on" in done.stdout


def test_apps_that_are_not_ready_are_one_clear_line(tmp_path: Path) -> None:
    """A module of the project asks for models while Django is being set up."""
    (tmp_path / "early.py").write_text("from django.contrib.auth.models import User\n")
    configured = """
from django.conf import settings
settings.configure(INSTALLED_APPS=["early"])
"""
    code, line = guard("audit", {}, "project", **project(tmp_path, configured))
    assert code == 2
    assert line.startswith("The app can't be loaded: AppRegistryNotReady: Apps aren't loaded yet; ")
    assert "DJANGO_SETTINGS_MODULE" in line
