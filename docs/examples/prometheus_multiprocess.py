"""Metrics of tasks in the multiprocess mode of prometheus_client.

The workers import this module. ``python prometheus_multiprocess.py 9100`` serves what they count.
Both need PROMETHEUS_MULTIPROC_DIR: a directory that is empty when the workers start.
"""

import os
import sys

from celery.signals import worker_process_init, worker_process_shutdown
from prometheus_client import CollectorRegistry, Counter, Gauge, multiprocess, start_http_server

MAILS = Counter("app_mails", "Mails that tasks have sent.")
CHILDREN = Gauge("app_children", "Children that are up.", multiprocess_mode="livesum")


@worker_process_init.connect
def child_is_up(**_):
    CHILDREN.set(1)


@worker_process_shutdown.connect
def child_leaves(**_):
    # Counters stay in the directory, and count on. Gauges of a process that ended must go.
    multiprocess.mark_process_dead(os.getpid())


if __name__ == "__main__":
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    _, thread = start_http_server(int(sys.argv[1]), addr="127.0.0.1", registry=registry)
    thread.join()
