"""What a part of a stream means: one of four values."""

from __future__ import annotations

import enum


class Meaning(enum.Enum):
    """What a part of a stream means."""

    SILENCE = "comments, and before the first output also pings, roles, empty deltas"
    OUTPUT = "a part of the answer, or something unknown"
    END = "the end of the stream"
    ERROR = "a failure; after the first output the end may follow"


SILENCE, OUTPUT, END, ERROR = Meaning
