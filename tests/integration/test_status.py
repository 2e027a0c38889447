"""``celery guard status`` and what it reads, on real workers."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.harness.memory import Site, children, memory_site
from tests.harness.odd_app import AFTER, ANSWER
from tests.harness.redis_server import RedisServer, free_port
from tests.harness.schemas import faults
from tests.harness.terminal import celery, environ_of, terminal
from tests.harness.workers import ROOT, bare_worker, fleet, wait_for
from worker_guard.celery_internals import Mailbox
from worker_guard.commands.status.asking import BROKER_S, Workers

PASSWORD = "hunter2-is-no-password"

NAMES = ("bare@test", "off@test", "solo@test", "w@test")

#: The answers of those that are named end the wait, however long it might be.
ALL = ("-d", ",".join(NAMES), "--timeout", "60")


def run(
    configuration: Mapping[str, Any], *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    """``celery …`` in a pipe."""
    return subprocess.run(
        celery(*arguments),
        cwd=ROOT,
        env=environ_of(configuration, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def site(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Four workers: with two children of which one is busy, solo, switched off, and unguarded."""
    directory = tmp_path_factory.mktemp("status")
    settings = {"worker_guard_interval": 0.5, "worker_guard_recycle_min_lifetime": 600}
    with (
        memory_site(server, directory, **settings) as one,
        bare_worker("bare@test", server.url()),
    ):
        one.start("--concurrency=2")
        one.send("wait", 1)
        one.waiting()
        one.fleet.start("solo", "--pool=solo")
        one.fleet.start("off", conf={"worker_guard_enabled": False})
        one.fleet.app.control.revoke(["operator-1", "operator-2"])
        asking = Workers(one.fleet.app, destination=NAMES, timeout_s=2.0)
        wait_for(lambda: len(asking.ask().present) == 4, "four workers")
        yield one


@pytest.fixture
def conf(site: Site) -> dict[str, Any]:
    """The configuration of the site."""
    return dict(site.fleet.app.conf["harness"])


# -- the answer ----------------------------------------------------------------------------


def test_a_guard_says_what_each_child_runs_and_since_when(site: Site) -> None:
    """And the worker's pool, its process and its age."""
    (worker, *_) = site.fleet.workers
    state = worker.ask("guard")
    assert (state["pid"], state["pool"], state["concurrency"]) == (worker.process.pid, "prefork", 2)
    assert state["active_tasks"] == 1
    busy = [child for child in state["memory"]["children"] if child["task"]]
    (waiting,) = site.waiting()
    assert [child["pid"] for child in busy] == [waiting]
    (active,) = worker.ask("active")
    task = busy[0]["task"]
    assert (task["task_id"], task["task_name"]) == (active["id"], "harness.wait")
    assert 0 <= task["running_s"] <= state["uptime_s"]

    def later() -> Any:
        (now,) = [child["task"] for child in children(worker) if child["task"]]
        return now["running_s"] > task["running_s"]

    assert wait_for(later, "its time to go on")


def test_a_guard_says_when_the_last_cleanup_was(site: Site) -> None:
    """By the wall clock, and how long ago, whatever the reader's clock says."""
    (worker, *_) = site.fleet.workers
    before = time.time()
    worker.ask("guard_sweep")
    last = worker.ask("guard")["last_cleanup"]
    assert abs(last["at"] - before) < 60
    assert 0 <= last["age_s"] < 60


def test_the_json_is_as_the_schema_says(conf: dict[str, Any]) -> None:
    """Of every kind of worker; and nothing else stands on stdout."""
    done = run(conf, "guard", "status", "--json", *ALL)
    document = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert faults("status.schema.json", document) == []
    assert done.stderr == ""
    kinds = {
        name: [trouble["kind"] for trouble in worker["troubles"]]
        for name, worker in document["workers"].items()
    }
    assert kinds == {
        "bare@test": ["unknown_command"],
        "off@test": ["no_guard"],
        "solo@test": [],
        "w@test": [],
    }
    assert list(document["workers"]) == sorted(document["workers"])
    assert (document["trouble"], done.returncode) == (True, 1)


def test_what_inspect_guard_answers_is_as_the_schema_says(conf: dict[str, Any]) -> None:
    """The same answers, by Celery's own command."""
    done = run(conf, "inspect", "--json", *ALL, "guard")
    assert faults("inspect.schema.json", json.loads(done.stdout)) == []


def test_a_fleet_that_is_well_is_exit_code_0(conf: dict[str, Any]) -> None:
    """Only the workers that are named are asked."""
    named = ("-d", "w@test,solo@test", "--timeout", "60")
    done = run(conf, "guard", "status", "--json", *named)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert (document["trouble"], list(document["workers"])) == (False, ["solo@test", "w@test"])


