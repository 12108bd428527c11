"""The configuration file. Nothing here imports Twisted.

In reading order: model (each setting, once), callers (who may call), schema (the annotations of model), values,
limit_values, addresses, credentials, bodies, endpoint_names, proxies, no_proxy and patterns (how values are written),
prices (another file), tls_files, yaml_tree, yaml_errors, reader, keys_file, targets, cross_checks, file_mode, mistakes,
quoting, advice, loader."""
