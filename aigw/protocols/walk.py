"""Reads a request's JSON object in short steps: its members, and whether its messages have roles.

The values are not decoded. A limit on a number of things is checked before the things are made.
"""

from __future__ import annotations

import json
import re
from typing import Annotated

import msgspec

from aigw.protocols.long_messages import WORTH_IT, surely_have_roles
from aigw.protocols.skip import Steps, T, end_of_value, skip

Members = dict[str, msgspec.Raw]


class Message(msgspec.Struct, gc=False):
    """The only member of a message that is read."""

    role: Annotated[str, msgspec.Meta(min_length=1)]


MOST_MEMBERS = 10_000
MOST_MESSAGES = 100_000
MOST_NAME = 64 * 1024  # bytes
_WINDOWS = (4 * 1024, 32 * 1024, 256 * 1024)  # bytes that are searched for the end of a value; the last is over PIECE
_STEP = 256 * 1024  # bytes, at a few nanoseconds each
_SEARCH = 512  # the cost of a search, in bytes
_SPACE_WINDOW = 64 * 1024

_space = re.compile(rb"[ \t\n\r]*").match
_name = re.compile(rb'"[^"\\\0-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\0-\x1f]*)*"').match
_OPENING, _CLOSING, _COLON, _COMMA, _QUOTE = b'{}:,"'
_ARRAY, _ARRAY_END = b"[]"
_message = msgspec.json.Decoder(Message)
_messages = msgspec.json.Decoder(Annotated[list[Message], msgspec.Meta(min_length=1)])


def whole(steps: Steps[T]) -> T:
    """The result of ``steps``, all done at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            made: T = end.value
            return made


def mistake_in_messages(members: Members) -> str | None:
    """See ``Walk.mistake``, for a small body."""
    messages = members["messages"]
    if len(messages) >= WORTH_IT and surely_have_roles(messages):
        return None
    try:
        _messages.decode(messages)
    except (ValueError, RecursionError) as error:
        where = re.search(r"at `\$(\[\d+\])?", str(error))
        return f"messages{where[1] or ''}" if where else "messages"
    return None


class TooMuch(ValueError):
    """The body exceeds a limit. The message begins with a verb whose subject is "The body"."""


class Walk:
    """Reads one body. ``mistake`` is set with the members: the first wrong message, ``messages``, or None."""

    def __init__(self, body: bytes | bytearray) -> None:
        self._body = body
        self._view = memoryview(body)
        self._left = _STEP
        self.mistake: str | None = None

    def members(self, with_messages: bool = False) -> Steps[Members]:
        """The members of the object; the last one of a repeated name. Raises ValueError, or TooMuch.

        With ``with_messages`` set, ``messages`` is checked for ``mistake``: it must be a non-empty array of objects,
        each with a ``role`` that is a non-empty string.
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
            raise ValueError("something follows it")
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
        """The offset of what follows a message, and whether the message has a role."""
        if self._byte(at) != _OPENING:
            return (yield from self._value(at)), False
        if self._pay(_SEARCH):
            yield
        try:  # the usual case: it has a role, it is small, and another follows
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
        """The name that begins at ``at``, and the offset of its value."""
        self._expect(_QUOTE, at)
        found = _name(self._body, at, at + MOST_NAME)
        if found is None:
            if at + MOST_NAME < len(self._body):
                raise TooMuch(f"has a name of over {MOST_NAME} bytes, or one that is wrong at byte {at}")
            raise ValueError(f"a name is wrong at byte {at}")
        name: str = json.loads(found[0])
        if self._pay(_SEARCH + 10 * len(found[0])):
            yield
        at = yield from self._first(found.end())
        self._expect(_COLON, at)
        return name, (yield from self._first(at + 1))

    def _value(self, at: int) -> Steps[int]:
        """The offset of what follows the value that begins at ``at``."""
        end = yield from self._near_end(at)
        return (yield from skip(self._body, at)) if end is None else end

    def _near_end(self, at: int) -> Steps[int | None]:
        """The offset of what follows a value that begins at ``at``; None if the value is large."""
        for window in _WINDOWS:
            data = self._view[at : at + window]
            if self._pay(_SEARCH + len(data)):
                yield
            is_rest = at + len(data) == len(self._view)
            try:
                end = end_of_value(data)
            except ValueError:  # the value is longer than the window, or wrong
                if is_rest:
                    raise
                continue
            if end < len(data) or is_rest or data[-1] in b' \t\n\r]}"':
                return at + end
        return None

    def _next(self, at: int, closing: int) -> Steps[tuple[int, bool]]:
        """After a value: the offset of the next item, or of the closing bracket, and whether it is the bracket."""
        at = yield from self._first(at)
        if self._byte(at) == closing:
            return at, True
        self._expect(_COMMA, at)
        return (yield from self._first(at + 1)), False

    def _first(self, at: int) -> Steps[int]:
        """The offset of the first byte from ``at`` on that is not white space."""
        while (end := _space(self._body, at, at + _SPACE_WINDOW).end()) == at + _SPACE_WINDOW:  # type: ignore[union-attr]
            if self._pay(end - at):
                yield
            at = end
        return end

    def _trimmed(self, start: int, end: int) -> int:
        """The end of a value without the white space after it."""
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
        """Add the cost of some work, in bytes. Whether this step must end now."""
        self._left -= cost
        if self._left > 0:
            return False
        self._left = _STEP
        return True
