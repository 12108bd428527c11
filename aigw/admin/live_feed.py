"""Whoever has the status page open: each gets the status as a server-sent event as soon as it has changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from aigw.errors import Draining, Overloaded

EVERY_SECONDS = 1.0
QUIET_SECONDS = 15.0  # then a comment says that the connection lives
MOST_SECONDS = 3600.0  # then a page asks anew, and is judged anew: its cookie may have ended
MOST = 50


class LiveFeed:
    """Looks once a second while there is anybody, and never else. ``look`` gives the status as JSON."""

    def __init__(self, look: Callable[[], bytes], clock: IReactorTime) -> None:
        self._look = look
        self._clock = clock
        self._viewers: dict[Subscriber, float] = {}  # and since when
        self._timer: IDelayedCall | None = None
        self._said = b""
        self._said_at = 0.0
        self._stopping = False

    def admit(self, request: Any) -> None:
        """Serve a request from now until it or the gateway ends. Raises Overloaded, Draining."""
        if self._stopping:
            raise Draining("The gateway is stopping.")
        if len(self._viewers) >= MOST:
            raise Overloaded(f"{MOST} pages are open already.", code="too_many_viewers")
        viewer = Subscriber(request, self)
        self._viewers[viewer] = self._clock.seconds()
        if self._timer is None:
            self._said, self._said_at = self._look(), self._clock.seconds()
            self._timer = self._clock.callLater(EVERY_SECONDS, self._tell)
        viewer.begin(_event(self._said))

    def left(self, viewer: Subscriber) -> None:
        """One is gone."""
        self._viewers.pop(viewer, None)
        if not self._viewers and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self) -> None:
        """The gateway is stopping, and need not wait for these."""
        self._stopping = True
        self._tell()
        self.ask_again()

    def ask_again(self, begun_by: float = math.inf) -> None:
        """End the streams that began by then: a page asks anew by itself, and is judged anew, by the keys of now."""
        for viewer, begun in list(self._viewers.items()):
            if begun <= begun_by:
                viewer.end()

    def _tell(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        self.ask_again(self._clock.seconds() - MOST_SECONDS)
        if not self._viewers:
            return
        self._timer = self._clock.callLater(EVERY_SECONDS, self._tell)
        said, now = self._look(), self._clock.seconds()
        if said != self._said or now - self._said_at >= QUIET_SECONDS:
            event = _event(said) if said != self._said else b":\n\n"
            self._said, self._said_at = said, now
            for viewer in self._viewers:
                viewer.tell(event)

    def event(self) -> bytes:
        """The status as it was told last."""
        return _event(self._said)


def _event(data: bytes) -> bytes:
    return b"data: %s\n\n" % data


@implementer(IPushProducer)
class Subscriber:
    """One page. While it does not read, it misses events: each says all."""

    def __init__(self, request: Any, viewers: LiveFeed) -> None:
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

    def tell(self, event: bytes) -> None:
        """Send an event, if it reads."""
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
            self.tell(self._viewers.event())

    def stopProducing(self) -> None:
        """The page is gone: its request is cancelled, and that ends this."""
