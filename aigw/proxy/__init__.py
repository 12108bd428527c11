"""The chain of attempts.

In reading order: exchange (one call along its route), running_attempt, race and hedge (two at once), router with
route_names, nearest and urls, keyed_upstream (keys that may change), cooldown (steps tried last), retry_policy (after a
failure), passed_refusals and failure_report (the error for the client), relay, plain and answers (the commit point),
whole, held, held_buffer (held to the end), keepalive, finishing (truncated streams), stored_responses, response_ids.
"""
