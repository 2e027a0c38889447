"""The documentation is held against the code, its snippets are run, and its pages are built."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import click
import pytest
from celery import Celery
from celery.bin.celery import celery as celery_command
from celery.concurrency.solo import TaskPool
from celery.schedules import crontab
from celery.worker.control import Panel

import worker_guard_probe
from worker_guard import events
from worker_guard.event_log import Reporter
from worker_guard.events import Event, Level
from worker_guard.guard import Guard
from worker_guard.metrics.catalogue import FAMILIES
from worker_guard.remote import guard, guard_sweep, guard_unrevoke
from worker_guard.results import task
from worker_guard.settings import PREFIX, Settings, read_settings

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, *sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts)]

INSTALLS = {"pip install worker-guard", 'pip install "worker-guard[prometheus]"'}

SETTINGS = {PREFIX + f.name: f for f in fields(Settings)}


# -- reading a page ------------------------------------------------------------------------


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """The fenced blocks of all pages in these languages."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(page, line, match[1], match[2]))
    return [block for block in found if block.language in languages]


def shell_lines() -> list[tuple[Block, str]]:
    """Each command of the shell blocks, without its comment."""
    return [
        (block, line)
        for block in blocks("sh")
        for line in (re.sub(r"\s+#.*", "", raw).strip() for raw in block.text.splitlines())
        if line
    ]


def rows(text: str, *head: str) -> Iterator[list[str]]:
    """The rows of each table whose head begins with these cells."""
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif tuple(cells[: len(head)]) == head:
            inside = True
        elif inside and not set(line) <= set("|-: "):
            yield cells


def code(cell: str) -> str:
    """What stands in the one pair of backticks of a cell."""
    (name,) = re.findall(r"`([^`]+)`", cell)
    return str(name)


