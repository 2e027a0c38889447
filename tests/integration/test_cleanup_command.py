"""``celery guard cleanup`` and ``history``: real workers, servers that are away or refuse."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from tests.conftest import MakeFleet
from tests.harness.app import ASKED
from tests.harness.fronts import Front
from tests.harness.guard_command import RESULTS, guard, guard_process
from tests.harness.redis_server import RedisServer
from tests.harness.results import contents, encoded
from tests.harness.workers import ROOT, Fleet, Worker, wait_for
from worker_guard.revoked.record import open_record

#: As it stands in a URL, and as it is; neither may be shown, nor a piece between its special ones.
QUOTED, PASSWORD = "zeb%2Fra%40%23ok%C3%A9", "zeb/ra@#oké"
PIECES = ("zeb", "ra@", "ra%40", "oké", "ok%C3")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A server with users that may do some things, and a replica's and a full server's faults."""
    with RedisServer() as one:
        users = {
            "all": ["+@all"],
            "unscripted": ["+@all", "-@scripting"],
            "unscanning": ["+@all", "-scan"],
            "undeleting": ["+@all", "-unlink"],
            "unlisted": ["+@all", "-lrange"],
        }
        for name, commands in users.items():
            one.client.execute_command(
                "ACL", "SETUSER", name, "on", f">{PASSWORD}", "~*", *commands
            )
        one.client.config_set("requirepass", PASSWORD)
        one.client.auth(PASSWORD)
        yield one


@pytest.fixture(autouse=True)
def filled(server: RedisServer) -> None:
    server.client.config_set("maxmemory", 0)
    server.client.flushall()
    put_old_results(server.client)


def put_old_results(client: Any) -> None:
    """50 results that are to be deleted."""
    for i in range(50):
        client.set(f"celery-task-meta-{i}", encoded().replace(b'"2027-', b'"2001-'))


def conf(server: RedisServer, user: str = "all", **values: Any) -> dict[str, Any]:
    return {
        "broker_url": "memory://",
        "result_backend": f"redis://{user}:{QUOTED}@127.0.0.1:{server.port}/0",
        **values,
    }


def is_one_line(said: Any) -> bool:
    """Whether there is one line for people, nothing else, and no password."""
    shown = said.stdout + said.stderr
    assert "Traceback" not in shown
    assert not [piece for piece in PIECES if piece in shown], shown
    return said.stdout == "" and len(said.stderr.splitlines()) == 1


# -- servers that are away, or refuse ----------------------------------------------------------

commands = pytest.mark.parametrize(
    "command", [("cleanup", *RESULTS), ("history",)], ids=["cleanup", "history"]
)


@pytest.mark.parametrize(
    ("user", "line"),
    [
        ("unscanning", "'scan'"),
        ("undeleting", "'unlink'"),
        ("unscripted", "'eval'"),
    ],
)
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_user_that_may_not_is_trouble(
    server: RedisServer, user: str, line: str, as_json: list[str]
) -> None:
    """The server was reached: 1, and no result that says "0 keys"."""
    before = contents(server.client)
    said = guard(conf(server, user), "cleanup", *RESULTS, *as_json)
    assert said.returncode == 1
    assert is_one_line(said), said
    assert line in said.stderr
    assert "refuses" in said.stderr
    assert contents(server.client) == before


def test_a_user_that_may_not_read_the_history_is_trouble(server: RedisServer) -> None:
    """The same for the other command."""
    said = guard(conf(server, "unlisted"), "history")
    assert said.returncode == 1
    assert is_one_line(said), said
    assert "'lrange'" in said.stderr


@pytest.mark.parametrize(
    "url",
    [
        "redis://all:zeb%2Fwrong@127.0.0.1:{port}/0",
        "redis://127.0.0.1:{port}/0",
        "redis://all:" + QUOTED + "@127.0.0.1:{port}/99",
    ],
    ids=["wrong password", "no password", "no such database"],
)
@commands
def test_a_server_that_lets_nobody_in_is_trouble(
    server: RedisServer, command: tuple[str, ...], url: str
) -> None:
    """It was there, and said no."""
    said = guard(conf(server, result_backend=url.format(port=server.port)), *command)
    assert said.returncode == 1
    assert is_one_line(said), said
    assert "refuses" in said.stderr


