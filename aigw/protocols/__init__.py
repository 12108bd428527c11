"""What the APIs say on the wire. Nothing here knows Twisted.

In reading order: endpoints (the table of what differs), envelope (a body's top level), walk
and skip (large bodies, in short steps), sse, usage.
"""
