"""worker_guard: a Celery worker that heals itself.

The one line that a worker's configuration needs::

    from worker_guard import WorkerGuard
    app.steps["worker"].add(WorkerGuard)

Importing the package registers the remote commands and the task. Celery's command line also loads
it as a plugin, for apps without a guard too: then it waits until :class:`WorkerGuard` is accessed.
"""

import sys
from typing import TYPE_CHECKING, Any

from worker_guard.errors import WorkerGuardError
from worker_guard.settings import SettingError

if TYPE_CHECKING:
    from worker_guard.bootstep import WorkerGuard

__all__ = ["SettingError", "WorkerGuard", "WorkerGuardError", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "WorkerGuard":
        from worker_guard import bootstep

        return bootstep.WorkerGuard
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Register the remote commands and the task, as importing the step does."""
    from worker_guard import remote  # noqa: F401
    from worker_guard.results import task  # noqa: F401


def _is_loaded_as_a_plugin() -> bool:
    """Whether ``celery.bin.celery``, which loads the plugins, is being imported just now."""
    command_line = sys.modules.get("celery.bin.celery")
    return command_line is not None and not hasattr(command_line, "main")


if not _is_loaded_as_a_plugin():
    from worker_guard.bootstep import WorkerGuard
