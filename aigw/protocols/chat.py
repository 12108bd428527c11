"""Chat and legacy completions: what an event of a stream means, and when the stream is complete."""

from __future__ import annotations

import re

from aigw.protocols.answers import SIGNS_OF_AN_ERROR, failed_choice, is_error
from aigw.protocols.known_events import KnownEvents
from aigw.protocols.meaning import ERROR, OUTPUT, SILENCE, Meaning
from aigw.protocols.scanner import StreamScanner

MOST_CHOICES = 1024  # choices of one answer whose ends are remembered

_ABOUT_A_CHOICE = frozenset(
    "index delta error logprobs finish_reason native_finish_reason "
    "content_filter_results content_filter_offsets content_filter_raw".split()
)
_ABOUT_A_MESSAGE = frozenset(["role", "name"])
ABOUT_A_STREAM = frozenset(
    "id object created model provider usage system_fingerprint service_tier prompt_filter_results base_resp".split()
)
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"(?!null")([^"]+)"')
NOT_GIVEN = ("", "null")


class ChatScanner(StreamScanner):
    """A delta with content of any kind is output. So is a ``finish_reason``, which also completes the stream."""

    sign = b'"finish_reason"'
    usual = b'"finish_reason":null', b'"finish_reason": null'
    other = b'"index":1', b'"index": 1', *SIGNS_OF_AN_ERROR  # of a second choice or tool call, and of an error
    text = re.compile(rb'"(?:content|reasoning_content|reasoning|text)"\s*:\s*"((?:[^"\\\r\n]|\\.)*)"')
    known = KnownEvents()

    _begun: frozenset[int] = frozenset()  # choices, by their index
    _finished: frozenset[int] = frozenset()

    def meaning(self, value: dict[str, object]) -> Meaning:
        """See StreamScanner."""
        choices = value.get("choices")
        if not choices:
            if "type" not in value and is_error(value):
                self.error = value
                return ERROR
            nothing = "choices" in value or all(name in ABOUT_A_STREAM for name in value)
            return SILENCE if nothing else OUTPUT
        if not isinstance(choices, list):
            return OUTPUT
        meaning = OUTPUT if self._note_choices(choices) else SILENCE
        for choice in choices:
            if holds_output(choice):
                return OUTPUT
        for choice in choices:
            if failed_choice(choice):
                self.error = choice.get("error") or value
                return ERROR
        return meaning

    def note(self, value: dict[str, object]) -> Meaning:
        """See StreamScanner. A stream in which a choice failed may continue, and may end like any other."""
        choices = value.get("choices")
        if not choices and "type" not in value and is_error(value):
            return self.note_failure(value, False)
        if not isinstance(choices, list) or not self._note_choices(choices):
            return OUTPUT
        for choice in choices:
            if failed_choice(choice):
                self.note_failure(choice.get("error") or f"finish_reason: {choice['finish_reason']}", False)
        return OUTPUT

    def _note_choices(self, choices: list[object]) -> bool:
        """Note which choices have begun and which have finished. Gives whether one of them finished or failed here."""
        ended = False
        for choice in choices:
            if not isinstance(choice, dict):
                continue
            index, reason = choice.get("index"), choice.get("finish_reason")
            if not isinstance(index, int) or not 0 <= index < MOST_CHOICES:
                index = 0
            self._begun |= {index}
            if isinstance(reason, str) and reason not in NOT_GIVEN:
                self._finished |= {index}
                ended = True
            if index or self._finished:
                self._every_event = self._closely = True  # another choice may begin or continue
            ended = ended or bool(choice.get("error"))
        self.finished = bool(self._finished)
        self.complete = self.finished and self._begun <= self._finished
        return ended

    def note_in_pieces(self, data: bytes) -> Meaning:
        """See StreamScanner."""
        for reason in _FINISH.findall(data):
            self.complete = self.finished = True
            if reason in (b"error", b"abort"):
                self.note_failure(f"finish_reason: {reason.decode()}", False)
        return OUTPUT

    def raises(self, name: str, value: dict[str, object]) -> bool:
        """See StreamScanner. The clients read only the member ``error`` at the top level."""
        return bool(value.get("error"))


def holds_output(choice: object) -> bool:
    """Whether a choice has content of any kind, or a member that is not known."""
    if not isinstance(choice, dict):
        return True
    delta = choice.get("delta")
    if delta is not None and not isinstance(delta, dict):
        return True
    for name, given in (delta or {}).items():
        if given and name not in _ABOUT_A_MESSAGE:
            return True
    return not _ABOUT_A_CHOICE.issuperset([name for name, given in choice.items() if given])
