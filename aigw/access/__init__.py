"""Which clients may call, and how much.

In reading order: keys (from credentials to a caller), refused_keys, limits and amounts (the arithmetic), claim (what a
request asks for), ledger (what is used), shown (what is left), journaled_ledger, journal and other_journals (the same
on the disk), estimates (of tokens), admission (of a request, and its settlement), limit_lines (of an answer), errors.
"""
