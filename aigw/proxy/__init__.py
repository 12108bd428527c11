"""The chain of attempts.

In reading order: gateway (what calls share), exchange (one call along its route), running_attempt, race (two at once),
passed_refusals and failure_report (errors for the client), relay, plain, answers (the commit point), whole, held,
held_buffer (to the end), keepalive, stored_responses (which step made a response), responder (who takes an answer);
straight, straight_plan, straight_call, straight_stream and straight_head (the straight path of plain calls).
"""
