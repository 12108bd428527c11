"""Which clients may call.

In reading order: keys (from credentials to a caller), refused_keys (counted, logged and slowed down).
"""
