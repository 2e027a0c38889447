"""Spans of tasks by ddtrace. What a child has not sent yet, it sends before it leaves."""

import threading

from celery.signals import worker_process_shutdown
from ddtrace.trace import tracer

#: Seconds for which a child that leaves waits for the agent.
FLUSH_S = 2.0


@worker_process_shutdown.connect
def send_spans(**_):
    # flush() has no timeout. The thread ends with the child.
    flush = threading.Thread(target=tracer.flush, daemon=True)
    flush.start()
    flush.join(FLUSH_S)
