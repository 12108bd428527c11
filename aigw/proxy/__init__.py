"""The chain of attempts.

In reading order: exchange (one call along its route), router, cooldown (which steps are tried last), relay and answers
(what is held, when it is committed, when it is complete).
"""
