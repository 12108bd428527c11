"""What the configuration file says. Nothing here knows Twisted.

In reading order: schema (what may stand in the file), values (how values are written), yaml_tree, validation,
cross_checks, file_mode and quoting (what is wrong with a file), model (what it means), loader (from file to model).
"""