def test_a_read_only_replica_is_trouble(server: RedisServer) -> None:
    """A dry run works there, and leaves no history."""
    options = ("--replicaof", "127.0.0.1", str(server.port), "--masterauth", PASSWORD)
    with RedisServer(*options) as replica:
        wait_for(lambda: replica.client.dbsize() == 50, "the replica to be filled")
        values = conf(server, result_backend=replica.url())
        said = guard(values, "cleanup", *RESULTS)
        assert said.returncode == 1
        assert is_one_line(said), said
        assert "read only" in said.stderr
        would = guard(values, "cleanup", *RESULTS, "--dry-run", "--json")
        assert (would.returncode, would.stderr) == (0, "")
        assert json.loads(would.stdout)["expired_results_deleted"] == 50


def test_a_full_server_makes_room_and_takes_no_history(server: RedisServer) -> None:
    """The cleanup is done; what is missing is said without the command that was refused."""
    server.client.config_set("maxmemory", 1)
    said = guard(conf(server), "cleanup", *RESULTS, "--json")
    assert json.loads(said.stdout)["expired_results_deleted"] == 50
    assert said.returncode == 0
    assert len(said.stderr.splitlines()) == 1
    assert "not in the history" in said.stderr
    assert "LPUSH" not in said.stderr
    assert "{" not in said.stderr


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@commands
@pytest.mark.parametrize(
    "url",
    [
        f"redis://all:{QUOTED}@127.0.0.1:1/0",
        f"redis://127.0.0.1:1/0?password={QUOTED}",
        f"rediss://:{QUOTED}@127.0.0.1:1/0?ssl_cert_reqs=none",
        f"sentinel://:{QUOTED}@127.0.0.1:1/0;sentinel://:{QUOTED}@localhost:1/0",
        f"redis+socket://:{QUOTED}@/no/such/socket",
        f"redis://:{QUOTED}@no-such-host.invalid:6379/0",
    ],
    ids=["redis", "parameter", "rediss", "sentinel", "socket", "name"],
)
def test_a_server_that_is_away_is_told_apart(
    server: RedisServer, url: str, command: tuple[str, ...]
) -> None:
    """69, and no password, in whatever strategy it is quoted."""
    options = {"master_name": "main", "sentinel_kwargs": {"password": PASSWORD}}
    values = conf(
        server,
        result_backend=url,
        result_backend_transport_options=options if "sentinel" in url else {},
    )
    said = guard(values, *command)
    assert said.returncode == 69, said
    assert is_one_line(said), said


@pytest.mark.parametrize("kind", ["redis", "sentinel"])
def test_a_server_that_says_nothing_is_away(server: RedisServer, kind: str) -> None:
    """After the time that it is given."""
    with silent() as port:
        values = conf(
            server,
            result_backend=f"{kind}://:{QUOTED}@127.0.0.1:{port}/0",
            result_backend_transport_options={"master_name": "main"} if kind != "redis" else {},
        )
        said = guard(values, "history")
        assert said.returncode == 69, said
        assert is_one_line(said), said


@pytest.mark.parametrize(
    "url", ["redis://:zeb/ra@127.0.0.1:1/0", "redis://:zeb#ra@127.0.0.1:1/0", "redis://h:port/0"]
)
@commands
def test_a_url_that_is_none_is_wrong_usage(
    server: RedisServer, command: tuple[str, ...], url: str
) -> None:
    """With how it has to look, and without a piece of what it was."""
    said = guard(conf(server, result_backend=url), *command)
    assert said.returncode == 2, said
    assert is_one_line(said), said
    assert "has to look like" in said.stderr


def test_a_broker_that_is_away_is_told_apart(server: RedisServer) -> None:
    """Where its messages were to be dropped; the cleanup is done by then, and told."""
    values = conf(server, broker_url=f"redis://:{QUOTED}@127.0.0.1:1/0")
    said = guard(values, "cleanup", *RESULTS, "--json", "--purge-queues", "--yes")
    assert said.returncode == 69, said
    assert json.loads(said.stdout)["expired_results_deleted"] == 50
    assert len(said.stderr.splitlines()) == 1
    assert not [piece for piece in PIECES if piece in said.stderr]


def test_the_history_says_that_the_command_line_asked(server: RedisServer) -> None:
    """What a worker logs of its cleanups, the command answers and remembers."""
    said = guard(conf(server), "cleanup", *RESULTS, "--json")
    assert said.returncode == 0
    answer = json.loads(said.stdout)["targets"]["results"]
    assert (answer["trigger"], answer["expired_results_deleted"]) == ("cli", 50)
    (entry,) = json.loads(guard(conf(server), "history", "--json").stdout)
    assert entry == answer


# -- real workers ------------------------------------------------------------------------------

#: The guard sweeps by itself at the start alone, and each id can be cleared at once.
QUIET = {"worker_guard_interval": 3600.0, "worker_guard_revoked_grace": 0.0}

