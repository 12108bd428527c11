"""What the gateway would do with a request. Nothing here uses the network or changes a state.

In reading order: explained (what an explanation has in it), asked (reads the request), explainer (makes it), changes
(of a body), text (for people, and as JSON).
"""
