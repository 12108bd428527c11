"""The connections to one provider: made, kept, used again."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from aigw.errors import UpstreamTimeout, UpstreamUnreachable
from aigw.net.lateness import Limit
from aigw.net.tls import openssl_reasons
from aigw.upstream.connection import Connection

IDLE_SECONDS = 4.0  # uvicorn and Node close theirs after 5


MAX_IDLE = 100


class Pool:
    """The connections to one provider, the most recently used first."""

    def __init__(self, clock: IReactorTime, endpoint: IStreamClientEndpoint, secure: bool) -> None:
        """``endpoint`` leads to the provider; ``secure`` says that it does so over TLS."""
        self._clock = clock
        self._endpoint = endpoint
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

    def opened(self, connection: Connection) -> None:
        """A connection that exists from now on."""
        self._open.add(connection)

    def take(self) -> Connection | None:
        """An idle connection, if there is one."""
        return self._idle.popitem()[0] if self._idle else None

    def put(self, connection: Connection) -> None:
        """A connection whose answer was read to its end."""
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

        def end() -> None:
            nonlocal over
            over = True
            limit.stop()

        def abandon(_: Deferred[Connection] | None = None) -> None:
            end()
            connecting.cancel()

        def too_late() -> None:
            abandon()
            result.errback(Failure(UpstreamTimeout("connect", seconds)))

        def ready(connection: Connection) -> Any:
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
                result.errback(_unreachable(failure))

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


def _unreachable(failure: Failure) -> Failure:
    """Why there is no connection, in words that name no host."""
    if failure.check(error.DNSLookupError):
        message = "name not found"
    elif failure.check(error.ConnectionRefusedError):
        message = "connection refused"
    elif failure.check(SSL.Error):
        message = f"TLS: {openssl_reasons(failure.value) or 'handshake failed'}"
    elif failure.check(error.ConnectionDone, error.ConnectionLost):
        message = "connection closed before it could be used"
    else:
        message = f"no connection: {type(failure.value).__name__}"
    return Failure(UpstreamUnreachable(message[:200]))
