"""One attempt: send it over its provider's client, say in the gateway's own terms how it failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from hyperlink import URL
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from aigw.config.model import Provider
from aigw.errors import ConfigError, UpstreamBroken, UpstreamFailure, UpstreamRefused, UpstreamUnreachable
from aigw.net import headers
from aigw.net.tls import authorities_in
from aigw.protocols import refusals
from aigw.upstream import body
from aigw.upstream.attempt import Attempt
from aigw.upstream.client import ProviderClient, ascii_url
from aigw.upstream.connection import Response
from aigw.upstream.pool import Pool
from aigw.upstream.response_parser import is_compressed
from aigw.upstream.trust import ProviderTls

MAX_REFUSAL = 64 * 1024
REFUSAL_SECONDS = 2.0

Connect = Callable[[str, int], IStreamClientEndpoint]
log = Logger()


class Upstream:
    """The providers, each with its own connections. ``connect`` makes an endpoint from host and port."""

    def __init__(self, reactor: Any, providers: Iterable[Provider], connect: Connect) -> None:
        """Opens nothing, but reads each ``ca_file``. Raises ConfigError."""
        self._reactor = reactor
        self._pools: dict[str, Pool] = {}
        self._clients: dict[str, ProviderClient] = {}
        self._endpoints: dict[str, IStreamClientEndpoint] = {}
        self._origins: dict[str, tuple[str, bytes, bool]] = {}
        mistakes: list[str] = []
        for index, provider in enumerate(providers):
            try:
                authorities = authorities_in(provider.ca_file) if provider.ca_file else b""
                endpoint, secure = _endpoint(provider, authorities, connect)
            except ConfigError as error:
                mistakes += [f"providers[{index}].{mistake}" for mistake in error.mistakes]
                continue
            self._endpoints[provider.name] = endpoint
            self._pools[provider.name] = pool = Pool(reactor, endpoint, secure)
            self._clients[provider.name] = ProviderClient(pool, provider.base_url)
            self._origins[provider.name] = provider.base_url, authorities, provider.legacy_tls
        if mistakes:
            raise ConfigError(mistakes)

    def take_over(self, old: Upstream) -> None:
        """Before the first request: go on with the connections of ``old`` to the providers that are where they were.

        Its other connections end with the answers that they carry.
        """
        for name, pool in old._pools.items():
            if self._origins.get(name) == old._origins[name]:
                pool.lead_to(self._endpoints[name])  # the system's CAs may have changed
                self._pools[name], self._clients[name] = pool, old._clients[name]
            else:
                pool.retire()

    def send(self, attempt: Attempt) -> Deferred[Response]:
        """The head of a 2xx answer, its body waiting. Fails with UpstreamFailure, or CancelledError if cancelled."""
        step = attempt.step
        sent: Deferred[Any] = maybeDeferred(
            self._clients[step.provider.name].request,
            "POST",
            attempt.url,
            headers=b"".join(attempt.headers.values()),
            data=attempt.body,
            connect_timeout=step.connect_timeout,
        )
        return sent.addCallbacks(_refuse_unless_2xx, _in_our_terms, callbackArgs=(step.provider, self._reactor))

    def get(self, provider: Provider, url: str, sent: headers.Lines, seconds: float) -> Deferred[Response]:
        """The head of any answer to a GET with these headers, its body waiting; ``seconds`` are for connecting.

        Fails with UpstreamFailure, or CancelledError if cancelled.
        """
        ask = self._clients[provider.name].request
        answered: Deferred[Any] = maybeDeferred(
            ask, "GET", url, headers=b"".join(sent.values()), connect_timeout=seconds
        )
        return answered.addErrback(_in_our_terms)

    def close(self) -> None:
        """Abort every connection."""
        for pool in self._pools.values():
            pool.close()


def _endpoint(provider: Provider, authorities: bytes, connect: Connect) -> tuple[IStreamClientEndpoint, bool]:
    """What leads to the provider, and whether it does so over TLS."""
    try:
        url = URL.from_text(ascii_url(provider.base_url))
        secure = url.scheme == "https"
        endpoint = connect(url.host, url.port or 0)
        if secure:
            endpoint = wrapClientTLS(ProviderTls(url.host, authorities, provider.legacy_tls), endpoint)
    except ValueError:  # which may quote it
        raise ConfigError(["base_url: its host is not one that can be looked up; look at its spelling"]) from None
    return endpoint, secure


def _refuse_unless_2xx(response: Response, provider: Provider, clock: IReactorTime) -> Any:
    if 200 <= response.code < 300:
        return response

    def refuse(read: body.Body) -> Response:
        data, whole = read
        if response.code == 400 and provider.base_url.startswith("http:") and refusals.asks_for_tls(data):
            raise UpstreamUnreachable(f"answered {response.code}: its port speaks TLS; is it https://?")
        refusal = refusals.read_refusal(data)
        raise UpstreamRefused(
            response.code,
            detail=refusal.reason,
            retry_after=refusals.pause(response.header, refusal, time.time()),
            words=refusal.words,
            headers=headers.for_client(response.given.items()),
            body=data if whole and not response.coded and not is_compressed(data) else None,
        )

    return body.read(response, MAX_REFUSAL, REFUSAL_SECONDS, clock).addCallback(refuse).addErrback(_in_our_terms)


def _in_our_terms(failure: Failure) -> Failure:
    if failure.check(UpstreamFailure, CancelledError):
        return failure
    log.failure("Unexpected failure of an attempt", failure=failure)
    return Failure(UpstreamBroken(f"failed unexpectedly: {type(failure.value).__name__}"))
