"""Where lines of a log go, without a wait of the event loop.

In reading order: log_writer (a thread that writes), log_stream (the standard output), log_file, terminal (for people),
duplicates (a line that comes again and again).
"""
