"""The chain of attempts.

In reading order: exchange (one call along its route), router and nearest (names), cooldown (who is tried last),
retry_policy (what follows from a failure), passed_refusals (which of them go to the client as they are), failure_report
(what the client is told else), relay and answers (what is held and when it goes on), finishing (for cut streams),
stored_responses and response_ids (state at a provider).
"""
