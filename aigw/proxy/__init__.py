"""The chain of attempts.

In reading order: exchange (one call along its route), running (an attempt), race and hedge (two at once), router and
nearest (names), cooldown (who is tried last), retry_policy (what follows from a failure), passed_refusals (which go to
the client), failure_report (what it is told else), relay and answers (what is held), finishing (for cut streams).
"""
