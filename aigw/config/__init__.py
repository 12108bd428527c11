"""The configuration file as a whole. Nothing here imports Twisted.

In reading order: model (each setting, once), yaml_tree and yaml_errors (the text), reader and known_entries (the tree
as the model), targets, proxies, no_proxy, keys_file and prices (files of their own), cross_checks, file_mode, advice,
loader."""
