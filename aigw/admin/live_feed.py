"""The open status pages: each gets the status as a server-sent event when it has changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from aigw.errors import Draining, Overloaded
from aigw.net.slices import Slices
from aigw.server.request import Request
from aigw.telemetry.status_changes import StatusChanges
from aigw.telemetry.telemetry import Telemetry

EVERY_SECONDS = 1.0
QUIET_SECONDS = 15.0  # then a comment keeps the connection open
MOST_SECONDS = 3600.0  # then a page connects again, and its cookie is checked again
MOST = 50


log = Logger()


class LiveFeed:
    """Reads the status once a second, only while pages are open. ``status`` makes it as JSON, in short steps.

    ``changes`` makes what has changed in it, where the whole is too much for each second.
    """

    def __init__(
        self,
        status: Callable[[], Generator[None, None, bytes]],
        clock: IReactorTime,
        changes: StatusChanges | None = None,
    ) -> None:
        self._status = status
        self._changes = changes
        self._by_changes = False  # the pages have what ``changes`` knows
        self._clock = clock
        self._slices = Slices(clock)
        self._viewers: dict[Subscriber, float] = {}  # and since when
        self._timer: IDelayedCall | None = None
        self._refreshing: Deferred[None] = succeed(None)
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
        viewer.begin()
        if event := self.event():
            viewer.send(event)
        if self._timer is None and self._refreshing.called:
            self._refresh()

    def left(self, viewer: Subscriber) -> None:
        """A page is closed."""
        self._viewers.pop(viewer, None)
        if not self._viewers:
            self._stop_timer()
            self._forget()

    def end(self) -> Deferred[None]:
        """The gateway is stopping: send the last status and end all streams. Fires when that is done."""
        self._stopping = True
        return self._refreshing.addCallback(lambda _: self._refresh()).addCallback(lambda _: self.ask_again())

    def ask_again(self, begun_by: float = math.inf) -> None:
        """End the streams that began until ``begun_by``: each page connects again and is checked again."""
        for viewer, begun in list(self._viewers.items()):
            if begun <= begun_by:
                viewer.end()

    def _refresh(self) -> Deferred[None]:
        """Read the status, send what is new, and do so again in a second."""

        def refreshed(_: object) -> None:
            if self._viewers and not self._stopping:
                self._timer = self._clock.callLater(EVERY_SECONDS, self._refresh)

        self._stop_timer()
        self.ask_again(self._clock.seconds() - MOST_SECONDS)
        refreshing: Deferred[None] = maybeDeferred(self._slices.run, self._round())
        refreshing.addErrback(
            lambda failure: log.failure("A status page gets no data: unexpected error", failure=failure)
        )
        self._refreshing = refreshing.addCallback(refreshed)
        return self._refreshing

    def _forget(self) -> None:
        self._sent, self._by_changes = b"", False
        if self._changes is not None:
            self._changes.forget()

    def _round(self) -> Generator[None, None, None]:
        if self._viewers and self._changes is not None and self._changes.are_due():
            yield from self._round_of_changes(self._changes)
            return
        if self._by_changes:
            self._forget()
        status = (yield from self._status()) if self._viewers else b""
        now = self._clock.seconds()
        if status == self._sent and now - self._sent_at < QUIET_SECONDS:
            return
        event = _event(status) if status != self._sent else b":\n\n"
        self._sent, self._sent_at = status if self._viewers else b"", now
        yield from self._send(event)

    def _round_of_changes(self, changes: StatusChanges) -> Generator[None, None, None]:
        changed = yield from changes.round()
        now = self._clock.seconds()
        if not changed and now - self._sent_at < QUIET_SECONDS:
            return
        self._by_changes, self._sent, self._sent_at = self._by_changes or bool(changed), b"", now
        if not self._viewers:
            self._forget()
        yield from self._send(_event(changed) if changed else b":\n\n")

    def _send(self, event: bytes) -> Generator[None, None, None]:
        for viewer in list(self._viewers):  # a page that opens from now on is sent what follows at once
            if viewer in self._viewers:
                viewer.send(event)
            yield

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def event(self) -> bytes:
        """The last status that was sent, as a whole; nothing if there is none yet."""
        status = self._changes.whole() if self._by_changes and self._changes is not None else self._sent
        return _event(status) if status else b""


def feed_of(telemetry: Telemetry, clock: IReactorTime) -> LiveFeed:
    """The status pages of a gateway."""
    return LiveFeed(telemetry.status, clock, telemetry.status_changes())


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

    def begin(self) -> None:
        """Answer with a stream."""
        self._request.serve(self._served)
        self._request.begin(200, [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no")], None)
        self._request.registerProducer(self, True)
        self._request.write(b"")  # its head

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
