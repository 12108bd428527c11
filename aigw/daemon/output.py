"""What the commands print, on any terminal."""

from __future__ import annotations

from typing import Any


def escape_unwritable(stream: Any) -> None:
    """From now on ``stream`` writes what its encoding does not have as an escape, where it would raise.

    Names of routes and files may hold any letter, and a terminal or a pipe may be ASCII only.
    """
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
