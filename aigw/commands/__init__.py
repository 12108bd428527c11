"""What can be asked of the program besides to serve: each file is one command or a part of one.

In reading order: init and output, check_providers with check_answers and check_report, describe (``--check-config``),
explain, demo with own_requests.
"""
