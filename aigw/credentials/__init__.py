"""Keys of providers that may change while the gateway runs: from files and from commands.

In reading order: source (what every kind offers), key_file, printed (what a command prints), child (one run of a
command), key_command, changing_keys (those of a configuration).
"""
