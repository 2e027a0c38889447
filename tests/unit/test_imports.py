"""The core takes plain values: a walk over the imports of its modules."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "worker_guard"

CORE = [
    "events.py",
    "backoff.py",
    "revoked/ledger.py",
    "revoked/stored_state.py",
    "revoked/backfill.py",
    "revoked/sweeper.py",
    "alerts/thresholds.py",
    "alerts/alert_watch.py",
    "metrics/catalogue.py",
    "metrics/http.py",
    "commands/audit/facts.py",
    "commands/audit/gaps.py",
    "commands/audit/finding.py",
    "commands/audit/spelling.py",
    "commands/audit/rules/expiry.py",
    "commands/audit/rules/acks.py",
    "commands/audit/rules/memory_limits.py",
    "commands/audit/rules/result_backend.py",
    "commands/audit/rules/delivery.py",
    "commands/audit/rules/guard_settings.py",
    "commands/audit/rules/__init__.py",
    "values/key_patterns.py",
    "results/protected_keys.py",
    "results/selection.py",
    "commands/status/reply.py",
    "commands/status/wording.py",
    "commands/status/troubles.py",
    "commands/status/view.py",
]

OUTSIDE = {"celery", "kombu", "billiard", "redis", "click", "structlog", "psutil", "os", "time"}

#: Not public, so touched in one place alone.
INTERNAL = {"billiard", "celery.concurrency", "celery.worker.request"}


def imports(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("module", CORE)
def test_the_core_does_no_io(module: str) -> None:
    """Neither the host nor the clock nor a server is reached from the core."""
    tops = {name.split(".")[0] for name in imports(PACKAGE / module)}
    assert not tops & OUTSIDE


def test_internals_are_touched_in_one_place() -> None:
    """What Celery and billiard do not document is imported by ``celery_internals`` only."""
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "celery_internals":
            assert not imports(path) & INTERNAL, path


def test_an_optional_library_is_imported_in_one_module_and_late() -> None:
    """``prometheus_client`` need not be there."""
    for path in PACKAGE.rglob("*.py"):
        if any(name.startswith("prometheus_client") for name in imports(path)):
            assert path.relative_to(PACKAGE) == Path("metrics/collector.py")
            at_import = ast.parse(path.read_text()).body
            assert "prometheus_client" not in "".join(
                ast.unparse(node) for node in at_import if isinstance(node, ast.ImportFrom)
            )


def test_the_library_never_configures_structlog() -> None:
    """The application's configuration is the application's."""
    for path in PACKAGE.rglob("*.py"):
        assert "structlog.configure(" not in path.read_text(), path
