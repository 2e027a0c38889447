"""``worker-guard-probe``: what it says of a file, and what it costs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import worker_guard_probe
from tests.harness.workers import ROOT

PROBE = ROOT / "worker_guard_probe.py"


def heartbeat(**changes: Any) -> dict[str, Any]:
    """A record of a worker that is ready; its process is this one."""
    return {
        "worker": "w@host",
        "pid": os.getpid(),
        "timestamp": "2026-11-22T23:13:56.587487Z",
        "state": "ready",
        "children_up": 2,
        "children_expected": 2,
        "active_tasks": 0,
        "last_message_s": 1.5,
        "task_since": None,
        "max_age_s": 30.0,
        "monotonic": round(time.monotonic(), 3),
        **changes,
    }


def ended_pid() -> int:
    """The pid of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        return process.pid


class Probed:
    """A file, and what the probe says of it."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self._capsys = path, capsys

    def __call__(self, *options: str) -> tuple[int, str]:
        code = worker_guard_probe.main([str(self.path), *options])
        captured = self._capsys.readouterr()
        assert captured.err == ""
        assert captured.out.count("\n") == 1
        return code, captured.out.strip()

    def of(self, *options: str, **changes: Any) -> tuple[int, str]:
        self.path.write_text(json.dumps(heartbeat(**changes)) + "\n")
        return self(*options)


@pytest.fixture
def probed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Probed:
    return Probed(tmp_path / "w.json", capsys)


def test_a_worker_that_is_ready(probed: Probed) -> None:
    """It is alive, too."""
    assert probed.of() == (0, "yes: w@host is alive")
    assert probed.of("--ready") == (0, "yes: w@host is ready")


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ("starting", "has not connected to its broker yet"),
        ("disconnected", "is disconnected from its broker"),
        ("stalled", "takes no messages, although some wait: its consumer has stalled"),
        ("no_children", "has no child that is up"),
        ("stopping", "is shutting down"),
        ("of_a_later_release", "is of_a_later_release"),
    ],
)
def test_a_worker_that_is_not_ready(probed: Probed, state: str, why: str) -> None:
    """It is alive; why it is not ready is said in one line."""
    assert probed.of(state=state) == (0, "yes: w@host is alive")
    assert probed.of("--ready", state=state) == (1, f"no: w@host {why}")


def test_an_old_heartbeat(probed: Probed) -> None:
    """By the file's own limit, or by that of the command."""
    old = time.monotonic() - 100
    said = "no: w@host wrote its last heartbeat 100 s ago (allowed: {}); its last state was ready"
    assert probed.of(monotonic=old) == (1, said.format("30 s"))
    assert probed.of("--ready", monotonic=old) == (1, said.format("30 s"))
    assert probed.of("--max-age", "90", monotonic=old) == (1, said.format("90 s"))
    assert probed.of("--max-age=110.5", monotonic=old)[0] == 0
    assert probed.of(monotonic=old, max_age_s=300.0)[0] == 0
    assert probed.of("--max-age", "90", monotonic=old, max_age_s=300.0)[0] == 1


def test_steps_of_the_wall_clock_do_not_matter(probed: Probed) -> None:
    """The age is by the clock that the machine has since it started."""
    probed.of()
    os.utime(probed.path, (1.0, 1.0))
    assert probed()[0] == 0
    assert probed.of(timestamp="2000-01-01T00:00:00.000000Z")[0] == 0


def test_a_heartbeat_from_before_the_machine_started(probed: Probed) -> None:
    """A file that outlived a reboot."""
    said = probed.of(monotonic=time.monotonic() + 1e6)
    assert said == (1, "no: w@host wrote its heartbeat before this machine started")


@pytest.mark.parametrize("state", ["stopping", "ready"])
def test_where_nothing_can_be_written_the_process_counts(probed: Probed, state: str) -> None:
    """As the last tasks end, or while a task of a solo pool runs."""
    old: dict[str, Any] = {"state": state, "monotonic": time.monotonic() - 5000, "max_age_s": None}
    assert probed.of(**old)[0] == 0
    said = probed.of(**old, pid=ended_pid())
    assert said == (1, f"no: w@host has ended; its last state was {state}")


def test_max_age_bounds_a_task_of_a_solo_pool(probed: Probed) -> None:
    """But not a shutdown, whose tasks would be lost."""
    old = {"monotonic": time.monotonic() - 50, "max_age_s": None, "task_since": "2026-11-22T23:13Z"}
    assert probed.of("--max-age", "60", **old)[0] == 0
    said = probed.of("--max-age", "40", **old)
    why = "no: w@host wrote its last heartbeat 50 s ago (allowed: 40 s), and runs a task since {}"
    assert said == (1, why.format(old["task_since"]))
    assert probed.of("--max-age", "40", **old, state="stopping")[0] == 0


