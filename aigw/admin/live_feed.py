"""The open status pages: each gets the status as a server-sent event when it has changed."""

from __future__ import annotations

import math
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from aigw.errors import Draining, Overloaded
from aigw.server.request import Request

EVERY_SECONDS = 1.0
QUIET_SECONDS = 15.0  # then a comment keeps the connection open
MOST_SECONDS = 3600.0  # then a page connects again, and its cookie is checked again
MOST = 50


class LiveFeed:
    """Checks the status once a second, only while pages are open. ``status`` gives the status as JSON."""

    def __init__(self, status: Callable[[], bytes], clock: IReactorTime) -> None:
        self._status = status
        self._clock = clock
        self._viewers: dict[Subscriber, float] = {}  # and since when
        self._timer: IDelayedCall | None = None
        self._sent = b""
        self._sent_at = 0.0
        self._stopping = False

    def admit(self, request: Request) -> None:
        """Send events to a request until it ends or the gateway stops. Raises Overloaded, Draining."""
        if self._stopping:
            raise Draining("The gateway is stopping.")
        if len(self._viewers) >= MOST:
            raise Overloaded(
                f"{MOST} status pages are open already, which is the limit. Close one and try again.",
                code="too_many_viewers",
            )
        viewer = Subscriber(request, self)
        self._viewers[viewer] = self._clock.seconds()
        if self._timer is None:
            self._sent, self._sent_at = self._status(), self._clock.seconds()
            self._timer = self._clock.callLater(EVERY_SECONDS, self._send)
        viewer.begin(_event(self._sent))

    def left(self, viewer: Subscriber) -> None:
        """A page is closed."""
        self._viewers.pop(viewer, None)
        if not self._viewers and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self) -> None:
        """The gateway is stopping: end all streams."""
        self._stopping = True
        self._send()
        self.ask_again()

    def ask_again(self, begun_by: float = math.inf) -> None:
        """End the streams that began until ``begun_by``: each page connects again and is checked again."""
        for viewer, begun in list(self._viewers.items()):
            if begun <= begun_by:
                viewer.end()

    def _send(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        self.ask_again(self._clock.seconds() - MOST_SECONDS)
        if not self._viewers:
            return
        self._timer = self._clock.callLater(EVERY_SECONDS, self._send)
        status, now = self._status(), self._clock.seconds()
        if status != self._sent or now - self._sent_at >= QUIET_SECONDS:
            event = _event(status) if status != self._sent else b":\n\n"
            self._sent, self._sent_at = status, now
            for viewer in self._viewers:
                viewer.send(event)

    def event(self) -> bytes:
        """The last status that was sent."""
        return _event(self._sent)


def _event(data: bytes) -> bytes:
    return b"data: %s\n\n" % data


@implementer(IPushProducer)
class Subscriber:
    """One page. While it does not read it misses events, but each event has the whole status."""

    def __init__(self, request: Request, viewers: LiveFeed) -> None:
        self._request = request
        self._viewers = viewers
        self._paused = self._missed = False
        self._served: Deferred[None] = Deferred(lambda _: viewers.left(self))

    def begin(self, event: bytes) -> None:
        """Answer with a stream."""
        self._request.serve(self._served)
        self._request.begin(200, [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no")], None)
        self._request.registerProducer(self, True)
        self._request.write(event)

    def send(self, event: bytes) -> None:
        """Send an event, if the page reads."""
        self._missed = self._paused
        if not self._paused:
            self._request.write(event)

    def end(self) -> None:
        """End the stream."""
        self._viewers.left(self)
        self._request.unregisterProducer()
        self._request.end()
        self._served.callback(None)

    def pauseProducing(self) -> None:
        """See IPushProducer."""
        self._paused = True

    def resumeProducing(self) -> None:
        """See IPushProducer."""
        self._paused = False
        if self._missed:
            self.send(self._viewers.event())

    def stopProducing(self) -> None:
        """The page is closed: its request is cancelled, which ends the stream."""
