"""The process.

In reading order: service (owns what lives), runtime (what one load of the configuration makes), reload, drain, signals,
systemd, watchdog, memory and dumpable; check_providers with check_report, demo with
own_requests, init, output (commands).
"""
