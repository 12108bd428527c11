"""The configuration file. Nothing here imports Twisted.

In reading order: model (each setting, once), route_settings, callers (who may call), schema (model's annotations),
values, limit_values, addresses, credentials, bodies, endpoint_names, proxies, no_proxy, patterns (their forms),
prices (another file), store, tls_files, yaml_tree, yaml_errors, reader, keys_file, targets, cross_checks, file_mode,
mistakes, quoting, advice, loader."""
