"""The chain of attempts.

In reading order: exchange (one call along its route), router and nearest (names), cooldown (which steps are tried
last), retry_policy (what follows from a failure), passed_refusals (which of them the client gets unchanged),
failure_report (all other errors), relay, plain and answers (the commit point), whole, held and held_buffer (answers
held to their end), keepalive (comments in silent streams), finishing (to detect truncated streams).
"""
