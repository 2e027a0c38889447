"""The task ``worker_guard.cleanup``, whatever the application makes of its tasks."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery, Task

import worker_guard.results.task  # noqa: F401 - registers it with every app


class Retrying(Task):
    """What an application may have for its tasks."""

    autoretry_for = (Exception,)
    max_retries = 5
    retry_backoff = True


@pytest.mark.parametrize("by", ["base class", "annotations"])
def test_a_cleanup_that_fails_is_not_retried(by: str) -> None:
    """Though the application's tasks are: it comes again when it is next due."""
    base: dict[str, Any] = {"task_cls": Retrying} if by == "base class" else {}
    app = Celery("test", set_as_current=False, broker="memory://", **base)
    app.conf.result_backend = "redis://127.0.0.1:1/0"
    if by == "annotations":
        options = {"autoretry_for": (Exception,), "max_retries": 5, "default_retry_delay": 0}
        app.conf.task_annotations = {"*": options}

    @app.task(name=f"of the application, by {by}")
    def of_the_application() -> None:
        raise ValueError

    app.finalize()
    cleanup = app.tasks["worker_guard.cleanup"]
    result = cleanup.apply()
    assert result.state == "FAILURE"
    assert "127.0.0.1:1" in str(result.result)
    if by == "base class":
        # Else the base class would not do what this test is about.
        assert of_the_application.apply().result.__class__ is ValueError
        assert hasattr(of_the_application, "_orig_run")
    assert not hasattr(cleanup, "_orig_run")