def test_the_process_of_another_user_exists(probed: Probed) -> None:
    """To send it a signal is not allowed."""
    assert probed.of(state="stopping", max_age_s=None, pid=1)[0] == 0


def test_a_file_with_the_fields_of_the_contract_alone(probed: Probed) -> None:
    """As another release may write it: its age is that of the file."""
    later = ("task_since", "max_age_s", "monotonic")
    record = {name: value for name, value in heartbeat().items() if name not in later}
    probed.path.write_text(json.dumps(record, indent=2))
    assert probed("--ready") == (0, "yes: w@host is ready")
    os.utime(probed.path, (time.time() - 40, time.time() - 40))
    assert probed()[0] == 1
    assert probed("--max-age", "50")[0] == 0


def test_a_file_that_is_not_there(probed: Probed) -> None:
    """No worker runs that writes it, or it has not got so far."""
    said = f"no: {probed.path} does not exist: no worker that writes it runs"
    assert probed() == (1, said)


@pytest.mark.parametrize("text", ["", "nonsense", "{}", '{"state":', '{"state": 5}', "\0\n\n"])
def test_a_file_that_is_no_heartbeat(probed: Probed, text: str) -> None:
    """One line, and no traceback."""
    probed.path.write_text(text)
    assert probed() == (1, f"no: {probed.path} has left no heartbeat in that file")


@pytest.mark.parametrize("pid", ["null", "NaN", "1e999", "9" * 30, '"7"', "-1e999"])
def test_a_process_id_that_is_none(probed: Probed, pid: str) -> None:
    """One line, and no traceback."""
    probed.path.write_text(
        f'{{"worker": "w@host", "pid": {pid}, "state": "stopping", "max_age_s": null}}'
    )
    assert probed() == (1, "no: w@host has ended; its last state was stopping")


def test_a_heartbeat_without_a_name(probed: Probed) -> None:
    """The file's name stands for it."""
    probed.path.write_text('{"state": "ready"}')
    assert probed() == (0, f"yes: {probed.path} is alive")


def test_a_folder_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The system's own words."""
    assert worker_guard_probe.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"no: {tmp_path}: Is a directory\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a", "b"],
        ["--ready"],
        ["a", "--max-age"],
        ["a", "--max-age", "soon"],
        ["a", "--max-age=0"],
        ["a", "--max-age=nan"],
        ["a", "--max-age=inf"],
        ["a", "--alive"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and how it is right, on stderr."""
    assert worker_guard_probe.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert worker_guard_probe.USAGE in captured.err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """The usage, and exit code 0."""
    assert worker_guard_probe.main(["--help"]) == 0
    assert capsys.readouterr().out.strip() == worker_guard_probe.USAGE


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(
    st.dictionaries(st.text(max_size=5) | st.sampled_from(["state", "worker", "pid"]), PLAIN),
    st.sampled_from([None, 2]),
)
def test_it_reads_json_as_json_does(record: dict[str, Any], indent: int | None) -> None:
    """Each string and number of a flat object, whatever stands in the others."""
    text = json.dumps(record, indent=indent)
    for name, value in record.items():
        if not re.fullmatch("[a-z_]+", name):
            continue
        if isinstance(value, str):
            assert json.loads(f'"{worker_guard_probe._text(text, name)}"') == value
        elif isinstance(value, int | float) and not isinstance(value, bool):
            assert worker_guard_probe._number(text, name) == float(value)
        else:
            assert worker_guard_probe._text(text, name) == ""
    assert worker_guard_probe._raw(text, "none_such") == ""


def test_it_imports_next_to_nothing() -> None:
    """No module that a bare Python has not loaded, so that it costs what a bare Python costs."""
    code = (
        "import sys; before = set(sys.modules); import worker_guard_probe as probe;"
        "probe.main(['/none']); print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[1] == "['worker_guard_probe']"


def test_it_runs_as_a_program(tmp_path: Path) -> None:
    """Without the site's packages; its exit code is the answer."""
    path = tmp_path / "w.json"
    for state, code in (("ready", 0), ("starting", 1)):
        path.write_text(json.dumps(heartbeat(state=state)))
        command = [sys.executable, "-I", "-S", str(PROBE), str(path), "--ready"]
        assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == code
