"""Printing on every terminal."""

from __future__ import annotations

from typing import TextIO


def escape_unwritable(stream: TextIO) -> None:
    """Make ``stream`` write an escape for a character that its encoding does not have, instead of an exception.

    Names of routes and files may hold any letter, and a terminal or a pipe may be ASCII only.
    """
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