def sections(page: Path) -> dict[str, str]:
    """Each second-level section of a page whose heading is code, by its name."""
    parts = re.split(r"^## `([^`]+)`$", page.read_text(), flags=re.MULTILINE)
    return {
        name: re.split(r"^## ", text, flags=re.MULTILINE)[0]
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


# -- settings ------------------------------------------------------------------------------


def test_the_settings_table_is_the_code() -> None:
    """Each setting has its row, in the code's order, with its default and what is allowed."""
    table = list(rows((DOCS / "reference/settings.md").read_text(), "setting"))
    assert [code(row[0]) for row in table] == list(SETTINGS)
    for name, default, allowed, _meaning in table:
        field = SETTINGS[code(name)]
        # A default is written as one would write it in the configuration.
        written = eval(code(default), {"crontab": crontab, "timedelta": timedelta})
        default_of = field.default_factory
        actual = field.default if default_of is MISSING else default_of()
        assert (written, type(written)) == (actual, type(actual)), name
        with pytest.raises(ValueError, match=re.escape(allowed)) as caught:
            field.metadata["parse"](object())
        assert str(caught.value) == allowed, name


# -- events --------------------------------------------------------------------------------


def catalogue(base: type[Event] = Event) -> dict[str, type[Event]]:
    """Every event of the catalogue, by its name."""
    found: dict[str, type[Event]] = {}
    for event in base.__subclasses__():
        if event.__module__ == events.__name__:
            found[event.name] = event
        found |= catalogue(event)
    return found


def levels(event: type[Event]) -> set[str]:
    """The one level of an event, or those in the code of its property ``level``."""
    level = vars(event).get("level", vars(Event)["level"])
    if isinstance(level, str):
        return {level}
    tree = ast.parse(textwrap.dedent(inspect.getsource(level.fget)))
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return {str(value) for value in constants if value in get_args(Level)}


def json_type(annotation: Any) -> str:
    """What JSON makes of a field of this type, as the tables write it."""
    if annotation in (bool, int, float, str, type(None)):
        simple = {bool: "boolean", int: "integer", float: "number", str: "string"}
        return simple.get(annotation, "null")
    origin = get_origin(annotation)
    if origin is Literal:
        return "string"
    if is_dataclass(annotation) or (origin is not None and issubclass_of_mapping(origin)):
        return "object"
    if get_args(annotation) and type(None) in get_args(annotation):
        return " or ".join(json_type(arg) for arg in get_args(annotation))
    return "array"


def issubclass_of_mapping(origin: Any) -> bool:
    """Whether this is a mapping's type."""
    return isinstance(origin, type) and issubclass(origin, Mapping)


def flat_types(event: Any) -> dict[str, str]:
    """The JSON type of each field; those of an object under ``object.field``."""
    hints = get_type_hints(event)
    found: dict[str, str] = {}
    for field in fields(event):
        hint = hints[field.name]
        found[field.name.removesuffix("_")] = json_type(hint)
        if is_dataclass(hint):
            found |= {f"{field.name}.{name}": kind for name, kind in flat_types(hint).items()}
    return found


class Recorder:
    """Takes what a reporter logs."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def info(self, event: str, **values: Any) -> None:
        self.lines.append({"event": event, **values})


def shared_fields() -> set[str]:
    """The fields that the reporter adds to every event."""
    recorder = Recorder()
    event = events.Stopped(
        revoked_tasks_cleared=0,
        expired_results_deleted=0,
        task_states_cleaned=0,
        children_recycled=0,
    )
    Reporter(recorder, worker="w@host", dry_run=False)(event)
    return recorder.lines[0].keys() - {f.name for f in fields(event)}


def test_the_events_table_is_the_code() -> None:
    """Each event has its row, with the levels that it can have."""
    table = list(rows((DOCS / "reference/events.md").read_text(), "event", "level"))
    documented = {code(row[0]): set(re.findall(r"`(\w+)`", row[1])) for row in table}
    assert len(documented) == len(table)
    assert documented == {name: levels(event) for name, event in catalogue().items()}


def test_the_fields_of_each_event_are_the_code() -> None:
    """Each event has its section, with each field and its JSON type, and no other."""
    documented = {
        name: {code(row[0]): row[1] for row in rows(text, "field", "type")}
        for name, text in sections(DOCS / "reference/events.md").items()
    }
    assert documented == {name: flat_types(event) for name, event in catalogue().items()}


def test_the_fields_of_every_event_are_the_code() -> None:
    """The table of shared fields is what the reporter adds."""
    text = (DOCS / "reference/events.md").read_text()
    text = text[text.index("## Fields of every event") :]
    text = text[: text.index("\n## ", 1)]
    assert {code(row[0]) for row in rows(text, "field", "type")} == shared_fields()


NAMED_BY_THE_FIRST_ARGUMENT = {
    "Backoff",
    "attempt",
    "scheduler.backoff",
    "self._watch",
}


def names_of_what_fails() -> set[str]:
    """What the code can put into ``part_failed.part``: names of parts, and of what it contains."""
    found = set()
    for path in (ROOT / "worker_guard").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            value: ast.expr | None = None
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "name":
                value = node.value
            elif isinstance(node, ast.Call) and node.args:
                called = ast.unparse(node.func)
                if called in NAMED_BY_THE_FIRST_ARGUMENT:
                    value = node.args[0]
            if isinstance(value, ast.Constant):
                found.add(str(value.value))
    return {name for name in found if name not in catalogue()}


def test_what_can_fail_is_the_code() -> None:
    """Each name that ``part_failed`` can have stands in the table, and no other."""
    text = sections(DOCS / "reference/events.md")["worker_guard.part_failed"]
    assert {code(row[0]) for row in rows(text, "what failed", "is")} == names_of_what_fails()


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_each_log_line_that_is_shown_is_one_of_this_release(block: Block) -> None:
    """It parses, and has the fields of its event in this order."""
    for line in block.text.splitlines():
        shown = json.loads(line)
        event = catalogue()[shown["event"]]
        assert next(iter(shown)) == "event"
        own = {name: value for name, value in shown.items() if name not in shared_fields()}
        assert list(own) == [f.name for f in fields(event)]
        assert shown.keys() == shared_fields() | own.keys()
        for name in flat_types(event):
            outer, _, inner = name.partition(".")
            assert not inner or inner in own[outer], name
        assert shown["level"] in levels(event)


# -- metrics -------------------------------------------------------------------------------


def test_the_metrics_table_is_the_code() -> None:
    """Each metric has its row, in the order of a scrape, with its type and its labels."""
    table = rows((DOCS / "metrics.md").read_text(), "metric", "type", "labels")
    assert [
        (code(name), kind, re.findall(r"`(\w+)`", labels)) for name, kind, labels, _ in table
    ] == [(family.name, family.kind, list(family.labels)) for family in FAMILIES]


# -- commands ------------------------------------------------------------------------------


def checked_celery(line: str) -> None:
    """Fail unless the ``celery`` command has the subcommand, the options, and the remote name."""
    words = shlex.split(line)
    assert words[:3] == ["celery", "-A", "proj"], line
    name, *rest = words[3:]
    command = celery_command.commands[name]
    if isinstance(command, click.Group) and rest:
        command = command.commands[rest.pop(0)]
    known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    given = {word for word in rest if word.startswith("-")}
    assert given <= known, f"{line}: no such option: {given - known}"
    if name in {"inspect", "control"}:
        meta = Panel.meta[rest[0]]
        assert meta.type == name, line


def test_each_command_of_the_table_exists() -> None:
    """The reference of commands names only what ``celery`` accepts."""
    table = list(rows((DOCS / "reference/commands.md").read_text(), "command", "does"))
    assert table
    for row in table:
        checked_celery(code(row[0]))
    # The harness has a worker whose command of that name answers strangely.
    theirs = ("tests.", "celery.")
    others = {name for name, f in Panel.data.items() if not f.__module__.startswith(theirs)}
    ours = {guard.__name__, guard_sweep.__name__, guard_unrevoke.__name__}
    assert others <= ours <= Panel.data.keys()
    assert {name for name in ours if not any(name in row[0] for row in table)} == set()


def test_the_fields_of_inspect_guard_are_the_code() -> None:
    """The table holds what the command answers."""
    worker = SimpleNamespace(
        hostname="w@host",
        app=Celery("docs", set_as_current=False),
        pool_cls=TaskPool,
        concurrency=1,
    )
    guard = Guard(worker, Settings(), version="0")
    try:
        answered: set[str] = set()
        for key, value in asdict(guard.status()).items():
            nested = value if key in {"revoked", "totals"} and value else {}
            answered |= {f"{key}.{name}" for name in nested} or {key}
    finally:
        guard.stop()
    text = sections(DOCS / "reference/commands.md")["inspect guard"]
    assert {code(row[0]) for row in rows(text, "field", "meaning")} == answered


def test_make_targets_exist() -> None:
    """Each ``make`` target that a page names is one that ``make help`` lists."""
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE)
        assert set(named) <= targets, page


# -- snippets ------------------------------------------------------------------------------


def loaded(app: Celery) -> Any:
    """The configuration of an app, which Celery reads when it is first asked for a value."""
    assert app.conf.task_default_queue
    return app.conf


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_snippets_run(block: Block) -> None:
    """Each runs with an app at hand, and leaves a configuration that a worker would take."""
    app = Celery("docs", set_as_current=False)
    names: dict[str, Any] = {"__name__": "proj", "app": app}
    exec(compile(block.text, str(block), "exec"), names)
    # An app that the snippet made is the current one; its configuration is not for other tests.
    app.set_current()
    if 'namespace="CELERY"' not in block.text:
        read_settings(loaded(names["app"]))
    upper = {k: v for k, v in names.items() if k.startswith("CELERY_WORKER_GUARD_")}
    django = Celery("django", set_as_current=False)
    django.config_from_object(SimpleNamespace(**upper), namespace="CELERY")
    read_settings(loaded(django))


@pytest.mark.parametrize(("block", "line"), shell_lines(), ids=str)
def test_shell_snippets_work(block: Block, line: str, tmp_path: Path) -> None:
    """Commands exist with their options; Python given to ``-c`` compiles; searches find."""
    program, *rest = shlex.split(line)
    if program == "celery":
        checked_celery(line)
    elif program == "worker-guard-probe":
        assert worker_guard_probe.main(rest) == 1  # not 2: only the file is not there
    elif program == "python":
        assert rest[0] == "-c"
        compile(rest[1], str(block), "exec")
    elif program == "grep":
        log = "".join(shown.text for shown in blocks("json"))
        (tmp_path / "worker.log").write_text(f"[INFO/MainProcess] ready.\n{log}")
        found = subprocess.run(line, shell=True, cwd=tmp_path, check=True, capture_output=True)
        assert all(json.loads(hit) for hit in found.stdout.splitlines())
    else:
        # `make` has a test of its own.
        assert program in {"make", "sleep", "export"} or line in INSTALLS


def test_the_first_screen_of_the_readme() -> None:
    """It shows the line to add and a log line of a sweep that cleared something."""
    first_screen = "\n".join(README.read_text().splitlines()[:25])
    assert 'app.steps["worker"].add(WorkerGuard)' in first_screen
    (line,) = [line for line in first_screen.splitlines() if line.startswith("{")]
    shown = json.loads(line)
    assert shown["event"] == events.CleanupCompleted.name
    assert shown["revoked_tasks_cleared"] > 0


# -- names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_name_exists(page: Path) -> None:
    """Each setting, metric, event, file and heading that a page names is there."""
    text = page.read_text()
    lowered = {name.lower() for name in re.findall(r"(?i)\bworker_guard_[a-z_]+\b", text)}
    assert lowered <= SETTINGS.keys() | {family.name for family in FAMILIES}
    for name in re.findall(r"\bworker_guard\.[a-z_.]*[a-z_]", text):
        known = name in catalogue() or name == task.cleanup.name
        is_file = (DOCS / "grafana" / name).exists()
        assert known or is_file or importlib.util.find_spec(name), name
    for target in re.findall(r"\]\(([^)#:]+\.md|[A-Z]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target


def test_the_module_map_is_the_package() -> None:
    """Each module stands in the map of the internals, and no other."""
    package = ROOT / "worker_guard"
    modules = {str(p.relative_to(package)) for p in package.rglob("*.py") if p.stat().st_size}
    table = rows((DOCS / "internals.md").read_text(), "module", "holds")
    assert {code(row[0]) for row in table} == modules


def test_the_fixed_limits_are_the_code() -> None:
    """Each constant of the internals' table has the value that stands there."""
    table = list(rows((DOCS / "internals.md").read_text(), "constant", "value"))
    assert table
    for constant, value, _meaning in table:
        module, name = code(constant).rsplit(".", 1)
        actual = getattr(importlib.import_module(f"worker_guard.{module}"), name)
        assert actual == ast.literal_eval(code(value)), constant


# -- the build -----------------------------------------------------------------------------


def test_the_pages_are_built_without_a_warning(tmp_path: Path) -> None:
    """As ``make docs`` does."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q"),
            *("-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "html")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "html" / "reference" / "settings.html").exists()
