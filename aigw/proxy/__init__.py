"""The chain of attempts.

In reading order: gateway (what calls share), exchange (one call along its route), running_attempt, race (two at once),
passed_refusals and failure_report (errors for the client), committed, relay, plain, answers (the commit point), whole,
held, held_buffer (to the end), keepalive, stored_responses (which step made a response), sent (a call that was sent
before it had an exchange), responder (who takes an answer).
"""