#: Those who are named end the wait by their answers.
BOTH = ("--destination", "one@test,two@test", "--timeout", "60")


def poisoned(fleet: Fleet, name: str, *options: str, **arguments: Any) -> Worker:
    """A worker whose set holds 12 ids that only expired, and one that an operator revoked."""
    for n in range(12):
        fleet.send("add", 1, 2, task_id=f"{name}-{n}", expires=0.05, queue=name)
    time.sleep(0.1)  # until they have expired
    worker = fleet.start(name, "--without-mingle", "-Q", name, *options, **arguments)
    # A worker that starts later is not to know of it, by mingle or from the record.
    operators = f"operators-{name}"
    fleet.app.control.revoke(operators, destination=[worker.name])
    wait_for(lambda: len(worker.revoked()) == 13, "the set to be poisoned")
    record = open_record(fleet.results.backend, lifetime_s=None, timeout_s=1.0)
    wait_for(lambda: not record.lost([operators]), "the revocation to be recorded")
    record.remove([operators])
    return worker


def results_of(fleet: Fleet) -> Any:
    """A client of the fleet's results, of which 50 are old."""
    client = fleet.results.backend.client
    put_old_results(client)
    return client


def old_results(client: Any) -> int:
    """How many of them are left."""
    return len([key for key in client.scan_iter("celery-task-meta-*") if key[17:].isdigit()])


