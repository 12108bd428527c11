"""The chain of attempts.

In reading order: exchange (one call along its route), running_attempt, race and hedge (two), router, route_names
and nearest, cooldown (which steps are tried last), retry_policy (what follows from a failure), passed_refusals and
failure_report (the error for the client), relay, plain and answers (the commit point), whole, held, held_buffer (held
to the end), keepalive, finishing (to detect truncated streams), stored_responses and response_ids (stored state).
"""
