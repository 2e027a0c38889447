"""What the installed package does to Celery where no app uses it: nothing but offer its command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.harness.workers import ROOT

#: Prints what anybody could register with Celery, as a process of the command line has it.
STATE = """
import json
import celery.bin.celery as command_line
from celery import Celery, _state, signals
from celery.bin import control
from celery.worker.control import Panel
{use}
app = Celery("plain", broker="memory://")
app.finalize()
choices = {{
    command.name: [list(getattr(param.type, "choices", ())) for param in command.params]
    for command in (control.inspect, control.control, control.status)
}}
print(json.dumps({{
    "commands": sorted(command_line.celery.commands),
    "remote": sorted(Panel.data),
    "meta": sorted(Panel.meta),
    "choices": choices,
    "tasks": sorted(app.tasks),
    "finalizers": len(_state._on_app_finalizers),
    "receivers": {{
        name: len(signal.receivers or ())
        for name, signal in vars(signals).items() if hasattr(signal, "receivers")
    }},
    "steps": {{name: len(steps) for name, steps in app.steps.items()}},
    "options": {{
        name: [option.name for option in command.params]
        for name, command in command_line.celery.commands.items()
    }},
}}))
"""

#: What a process without the package finds.
WITHOUT_PLUGINS = """
from importlib import metadata
found = metadata.entry_points
metadata.entry_points = lambda **names: () if names else found()
"""


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CELERY")}
    environ |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def state(before: str = "", use: str = "") -> Any:
    return json.loads(python(before + STATE.format(use=use)))


def test_installing_the_package_registers_nothing() -> None:
    """Beside the command ``guard`` and the worker's option, Celery is as it is without it."""
    installed, without = state(), state(WITHOUT_PLUGINS)
    assert set(installed["commands"]) - set(without["commands"]) == {"guard"}
    installed["commands"].remove("guard")
    del installed["options"]["guard"]
    # It is to say what is missing, where the app has no step.
    installed["options"]["worker"].remove("guard_dry_run")
    assert installed == without


@pytest.mark.parametrize(
    "use",
    [
        "from worker_guard import WorkerGuard",
        "import worker_guard; worker_guard.WorkerGuard",
        "from worker_guard.bootstep import WorkerGuard",
    ],
)
def test_an_app_that_uses_it_registers_the_remote_commands_and_the_task(use: str) -> None:
    """Also where the command line loaded the plugin, and on 5.3 fixed the names, before."""
    plain, used = state(), state(use=use)
    assert set(used["remote"]) - set(plain["remote"]) == {"guard", "guard_sweep", "guard_unrevoke"}
    assert set(used["tasks"]) - set(plain["tasks"]) == {"worker_guard.cleanup"}
    for command, name in (("inspect", "guard"), ("control", "guard_sweep")):
        for choices in used["choices"][command]:
            assert not choices or name in choices


@pytest.mark.parametrize("use", ["import worker_guard", "from worker_guard import *"])
def test_to_import_it_registers_them(use: str) -> None:
    """In a program of one's own, before or without Celery's command line."""
    said = python(
        f"{use}\nfrom celery import Celery\nfrom celery.worker.control import Panel\n"
        "app = Celery('x')\napp.finalize()\n"
        "print({'guard', 'guard_sweep'} <= set(Panel.data), 'worker_guard.cleanup' in app.tasks)"
    )
    assert said.split() == ["True", "True"]


def celery(*arguments: str, guarded: bool) -> subprocess.CompletedProcess[str]:
    """A celery command of an app with the step, or without it."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CELERY")}
    environ |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "500"}
    environ |= {} if guarded else {"WORKER_GUARD_TEST_UNGUARDED": "1"}
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tests.harness.app", "-b", "memory://", *arguments],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(("command", "name"), [("inspect", "guard"), ("control", "guard_sweep")])
def test_the_command_line_knows_them_for_an_app_with_the_step(command: str, name: str) -> None:
    """With it they are asked for (and nobody answers); without it Celery does not know them."""
    asked = celery(command, "--timeout", "0.1", name, guarded=True)
    assert "No nodes replied" in asked.stderr + asked.stdout
    unknown = celery(command, "--timeout", "0.1", name, guarded=False)
    assert unknown.returncode == 2
    assert name in unknown.stderr
    offered = unknown.stderr.replace(f"'{name}' is not", "").replace(f"Command {name} not", "")
    assert name not in offered
