"""The clients' side.

In reading order: listeners and overlap (what is open), connection_limits, open_files and mismatch (who may connect),
channel (one connection) with request_head, body_reader, chunks, ahead, timeouts and closing; bodies, request, site,
resources, unknown_paths, api.
"""
