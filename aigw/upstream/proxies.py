"""Calls through an HTTP proxy: CONNECT for a provider over https, requests with whole URLs for one over plain HTTP.

The proxy looks up the provider's name. TLS begins behind the proxy's answer to CONNECT, and the certificate is checked
for the provider's name. A proxy that refuses is a ProxyRefused, never a refusal of the provider.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import (
    IAddress,
    IHandshakeListener,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from aigw.config.proxies import Proxy, in_url
from aigw.errors import UpstreamUnreachable
from aigw.upstream import body, reasons
from aigw.upstream.client import ProviderClient, ascii_url
from aigw.upstream.pool import Pool
from aigw.upstream.reasons import ProxyRefused
from aigw.upstream.response import Response

MAX_HEAD = 16 * 1024  # bytes of the proxy's answer to CONNECT, 1xx answers among them
DRAIN_SECONDS = 1.0  # in which the page of a proxy that refuses must end, for its connection to be kept

_BEGINNING = b"HTTP/1."
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [^\r\n]*)?\r?\n")
_END = re.compile(rb"\n\r?\n")
_SCHEME = re.compile(rb"^proxy-authenticate:(.*)$", re.IGNORECASE | re.MULTILINE)
_BASIC = re.compile(rb"(?:^|,)\s*basic\b", re.IGNORECASE)  # several schemes may be in one line
_ENCRYPTED = b"\x15\x03"  # an alert of TLS
# Headers by which the proxies in use show that an answer with an error status is their own
_OWN_SERVERS = (b"squid", b"tinyproxy")


def authorization(proxy: Proxy) -> bytes:
    """The header line for the proxy, with its end; empty if the proxy has no user."""
    if proxy.authorization is None:
        return b""
    return b"Proxy-Authorization: %s\r\n" % proxy.authorization.reveal().encode()


@implementer(IStreamClientEndpoint)
class ThroughProxy:
    """An endpoint to the proxy, whose failures name the proxy."""

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """See IStreamClientEndpoint."""
        return self._endpoint.connect(factory).addErrback(_unreachable)


@implementer(IStreamClientEndpoint)
class TlsProxy:
    """An endpoint to the proxy that waits for the handshake of TLS with it."""

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        """``endpoint`` connects over TLS."""
        self._endpoint = endpoint

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """See IStreamClientEndpoint. Fails with UpstreamUnreachable."""
        return self._endpoint.connect(_StageFactory(lambda build: _Handshake(build), factory)).addCallback(_opened)


class Tunnel(ThroughProxy):
    """An endpoint to a provider, by the proxy's CONNECT."""

    def __init__(self, endpoint: IStreamClientEndpoint, proxy: Proxy, host: str, port: int) -> None:
        """``endpoint`` connects to the proxy, ``host`` and ``port`` are the provider's."""
        super().__init__(endpoint)
        target = f"{in_url(host)}:{port}".encode("ascii")
        self._head = b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n%s\r\n" % (target, target, authorization(proxy))
        self._has_user = proxy.authorization is not None

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """See IStreamClientEndpoint. Fails with ProxyRefused, or with UpstreamUnreachable."""
        made = _StageFactory(lambda build: _Connect(build, self._head, self._has_user), factory)
        return super().connect(made).addCallback(_opened)


Build = Callable[[], "IProtocol | None"]


class _StageFactory(Factory):
    noisy = False

    def __init__(self, make: Callable[[Build], _Stage], inner: IProtocolFactory) -> None:
        self._make, self._inner = make, inner

    def buildProtocol(self, addr: IAddress | None) -> _Stage:
        inner = self._inner
        return self._make(lambda: inner.buildProtocol(addr))  # type: ignore[arg-type]


def _opened(protocol: IProtocol) -> Deferred[IProtocol]:
    assert isinstance(protocol, _Stage), "made by a _StageFactory"
    return protocol.opened


