"""What the configuration file says. Nothing here knows Twisted.

In reading order: model (each setting, once), schema (what its annotations mean), values, addresses, credentials (how
values are written), yaml_tree, yaml_errors (the YAML), reader (from tree to model), cross_checks, file_mode, mistakes
(what is wrong with a file), quoting (what a message may show), advice (warnings), loader (from file to model).
"""
