"""The chain of attempts.

In reading order: exchange (one call along its route), router and nearest (names), cooldown (which steps are tried
last), retry_policy (what follows from a failure), passed_refusals (which of them the client gets unchanged),
failure_report (all other errors), relay, plain and answers (the commit point), finishing (to detect truncated streams),
stored_responses and response_ids (state at a provider).
"""
