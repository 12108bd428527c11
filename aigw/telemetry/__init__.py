"""Records of what happened, in logs, metrics, traces and the status page.

In reading order: record (of one request), pricing, counters and last_hour (made of records), snapshot (the daemon now),
caller_series, series and prometheus (``/metrics``), status (``/status``), telemetry (owns them); redaction hides keys;
logs with request_lines, duplicates, log_writer, log_stream, log_file, terminal; notices; trace_context, spans,
tracing, otlp.
"""
