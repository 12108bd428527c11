"""Which clients may call, and how much.

In reading order: keys (from credentials to a caller), errors (403, 429), refused_keys (counted and slowed down).
"""
