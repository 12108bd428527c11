"""The chain of attempts.

In reading order: exchange (one call along its route), running_attempt, race and hedge (two at once), router, nearest
(names) and urls, keyed_upstream (keys that may change), balance (targets, keys), cooldown (steps that are tried last),
retry_policy (after a failure), passed_refusals and failure_report (errors for the client), relay, plain, answers (the
commit point), whole, held, held_buffer (to the end), keepalive, finishing, stored_responses, response_ids.
"""
