"""The APIs on the wire: what requests and answers mean. Nothing here knows Twisted.

In reading order: endpoints (the table), endpoint (what a row holds, and a Call), requests (a body to a Call, and back),
envelope, walk and skip (a body's top level, large ones in short steps), answers (whole), refusals,
context_overflow, scanner, meaning and events (streams), chat, responses and messages (what events mean), sse, usage,
error_bodies.
"""
