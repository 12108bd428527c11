"""The log line of a request the short way: encoded from its Record at once, and searched only for what is new in it.

Most requests differ from earlier ones by their id and by numbers. A text that was in a line without a key is remembered
while the same keys are hidden, so the time does not depend on how many there are. An unusual request has no short way:
``logs`` makes its line, in the same form.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter
from typing import Any

import msgspec
from msgspec.structs import astuple

from aigw.telemetry.record import AttemptRecord, Record, names_for, texts_for

MAX_LINE = 64 * 1024
MOST_TEXTS = 4096  # remembered; they have at most a few hundred bytes each
MOST_LETTERS = 256

Hide = Callable[[str], str]  # from a text to the text without keys; the same object if it has none

_IF_SET = names_for(Record, "if set")
_ALWAYS = tuple(name for name in names_for(Record, "log") if name not in _IF_SET)
_Fields: Any = msgspec.defstruct(
    "_Fields", [*_ALWAYS, *((name, Any, msgspec.UNSET) for name in (*_IF_SET, "key_number"))]
)
_Line: Any = msgspec.defstruct("_Line", ["time", "level", "message", "request_id", "fields"])


def _those(kind: type[msgspec.Struct], names: tuple[str, ...]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Takes the fields with these names out of all fields: for so many that is faster than to get each by its name."""
    return itemgetter(*[kind.__struct_fields__.index(name) for name in names])


_logged = _those(Record, _ALWAYS)
_texts = _those(Record, texts_for(Record))
_texts_of_attempt = _those(AttemptRecord, texts_for(AttemptRecord))
_encode = msgspec.json.Encoder().encode


class RequestLines:
    """Makes the lines, and remembers the texts without keys."""

    def __init__(self) -> None:
        self._hide: Hide | None = None  # by which the texts were searched
        self._clean: set[str | None] = set()

    def line(self, record: Record, level: str, hide: Hide) -> bytes | None:
        """The line of a request without the line feed; None if it has a key in it or is unusual.

        ``level`` is a word such as ``INFO``.
        """
        attempts = record.attempts
        if len(attempts) > 1 or record.skipped or record.dropped or not record.request_id:
            return None
        at = written_time(time.time())
        values = astuple(record)
        fields = _Fields(*_logged(values))
        if record.cost is not None:
            fields.cost = float(record.cost)
        if record.estimated:
            fields.estimated = True
        if record.key_number is not None:
            fields.key_number = record.key_number
        try:
            line: bytes = _encode(_Line(at, level, "Request", record.request_id, fields))
        except (TypeError, ValueError):  # a text with a lone surrogate
            return None
        if hide is not self._hide:
            self._hide, self._clean = hide, set()
        texts: tuple[str | None, ...] = level, *_texts(values), *record.usage
        if attempts:
            texts += _texts_of_attempt(astuple(attempts[0]))
        changing = f"{at} {record.request_id}"
        if self._clean.issuperset(texts) and hide(changing) is changing:
            return line
        text = line.decode()
        if len(text) > MAX_LINE or hide(text) is not text:
            return None
        if len(self._clean) > MOST_TEXTS:
            self._clean.clear()
        self._clean.update([each for each in texts if each is None or len(each) <= MOST_LETTERS])
        return line


def written_time(seconds: float) -> str:
    """Unix seconds as a line has them: in UTC, with milliseconds."""
    whole, milliseconds = divmod(int(seconds * 1000), 1000)
    return _to_the_second(whole) + _MILLISECONDS[milliseconds]


@lru_cache(maxsize=1)
def _to_the_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


_MILLISECONDS = tuple([f".{number:03d}Z" for number in range(1000)])  # of each line, so they are made once
