"""The APIs on the wire: what requests and answers mean. Nothing here knows Twisted.

In reading order: endpoints (the table), endpoint (a row, and a Call), requests, envelope, walk and skip (JSON to a
Call, and back), forms and multipart (the same of forms), answers and media (whole answers), refusals, scanner, meaning
and events (streams), chat, responses and typed_events (what events mean), sse, usage, error_bodies.
"""
