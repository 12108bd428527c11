"""A stream without the chunk of usage that the gateway asked for: the client did not ask, and does not expect it."""

from __future__ import annotations

from aigw.protocols import events, sse
from aigw.protocols.answers import is_error
from aigw.protocols.chat import ABOUT_A_STREAM, NOT_GIVEN, ChatScanner, holds_output
from aigw.protocols.meaning import END, Meaning
from aigw.protocols.usage import find_usage


class ChatScannerWithoutUsage(ChatScanner):
    """Reads what the provider sends, and passes on all events but the extra chunk. Every other byte stays.

    The scanner passes on whole events, so a chunk that arrives in parts is whole here. A large event that is passed on
    in pieces is never an extra chunk.
    """

    _end = b""  # the last bytes of the piece that was passed on
    _skips_lf = False  # the LF of the empty line behind a chunk that is not passed on may be in the next read

    def feed(self, data: bytes) -> tuple[bytes, Meaning]:
        """See StreamScanner."""
        within, finished = self.in_pieces, self.finished
        passed, meaning = super().feed(data)
        if meaning is END:  # what the provider sends behind it is not passed on, but its usage counts
            behind = data[max(0, data.rfind(b"[DONE]")) :]
            if find_usage(behind):
                self.usage.add(behind)
        if self._skips_lf and passed:
            passed, self._skips_lf = passed.removeprefix(b"\n"), False
        if find_usage(passed):
            passed = self._without_usage(passed, sse.end_of_first(self._end, passed) if within else 0, finished)
        if self.in_pieces:
            self._end = (self._end + passed)[-3:]
        return passed, meaning

    def finish(self) -> bytes:
        """See StreamScanner."""
        is_event = not self.in_pieces
        rest = super().finish()
        return _before(rest) if is_event and find_usage(rest) and is_extra(rest, self.finished) else rest

    def _without_usage(self, data: bytes, at: int, finished: bool) -> bytes:
        """``data`` without the extra chunks among the whole events from ``at`` on."""
        kept, has_cr = [data[:at]], 13 in data
        while end := sse.find_end(data, at, has_cr):
            event, at = data[at:end], end
            if find_usage(event) and is_extra(event, finished):
                self._skips_lf = at == len(data) and event.endswith(b"\r")
                kept.append(_before(event))
            else:
                kept.append(event)
                finished = finished or _finishes(event)
        return b"".join([*kept, data[at:]])


def _before(event: bytes) -> bytes:
    """The BOM and the line ends in front of an event: of them one may be the LF behind the event before it."""
    return event[: len(event) - len(event.lstrip(b"\r\n" + sse.BOM))]


def is_extra(event: bytes, finished: bool) -> bool:
    """Whether an event has usage and nothing else that a client reads: no choice, or only empty ones.

    A role alone is something before a choice has ``finished``: some providers report usage in each chunk, and the first
    of them names the role.
    """
    _, _, value, error = events.read(event)
    if not isinstance(value, dict) or error is not None or is_error(value) or not isinstance(value.get("usage"), dict):
        return False
    if "choices" not in value:
        return ABOUT_A_STREAM.issuperset(value)
    choices = value["choices"] or []
    return isinstance(choices, list) and all(_is_empty(choice, finished) for choice in choices)


def _is_empty(choice: object, finished: bool) -> bool:
    if not isinstance(choice, dict) or holds_output(choice):
        return False
    if any(given and name not in ("index", "delta") and given not in NOT_GIVEN for name, given in choice.items()):
        return False
    return finished or not choice.get("delta") or not any(choice["delta"].values())


def _finishes(event: bytes) -> bool:
    """Whether a choice finishes in an event."""
    _, _, value, _ = events.read(event)
    choices = value.get("choices") if isinstance(value, dict) else None
    return isinstance(choices, list) and any(
        isinstance(each, dict) and each.get("finish_reason") not in (None, *NOT_GIVEN) for each in choices
    )
