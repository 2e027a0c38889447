"""Imports point one way, and the core takes plain values: a walk over the imports to their end."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "worker_guard"

#: From the ground up. A module imports what stands below it, and modules of its own room.
LAYERS = (
    {"errors", "values", "events", "settings"},
    {"status_model", "activity", "backoff"},
    {"scheduler", "celery_internals", "log_destination", "event_log", "lease"},
    {"part"},
    {"revoked", "memory", "results", "broker", "stall", "health", "alerts", "metrics"},
    {"guard"},
    {"bootstep"},
    {"remote"},
    {"commands"},
    {"cli"},
)

#: What the core does without, at any distance.
OUTSIDE = {"celery", "kombu", "billiard", "redis", "click", "structlog", "psutil", "os", "time"}

#: Not public, so touched in one room alone.
INTERNAL = {"billiard", "celery.concurrency", "celery.worker.request"}


def path_of(module: str) -> Path | None:
    """The file of a module of the package."""
    base = ROOT / module.replace(".", "/")
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def name_of(path: Path) -> str:
    """A module's name without the package's."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


@cache
def imports(path: Path) -> frozenset[str]:
    """The modules that a file imports when it runs, wherever in it."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in names if path_of(name)}
            found.update(names)
            if modules != names:  # else no name of the room itself is needed
                found.add(node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return frozenset(found)


def own_imports(path: Path) -> set[Path]:
    """The files of the package that a file imports."""
    files = {path_of(name) for name in imports(path) if name.startswith("worker_guard.")}
    return {file for file in files if file is not None and file != path}


def reached_from(path: Path) -> set[Path]:
    """The file, and all that its imports come to in the end."""
    reached, waiting = {path}, [path]
    while waiting:
        new = own_imports(waiting.pop()) - reached
        reached |= new
        waiting.extend(new)
    return reached


def core() -> list[str]:
    """The modules that the map calls core."""
    table = (ROOT / "docs/internals.md").read_text()
    return re.findall(r"^\| `([^`]+)` \| core: ", table, re.MULTILINE)


MODULES = sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> int:
    """How far above the ground a file stands; the package itself is the top."""
    room = name_of(path).split(".")[0]
    found = [height for height, rooms in enumerate(LAYERS) if room in rooms]
    return found[0] if found else len(LAYERS)


def test_each_module_has_a_layer() -> None:
    """A new room is given its place here."""
    top = [path for path in MODULES if layer_of(path) == len(LAYERS)]
    assert top == [PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    """Down, or within the room; so parts never import each other."""
    for imported in own_imports(path):
        own_room = name_of(path).split(".")[0] == name_of(imported).split(".")[0]
        core_of_the_layer = layer_of(path) in (0, 1, 2) and layer_of(imported) == layer_of(path)
        below = layer_of(imported) < layer_of(path)
        assert own_room or below or core_of_the_layer, f"imports {name_of(imported)}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_imports_itself_in_the_end(path: Path) -> None:
    """There is no circle."""
    for imported in own_imports(path):
        if imported.name != "__init__.py":
            assert path not in reached_from(imported), name_of(imported)


def test_the_map_calls_modules_core() -> None:
    """Those that decide and those that hold values."""
    assert len(core()) >= 35
    assert {"events.py", "activity.py", "revoked/ledger.py", "memory/policy.py"} <= set(core())


@pytest.mark.parametrize("module", core())
def test_the_core_does_no_io(module: str) -> None:
    """Neither the host nor the clock nor a server is reached from it, at any distance."""
    for path in reached_from(PACKAGE / module):
        tops = {name.split(".")[0] for name in imports(path)}
        assert not tops & OUTSIDE, f"by {name_of(path)}"


def test_internals_are_touched_in_one_place() -> None:
    """What Celery and billiard do not document is imported by ``celery_internals`` only."""
    for path in MODULES:
        if path.parent.name != "celery_internals":
            assert not imports(path) & INTERNAL, path


def test_an_optional_library_is_imported_in_one_module_and_late() -> None:
    """``prometheus_client`` need not be there."""
    for path in MODULES:
        if any(name.startswith("prometheus_client") for name in imports(path)):
            assert path.relative_to(PACKAGE) == Path("metrics/collector.py")
            at_import = ast.parse(path.read_text()).body
            assert "prometheus_client" not in "".join(
                ast.unparse(node) for node in at_import if isinstance(node, ast.ImportFrom)
            )


def test_the_library_never_configures_structlog() -> None:
    """The application's configuration is the application's."""
    for path in MODULES:
        assert "structlog.configure(" not in path.read_text(), path


def test_no_class_has_the_name_of_another() -> None:
    """One word for each thing."""
    names = [
        node.name
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    assert sorted(names) == sorted(set(names))
