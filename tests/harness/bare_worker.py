"""A worker that never heard of worker_guard: ``python -m tests.harness.bare_worker NAME URL``.

Not by the ``celery`` command, which loads the guard's remote commands wherever it is installed.
"""

from __future__ import annotations

import sys

from celery import Celery


def main(name: str, broker_url: str) -> None:
    app = Celery("bare", broker=broker_url)
    app.conf.update(task_default_queue="bare", broker_connection_retry_on_startup=True)
    app.Worker(hostname=name, pool="solo", loglevel="INFO").start()


if __name__ == "__main__":
    main(*sys.argv[1:])
