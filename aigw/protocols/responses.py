"""The responses API: what an event means, when a stream is complete, and the event that reports a broken stream."""

from __future__ import annotations

import re
from contextlib import suppress

from aigw.errors import StreamBroken
from aigw.protocols.answers import is_error
from aigw.protocols.envelope import outlined
from aigw.protocols.error_bodies import response_failed
from aigw.protocols.meaning import END, ERROR, OUTPUT, SILENCE, Meaning
from aigw.protocols.scanner import StreamScanner

_ANNOUNCEMENTS = (
    "response.created",
    "response.queued",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
)
_ENDS = ("response.completed", "response.incomplete", "response.cancelled", "response.failed")
_END = re.compile(rb'"type"\s*:\s*"response\.(completed|incomplete|cancelled|failed)"')
_BEGINNING = re.compile(rb'"type"\s*:\s*"(?:%s)"' % b"|".join(re.escape(name.encode()) for name in _ANNOUNCEMENTS))
KEPT = 4096  # bytes; if every last read were kept, 100 stalled clients would take 6 MiB
_NEAR = 256  # bytes that are searched for the type of a large event
# A quote inside a JSON string is escaped: a model's text cannot match these patterns.
_ID = re.compile(rb'"response"\s*:\s*\{.*?"id"\s*:\s*"([^"\\]{1,512})"', re.DOTALL)
_NUMBER = re.compile(rb'"sequence_number"\s*:\s*(\d{1,15})')


_PLAIN_ID = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"id"\s*:\s*"([^"\\]{1,512})"')
_WHOLE_ID = re.compile(rb'"([^"\\]{1,512})"')


def id_in(data: bytes) -> str:
    """The id of a response, by the beginning of its stream or by its body, whole or not; empty if there is none."""
    begins_object = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{"
    found = _PLAIN_ID.match(data) if begins_object else _ID.search(data)
    if found is None and begins_object:
        with suppress(ValueError):
            found = _WHOLE_ID.fullmatch(bytes(outlined(data.removeprefix(b"\xef\xbb\xbf")).id))
    return found[1].decode(errors="replace") if found else ""


class ResponsesScanner(StreamScanner):
    """Every event but an announcement is output. An event of one of the types in ``_ENDS`` ends the stream."""

    sign = b'"type"'
    usual = b'"type":"response.output_text.delta"', b'"type": "response.output_text.delta"'
    other = b"response.failed", b"response.cancelled", b"response.completed", b"response.incomplete", b"[DONE]"
    text = re.compile(rb'"delta"\s*:\s*"((?:[^"\\\r\n]|\\.)*)"')
    must_finish = True
    error_event_ends_it = True
    repeats = True

    def __init__(self) -> None:
        super().__init__()
        self._id = ""
        self._next = 0  # one more than the largest number so far
        self._passed_last = b""  # the last read, not searched yet

    def meaning(self, value: dict[str, object]) -> Meaning:
        """See StreamScanner."""
        if "type" not in value and is_error(value):
            self.error = value
            return ERROR
        return SILENCE if not value or value.get("type") in _ANNOUNCEMENTS else OUTPUT

    def is_announcement(self, data: bytes) -> bool:
        """See StreamScanner. An announcement repeats the instructions and tools of the request."""
        return _BEGINNING.search(data, 0, _NEAR) is not None

    def note(self, value: dict[str, object]) -> Meaning:
        """See StreamScanner."""
        if value.get("type") in _ENDS:
            self.complete = self.finished = True
            return END
        return OUTPUT

    def note_in_pieces(self, data: bytes) -> Meaning:
        """See StreamScanner."""
        found = _END.search(data)
        if found is None:
            return OUTPUT
        if found[1] == b"failed":
            self.note_failure(None, True)
        self.complete = self.finished = True
        return END

    def raises(self, name: str, value: dict[str, object]) -> bool:
        """See StreamScanner. Both ``error`` and ``response.failed`` are part of the protocol."""
        return True

    def _meaning_of(self, event: bytes) -> Meaning:
        self._note_number(event)
        return super()._meaning_of(event)

    def remember(self, data: bytes) -> None:
        """See StreamScanner. A small read is kept and searched only if the stream breaks after it."""
        if self._id and len(data) <= KEPT:
            self._passed_last = data
        else:
            self._note_number(data)

    def _note_number(self, data: bytes) -> None:
        """Note the response's ID and the largest ``sequence_number``."""
        if not self._id and (found := _ID.search(data)):
            self._id = found[1].decode(errors="replace")
        self._next = max([self._next, *(int(number) + 1 for number in _NUMBER.findall(data))])

    def error_event(self, broken: StreamBroken) -> bytes:
        """``response.failed``, as the provider would send it. Codex ignores an event without a ``type``."""
        self._note_number(self._passed_last)
        return self.give_up_event() + response_failed(broken, self._id, self._next)
