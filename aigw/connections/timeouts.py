"""The time limits of a client's connection, with one timer for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from aigw.net import tcp, write
from aigw.net.interfaces import ClientTransport
from aigw.net.lateness import GRACE_SECONDS, lateness

HEAD_SECONDS = 15.0  # from connecting, TLS handshake included, or from a request's first line
BODY_SECONDS = 30.0
BODY_RATE = 50_000.0  # bytes a second
KEEP_ALIVE_SECONDS = 75.0  # unless the configuration has another
READ_SECONDS = 60.0
SETTLES = 0.05  # part of READ_SECONDS, until the kernel's buffers are full
LAST_REQUEST_SECONDS = 2.0  # while the gateway drains; a client may be sending its next request just now


class Received(Protocol):
    """A request whose body is coming."""

    bytes_in: int


class ConnectionTimeouts:
    """The limits of the connection of ``transport``. ``too_late`` is called when one has passed.

    The timer checks only when it fires whether the limit has moved, so a new phase needs no new timer.
    """

    def __init__(self, clock: IReactorTime, transport: ClientTransport, too_late: Callable[[], None]) -> None:
        self._clock = clock
        self._transport = transport
        self._too_late = too_late
        self._timer: IDelayedCall | None = None
        self._due = math.inf
        self._body: Received | None = None  # whose body is coming
        self._body_began = math.inf
        self._stalled = False  # the client does not read
        self._unsent = 0.0

    @property
    def in_body(self) -> bool:
        """Whether a body is coming."""
        return self._body is not None

    @property
    def seconds_left(self) -> float:
        """The time until the limit."""
        return self._due - self._clock.seconds()

    def expire_after(self, seconds: float) -> None:
        """Set the limit to ``seconds`` from now, in place of the last one."""
        self._due = self._clock.seconds() + seconds
        if seconds < math.inf and (self._timer is None or self._timer.getTime() > self._due):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._clock.callLater(seconds, self._check)

    def expire_sooner(self, seconds: float) -> None:
        """The same, if that is before the present limit."""
        self.expire_after(min(seconds, max(0.0, self._due - self._clock.seconds())))

    def body_began(self, request: Received) -> None:
        """The head is complete, and a part of the body of ``request`` is still missing."""
        self._body = request
        self._body_began = self._clock.seconds()
        self.expire_after(BODY_SECONDS)

    def body_ended(self) -> None:
        """The request is complete, or no more of it is read."""
        self._body = None
        self._due = math.inf

    def client_stalled(self) -> None:
        """The client does not read: it has READ_SECONDS to continue."""
        self._stalled = True
        self._unsent = math.inf  # first the kernel fills its buffers, which does not mean that the client reads
        self.expire_after(READ_SECONDS * SETTLES)

    def client_read(self, seconds: float) -> None:
        """The client has read everything; the next limit is ``seconds``."""
        if self._stalled and self._unsent < math.inf:
            tcp.limit_unacknowledged(self._transport, tcp.CLIENT_SECONDS)
        self._stalled = False
        self.expire_after(seconds)

    def stop(self) -> None:
        """The connection is lost."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._body = None

    def _check(self) -> None:
        timer, self._timer = self._timer, None
        if timer is None:
            return
        now = self._clock.seconds()
        if late := lateness(timer, self._clock):
            self._body_began += late
            self._due = max(self._due, now + GRACE_SECONDS)
        if self._body is not None:  # BODY_SECONDS, and the time of the received bytes at the lowest rate
            self._due = self._body_began + BODY_SECONDS + self._body.bytes_in / BODY_RATE
        if now >= self._due and self._stalled and (unsent := write.unsent(self._transport)) != self._unsent:
            if self._unsent == math.inf:
                self._due += READ_SECONDS * (1 - SETTLES)
                tcp.limit_unacknowledged(self._transport, tcp.STALLED_CLIENT_SECONDS)
            else:
                self._due = now + READ_SECONDS  # slow, but it reads
            self._unsent = unsent
        if now >= self._due:
            self._too_late()
        elif self._due < math.inf:
            self._timer = self._clock.callLater(self._due - now, self._check)
