"""The chain of attempts.

In reading order: exchange (one call along its route), router and nearest (names), cooldown (who is tried last),
retry_policy (what follows from a failure), passed_refusals (which of them go to the client as they are), failure_report
(the error in all other cases), relay and answers (what is held up to the commit point), whole and held (its place at the
end of an answer), keepalive (comments in silent streams), finishing (for broken streams).
"""
