"""The process.

In reading order: service (owns the running objects), runtime (made by one load of the configuration), reload,
keys_watch, drain, signals, systemd, watchdog, memory, dumpable, application (twistd's); check_providers with
check_answers and check_report, describe, explain, demo with own_requests, init, output (commands).
"""
