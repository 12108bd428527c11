"""The providers' side.

In reading order: attempt (what is sent), providers (send it), client (treq's face of our agent), pool, connection and
response_parser (one HTTP/1.1 connection), body (a short one, whole), connector (DNS and TCP), trust and hostname (whose
certificate is good), reasons (why there is no connection).
"""
