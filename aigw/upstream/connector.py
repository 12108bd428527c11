"""From a provider's host name to a TCP connection.

Twisted resolves names in the reactor's ten threads, without a cache or a time limit: a few names without an answer
delay all others. Here each name has at most one running look-up, in its own thread, so no name waits for another.
Addresses are tried as in RFC 8305, but after a failure the next address is tried at once.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, UNIXClientEndpoint
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import (
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from aigw.net.interfaces import Reactor
from aigw.upstream.reasons import no_socket

CACHE_SECONDS = 30.0
NEXT_ADDRESS_SECONDS = 0.25  # RFC 8305, section 5
NO_LIMIT = 86400  # seconds; the time limit for connecting is the pool's


LookUp = Callable[[str], Sequence[str]]


def look_up(host: str) -> list[str]:
    """The addresses of a host, in the order of RFC 6724. Blocks. Raises OSError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Resolver:
    """Addresses of host names, kept for CACHE_SECONDS."""

    def __init__(self, reactor: Reactor, look_up: LookUp = look_up) -> None:
        """``look_up`` is called in a thread."""
        self._reactor = reactor
        self._look_up = look_up
        self._known: dict[str, tuple[float, Sequence[str]]] = {}
        self._waiting: dict[str, set[Deferred[Sequence[str]]]] = {}

    def addresses(self, host: str) -> Deferred[Sequence[str]]:
        """At least one address. Fails with DNSLookupError; cancelling stops waiting, not the look-up."""
        until, known = self._known.get(host, (0.0, ()))
        if self._reactor.seconds() < until:
            return succeed(known)
        if host not in self._waiting:
            # A daemon thread: a resolver that hangs must not prevent the end of the process.
            threading.Thread(target=self._run, args=[host], name=f"dns {host}", daemon=True).start()
            self._waiting[host] = set()
        result: Deferred[Sequence[str]] = Deferred(lambda cancelled: self._waiting.get(host, set()).discard(cancelled))
        self._waiting[host].add(result)
        return result

    def _run(self, host: str) -> None:
        try:
            found = self._look_up(host)
        except Exception:  # not only OSError: the waiting Deferreds must fire
            found = ()
        self._reactor.callFromThread(self._found, host, found)

    def _found(self, host: str, found: Sequence[str]) -> None:
        waiting = self._waiting.pop(host)
        if found:
            self._known[host] = self._reactor.seconds() + CACHE_SECONDS, found
        for each in list(waiting):
            if each.called:
                continue  # cancelled by a callback of an earlier one
            if found:
                each.callback(found)
            else:
                each.errback(Failure(DNSLookupError()))


@implementer(IStreamClientEndpoint)
class Host:
    """A host and port to connect to; the host may be an address, or the file of a Unix socket, which begins with /."""

    def __init__(self, reactor: Reactor, names: Resolver, host: str, port: int) -> None:
        self._reactor = reactor
        self._names = names
        self._host = host
        self._port = port

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """See IStreamClientEndpoint."""
        return self._connect(factory).addCallback(_received_directly)

    def _connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        if self._host.startswith("/"):
            socket: IStreamClientEndpoint = UNIXClientEndpoint(self._reactor, self._host, timeout=NO_LIMIT)
            return socket.connect(factory).addErrback(no_socket)
        if isIPAddress(self._host) or isIPv6Address(self._host):
            return self._endpoint(self._host).connect(factory)

        def race(addresses: Sequence[str]) -> Deferred[IProtocol]:
            return _AddressRace(self._reactor, [self._endpoint(address) for address in addresses], factory).winner

        return self._names.addresses(self._host).addCallback(race)

    def _endpoint(self, address: str) -> IStreamClientEndpoint:
        kind = TCP6ClientEndpoint if isIPv6Address(address) else TCP4ClientEndpoint
        return kind(self._reactor, address, self._port, timeout=NO_LIMIT)


def _received_directly(protocol: IProtocol) -> IProtocol:
    """Take the wrapper away by which Twisted's endpoint has noticed the connection: it would pass on every read."""
    transport = cast(Any, protocol).transport
    if hasattr(transport, "protocol"):  # not once the connection is lost
        transport.protocol = protocol
    return protocol


class _AddressRace:
    """Connects to the first endpoint that answers; ``winner`` fails with the failure of the last one."""

    def __init__(
        self, clock: IReactorTime, endpoints: Sequence[IStreamClientEndpoint], factory: IProtocolFactory
    ) -> None:
        self._clock = clock
        self._left = list(endpoints)
        self._factory = factory
        self._running: set[Deferred[IProtocol]] = set()
        self._over = False
        self._timer: IDelayedCall | None = None
        self.winner: Deferred[IProtocol] = Deferred(lambda _: self._stop())
        self._next()

    def _next(self) -> None:
        self._stop_timer()
        attempt = self._left.pop(0).connect(self._factory)
        self._running.add(attempt)
        if self._left:
            self._timer = self._clock.callLater(NEXT_ADDRESS_SECONDS, self._next)
        attempt.addCallbacks(self._won, self._lost, callbackArgs=(attempt,), errbackArgs=(attempt,))

    def _won(self, protocol: IProtocol, attempt: Deferred[IProtocol]) -> None:
        self._running.discard(attempt)
        self._stop()
        self.winner.callback(protocol)

    def _lost(self, failure: Failure, attempt: Deferred[IProtocol]) -> None:
        self._running.discard(attempt)
        if self._over:
            return
        if self._left:
            self._next()
        elif not self._running:
            self._stop()
            self.winner.errback(failure)

    def _stop(self) -> None:
        """End the race: cancel all other attempts."""
        self._over = True
        self._left.clear()
        self._stop_timer()
        running, self._running = self._running, set()
        for attempt in running:
            attempt.cancel()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
