"""What happened, and who is shown it.

In reading order: record (of one request), counters and last_hour (made of records), snapshot (the daemon now),
series, prometheus and status (all in words), telemetry (owns them); redaction (keys that nobody sees); logs with
log_writer, log_file, terminal, notices; trace_context, spans, tracing and otlp.
"""
