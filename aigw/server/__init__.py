"""The clients' side.

In reading order: listeners and overlap (what is open), connection_limits, open_files and mismatch (who may connect),
channel with request_head, timeouts, chunks, bodies and turns (one connection), site, request,
resources, unknown_paths, api.
"""
