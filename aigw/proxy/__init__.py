"""The chain of attempts.

In reading order: exchange (one call along its route), router, cooldown (which steps are tried last), retry_policy (what
follows from a failure), failure_report (what the client is told), relay and answers (what is held and when it goes on).
"""
