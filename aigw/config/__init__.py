"""The configuration file. Nothing here imports Twisted.

In reading order: model (each setting, once), schema (the annotations of model), values, addresses, credentials, bodies,
endpoint_names, proxies, no_proxy and patterns (how values are written), yaml_tree, yaml_errors, reader (from tree to
model), targets (of a step), cross_checks, file_mode, mistakes (in a file), quoting (what is shown), advice, loader.
"""
