"""Records of what happened, in logs, metrics, traces and the status page.

In reading order: record, pricing, counters, caller_counters, last_hour (made of records), snapshot (the daemon now);
``/metrics``: series_names, series, caller_series, kept_texts, scrape, prometheus; status, route_marks, status_changes;
telemetry (owns them); redaction; logs, request_lines (to aigw.log_output); notices; trace_context, spans, tracing, otlp
(traces).
"""
