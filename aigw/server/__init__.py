"""The side of the clients.

In reading order: listeners (the ports), channel (one connection; its parts are in aigw.connections), plain_requests,
repeated_head, body_reader, rejections; request, site, resources, cors, unknown_paths, models, api, limited (of callers
with limits).
"""
