"""The configuration file. Nothing here imports Twisted.

In reading order: model (each setting, once), schema (the annotations of model), values, addresses, credentials,
endpoint_names, proxies and no_proxy (how values are written), yaml_tree, yaml_errors (the YAML), reader (from tree to
model), cross_checks, file_mode and mistakes (in a file), quoting (what a message may show), advice (warnings), loader.
"""