def test_a_worker_that_was_named_and_is_not_there_has_a_row(conf: dict[str, Any]) -> None:
    """That is trouble; where none of the named is there, nobody answered."""
    done = run(conf, "guard", "status", "-d", "w@test,gone@test", "--timeout", "10")
    assert done.returncode == 1
    assert re.search(r"^gone@test +- .* no answer$", done.stdout, re.MULTILINE)
    alone = run(conf, "guard", "status", "-d", "gone@test")
    assert (alone.returncode, alone.stdout) == (69, "")
    assert alone.stderr == "None of gone@test answered within 1 s; --timeout waits longer\n"


def test_an_unguarded_worker_is_asked_once_in_a_while(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time costs it an error with a traceback in its log."""
    asked: list[tuple[str, Any]] = []
    ask = Mailbox.ask

    def watched(self: Any, connection: Any, command: str, **options: Any) -> Any:
        asked.append((command, options["to"]))
        return ask(self, connection, command, **options)

    monkeypatch.setattr(Mailbox, "ask", watched)
    workers = Workers(site.fleet.app, destination=NAMES, timeout_s=60.0)
    answers = [workers.ask() for _ in range(2)]
    workers.close()
    assert [command for command, _ in asked] == ["ping", "guard"] * 2
    assert "bare@test" in asked[1][1]
    assert "bare@test" not in asked[3][1]
    assert [dict(a.replies)["bare@test"] for a in answers] == [{"error": "KeyError('guard')"}] * 2


# -- the table -----------------------------------------------------------------------------


def test_in_a_pipe_there_is_text_alone(conf: dict[str, Any]) -> None:
    """No colour, no cursor, nothing is folded; and all are there, though none was named."""
    done = run(conf, "guard", "status", "--timeout", "10")
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
    (task,) = re.findall(r"^  child \d+ .* harness\.wait ([0-9a-f-]{36}) for", done.stdout, re.M)
    assert task
    assert "no guard  worker_guard_enabled is False" in done.stdout
    assert "not loaded  worker_guard is not loaded there" in done.stdout
    assert "2 ids that an operator revoked stay" in done.stdout
    verdict = "trouble: 2 of 4 workers: bare@test (not loaded), off@test (no guard)"
    assert done.stdout.splitlines()[-1] == verdict
    narrow = run(conf, "guard", "status", *ALL, COLUMNS="80")
    assert max(map(len, narrow.stdout.splitlines())) <= 80


def test_a_reader_that_has_seen_enough_is_no_error(conf: dict[str, Any]) -> None:
    """``celery guard status --all | head -1``: no traceback."""
    command = f"{shlex.join(celery('guard', 'status', '--all', *ALL))} | head -1"
    done = subprocess.run(
        command,
        shell=True,
        cwd=ROOT,
        env=environ_of(conf),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.split()[:1], done.stderr) == (["worker"], "")


@pytest.mark.parametrize("columns", [80, 140])
def test_on_a_terminal(conf: dict[str, Any], columns: int) -> None:
    """With colour, and as wide as the terminal is."""
    command = celery("guard", "status", *ALL)
    with terminal(*command, columns=columns, rows=70, environ=environ_of(conf)) as screen:
        assert screen.ended() == (1, "")
        text = screen.text()
    assert b"\x1b[" in screen.sent
    lines = text.splitlines()
    heads = [line.split() for line in lines[:1]]
    assert heads == [["worker", "pool", "revoked", "to", "clear", "memory", "swept", "state"]]
    assert lines[-1] == "trouble: 2 of 4 workers: bare@test (not loaded), off@test (no guard)"
    for name in ("bare@test", "off@test", "solo@test", "w@test"):
        assert sum(line.split()[:1] == [name] for line in lines) == 2, text
    busy = [line for line in lines if "harness.wait" in line]
    assert len(busy) == 1, text
    assert re.search(r"harness\.wait [0-9a-f-]{36} for \d+", busy[0])
    assert busy[0].startswith("  child" if columns == 140 else "  ")
    assert re.search(r"^  child \d+ +[\d.]+ MB USS  ━+", text, re.M) or "RSS" in text


@pytest.mark.parametrize("how", ["--no-color", "NO_COLOR"])
def test_without_colour_on_a_terminal(conf: dict[str, Any], how: str) -> None:
    """No escape sequence at all is sent, by Celery's option or the customary variable."""
    more = {"NO_COLOR": "1"} if how == "NO_COLOR" else {}
    option = [how] if how.startswith("-") else []
    command = [*celery()[:3], *option, *celery("guard", "status", *ALL)[3:]]
    with terminal(*command, columns=80, rows=70, environ=environ_of(conf, **more)) as screen:
        assert screen.ended() == (1, "")
        assert "w@test" in screen.text()
    assert b"\x1b" not in screen.sent


def test_under_the_c_locale_all_is_ascii(conf: dict[str, Any]) -> None:
    """Python takes UTF-8 for everything there; the terminal may show no more than ASCII."""
    for variable in ("LANG", "LC_ALL"):
        done = run(conf, "guard", "status", *ALL, **{variable: "C"})
        assert done.stdout.isascii()
        assert re.search(r"^  child .*  -+  +\d+ %", done.stdout, re.M), done.stdout
    assert not run(conf, "guard", "status", *ALL).stdout.isascii()


def test_fewer_workers_than_are_expected_are_trouble(conf: dict[str, Any]) -> None:
    """Though all that answered are well; who names nobody that is there hears that as before."""
    named = ("-d", "w@test,solo@test", "--timeout", "60")
    enough = run(conf, "guard", "status", *named, "--expect", "2")
    assert (enough.returncode, enough.stdout.splitlines()[-1]) == (
        0,
        "ok: 2 workers; nothing to do",
    )
    few = run(conf, "guard", "status", *named, "--expect", "3")
    verdict = "trouble: 2 answered, 3 were expected"
    assert (few.returncode, few.stdout.splitlines()[-1]) == (1, verdict)
    document = json.loads(run(conf, "guard", "status", "--json", *named, "--expect", "3").stdout)
    assert (document["trouble"], document["answered"], document["expected"]) == (True, 2, 3)
    assert faults("status.schema.json", document) == []
    nobody = run(conf, "guard", "status", "-d", "gone@test", "--expect", "1")
    assert (nobody.returncode, nobody.stdout) == (69, "")
    assert run(conf, "guard", "status", "--expect", "0").returncode == 2


def test_an_outage_as_it_is_seen_at_night(tmp_path: Path, server: RedisServer) -> None:
    """What expired and why; what will be cleared and when; then what was cleared."""
    conf = {
        "broker_url": server.url(7),
        "result_backend": server.url(8),
        # Swept when the test says so, so that all is told as one.
        "worker_guard_interval": 3600.0,
        "worker_guard_revoked_grace": 3600.0,
        # That alert tells of others.
        "worker_guard_alert_revoked": None,
    }
    with fleet(tmp_path, **conf) as workers:
        workers.expire(*(f"newsletter-{number}" for number in range(12)))
        worker = workers.start("w", "--pool=solo")

        wait_for(lambda: len(worker.revoked()) == 12, "all to expire")
        worker.ask("guard_sweep")
        state = worker.ask("guard")
        assert state["last_backfill"]["expired_tasks"] == 12
        assert state["last_backfill"]["tasks"] == {"harness.add": 12}
        assert sum(state["last_backfill"]["causes"].values()) == 12
        assert 0 <= state["last_backfill"]["age_s"] <= state["uptime_s"]
        assert state["revoked"]["clearing"] == 12
        assert 0 <= state["revoked"]["next_clear_s"] <= 2 * 3600 * 1.1
        done = run(conf, "guard", "status", "-d", "w@test", "--timeout", "60")
        lines = done.stdout.splitlines()
        assert re.search(r"^  expired  12 tasks, [\d.]+ s ago: harness.add 12$", done.stdout, re.M)
        assert "  because  no child was free in time" in done.stdout
        assert re.search(r"^  revoked  12 ids will be cleared in .*$", done.stdout, re.M), (
            done.stdout
        )
        assert re.fullmatch(r"ok: 1 worker; 12 ids will be cleared in .*; nothing to do", lines[-1])
        assert done.returncode == 0
        worker.stop()

        workers.expire(*(f"newsletter-{number}" for number in range(12)))
        at_once = {"worker_guard_revoked_grace": 0.0}
        worker = workers.start("w2", "--pool=solo", "--without-mingle", conf=at_once)
        wait_for(lambda: worker.ask("guard_sweep") and worker.cleared() == 12, "all to be cleared")
        done = run(conf, "guard", "status", "-d", "w2@test", "--timeout", "60")
        assert re.search(r"^  cleared  (12 ids, .* ago|.*; 12 since the start)$", done.stdout, re.M)
        assert done.stdout.splitlines()[-1] == "ok: 1 worker; nothing to do"
        assert worker.ask("guard")["revoked"]["next_clear_s"] is None


# -- strange answers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("pong", "broken_reply"),
        ([1, 2], "broken_reply"),
        (None, "broken_reply"),
        ({"version": "9", "revoked": "many"}, "broken_reply"),
        ({"error": "the guard could not start; the worker's log says why"}, "no_guard"),
        ({"version": "9"}, None),
    ],
    ids=str,
)
def test_strange_answers_have_a_row(
    tmp_path: Path, server: RedisServer, answer: Any, kind: str | None
) -> None:
    """Whatever a worker says: a row, and no traceback."""
    urls = {"broker_url": server.url(5)}
    with fleet(tmp_path, **urls) as workers:
        odd = {ANSWER: json.dumps(answer)}
        workers.start("odd", "--pool=solo", app_module="tests.harness.odd_app", environ=odd)
        patiently = ("-d", "odd@test", "--timeout", "60")
        done = run(urls, "guard", "status", "--json", *patiently)
        (worker,) = json.loads(done.stdout)["workers"].values()
        assert [trouble["kind"] for trouble in worker["troubles"]] == ([kind] if kind else [])
        assert done.returncode == (1 if kind else 0)
        table = run(urls, "guard", "status", *patiently)
        assert "Traceback" not in table.stderr + table.stdout
        # In the overview, in full, and in the verdict if it is in trouble.
        assert table.stdout.count("odd@test") == (3 if kind else 2)


