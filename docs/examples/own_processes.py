"""End what the tasks of a child started, before the child leaves."""

import contextlib

import psutil
from celery.signals import worker_process_shutdown

#: Seconds for which these processes may take to end by themselves.
WAIT_S = 2.0


@worker_process_shutdown.connect
def end_own_processes(**_):
    own = psutil.Process().children(recursive=True)
    for process in own:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(own, timeout=WAIT_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
