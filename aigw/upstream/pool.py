"""The connections to one provider: made, kept, used again.

- Connecting is DNS, TCP and TLS as one step, with one time limit and one cancel.
- A request that dies on a *reused* connection before any byte of its answer is sent once more on a fresh one: the
  provider closed an idle connection just as we wrote (RFC 9112, section 9.3.1).
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from aigw.net.lateness import Limit
from aigw.protocols.envelope import Pieces
from aigw.upstream import reasons
from aigw.upstream.connection import Connection, NoAnswer, Response, Stale

IDLE_SECONDS = 4.0  # uvicorn and Node close theirs after 5
MAX_IDLE = 100


class Pool:
    """The connections to one provider, the most recently used first."""

    def __init__(self, clock: IReactorTime, endpoint: IStreamClientEndpoint, secure: bool) -> None:
        """``endpoint`` leads to the provider; ``secure`` says that it does so over TLS."""
        self._clock = clock
        self._endpoint = endpoint
        self._secure = secure
        self._answered = False
        self._factory = _ConnectionFactory(self, secure)
        self._idle: dict[Connection, float] = {}  # and until when
        self._reaper: IDelayedCall | None = None
        self._open: set[Connection] = set()
        self._most_idle = MAX_IDLE

    def lead_to(self, endpoint: IStreamClientEndpoint) -> None:
        """Connect over this endpoint from now on; it leads to the same provider."""
        self._endpoint = endpoint

    def retire(self) -> None:
        """Keep no connection from now on; those in use end with the answer that they carry."""
        self._most_idle = 0
        self._stop_reaper()
        for connection in list(self._idle):
            connection.abort()

    def send(self, head: bytes, body: bytes | Pieces, connect_timeout: float) -> Deferred[Response]:
        """The head of the answer. Fails with UpstreamUnreachable, UpstreamTimeout or UpstreamBroken."""
        if not self._idle:
            return self._on_a_fresh_one(head, body, connect_timeout)
        connection, _ = self._idle.popitem()
        return connection.send(head, body, reused=True).addErrback(self._once_more, head, body, connect_timeout)

    def _once_more(
        self, failure: Failure, head: bytes, body: bytes | Pieces, connect_timeout: float
    ) -> Deferred[Response]:
        failure.trap(Stale)
        return self._on_a_fresh_one(head, body, connect_timeout)

    def _on_a_fresh_one(self, head: bytes, body: bytes | Pieces, connect_timeout: float) -> Deferred[Response]:
        answered = self.connect(connect_timeout).addCallback(lambda connection: connection.send(head, body))
        return answered if self._answered or self._secure else answered.addErrback(_is_it_https)

    def opened(self, connection: Connection) -> None:
        """A connection that exists from now on."""
        self._open.add(connection)

    def put(self, connection: Connection) -> None:
        """A connection whose answer was read to its end."""
        self._answered = True
        if len(self._idle) >= self._most_idle:
            connection.abort()
            return
        self._idle[connection] = self._clock.seconds() + IDLE_SECONDS
        if self._reaper is None:
            self._reaper = self._clock.callLater(IDLE_SECONDS, self._reap)

    def _reap(self) -> None:
        """Abort what was idle for too long: one timer for all, as one for each would be made anew at every use."""
        self._reaper = None
        now = self._clock.seconds()
        for connection, until in list(self._idle.items()):  # the one that was put in first is the first
            if until > now:
                self._reaper = self._clock.callLater(until - now, self._reap)
                return
            connection.abort()

    def _stop_reaper(self) -> None:
        reaper, self._reaper = self._reaper, None
        if reaper is not None:
            reaper.cancel()

    def forget(self, connection: Connection) -> None:
        """A connection that is gone."""
        self._answered = self._answered or connection.answered
        self._open.discard(connection)
        self._idle.pop(connection, None)

    def close(self) -> None:
        """Abort every connection, idle or not; whoever waits on one is told."""
        self._stop_reaper()
        for connection in list(self._open):
            if connection.transport is not None:
                connection.transport.abortConnection()

    def connect(self, seconds: float) -> Deferred[Connection]:
        """A fresh connection, ready for a request. Fails with UpstreamUnreachable or UpstreamTimeout."""
        over = False
        handshake = ""

        def end() -> None:
            nonlocal over
            over = True
            limit.stop()

        def abandon(_: Deferred[Connection] | None = None) -> None:
            end()
            connecting.cancel()

        def too_late() -> None:
            abandon()
            result.errback(Failure(reasons.too_slow(seconds, handshake)))

        def ready(connection: Connection) -> Any:
            nonlocal handshake
            handshake = reasons.in_handshake(self._answered) if self._secure else ""
            return connection.ready or connection

        def connected(connection: Connection) -> None:
            if over:
                connection.abort()
            else:
                end()
                result.callback(connection)

        def failed(failure: Failure) -> None:
            if not over:
                end()
                result.errback(Failure(reasons.unreachable(failure, handshake)))

        result: Deferred[Connection] = Deferred(abandon)
        limit = Limit(self._clock, seconds, too_late)
        connecting: Deferred[Any] = maybeDeferred(self._endpoint.connect, self._factory)
        connecting.addCallback(ready)
        connecting.addCallbacks(connected, failed)
        return result


class _ConnectionFactory(Factory):
    noisy = False

    def __init__(self, pool: Pool, secure: bool) -> None:
        self._pool = pool
        self._secure = secure

    def buildProtocol(self, addr: IAddress | None) -> Any:
        connection = Connection(self._secure, self._pool.put, self._pool.forget)
        self._pool.opened(connection)
        return connection


def _is_it_https(failure: Failure) -> Failure:
    """A TLS port closes the connection when it is sent plain HTTP; but so does a server that crashes."""
    if failure.check(NoAnswer):
        return Failure(NoAnswer("connection closed before an answer; is it https://?"))
    return failure
