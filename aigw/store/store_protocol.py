"""One connection to the store, by the protocol of txredisapi. Imported where the first store is opened.

The library takes whatever a server answers. Here a server is not trusted: what it sends is bounded, bytes that are no
answer and answers without a question end the connection, and the library logs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import txredisapi
from service_identity import VerificationError
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted
from twisted.python.failure import Failure

MOST_BYTES = 65_536  # of one answer; those of our scripts are one short line
PIECE = 4096
_REASONS: dict[type[BaseException] | None, str] = {
    ConnectionAborted: "it did not answer in time",
    VerificationError: "its certificate is for another name",
}
TOO_LARGE = "it sends an answer that is too large"


class StoreProtocol(txredisapi.BaseRedisProtocol):  # type: ignore[misc]  # the library has no types
    """``ready`` fires when all commands of ``greeting`` were answered, AUTH or PING; ``on_lost`` is for a later end."""

    def __init__(self, greeting: Sequence[Sequence[str]], reply_seconds: float) -> None:
        super().__init__(charset="utf-8", replyTimeout=reply_seconds, convertNumbers=False)
        self.ready: Deferred[StoreProtocol] = Deferred(lambda _: self.end("it took too long"))
        self.on_lost: Callable[[str], None] = lambda _: None
        self._greeting = greeting
        self._received = 0  # bytes since the last whole answer
        self._reason = ""  # why this side ends the connection

    def connectionMade(self) -> None:
        """See Protocol. The one of the library gives up for good when a password is wrong."""
        Deferred.fromCoroutine(self._greet()).addErrback(lambda failure: self.end(failure.getErrorMessage()))

    async def _greet(self) -> None:
        for command in self._greeting:
            try:
                answer = await self.execute_command(*command)
            except txredisapi.ResponseError:
                if command[0] != "PING":  # a user may be without it
                    raise
                answer = None
            if command[0] == "ROLE" and not (isinstance(answer, list) and answer[:1] == ["master"]):
                raise ConnectionError("it is not the primary server that the sentinels name")
        if not self.ready.called:
            self.ready.callback(self)

    def connectionLost(self, why: Failure) -> None:
        """See Protocol."""
        self._reason = self._reason or _REASONS.get(why.type, why.getErrorMessage())
        super().connectionLost(why)
        if self.ready.called:
            self.on_lost(self._reason)
        else:
            self.ready.errback(ConnectionError(self._reason))

    def end(self, reason: str) -> None:
        """End the connection, for this reason."""
        self._reason = self._reason or reason or "it ends the connection"
        self.transport.abortConnection()

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        """See Protocol. ``unpause`` is for data that comes again. The library copies all of ``data`` for each line."""
        pieces = [data] if unpause else [data[first : first + PIECE] for first in range(0, len(data), PIECE)]
        try:
            for piece in pieces:
                if self._reason:
                    return
                self._received += 0 if unpause else len(piece)
                super().dataReceived(piece, unpause)
                if self._received > MOST_BYTES:
                    self.end(TOO_LARGE)
        except (ValueError, TypeError, AttributeError, LookupError):  # no text, or lists as no answer has
            self.end("it sends what is no answer of a Valkey or Redis")

    def lineLengthExceeded(self, line: bytes) -> None:
        """See LineReceiver."""
        self.end(TOO_LARGE)

    def replyReceived(self, reply: object) -> None:
        """See BaseRedisProtocol."""
        self._received = 0
        if self.replyQueue.waiting:
            super().replyReceived(reply)
        else:
            self.end("it sends an answer without a question")
