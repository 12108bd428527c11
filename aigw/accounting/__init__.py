"""What requests cost, by caller, and the file of them.

In reading order: accounts (a charge for each attempt, by the present prices), price_file (reads the prices again),
estimated (a charge for what was not reported), line (of one request), usage_file (writes the lines), report (reads
them, for ``--usage``).
"""