def valid(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer, which is as the schema says."""
    path = ROOT / "docs" / "reference" / "cleanup.schema.json"
    jsonschema.validate(answer, json.loads(path.read_text()))
    return answer


def statistics(answer: dict[str, Any]) -> tuple[int, int, int]:
    """The three."""
    return (
        answer["revoked_tasks_cleared"],
        answer["expired_results_deleted"],
        answer["task_states_cleaned"],
    )


def test_one_word_heals_every_worker_and_cleans_the_results(make_fleet: MakeFleet) -> None:
    """And tells the three statistics in one line; what an operator revoked stays revoked."""
    fleet = make_fleet(**QUIET)
    client = results_of(fleet)
    workers = [poisoned(fleet, "one"), poisoned(fleet, "two")]
    # Nobody is named, so that it waits for further workers after the last answer.
    said = guard(fleet.app.conf["harness"], "cleanup", "--timeout", "5")
    assert (said.returncode, said.stderr) == (0, "")
    assert [worker.revoked() for worker in workers] == [{"operators-one"}, {"operators-two"}]
    assert old_results(client) == 0
    lines = said.stdout.splitlines()
    for worker in workers:
        assert (
            f"  {worker.name}  12 ids cleared; left: 1 revoked by operators, 0 unproven, 0 in grace"
            in lines
        )
    assert "  50 results deleted, older than 24 h" in lines
    assert lines[-1].startswith("Total: 24 revoked tasks cleared, 50 expired results deleted, ")


def test_the_json_has_the_totals_and_each_target(make_fleet: MakeFleet) -> None:
    """A dry run first, which changes nothing."""
    fleet = make_fleet(**QUIET)
    client = results_of(fleet)
    workers = [poisoned(fleet, "one"), poisoned(fleet, "two")]
    before = [worker.revoked() for worker in workers]
    conf = fleet.app.conf["harness"]

    would = valid(json.loads(guard(conf, "cleanup", *BOTH, "--dry-run", "--json").stdout))
    assert statistics(would)[:2] == (24, 50)
    assert would["targets"]["revoked"]["one@test"]["dry_run"] is True
    assert would["targets"]["results"]["dry_run"] is True
    assert [worker.revoked() for worker in workers] == before
    assert old_results(client) == 50
    assert json.loads(guard(conf, "history", "--json").stdout) == []

    answer = valid(json.loads(guard(conf, "cleanup", *BOTH, "--json").stdout))
    assert statistics(answer) == statistics(would)
    swept = answer["targets"]["revoked"]
    assert sorted(swept) == ["one@test", "two@test"]
    for worker in workers:
        told = swept[worker.name]
        assert (told["target"], told["trigger"]) == ("revoked", "control")
        assert told["revoked_tasks_kept"] == {"operator": 1, "unproven": 0, "grace": 0}
        logged = worker.events("cleanup_completed")[-1]
        assert {name: logged[name] for name in told} == told
    results = answer["targets"]["results"]
    assert (results["target"], results["trigger"], results["complete"]) == ("results", "cli", True)


@pytest.mark.parametrize(("only", "sets", "results"), [("revoked", 1, 50), ("results", 13, 0)])
def test_only_one_target(make_fleet: MakeFleet, only: str, sets: int, results: int) -> None:
    """The other one stays as it is."""
    fleet = make_fleet(**QUIET)
    client = results_of(fleet)
    worker = poisoned(fleet, "one")
    ours = ("--destination", "one@test", "--timeout", "60") if only == "revoked" else ()
    said = guard(fleet.app.conf["harness"], "cleanup", "--only", only, *ours, "--json")
    assert said.returncode == 0, said.stderr
    assert list(valid(json.loads(said.stdout))["targets"]) == [only]
    assert (len(worker.revoked()), old_results(client)) == (sets, results)


def test_both_targets_can_be_named(make_fleet: MakeFleet) -> None:
    """As without ``--only``."""
    fleet = make_fleet(**QUIET)
    results_of(fleet)
    poisoned(fleet, "one")
    both = ("--only", "results", "--only", "revoked", *("--destination", "one@test", "-t", "60"))
    answer = valid(json.loads(guard(fleet.app.conf["harness"], "cleanup", *both, "--json").stdout))
    assert statistics(answer)[:2] == (12, 50)


class Slow(Front):
    """Answers a look-up of marks only when the worker has long ended its first slice."""

    def loses(self, command: bytes) -> bool:
        """Never, but late."""
        if command == b"ZMSCORE":
            time.sleep(0.1)
        return False


def test_a_sweep_that_takes_long_is_waited_for(
    make_fleet: MakeFleet, redis_server: RedisServer
) -> None:
    """Its worker answers that it still sweeps; the figures come with the answer all the same."""
    with Slow(redis_server.port) as front:
        fleet = make_fleet(**QUIET)
        conf = {**fleet.app.conf["harness"], "result_backend": f"redis://127.0.0.1:{front.port}/1"}
        fleet.app.conf["harness"] = conf
        worker = poisoned(fleet, "one", environ={ASKED: "0.05"})
        named = ("--only", "revoked", "--destination", "one@test", "--timeout", "60")
        would = guard(conf, "cleanup", *named, "--dry-run", "--json")
        told = valid(json.loads(would.stdout))["targets"]["revoked"]["one@test"]
        assert told == {"sweeping": True, "dry_run": True}
        assert "sweeping; its log" in guard(conf, "cleanup", *named, "--dry-run").stdout
        answer = valid(json.loads(guard(conf, "cleanup", *named, "--json").stdout))
        assert answer["revoked_tasks_cleared"] == 12
        assert answer["targets"]["revoked"]["one@test"]["trigger"] == "control"
        assert worker.revoked() == {"operators-one"}


def test_no_worker_is_up(make_fleet: MakeFleet) -> None:
    """The results are cleaned all the same."""
    fleet = make_fleet(**QUIET)
    client = results_of(fleet)
    said = guard(fleet.app.conf["harness"], "cleanup", "--json")
    assert said.returncode == 69
    assert said.stderr == "No worker answered within 1 s; --timeout waits longer\n"
    assert statistics(valid(json.loads(said.stdout)))[:2] == (0, 50)
    assert old_results(client) == 0
    named = guard(fleet.app.conf["harness"], "cleanup", "--only", "revoked", "-d", "w@test")
    assert (named.returncode, named.stdout) == (69, "")
    assert "None of w@test answered" in named.stderr


def test_the_broker_is_away(server: RedisServer) -> None:
    """The results are cleaned all the same."""
    values = conf(server, broker_url=f"redis://:{QUOTED}@127.0.0.1:1/0")
    said = guard(values, "cleanup", "--json")
    assert said.returncode == 69
    (line,) = said.stderr.splitlines()
    assert line.startswith("The broker can't be reached: redis://:**@127.0.0.1:1/0 (broker_url): ")
    assert statistics(valid(json.loads(said.stdout)))[:2] == (0, 50)


def test_ctrl_c_while_the_workers_are_asked(server: RedisServer) -> None:
    """Ends it, with nothing done; it does not wait for a broker that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        broker = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        with guard_process(conf(server, broker_url=broker), "cleanup") as process:
            connection, _ = listener.accept()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
            connection.close()
    assert (process.returncode, out) == (1, "")
    assert err.splitlines()[-1] == "Stopped."
    assert "Traceback" not in err
    assert server.client.dbsize() == 50


def test_the_result_backend_is_away(make_fleet: MakeFleet) -> None:
    """The workers, which reach it, are healed all the same."""
    fleet = make_fleet(**QUIET)
    worker = poisoned(fleet, "one")
    values = {**fleet.app.conf["harness"], "result_backend": "redis://127.0.0.1:1/0"}
    named = ("--destination", "one@test", "--timeout", "60")
    said = guard(values, "cleanup", *named, "--json")
    assert said.returncode == 69
    (line,) = said.stderr.splitlines()
    assert line.startswith("The result backend can't be reached: redis://127.0.0.1:1/0 ")
    answer = valid(json.loads(said.stdout))
    assert (statistics(answer)[0], list(answer["targets"])) == (12, ["revoked", "broker"])
    assert worker.revoked() == {"operators-one"}


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"result_backend": "cache+memory://"}, "no Redis result backend: it is CacheBackend"),
        ({"result_expires": None}, "nothing says how old a result may get"),
    ],
)
def test_results_that_are_not_to_be_cleaned(
    make_fleet: MakeFleet, values: dict[str, Any], why: str
) -> None:
    """That is said, and no failure, unless they were asked for."""
    fleet = make_fleet(**QUIET)
    worker = poisoned(fleet, "one")
    configured = {**fleet.app.conf["harness"], **values}
    said = guard(configured, "cleanup", "--destination", "one@test", "--timeout", "60")
    assert said.returncode == 0
    (line,) = said.stderr.splitlines()
    assert line.startswith(f"The results are not cleaned: {why}")
    assert "Total: 12 revoked tasks cleared, 0 expired" in said.stdout
    assert worker.revoked() == {"operators-one"}
    asked = guard(configured, "cleanup", "--only", "results")
    assert (asked.returncode, asked.stdout) == (2, "")
    assert asked.stderr.startswith(why)


