"""The protocols of the APIs: what requests and answers mean. Nothing here uses Twisted.

In reading order: endpoints (the table), endpoint (a row, and a Call), requests, envelope, walk and skip (JSON to a
Call, and back), forms and multipart (for forms), answers and media (whole answers), refusals, context_overflow,
scanner, meaning and events (streams), chat, responses, messages and typed_events (the events of a protocol), sse,
usage and charges (tokens and their cost), error_bodies.
"""
