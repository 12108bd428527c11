"""The pages for administrators.

In reading order: resources (the tree), access_control and session (who may see them), page (the files for browsers),
live_feed (the open status pages).
"""
