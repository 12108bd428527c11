"""Requests to providers, and the connections for them.

In reading order: attempt (what is sent), providers (send it), client (treq's interface to the gateway's agent), pool,
connection, response, response_parser, known_head, whole_chunks (one HTTP/1.1 connection), body (short bodies),
connector (DNS and TCP), proxies (on the way), trust and hostname (the provider's certificate), reasons (why there is no
connection).
"""