def test_a_late_answer_has_a_row(tmp_path: Path, server: RedisServer) -> None:
    """The worker is there, and its guard answers after the time that it was given."""
    urls = {"broker_url": server.url(6)}
    with fleet(tmp_path, **urls) as workers:
        asked_enough = tmp_path / "asked-enough"
        late = {ANSWER: '{"version": "9"}', AFTER: str(asked_enough)}
        workers.start("late", "--pool=solo", app_module="tests.harness.odd_app", environ=late)
        done = run(urls, "guard", "status", "-d", "late@test", "--timeout", "10")
        asked_enough.touch()
        assert done.returncode == 1
        assert "no answer  answers a ping, but its guard did not answer in time" in done.stdout


# -- nobody answers ------------------------------------------------------------------------


def with_password(port: int) -> dict[str, str]:
    return {"broker_url": f"redis://:{PASSWORD}@127.0.0.1:{port}/0"}


def sentinels(**options: str) -> dict[str, Any]:
    """Two Sentinels, neither of which is there."""
    url = f"sentinel://:{PASSWORD}@127.0.0.1:{free_port()}"
    secret = {"sentinel_kwargs": {"password": PASSWORD}}
    return {"broker_url": f"{url};{url}", "broker_transport_options": {**secret, **options}}


@pytest.mark.parametrize("command", ["status", "watch"])
@pytest.mark.parametrize(
    "trouble",
    [
        *("closed", "silent", "refused", "nobody", "amqp", "unknown"),
        *("sentinel", "no-master"),
    ],
)
def test_a_broker_that_cannot_be_asked(server: RedisServer, trouble: str, command: str) -> None:
    """One line on stderr, in bounded time, without the password; the exit code says which."""
    with socket.socket() as silent, RedisServer() as refusing:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        refusing.client.config_set("requirepass", "another")
        urls = {
            "closed": with_password(free_port()),
            "silent": with_password(silent.getsockname()[1]),
            "refused": with_password(refusing.port),
            "nobody": {"broker_url": server.url(9)},
            "amqp": {"broker_url": f"amqp://u:{PASSWORD}@127.0.0.1:{free_port()}//"},
            "unknown": {"broker_url": f"ridis://:{PASSWORD}@127.0.0.1:1/0"},
            "sentinel": sentinels(master_name="primary"),
            "no-master": sentinels(),
        }
        began = time.monotonic()
        with terminal(*celery("guard", command), environ=environ_of(urls[trouble])) as screen:
            code, line = screen.ended()
            assert screen.text() == ""
        took_s = time.monotonic() - began
    assert code == {"refused": 1, "unknown": 2, "no-master": 2}.get(trouble, 69), line
    assert line.count("\n") == 1
    assert PASSWORD not in line
    assert "Traceback" not in line
    assert "object at 0x" not in line
    assert {
        "closed": "Connection refused",
        "silent": "Timeout",
        "refused": "The broker refuses",
        "nobody": "No worker answered within 1 s",
        "amqp": "Connection refused",
        "unknown": "No such transport",
        "sentinel": "No master found for 'primary' : ",
        "no-master": "'master_name' transport option must be specified",
    }[trouble] in line
    # Against hanging: what is bounded is one wait of BROKER_S, and this machine may be busy.
    assert took_s < 6 * BROKER_S


@pytest.mark.parametrize(
    "wrong",
    [
        ("status", "--timeout", "0"),
        ("status", "--timeout", "nan"),
        ("status", "--timeout", "61"),
        ("status", "--timeout", "soon"),
        ("watch", "--interval", "0.1"),
        ("watch", "--interval", "nan"),
        ("watch", "--json"),
        ("status", "more"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(wrong: tuple[str, ...]) -> None:
    """With what is allowed, and before anything is asked."""
    done = run({"broker_url": f"redis://127.0.0.1:{free_port()}/0"}, "guard", *wrong)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    if wrong[1] in {"--timeout", "--interval"} and wrong[2] != "soon":
        assert "allowed: seconds from" in done.stderr
