"""The body of a long answer, written as the client reads it and in short steps, so that nothing waits for it."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from zope.interface import implementer

from aigw.net.write import MOST
from aigw.pieces import joined
from aigw.server.request import Request

AT_ONCE = 4  # writes in one turn of the reactor


@implementer(IPushProducer)
class LongBody:
    """Fragments of a body, which is never in memory as a whole. The request has begun; its end comes with the last
    write, and then ``written`` fires. Cancelling ``written`` ends the work.
    """

    def __init__(self, request: Request, fragments: Iterable[bytes]) -> None:
        self._request = request
        self._clock = request.site.reactor
        self._writes = joined(fragments, MOST)
        self._paused = False
        self._due: IDelayedCall | None = None
        self.written: Deferred[None] = Deferred(lambda _: self.stopProducing())
        request.registerProducer(self, True)
        self._write()

    def _write(self) -> None:
        self._due = None
        for _ in range(AT_ONCE):
            if self._paused:
                return
            data = next(self._writes, None)
            if data is None:
                self._request.unregisterProducer()
                self._request.end()
                self.written.callback(None)
                return
            self._request.write(data)
        self._go_on()

    def _go_on(self) -> None:
        if self._due is None and not self._paused:
            self._due = self._clock.callLater(0, self._write)

    def pauseProducing(self) -> None:
        """See IPushProducer."""
        self._paused = True

    def resumeProducing(self) -> None:
        """See IPushProducer."""
        self._paused = False
        self._go_on()

    def stopProducing(self) -> None:
        """The client has disconnected."""
        due, self._due, self._writes, self._paused = self._due, None, iter(()), True
        if due is not None:
            due.cancel()
