"""The configuration file. Nothing here imports Twisted.

In reading order: model (each setting, once), callers (who may call), schema (annotations), values, limit_values,
addresses, credentials and endpoint_names (how values are written), prices (another file), yaml_tree, yaml_errors (the
YAML), reader (tree to model), keys_file, cross_checks, file_mode, mistakes, quoting, advice (warnings), loader."""
