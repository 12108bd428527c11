"""The IAgent under treq: the connections to one provider, made, kept and used again.

- Connecting is DNS, TCP and TLS as one step, with one time limit and one cancel.
- A request that dies on a *reused* connection before any byte of its answer is sent once more on a fresh one: the
  provider closed an idle connection just as we wrote (RFC 9112, section 9.3.1).
"""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer
from zope.interface import implementer

from aigw.errors import UpstreamTimeout, UpstreamUnreachable
from aigw.net.lateness import Limit
from aigw.net.tls import openssl_reasons
from aigw.upstream.connection import Connection, Response, Stale

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


class ReadyHeaders(Headers):
    """Headers as ``lines``, in their final form: treq copies others twice for a request, and encodes each name anew.

    What treq would add, a cookie and that gzip is welcome, is kept out.
    """

    def __init__(self, lines: bytes) -> None:
        super().__init__()
        self.lines = lines

    def copy(self) -> ReadyHeaders:
        """See Headers; these never change."""
        return self

    def hasHeader(self, name: str | bytes) -> bool:
        """Whether treq need not look for it."""
        return True

    def addRawHeader(self, name: str | bytes, value: str | bytes) -> None:
        """Nothing is added."""


@implementer(IAgent)
class Agent:
    """Requests over a Pool, each within ``connect_timeout`` seconds where it needs a fresh connection."""

    def __init__(self, pool: Pool, host: bytes, connect_timeout: float) -> None:
        self._pool = pool
        self._host = host
        self._connect_timeout = connect_timeout

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[Any]:
        """A Response. Fails with UpstreamUnreachable, UpstreamTimeout or UpstreamBroken; see IAgent.request."""
        head = self._head(method, uri, headers, 0 if bodyProducer is None else bodyProducer.length)
        idle = self._pool.take()
        if idle is None:
            return self._on_a_fresh_one(head, bodyProducer)
        return idle.send(head, bodyProducer, reused=True).addErrback(self._once_more, head, bodyProducer)

    def _on_a_fresh_one(self, head: bytes, body: IBodyProducer | None) -> Deferred[Response]:
        return self._pool.connect(self._connect_timeout).addCallback(lambda connection: connection.send(head, body))

    def _once_more(self, failure: Failure, head: bytes, body: IBodyProducer | None) -> Deferred[Response]:
        failure.trap(Stale)
        return self._on_a_fresh_one(head, body)

    def _head(self, method: bytes, uri: bytes, headers: Headers | None, length: Any) -> bytes:
        if not isinstance(headers, ReadyHeaders):
            raise TypeError("only ReadyHeaders are sent: others may ask for a coding, or hold a cookie")
        return b"%s /%s HTTP/1.1\r\nHost: %s\r\nAccept-Encoding: identity\r\nContent-Length: %d\r\n%s\r\n" % (
            method,
            uri.split(b"/", 3)[3],
            self._host,
            length,
            headers.lines,
        )


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
