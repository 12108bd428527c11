"""The chain of attempts.

In reading order: exchange (one call along its route), running_attempt, race and hedge (two at once), router with
route_names, nearest and urls, keyed_upstream (changing keys), balance (targets, keys), cooldown (steps tried last),
retry_policy (after a failure), passed_refusals and failure_report (errors for the client), relay, plain, answers (the
commit point), whole, held, held_buffer (to the end), keepalive, finishing, stored_responses, response_ids.
"""
