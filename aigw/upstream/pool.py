"""Opens, keeps and reuses the connections to one provider.

- Connecting is DNS, TCP and TLS as one step, with one time limit and one cancel.
- A request that fails on a *reused* connection before any byte of its answer is sent once more on a fresh one: the
  provider closed the idle connection at the moment of the request (RFC 9112, section 9.3.1).
- An idle connection is kept as long as its last answer allowed (``Connection.idle_seconds``).
"""

from __future__ import annotations

from typing import cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IProtocol, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from aigw.net.lateness import Limit
from aigw.protocols.envelope import Parts
from aigw.upstream import reasons
from aigw.upstream.connection import Connection
from aigw.upstream.reasons import NoAnswer, Stale
from aigw.upstream.response import Response

MAX_IDLE = 256


class Pool:
    """The connections to one provider, the most recently used first."""

    def __init__(
        self,
        clock: IReactorTime,
        endpoint: IStreamClientEndpoint,
        secure: bool,
        is_socket: bool = False,
        phase: str = "",
        most_idle: int = MAX_IDLE,
    ) -> None:
        """``endpoint`` connects to the provider, over TLS if ``secure``; ``is_socket``: by a Unix socket. ``phase`` is
        what it does before TLS, if that is not TCP alone: the text about a time limit that passes meanwhile.
        ``most_idle``: 0 reuses no connection."""
        self._clock = clock
        self._endpoint = endpoint
        self._secure = secure
        self._never_tls = is_socket
        self._phase = phase
        self._answered = False
        self._factory = _ConnectionFactory(self, secure)
        self._idle: dict[Connection, float] = {}  # each with the time when it is closed
        self._reaper: IDelayedCall | None = None
        self._reaps_at = 0.0
        self._open: set[Connection] = set()
        self._most_idle = most_idle

    def use_endpoint(self, endpoint: IStreamClientEndpoint) -> None:
        """Use this endpoint, which is for the same provider, for new connections."""
        self._endpoint = endpoint

    def retire(self) -> None:
        """Keep no idle connection from now on; a connection in use closes after its answer."""
        self._most_idle = 0
        self._stop_reaper()
        for connection in list(self._idle):
            connection.abort()

    def send(
        self, head: bytes, body: bytes | Parts, connect_timeout: float, sent_on: Connection | None = None
    ) -> Deferred[Response]:
        """Send a request. Gives the head of the answer. ``sent_on`` is a reused connection on which it was sent.

        Fails with UpstreamUnreachable, UpstreamTimeout or UpstreamBroken.
        """
        if sent_on is not None:
            answer = sent_on.resume()
        elif not self._idle:
            return self._send_on_new(head, body, connect_timeout)
        else:
            answer = self._idle.popitem()[0].send(head, body, reused=True)
        return answer.addErrback(self._send_again, head, body, connect_timeout)

    def take_idle(self) -> Connection | None:
        """An idle connection, for ``send_straight``; None if there is none."""
        return self._idle.popitem()[0] if self._idle else None

    def _send_again(
        self, failure: Failure, head: bytes, body: bytes | Parts, connect_timeout: float
    ) -> Deferred[Response]:
        failure.trap(Stale)
        return self._send_on_new(head, body, connect_timeout)

    def _send_on_new(self, head: bytes, body: bytes | Parts, connect_timeout: float) -> Deferred[Response]:
        answered = self.connect(connect_timeout).addCallback(lambda connection: connection.send(head, body))
        may_be_tls = not (self._answered or self._secure or self._never_tls)
        return answered.addErrback(_suggest_https) if may_be_tls else answered

    def opened(self, connection: Connection) -> None:
        """Remember a new connection."""
        self._open.add(connection)

    def put(self, connection: Connection) -> None:
        """Keep a connection whose answer is complete."""
        self._answered = True
        seconds = connection.idle_seconds
        if len(self._idle) >= self._most_idle or seconds <= 0:
            connection.abort()
            return
        self._idle[connection] = until = self._clock.seconds() + seconds
        if self._reaper is None or until < self._reaps_at:
            self._reap_after(seconds)

    def _reap_after(self, seconds: float) -> None:
        self._stop_reaper()
        self._reaps_at = self._clock.seconds() + seconds
        self._reaper = self._clock.callLater(seconds, self._reap)

    def _reap(self) -> None:
        """Abort the connections that were idle long enough. One timer for all is cheaper than one for each use."""
        self._reaper = None
        now = self._clock.seconds()
        for connection, until in list(self._idle.items()):
            if until <= now:
                connection.abort()
        if self._idle:
            self._reap_after(min(self._idle.values()) - now)

    def _stop_reaper(self) -> None:
        reaper, self._reaper = self._reaper, None
        if reaper is not None:
            reaper.cancel()

    def forget(self, connection: Connection) -> None:
        """Remove a lost connection."""
        self._answered = self._answered or connection.answered
        self._open.discard(connection)
        self._idle.pop(connection, None)

    def close(self) -> None:
        """Abort every connection. The Deferreds that wait for a connection fail."""
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

        def cancel(_: Deferred[Connection] | None = None) -> None:
            end()
            connecting.cancel()

        def too_late() -> None:
            cancel()
            result.errback(Failure(reasons.too_slow(seconds, handshake or self._phase)))

        def ready(protocol: IProtocol) -> Connection | Deferred[Connection]:
            nonlocal handshake
            connection = cast(Connection, protocol)  # made by _ConnectionFactory
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

        result: Deferred[Connection] = Deferred(cancel)
        limit = Limit(self._clock, seconds, too_late)
        connecting = maybeDeferred(self._endpoint.connect, self._factory)
        connecting.addCallback(ready).addCallbacks(connected, failed)
        return result


class _ConnectionFactory(Factory):
    noisy = False

    def __init__(self, pool: Pool, secure: bool) -> None:
        self._pool = pool
        self._secure = secure

    def buildProtocol(self, addr: IAddress | None) -> Connection:
        connection = Connection(self._secure, self._pool.put, self._pool.forget)
        self._pool.opened(connection)
        return connection


def _suggest_https(failure: Failure) -> Failure:
    """Add a hint: a TLS port closes the connection after plain HTTP, but so does a server that crashes."""
    if failure.check(NoAnswer):
        return Failure(NoAnswer("the provider closed the connection before an answer; does base_url need https://?"))
    return failure
