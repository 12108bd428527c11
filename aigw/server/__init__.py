"""The side of the clients.

In reading order: listeners and overlap (the ports), connection_limits, open_files and mismatch (who may connect),
channel (one connection) with request_head, plain_requests, body_reader, chunks, ahead, timeouts, rejections, closing;
bodies, request, site, resources, cors, unknown_paths, models, api, limited (calls of callers with limits).
"""
