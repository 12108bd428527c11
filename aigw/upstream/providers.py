"""Sends an attempt over the client of its provider, and turns every failure into an UpstreamFailure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from hyperlink import URL
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from aigw.config.model import Provider
from aigw.config.proxies import Proxy
from aigw.errors import ConfigError, UpstreamBroken, UpstreamFailure, UpstreamRefused, UpstreamUnreachable
from aigw.net import headers
from aigw.net.tls import ClientIdentity, authorities_in
from aigw.protocols import refusals
from aigw.settings.addresses import socket_of
from aigw.upstream import body
from aigw.upstream.attempt import Attempt
from aigw.upstream.client import ProviderClient, ascii_url
from aigw.upstream.connection import Connection
from aigw.upstream.pool import Pool
from aigw.upstream.reasons import BEFORE_PROXY, BEFORE_TUNNEL
from aigw.upstream.response import Response
from aigw.upstream.response_parser import is_compressed
from aigw.upstream.trust import Trust, over_tls

MAX_REFUSAL = 64 * 1024
REFUSAL_SECONDS = 2.0

TrustKey = tuple[bytes, bool, "ClientIdentity | None"]  # the arguments of Trust
_SYSTEM: TrustKey = b"", False, None
Connect = Callable[[str, int], IStreamClientEndpoint]
log = Logger()


class Upstream:
    """The providers, each with its own connections. ``connect`` makes an endpoint from host and port, or from the file
    of a Unix socket and 0."""

    def __init__(self, clock: IReactorTime, providers: Iterable[Provider], connect: Connect) -> None:
        """Reads each ``ca_file`` and ``client_cert``, but opens no connection. Raises ConfigError."""
        self._clock = clock
        self._pools: dict[str, Pool] = {}
        self._clients: dict[str, ProviderClient] = {}
        self._endpoints: dict[str, IStreamClientEndpoint] = {}
        self._origins: dict[str, tuple[str, TrustKey, Proxy | None]] = {}
        trusted: dict[TrustKey, Trust] = {}
        mistakes: list[str] = []
        for index, provider in enumerate(providers):
            try:
                key = _trust_key(provider)
                endpoint, secure = _endpoint(provider, key, trusted, connect, clock)
            except ConfigError as error:
                mistakes += [f"providers[{index}].{mistake}" for mistake in error.mistakes]
                continue
            self._endpoints[provider.name] = endpoint
            self._pools[provider.name], self._clients[provider.name] = _client(provider, endpoint, secure, clock)
            self._origins[provider.name] = provider.base_url, key, provider.proxy
        if mistakes:
            raise ConfigError(mistakes)

    def take_over(self, old: Upstream) -> None:
        """Take the connections of ``old`` to the providers whose address is unchanged, before the first request.

        The other connections of ``old`` close after their answers.
        """
        for name, pool in old._pools.items():
            if self._origins.get(name) == old._origins[name]:
                pool.use_endpoint(self._endpoints[name])  # the system's CAs may have changed
                self._pools[name], self._clients[name] = pool, old._clients[name]
            else:
                pool.retire()

    def straight_to(self, provider: Provider) -> ProviderClient | None:
        """See Sender."""
        return self._clients[provider.name]

    def send(self, attempt: Attempt, sent_on: Connection | None = None) -> Deferred[Response]:
        """Send an attempt. Gives the head of a 2xx answer; its body is unread. ``sent_on``: see Pool.

        Fails with UpstreamFailure, or CancelledError if cancelled.
        """
        step = attempt.step
        sent = maybeDeferred(
            self._clients[step.provider.name].request,
            attempt.method,
            attempt.url,
            tail=attempt.tail,
            headers=b"".join(attempt.headers.values()),
            data=attempt.body,
            connect_timeout=step.connect_timeout,
            sent_on=sent_on,
        )
        return sent.addCallbacks(_refuse_unless_2xx, _as_upstream_failure, callbackArgs=(step.provider, self._clock))

    def get(
        self, provider: Provider, url: str, sent: headers.Lines, seconds: float, tail: bytes = b""
    ) -> Deferred[Response]:
        """Send a GET with the headers ``sent``. Gives the head of any answer; its body is unread.

        ``seconds`` is the time limit for connecting. ``tail`` follows the URL.

        Fails with UpstreamFailure, or CancelledError if cancelled.
        """
        request, joined = self._clients[provider.name].request, b"".join(sent.values())
        answered = maybeDeferred(request, "GET", url, tail=tail, headers=joined, connect_timeout=seconds)
        return answered.addErrback(_as_upstream_failure)

    def close(self) -> None:
        """Abort every connection."""
        for pool in self._pools.values():
            pool.close()


def _trust_key(provider: Provider) -> TrustKey:
    """Reads the files that are named there. Raises ConfigError with every mistake in them."""
    mistakes: list[str] = []
    authorities, identity = b"", None
    try:
        authorities = authorities_in(provider.ca_file) if provider.ca_file else b""
    except ConfigError as error:
        mistakes += error.mistakes
    try:
        if provider.client_cert and provider.client_key:
            identity = ClientIdentity(provider.client_cert, provider.client_key)
    except ConfigError as error:
        mistakes += error.mistakes
    if mistakes:
        raise ConfigError(mistakes)
    return authorities, provider.legacy_tls, identity


def _endpoint(
    provider: Provider, key: TrustKey, trusted: dict[TrustKey, Trust], connect: Connect, clock: IReactorTime
) -> tuple[IStreamClientEndpoint, bool]:
    """The endpoint of the provider, and whether it uses TLS. ``trusted`` is for the next one that trusts the same."""
    if socket := socket_of(provider.base_url):
        return connect(socket, 0), False
    try:
        url = URL.from_text(ascii_url(provider.base_url))
        secure = url.scheme == "https"
        if provider.proxy is None:
            endpoint = connect(url.host, url.port or 0)
        else:
            from aigw.upstream.proxies import ThroughProxy, TlsProxy, Tunnel  # few use it, and it takes memory

            endpoint = connect(provider.proxy.host, provider.proxy.port)
            if provider.proxy.secure:
                trust = trusted.get(_SYSTEM) or trusted.setdefault(_SYSTEM, Trust(*_SYSTEM))
                endpoint = TlsProxy(over_tls(provider.proxy.host, trust, endpoint, clock))
            tunnel = secure and Tunnel(endpoint, provider.proxy, url.host, url.port or 0)
            endpoint = tunnel or ThroughProxy(endpoint)
        if secure:
            trust = trusted.get(key) or trusted.setdefault(key, Trust(*key))
            endpoint = over_tls(url.host, trust, endpoint, clock)
    except ValueError:  # the error's text is not used: it may have a key in it
        raise ConfigError(["base_url: the host is not a valid host name; check its spelling"]) from None
    return endpoint, secure


def _client(
    provider: Provider, endpoint: IStreamClientEndpoint, secure: bool, clock: IReactorTime
) -> tuple[Pool, ProviderClient]:
    if provider.proxy is None or secure:
        phase = "" if provider.proxy is None else BEFORE_TUNNEL
        pool = Pool(clock, endpoint, secure, bool(socket_of(provider.base_url)), phase)
        return pool, ProviderClient(pool, provider.base_url)
    from aigw.upstream.proxies import PlainProxyClient

    pool = Pool(clock, endpoint, secure, phase=BEFORE_PROXY, most_idle=0)
    return pool, PlainProxyClient(pool, provider.base_url, provider.proxy, clock)


def _refuse_unless_2xx(response: Response, provider: Provider, clock: IReactorTime) -> Response | Deferred[Response]:
    if 200 <= response.code < 300:
        return response

    def refuse(read: body.Body) -> Response:
        data, whole = read
        if response.code == 400 and provider.base_url.startswith("http:") and refusals.asks_for_tls(data):
            raise UpstreamUnreachable(f"answered {response.code}: the port expects TLS; does base_url need https://?")
        refusal = refusals.read_refusal(data)
        raise UpstreamRefused(
            response.code,
            detail=refusal.reason,
            retry_after=refusals.pause(response.header, refusal, time.time()),
            words=refusal.words,
            headers=headers.for_client(response.given.items()),
            body=data if whole and not response.coded and not is_compressed(data) else None,
        )

    return body.read(response, MAX_REFUSAL, REFUSAL_SECONDS, clock).addCallback(refuse).addErrback(_as_upstream_failure)


def _as_upstream_failure(failure: Failure) -> Failure:
    if failure.check(UpstreamFailure, CancelledError):
        return failure
    log.failure("An attempt failed with an unexpected error", failure=failure)
    return Failure(UpstreamBroken(f"the attempt failed with an unexpected error: {type(failure.value).__name__}"))
