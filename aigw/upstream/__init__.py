"""The providers' side.

In reading order: attempt (what is sent), providers (send it), client and agent (treq's), pool, connection and
response_parser (one HTTP/1.1 connection), connector (DNS and TCP), trust and hostname (whose certificate is good).
"""
