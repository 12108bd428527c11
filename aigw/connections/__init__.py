"""One connection of a client: who may connect, and what comes on it, before it means anything.

In reading order: connection_limits, open_files, mismatch and overlap (who may connect); request_head, chunks and ahead
(the bytes of a request); timeouts and bodies (what they may cost); closing (how it ends).
"""
