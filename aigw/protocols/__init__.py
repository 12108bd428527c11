"""What the APIs say on the wire. Nothing here knows Twisted.

In reading order: endpoints (the table of what differs), chat and responses (what differs), requests (a body to a Call),
envelope, walk and skip (a body's top level, large ones in short steps), answers, refusals, sse, usage,
error_bodies.
"""
