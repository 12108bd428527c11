"""A request's JSON object read in short steps, without making what stands in it: its members, and whether its messages
have roles. What is counted is counted before it is made.
"""

from __future__ import annotations

import json
import re
from typing import Annotated

import msgspec

from aigw.protocols.skip import Steps, T, end_of_value, skip

Members = dict[str, msgspec.Raw]


class Message(msgspec.Struct, gc=False):
    """All that is looked at in a message."""

    role: Annotated[str, msgspec.Meta(min_length=1)]


MOST_MEMBERS = 10_000
MOST_MESSAGES = 100_000
MOST_NAME = 64 * 1024
_WINDOWS = (4 * 1024, 32 * 1024, 256 * 1024)  # what is looked at to find the end of a value; the last is over PIECE
_STEP = 256 * 1024  # bytes, at a few nanoseconds each
_LOOK = 512  # what a look costs, in bytes
_SPACE_WINDOW = 64 * 1024

_space = re.compile(rb"[ \t\n\r]*").match
_name = re.compile(rb'"[^"\\\0-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\0-\x1f]*)*"').match
_OPENING, _CLOSING, _COLON, _COMMA, _QUOTE = b'{}:,"'
_ARRAY, _ARRAY_END = b"[]"
_message = msgspec.json.Decoder(Message)
_messages = msgspec.json.Decoder(Annotated[list[Message], msgspec.Meta(min_length=1)])


