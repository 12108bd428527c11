"""The protocols of the APIs: what requests and answers mean. Nothing here uses Twisted.

In reading order: endpoints (the table), endpoint (what a row holds, and a Call), requests (a body to a Call, and back),
envelope, walk and skip (a body's top level; large bodies in short steps), answers (whole), refusals,
context_overflow, scanner, meaning and events (streams), chat, responses and messages (what their events mean), sse,
usage, error_bodies.
"""