def test_workers_that_can_not_sweep_are_named(make_fleet: MakeFleet) -> None:
    """One without a guard, one whose guard is off; the others are healed."""
    fleet = make_fleet(**QUIET)
    worker = poisoned(fleet, "one")
    fleet.start("bare", guarded=False)
    fleet.start("off", conf={"worker_guard_enabled": False})
    named = ("--only", "revoked", "--destination", "one@test,bare@test,off@test", "-t", "60")
    said = guard(fleet.app.conf["harness"], "cleanup", *named, "--json")
    assert said.returncode == 1
    bare, off = said.stderr.splitlines()
    assert bare.startswith("bare@test: worker_guard is not loaded there: add app.steps")
    assert off == "off@test: worker_guard_enabled is False"
    answer = valid(json.loads(said.stdout))
    assert statistics(answer) == (12, 0, 0)
    assert answer["targets"]["revoked"]["off@test"] == {"error": "worker_guard_enabled is False"}
    assert worker.revoked() == {"operators-one"}
    shown = guard(fleet.app.conf["harness"], "cleanup", *named).stdout
    assert "  bare@test  not swept" in shown


def test_a_worker_that_is_busy_sweeps_when_it_can(make_fleet: MakeFleet) -> None:
    """A solo worker answers nothing while its task runs; so does one that is stopped."""
    fleet = make_fleet(**QUIET)
    busy, free = poisoned(fleet, "busy", "-P", "solo"), poisoned(fleet, "free")
    named = ("--only", "revoked", "--timeout", "5")
    busy.process.send_signal(signal.SIGSTOP)
    try:
        said = guard(fleet.app.conf["harness"], "cleanup", *named, "--json")
        assert list(valid(json.loads(said.stdout))["targets"]["revoked"]) == ["free@test"]
        assert said.returncode == 0
        asked = guard(
            fleet.app.conf["harness"], "cleanup", *named, "-d", "busy@test,free@test", "--json"
        )
        assert asked.returncode == 1
        assert asked.stderr.startswith("busy@test: no answer within 5 s; ")
    finally:
        busy.process.send_signal(signal.SIGCONT)
    wait_for(lambda: busy.revoked() == {"operators-busy"}, "it to be healed")
    assert free.revoked() == {"operators-free"}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--only", "queues"), "'queues' is not one of 'revoked', 'results', 'broker'"),
        (("--only", "revoked", "--max-age", "1"), "--max-age and --ignore-ttl are about results"),
        (("--only", "revoked", "--ignore-ttl"), "--max-age and --ignore-ttl are about results"),
        ((*RESULTS, "--destination", "w@test"), "--destination is about revoked sets"),
    ],
)
def test_options_that_do_not_go_together(
    server: RedisServer, arguments: tuple[str, ...], line: str
) -> None:
    """Are wrong usage."""
    said = guard(conf(server), "cleanup", *arguments)
    assert (said.returncode, said.stdout) == (2, "")
    assert line in said.stderr
