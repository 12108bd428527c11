"""What some of a stream means, in one of four words."""

from __future__ import annotations

import enum


class Meaning(enum.Enum):
    """What some of a stream means."""

    SILENCE = "comments, and before the first output also pings, roles, empty deltas"
    OUTPUT = "part of the answer, or something that is not understood"
    END = "the end of the stream"
    ERROR = "a failure; after the first output the end may follow"


SILENCE, OUTPUT, END, ERROR = Meaning