class _Stage(Protocol):
    """A part of connecting. After it ``opened`` gives the protocol that gets all further bytes."""

    transport: ITCPTransport

    def __init__(self, build: Build) -> None:
        self._build = build
        self._inner: IProtocol | None = None
        self.opened: Deferred[IProtocol] = Deferred(lambda _: self.transport.abortConnection())

    def dataReceived(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.dataReceived(data)
        elif not self.opened.called:
            self._received(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._inner is not None:
            self._inner.connectionLost(reason)
        else:
            self._fail(self._why_lost(reason))

    def _received(self, data: bytes) -> None:
        """Bytes that belong to this part."""

    def _why_lost(self, reason: Failure) -> str:
        raise NotImplementedError

    def _open(self) -> None:
        self._inner = inner = self._build()
        if inner is None:
            self.transport.abortConnection()
            return
        inner.makeConnection(self.transport)
        self.opened.callback(inner)

    def _fail(self, reason: str | ProxyRefused) -> None:
        if not self.opened.called:
            self.opened.errback(UpstreamUnreachable(reason) if isinstance(reason, str) else reason)
            self.transport.abortConnection()


@implementer(IHandshakeListener)
class _Handshake(_Stage):
    """Waits until TLS with the proxy is ready, and its certificate was checked for its name."""

    def handshakeCompleted(self) -> None:
        """See IHandshakeListener."""
        self._open()

    def _why_lost(self, reason: Failure) -> str:
        if isinstance(reason.value, reasons.CertificateRefused):
            why = f"{reason.value.why}; the CA of the proxy must be one of this machine, and proxy must have its name"
        else:
            why = reasons.unreachable(reason, "in the handshake").message.replace("base_url", "proxy")
        return f"no TLS with the proxy: {why}"


class _Connect(_Stage):
    """Sends CONNECT, and waits for the proxy's answer."""

    def __init__(self, build: Build, head: bytes, has_user: bool) -> None:
        super().__init__(build)
        self._head = head
        self._has_user = has_user
        self._answer = b""
        self._head_received = b""
        self._interim = 0  # bytes of 1xx answers

    def connectionMade(self) -> None:
        self.transport.write(self._head)

    def _received(self, data: bytes) -> None:
        since = max(0, len(self._answer) - 3)
        self._answer += data
        while (status := self._next_status(since)) is not None:
            if not 100 <= status < 200 or status == 101:  # RFC 9110, section 15.2: after a 1xx the answer follows
                self._decide(status)
                return
            since = 0

    def _why_lost(self, reason: Failure) -> str:
        return f"the proxy closed the connection {'in the head of its' if self._answer else 'before an'} answer"

    def _next_status(self, since: int) -> int | None:
        """The status of a head, which is removed from the answer. None if the answer ends before, or is no answer.

        No end of a head begins before ``since``.
        """
        answer = self._answer
        if not answer.startswith(_BEGINNING[: len(answer)]):
            hint = ": it is encrypted; does proxy need https://?" if answer.startswith(_ENCRYPTED) else ""
            self._fail(f"the proxy's answer is not HTTP/1.1{hint}")
            return None
        end = _END.search(answer, since)
        size = end.end() if end else len(answer)
        if self._interim + size > MAX_HEAD:
            self._fail("the head of the proxy's answer is too large")
        if end is None or self.opened.called:
            return None
        line = _STATUS_LINE.match(answer)
        if line is None:
            self._fail("the proxy's answer is malformed HTTP")
            return None
        self._interim += size
        self._head_received, self._answer = answer[:size], answer[size:]
        return int(line[1])

    def _decide(self, status: int) -> None:
        if not 200 <= status < 300:
            self._fail(refused(status, self._has_user, _SCHEME.findall(self._head_received)))
        elif self._answer:
            # In TLS the provider sends nothing before the gateway does.
            self._fail("the proxy sent data behind its answer to CONNECT")
        else:
            self._open()


class PlainProxyClient(ProviderClient):
    """Calls over plain HTTP to one provider, by whole URLs at the proxy (RFC 9112, section 3.2.2).

    Each has a connection of its own: tinyproxy passes on what follows the first request as it is, so the provider
    would get the password for the proxy.
    """

    def __init__(self, pool: Pool, base_url: str, proxy: Proxy, clock: IReactorTime) -> None:
        super().__init__(pool, base_url)
        self._rest += b"Connection: close\r\n" + authorization(proxy)
        self._has_user = proxy.authorization is not None
        self._clock = clock

    def request(self, method: str, url: str, **more: Any) -> Deferred[Response]:  # type: ignore[override]
        """See ProviderClient. Fails with ProxyRefused too."""
        return super().request(method, url, **more).addCallback(self._unless_of_the_proxy)

    def _start(self, method: str, url: str) -> bytes:
        return self._starts.setdefault((method, url), f"{method} {ascii_url(url)}".encode("ascii"))

    def _unless_of_the_proxy(self, response: Response) -> Response:
        if response.code < 400 or not is_of_the_proxy(response):
            return response
        body.let_end(response, DRAIN_SECONDS, self._clock)
        raise refused(response.code, self._has_user, response.given.get(b"proxy-authenticate", ()))


def is_of_the_proxy(response: Response) -> bool:
    """Whether an error is the proxy's own: 407, or a header by which it, squid, tinyproxy or RFC 9209 shows that."""
    server = (response.header(b"server") or b"").lower()
    return (
        response.code == 407
        or not {b"proxy-authenticate", b"x-squid-error"}.isdisjoint(response.given)
        or b"error=" in (response.header(b"proxy-status") or b"").replace(b" ", b"")
        or server.startswith(_OWN_SERVERS)
    )


def refused(status: int, has_user: bool, schemes: Sequence[bytes]) -> ProxyRefused:
    """What the proxy's status means, and what an operator can do. ``schemes`` has its values of Proxy-Authenticate."""
    if status == 407 and schemes and not any(_BASIC.search(each) for each in schemes):
        why = "it does not take user name and password as the gateway sends them (Basic); allow that at the proxy"
    elif status in (401, 407):  # tinyproxy answers a wrong password with 401
        why = "it refuses the user name or the password" if has_user else "it requires a user name and a password"
        why += "; correct proxy"
    elif status in (403, 405):
        why = "it does not allow connections to this host and port; allow them at the proxy"
    else:
        why = "it has no connection to the provider" if status in (500, 502, 503, 504) else ""
    return ProxyRefused(f"the proxy answered {status}{': ' if why else ''}{why}", status=status)


def _unreachable(failure: Failure) -> Failure:
    if failure.check(CancelledError, UpstreamUnreachable):
        return failure
    return Failure(UpstreamUnreachable(f"no connection to the proxy: {reasons.unreachable(failure, '').message}"))
