"""Printing on every terminal, and to pipes and disks that may be closed or full."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def escape_unwritable(stream: TextIO) -> None:
    """Make ``stream`` write an escape for a character that its encoding does not have, instead of an exception.

    Names of routes and files may hold any letter, and a terminal or a pipe may be ASCII only.
    """
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def put(text: str) -> None:
    """Print ``text`` and a newline. If it cannot be written the process ends with 1, without a traceback."""
    try:
        print(text, flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # a reader such as head may leave
            print(f"aigw: the output cannot be written: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still has at its exit
        raise SystemExit(1) from None
