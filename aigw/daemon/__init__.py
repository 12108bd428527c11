"""The process.

In reading order: service (owns the running objects), runtime (made by one load of the configuration), reload,
keys_watch, drain, signals, systemd, watchdog, memory, dumpable, application (twistd's).
"""