def whole(steps: Steps[T]) -> T:
    """What comes of them, at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            made: T = end.value
            return made


def mistake_in_messages(members: Members) -> str | None:
    """The same as ``Walk.mistake``, of few messages."""
    try:
        _messages.decode(members["messages"])
    except (ValueError, RecursionError) as error:
        where = re.search(r"at `\$(\[\d+\])?", str(error))
        return f"messages{where[1] or ''}" if where else "messages"
    return None


class TooMuch(ValueError):
    """It may be JSON, but holds more than is read. The message begins with a verb: the body is its subject."""


class Walk:
    """One body. ``mistake`` is the first of its ``messages`` that is wrong, or all of them, once they were read."""

    def __init__(self, body: bytes | bytearray) -> None:
        self._body = body
        self._view = memoryview(body)
        self._left = _STEP
        self.mistake: str | None = None

    def members(self, with_messages: bool = False) -> Steps[Members]:
        """The members of the object; of a name that stands twice the last counts. Raises ValueError, or TooMuch.

        ``with_messages``: ``messages`` must be a non-empty array of objects, each with a non-empty string ``role``.
        """
        members: Members = {}
        count = 0
        at = yield from self._first(0)
        self._expect(_OPENING, at)
        at = yield from self._first(at + 1)
        over = self._byte(at) == _CLOSING
        while not over:
            count += 1
            if count > MOST_MEMBERS:
                raise TooMuch(f"has over {MOST_MEMBERS} members at its top level")
            name, start = yield from self._member(at)
            if with_messages and name == "messages":
                end, self.mistake = yield from self._messages(start)
            else:
                end = yield from self._value(start)
            members[name] = msgspec.Raw(self._view[start : self._trimmed(start, end)])
            at, over = yield from self._next(end, _CLOSING)
        if (yield from self._first(at + 1)) != len(self._body):
            raise ValueError("something stands behind it")
        return members

    def _messages(self, at: int) -> Steps[tuple[int, str | None]]:
        if self._byte(at) != _ARRAY:
            return (yield from self._value(at)), "messages"
        at = yield from self._first(at + 1)
        if self._byte(at) == _ARRAY_END:
            return (yield from self._first(at + 1)), "messages"
        index, mistake, over = 0, None, False
        while not over:
            if index >= MOST_MESSAGES:
                raise TooMuch(f"has over {MOST_MESSAGES} messages")
            end, good = yield from self._message(at)
            if not good and mistake is None:
                mistake = f"messages[{index}]"
            index += 1
            at, over = yield from self._next(end, _ARRAY_END)
        return (yield from self._first(at + 1)), mistake

    def _message(self, at: int) -> Steps[tuple[int, bool]]:
        """The offset of what comes behind a message, and whether it has a role."""
        if self._byte(at) != _OPENING:
            return (yield from self._value(at)), False
        if self._pay(_LOOK):
            yield
        try:  # as nearly always: it has a role, it is small, and another comes behind it
            return at + end_of_value(self._view[at : at + _WINDOWS[0]], _message, beyond=True), True
        except ValueError:
            end = yield from self._near_end(at)
        if end is not None:
            try:
                end_of_value(self._view[at:end], _message)
            except ValueError:
                return end, False
            return end, True
        return (yield from self._large_message(at))

    def _large_message(self, at: int) -> Steps[tuple[int, bool]]:
        count, good, bad, over = 0, False, False, False
        at = yield from self._first(at + 1)
        while not over:
            count += 1
            if count > MOST_MEMBERS:
                raise TooMuch(f"has a message with over {MOST_MEMBERS} members")
            name, start = yield from self._member(at)
            end = yield from self._value(start)
            if name == "role":
                good = self._byte(start) == _QUOTE and self._byte(start + 1) != _QUOTE
                bad = bad or not good
            at, over = yield from self._next(end, _CLOSING)
        return (yield from self._first(at + 1)), good and not bad

    def _member(self, at: int) -> Steps[tuple[str, int]]:
        """The name that begins there, and the offset of its value."""
        self._expect(_QUOTE, at)
        found = _name(self._body, at, at + MOST_NAME)
        if found is None:
            if at + MOST_NAME < len(self._body):
                raise TooMuch(f"has a name of over {MOST_NAME} bytes, or one that is wrong at byte {at}")
            raise ValueError(f"a name is wrong at byte {at}")
        name: str = json.loads(found[0])
        if self._pay(_LOOK + 10 * len(found[0])):
            yield
        at = yield from self._first(found.end())
        self._expect(_COLON, at)
        return name, (yield from self._first(at + 1))

    def _value(self, at: int) -> Steps[int]:
        """The offset of what comes behind the value that begins there."""
        end = yield from self._near_end(at)
        return (yield from skip(self._body, at)) if end is None else end

    def _near_end(self, at: int) -> Steps[int | None]:
        """The same, unless the value is large."""
        for window in _WINDOWS:
            data = self._view[at : at + window]
            if self._pay(_LOOK + len(data)):
                yield
            is_rest = at + len(data) == len(self._view)
            try:
                end = end_of_value(data)
            except ValueError:  # its end is further away, if it is not wrong
                if is_rest:
                    raise
                continue
            if end < len(data) or is_rest or data[-1] in b' \t\n\r]}"':
                return at + end
        return None

    def _next(self, at: int, closing: int) -> Steps[tuple[int, bool]]:
        """Behind a value: the offset of what comes behind a comma, or of the bracket that closes, and if it is that."""
        at = yield from self._first(at)
        if self._byte(at) == closing:
            return at, True
        self._expect(_COMMA, at)
        return (yield from self._first(at + 1)), False

    def _first(self, at: int) -> Steps[int]:
        """The offset of the first byte from there on that is no white space."""
        while (end := _space(self._body, at, at + _SPACE_WINDOW).end()) == at + _SPACE_WINDOW:  # type: ignore[union-attr]
            if self._pay(end - at):
                yield
            at = end
        return end

    def _trimmed(self, start: int, end: int) -> int:
        """Where the value ends that stands there with white space behind it."""
        while True:
            piece = bytes(self._view[max(start, end - 64) : end])
            rest = len(piece.rstrip(b" \t\n\r"))
            end -= len(piece) - rest
            if rest or not piece:
                return end

    def _expect(self, what: int, at: int) -> None:
        if self._byte(at) != what:
            raise ValueError(f"{chr(what)} expected at byte {at}")

    def _byte(self, at: int) -> int:
        if at >= len(self._body):
            raise ValueError("it ends too early")
        return self._body[at]

    def _pay(self, cost: int) -> bool:
        """Whether this step has now cost enough."""
        self._left -= cost
        if self._left > 0:
            return False
        self._left = _STEP
        return True
