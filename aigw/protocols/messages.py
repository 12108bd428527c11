"""Anthropic's messages: what an event of a stream means, when the stream is complete, and how a break is reported.

Reference: https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

import re
from collections.abc import Collection
from decimal import Decimal
from typing import Any

from aigw.errors import StreamBroken
from aigw.protocols.answers import SIGNS_OF_AN_ERROR, is_error
from aigw.protocols.error_bodies import message_error_event
from aigw.protocols.known_events import KnownEvents
from aigw.protocols.meaning import END, ERROR, OUTPUT, SILENCE, Meaning
from aigw.protocols.scanner import StreamScanner
from aigw.protocols.usage import ReportedUsage, all_in, charges_in, logged

_BLOCKS = ("text", "thinking", "tool_use", "server_tool_use", "mcp_tool_use")  # whose payload comes in deltas
_ABOUT_A_BLOCK = frozenset("type id name server_name caller cache_control".split())
_ABOUT_A_MESSAGE = frozenset("type usage context_management".split())
_STOP_REASON = re.compile(rb'"stop_reason"\s*:\s*"[^"]')


class CumulativeUsage(ReportedUsage):
    """The usage in the parts of one stream: of each count the last value, as each part repeats those before it."""

    def __init__(self) -> None:
        self._charges: dict[str, int | Decimal] = {}

    def add(self, data: bytes) -> None:
        """See ReportedUsage."""
        self._charges |= all_in(data, charges_in)

    def counts(self) -> dict[str, int]:
        """See ReportedUsage."""
        return logged(self._charges)

    def charges(self) -> dict[str, int | Decimal]:
        """See ReportedUsage."""
        return self._charges


class MessagesScanner(StreamScanner):
    """Output is a delta or a block with content, or a ``stop_reason``; ``message_stop`` ends the stream."""

    sign = b'"message_'
    usual = b'"message_start"', b'"message_start"'
    other = b"message_stop", b"stop_reason", *SIGNS_OF_AN_ERROR
    text = re.compile(rb'"(?:text|thinking|partial_json)"\s*:\s*"((?:[^"\\\r\n]|\\.)*)"')
    known = KnownEvents()
    must_finish = True
    error_event_ends_it = True

    def __init__(self) -> None:
        super().__init__()
        self.usage = CumulativeUsage()

    def meaning(self, value: dict[str, object]) -> Meaning:
        """See StreamScanner."""
        kind = value.get("type")
        if kind is None:
            if is_error(value):
                self.error = value
                return ERROR
            return OUTPUT if value else SILENCE
        if kind == "message_stop":
            return END
        if kind == "message_start":
            return OUTPUT if _has(value.get("message"), "content") else SILENCE
        if kind == "content_block_stop":
            return SILENCE
        if kind == "content_block_start":
            return OUTPUT if _carries_payload(value.get("content_block")) else SILENCE
        if kind == "content_block_delta":
            return OUTPUT if _has_more_than(value.get("delta"), ("type",)) else SILENCE
        if kind == "message_delta" and not _has_more_than(value.get("delta"), ()):
            return OUTPUT if any([given and name not in _ABOUT_A_DELTA for name, given in value.items()]) else SILENCE
        return OUTPUT

    def note(self, value: dict[str, object]) -> Meaning:
        """See StreamScanner."""
        if "type" not in value and is_error(value):
            return self.note_failure(value, False)
        if value.get("type") == "message_stop":
            self.complete = self.finished = True
            return END
        if value.get("type") == "message_delta" and _has(value.get("delta"), "stop_reason"):
            self.complete = self.finished = True
        return OUTPUT

    def note_in_pieces(self, data: bytes) -> Meaning:
        """See StreamScanner: ``message_stop`` is never large."""
        if _STOP_REASON.search(data):
            self.complete = self.finished = True
        return OUTPUT

    def raises(self, name: str, value: dict[str, object]) -> bool:
        """See StreamScanner: Anthropic's clients look at the event's name alone."""
        return name == "error"

    def error_event(self, broken: StreamBroken) -> bytes:
        """See StreamScanner."""
        return self.give_up_event() + message_error_event(broken)


_ABOUT_A_DELTA = _ABOUT_A_MESSAGE | {"delta"}


def _carries_payload(block: Any) -> bool:
    """Whether a block is there at once, wholly or in part, or is none that is known."""
    if not isinstance(block, dict) or block.get("type") not in _BLOCKS:
        return True
    return _has_more_than(block, _ABOUT_A_BLOCK)


def _has(value: Any, name: str) -> bool:
    return isinstance(value, dict) and bool(value.get(name))


def _has_more_than(value: Any, names: Collection[str]) -> bool:
    """Whether an object has something in it beside these members; what is no object is something."""
    if not isinstance(value, dict):
        return value is not None
    return any([given and name not in names for name, given in value.items()])
