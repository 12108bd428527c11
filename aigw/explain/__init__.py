"""What the gateway would do with a request. Nothing here uses the network or changes a state.

In reading order: explained (what an explanation has in it), explainer (makes it), text (for people, and as JSON).
"""
