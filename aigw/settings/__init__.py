"""The forms of single settings: what one value may be, and the words for a wrong one. Nothing imports Twisted.

In reading order: schema (the annotations that the model uses), mistakes and quoting (the words), values, limit_values,
addresses, credentials, endpoint_names, patterns, bodies, tls_files, store, callers (who may call), route_settings."""
