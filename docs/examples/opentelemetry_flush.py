"""Spans of tasks by OpenTelemetry. What a child has not sent yet, it sends before it leaves."""

import threading

from celery.signals import worker_process_init, worker_process_shutdown
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

#: Seconds for which a child that leaves waits for the collector.
FLUSH_S = 2.0


@worker_process_init.connect
def start_tracing(**_):
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


@worker_process_shutdown.connect
def send_spans(**_):
    # force_flush() has a timeout, but does not keep it. The thread ends with the child.
    flush = threading.Thread(target=trace.get_tracer_provider().force_flush, daemon=True)
    flush.start()
    flush.join(FLUSH_S)
