"""Answers that are no stream of events: held whole and judged, or, as audio, passed on from their first bytes on."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from aigw.errors import UpstreamBroken, UpstreamFailure
from aigw.protocols.endpoint import Endpoint
from aigw.protocols.media import NO_AUDIO
from aigw.protocols.scanner import HOLD_STREAM
from aigw.protocols.usage import ReportedUsage
from aigw.proxy.relay import Relay

HOLD_PLAIN = 1024 * 1024

Begins = Callable[[bytes, bytes], "bool | None"]


class Plain(Relay):
    """An answer in one piece. It is checked when it is whole, or committed when it is larger than HOLD_PLAIN.

    Its time limit is for the whole answer. It counts from the commit point, not from the last byte.
    """

    cut_short = "answer_truncated"

    def __init__(self, endpoint: Endpoint, clock: IReactorTime, label: bytes) -> None:
        """``label`` is the Content-Type in lower case."""
        super().__init__(endpoint, clock)
        self._label = label
        self._size = 0
        self.reported = ReportedUsage()

    def check(self, body: bytes) -> tuple[str, str | None] | None:
        """See Relay."""
        return self._endpoint.check_answer(body, self._label)

    def dataReceived(self, data: bytes) -> None:
        """See Relay."""
        if self._client is not None:
            self.reported.add_some(data)
            self._write(data)
            return
        self._pieces.append(data)
        self._size += len(data)
        if self._size > HOLD_PLAIN and not self.held.called:
            self.reported.add_some(b"".join(self._pieces))
            self.held.callback(self)

    def _ended(self, whole: bool, reason: Failure) -> None:
        if self._client is not None:
            if whole:
                self._finish(None)
            else:
                self._break(self.cut_short, "The provider's answer ended before it was complete.")
            return
        body = b"".join(self._pieces)
        self.reported.add(body)  # what is no answer may be charged too
        mistake = self._mistake(body, whole, reason)
        if mistake is not None:
            self._fail(mistake)
            return
        self._over = True
        self._pieces = [body]
        self.length = self._size
        self.held.callback(self)

    def _mistake(self, body: bytes, whole: bool, reason: Failure) -> UpstreamFailure | None:
        if not whole:
            return cut_short(reason)
        found = self.check(body)
        return UpstreamBroken(found[0], detail=found[1]) if found else None

    def _too_late(self) -> None:
        self._break("answer_timeout", "The provider's answer was not whole within its time limit.")


class Flowing(Plain):
    """An answer that is passed on as it comes, from its first bytes on. What does not begin as one is held and judged.

    Nothing can be reported inside it, so a broken one ends without a proper end.
    """

    default_type = b"application/octet-stream"
    flows = True
    flushes = None

    def __init__(self, endpoint: Endpoint, clock: IReactorTime, label: bytes, begins: Begins) -> None:
        super().__init__(endpoint, clock, label)
        self._begins = begins

    def dataReceived(self, data: bytes) -> None:
        """See Relay."""
        if self._client is not None:
            self._last_activity = self._clock.seconds()
            self._write(data)
            return
        self._pieces.append(data)
        if self.held.called:
            return
        first = b"".join(self._pieces)
        self._pieces = [first]  # a join of many small pieces for each one would take seconds
        if self._begins(self._label, first):
            self.held.callback(self)
        elif len(first) > HOLD_STREAM:
            self._fail(UpstreamBroken(NO_AUDIO))

    def _too_late(self) -> None:
        self._break("answer_timeout", f"The provider sent nothing for {self._limit:g} s.")


def cut_short(reason: Failure) -> UpstreamBroken:
    """Why an answer is none whose body ended too early."""
    if isinstance(reason.value, UpstreamBroken):
        return UpstreamBroken(f"answered with {reason.value.message}")
    return UpstreamBroken("connection closed in the middle of its answer")
