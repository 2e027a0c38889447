"""worker_guard: a Celery worker that heals itself.

The one line that a worker's configuration needs::

    from worker_guard import WorkerGuard
    app.steps["worker"].add(WorkerGuard)
"""

from worker_guard.bootstep import WorkerGuard
from worker_guard.errors import SettingError, WorkerGuardError

__all__ = ["SettingError", "WorkerGuard", "WorkerGuardError", "__version__"]

__version__ = "0.1.0"
