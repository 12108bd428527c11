"""Reading a short body as a whole, up to a limit: a refusal, a list of models, the answer to a check.

This file also drops the rest of a body when the answer is complete.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss

from aigw.upstream.response import Response

Body = tuple[bytes, bool]  # the bytes, and whether they are the whole body


def read(response: Response, most: int, seconds: float, clock: IReactorTime) -> Deferred[Body]:
    """The body, up to ``most`` bytes and as far as it arrives in ``seconds``; and whether it is complete.

    The Deferred never fails. Cancelling it aborts the connection.
    """
    reader = _Reader(response, most)
    response.deliverBody(reader)
    return reader.done.addTimeout(seconds, clock, lambda *_: reader.so_far(False))


def let_end(response: Response, seconds: float, clock: IReactorTime) -> None:
    """Drop the rest of the body. If the body ends in ``seconds``, the connection is kept; else it is aborted."""
    if response.end():
        return
    rest = _Rest()
    response.deliverBody(rest)
    if not rest.over:
        rest.limit = clock.callLater(seconds, response.stopProducing)


class _Rest(Protocol):
    limit: IDelayedCall | None = None
    over = False

    def dataReceived(self, data: bytes) -> None:
        """The rest of the body is not needed."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.over = True
        if self.limit is not None and self.limit.active():
            self.limit.cancel()


class _Reader(Protocol):
    def __init__(self, response: Response, most: int) -> None:
        self._response = response
        self._most = most
        self._data = bytearray()
        self.done: Deferred[Body] = Deferred(lambda _: response.stopProducing())

    def so_far(self, whole: bool) -> Body:
        return bytes(self._data[: self._most]), whole

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > self._most:
            self._response.stopProducing()
            self.connectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.done.called:
            self.done.callback(self.so_far(reason.check(ResponseDone, PotentialDataLoss) is not None))
