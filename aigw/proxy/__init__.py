"""The chain of attempts.

In reading order: exchange (one call along its route), running_attempt, race and hedge (two attempts at once), router
and nearest (names), cooldown (who is tried last), retry_policy (what follows from a failure), passed_refusals and
failure_report (the error for the client), relay and answers (what is held up to the commit point), whole and held (its
place at the end of an answer), keepalive (comments in silent streams), finishing (for broken streams).
"""
