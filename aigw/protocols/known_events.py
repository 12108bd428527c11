"""Events with output that are known from earlier streams. The like of them is neither decoded nor searched. Pure.

The first event of a stream has a name and a time of its own, so that no event before is like it. To find out that it is
output and nothing else, and what the next ones look like, took a seventh of what a short stream costs.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from aigw.protocols import events
from aigw.protocols.like_events import LikeEvents

MOST = 1024  # bytes of an event
MOST_KNOWN = 8
MOST_TRIED = 64  # events that are learned at once: where they always differ it costs no more
RENEWED = 1000  # events that are not known; after them one more is learned

_STRING = rb'[^\x00-\x1f"\\]+'  # not empty, and as it is written; bytes that are no UTF-8 are output anyway
_NUMBER = rb"[1-9]\d{0,17}"
_is_string = re.compile(_STRING).fullmatch
# Of these only it matters whether they are there. A random ``obfuscation`` hides the length of the text.
_VARYING = re.compile(
    rb'"(?:id|model|system_fingerprint|obfuscation)"\s*:\s*"(%s)"|"created"\s*:\s*(%s)(?!\d)' % (_STRING, _NUMBER)
)


class KnownEvent:
    """One form of events. ``value`` is what one of them was as JSON; in another one, texts and times differ.

    ``changes``: also those of one stream differ in more than their text.
    """

    __slots__ = ("changes", "match", "value")

    def __init__(self, match: Callable[[bytes], re.Match[bytes] | None], value: dict[str, object]) -> None:
        self.match = match
        self.value = value
        self.changes = "obfuscation" in value


class KnownEvents:
    """Those of one protocol. The one that was found last stands first."""

    def __init__(self) -> None:
        self._known: list[KnownEvent] = []
        self._to_try = MOST_TRIED
        self._missed = 0

    @property
    def may_learn(self) -> bool:
        """Whether ``learn`` may be called."""
        return self._to_try > 0

    def find(self, event: bytes) -> tuple[KnownEvent, LikeEvents] | None:
        """The known event that ``event`` is like, and those that are like both; None where none is found."""
        for known in self._known:
            found = known.match(event)
            if found is None:
                continue
            if known is not self._known[0]:
                self._known.remove(known)
                self._known.insert(0, known)
            return known, LikeEvents(event[: found.start(1)], event[found.end(1) :])
        self._missed += 1
        if self._missed >= RENEWED:
            self._missed, self._to_try = 0, min(self._to_try + 1, MOST_TRIED)
        return None

    def learn(self, event: bytes, like: LikeEvents) -> None:
        """Know one whole event of output, which is among those ``like`` it: it reports nothing, and no usage."""
        if len(event) > MOST or not _is_string(event[like.text]):
            return
        _, _, value, _ = events.read(event)
        if not isinstance(value, dict):
            return
        self._to_try -= 1
        text, behind, _ = like.text.indices(len(event))
        spans = [(*found.span(found.lastindex or 0), found.lastindex == 1) for found in _VARYING.finditer(event)]
        pattern, at = b"", 0
        for start, end, is_string in sorted([*spans, (text, behind, True)]):
            form = _STRING if is_string else _NUMBER
            pattern += re.escape(event[at:start]) + (b"(%s)" % form if start == text else form)
            at = end
        del self._known[MOST_KNOWN - 1 :]  # one that was not found again, if there is one
        self._known.append(KnownEvent(re.compile(pattern + re.escape(event[at:])).fullmatch, value))
