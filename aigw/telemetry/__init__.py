"""What happened, and who is shown it.

In reading order: record (of one request), counters and last_hour (made of records), snapshot (the daemon now),
prometheus and status (both in words), telemetry (owns them); logs with log_writer, log_file, terminal, notices;
trace_context, spans, tracing and otlp.
"""
