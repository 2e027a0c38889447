"""What ``celery guard sweep`` and ``history`` say where a server is away, or says no."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.guard_command import guard
from tests.harness.redis_server import RedisServer
from tests.harness.results import contents, encoded
from tests.harness.workers import wait_for

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
            "unwatching": ["+@all", "-@scripting", "-watch"],
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
    for i in range(50):
        server.client.set(f"celery-task-meta-{i}", encoded().replace(b'"2027-', b'"2001-'))


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


@pytest.mark.parametrize(
    ("user", "line"),
    [
        ("unscanning", "'scan'"),
        ("undeleting", "'unlink'"),
        ("unwatching", "'watch'"),
    ],
)
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_user_that_may_not_is_trouble(
    server: RedisServer, user: str, line: str, as_json: list[str]
) -> None:
    """The server was reached: 1, and no result that says "0 keys"."""
    before = contents(server.client)
    said = guard(conf(server, user), "sweep", *as_json)
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
@pytest.mark.parametrize("command", ["sweep", "history"])
def test_a_server_that_lets_nobody_in_is_trouble(
    server: RedisServer, command: str, url: str
) -> None:
    """It was there, and said no."""
    said = guard(conf(server, result_backend=url.format(port=server.port)), command)
    assert said.returncode == 1
    assert is_one_line(said), said
    assert "refuses" in said.stderr


def test_a_read_only_replica_is_trouble(server: RedisServer) -> None:
    """A dry run works there, and leaves no history."""
    options = ("--replicaof", "127.0.0.1", str(server.port), "--masterauth", PASSWORD)
    with RedisServer(*options) as replica:
        wait_for(lambda: replica.client.dbsize() == 50, "the replica to be filled")
        values = conf(server, result_backend=replica.url())
        said = guard(values, "sweep")
        assert said.returncode == 1
        assert is_one_line(said), said
        assert "read only" in said.stderr
        would = guard(values, "sweep", "--dry-run", "--json")
        assert (would.returncode, would.stderr) == (0, "")
        assert json.loads(would.stdout)["expired_results_deleted"] == 50


def test_a_full_server_makes_room_and_takes_no_history(server: RedisServer) -> None:
    """The sweep is done; what is missing is said without the command that was refused."""
    server.client.config_set("maxmemory", 1)
    said = guard(conf(server), "sweep", "--json")
    assert json.loads(said.stdout)["expired_results_deleted"] == 50
    assert said.returncode == 0
    assert len(said.stderr.splitlines()) == 1
    assert "not in the history" in said.stderr
    assert "LPUSH" not in said.stderr
    assert "{" not in said.stderr


def test_a_full_server_that_refuses_scripts_is_trouble(server: RedisServer) -> None:
    """A MULTI takes memory."""
    server.client.config_set("maxmemory", 1)
    said = guard(conf(server, "unscripted"), "sweep")
    assert said.returncode == 1
    assert is_one_line(said), said
    assert "OOM" in said.stderr or "used memory" in said.stderr


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("command", ["sweep", "history"])
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
def test_a_server_that_is_away_is_told_apart(server: RedisServer, url: str, command: str) -> None:
    """69, and no password, in whatever strategy it is quoted."""
    options = {"master_name": "main", "sentinel_kwargs": {"password": PASSWORD}}
    values = conf(
        server,
        result_backend=url,
        result_backend_transport_options=options if "sentinel" in url else {},
    )
    said = guard(values, command)
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
@pytest.mark.parametrize("command", ["sweep", "history"])
def test_a_url_that_is_none_is_wrong_usage(server: RedisServer, command: str, url: str) -> None:
    """With how it has to look, and without a piece of what it was."""
    said = guard(conf(server, result_backend=url), command)
    assert said.returncode == 2, said
    assert is_one_line(said), said
    assert "has to look like" in said.stderr


def test_a_broker_that_is_away_is_told_apart(server: RedisServer) -> None:
    """Where its messages were to be dropped; the sweep is done by then, and told."""
    values = conf(server, broker_url=f"redis://:{QUOTED}@127.0.0.1:1/0")
    said = guard(values, "sweep", "--json", "--purge-queues", "--yes")
    assert said.returncode == 69, said
    assert json.loads(said.stdout)["expired_results_deleted"] == 50
    assert len(said.stderr.splitlines()) == 1
    assert not [piece for piece in PIECES if piece in said.stderr]


def test_the_history_says_that_the_command_line_asked(server: RedisServer) -> None:
    """What a worker logs of its sweeps, the command answers and remembers."""
    said = guard(conf(server), "sweep", "--json")
    assert said.returncode == 0
    answer = json.loads(said.stdout)
    assert (answer["trigger"], answer["expired_results_deleted"]) == ("cli", 50)
    (entry,) = json.loads(guard(conf(server), "history", "--json").stdout)
    assert entry == answer
