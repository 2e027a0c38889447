"""``celery guard …``, as an operator runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

from tests.harness.app import CONFIGURATION
from tests.harness.workers import ROOT

#: For ``cleanup``: without asking the workers.
RESULTS = ("--only", "results")


def guard_process(conf: dict[str, Any], *arguments: str) -> subprocess.Popen[str]:
    """The command under way, with this configuration of the app."""
    environ = {**os.environ, CONFIGURATION: json.dumps(conf)}
    return subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "tests.harness.app", "guard", *arguments],
        cwd=ROOT,
        env={**environ, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As a terminal starts it: a shell's background job, CI's say, ignores Ctrl-C for all below.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
    )


def guard(conf: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    """What came of the command."""
    with guard_process(conf, *arguments) as process:
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)
