"""The pages for administrators.

In reading order: resources (the tree), resource (what they have in common), access_control and session (who may see
them), page (the files for browsers), live_feed (the open status pages),
long_body (a long answer), explain.
"""
