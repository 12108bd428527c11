"""What administrators see.

In reading order: resources (the tree), access_control and session (who may look), page (the files for browsers),
live_feed (who is looking).
"""
