"""The side of the clients.

In reading order: listeners and overlap (the ports), connection_limits, open_files and mismatch (who may connect),
channel (one connection) with request_head, body_reader, chunks, ahead, timeouts and closing; bodies, request, site,
resources, cors, unknown_paths, api, limited (calls of callers with limits).
"""
