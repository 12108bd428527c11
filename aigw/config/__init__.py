"""The configuration file. Nothing here imports Twisted.

In reading order: model (each setting, once), schema (annotations), values, addresses, credentials and endpoint_names
(how values are written), prices (another file), yaml_tree, yaml_errors (the YAML), reader (from tree to model),
cross_checks, file_mode and mistakes, quoting (what a message may show), advice (warnings), loader (file to model).
"""
