"""Which step is tried, and when another one: policy, and the requests that it makes.

In reading order: router (a route's steps as requests) with route_names, nearest and urls, keyed_upstream (changing
keys), balance (targets, keys), cooldown (steps tried last), hedge, retry_policy (after a failure), finishing,
response_ids.
"""
