"""One attempt over treq: send it, limit it in time, say in the gateway's own terms how it failed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

from hyperlink import URL
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import IConsumer, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from aigw.config.model import Provider
from aigw.errors import ConfigError, UpstreamBroken, UpstreamFailure, UpstreamRefused
from aigw.net import headers
from aigw.net.lateness import Limit
from aigw.net.tls import authorities_in
from aigw.protocols.answers import message_in
from aigw.protocols.envelope import Pieces
from aigw.upstream.agent import Agent, ReadyHeaders
from aigw.upstream.attempt import Attempt
from aigw.upstream.client import TreqClient, ascii_url
from aigw.upstream.connection import Connection, Response
from aigw.upstream.pool import Pool
from aigw.upstream.trust import ProviderTls

MAX_REFUSAL = 64 * 1024
REFUSAL_SECONDS = 2.0

T = TypeVar("T")
Connect = Callable[[str, int], IStreamClientEndpoint]
log = Logger()


class Upstream:
    """The providers, each with its own connections. ``connect`` makes an endpoint from host and port."""

    def __init__(self, reactor: Any, providers: Iterable[Provider], connect: Connect) -> None:
        """Opens nothing, but reads each ``ca_file``. Raises ConfigError."""
        self._reactor = reactor
        self._pools: dict[str, Pool] = {}
        self._endpoints: dict[str, IStreamClientEndpoint] = {}
        self._origins: dict[str, tuple[str, bytes, bool]] = {}
        self._clients: dict[tuple[str, float], TreqClient] = {}
        self._urls: dict[str, bytes] = {}
        mistakes: list[str] = []
        for index, provider in enumerate(providers):
            try:
                authorities = authorities_in(provider.ca_file) if provider.ca_file else b""
                endpoint, secure = _endpoint(provider, authorities, connect)
            except ConfigError as error:
                mistakes += [f"providers[{index}].{mistake}" for mistake in error.mistakes]
                continue
            self._endpoints[provider.name] = endpoint
            self._pools[provider.name] = Pool(reactor, endpoint, secure)
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
                self._pools[name] = pool
            else:
                pool.retire()

    def send(self, attempt: Attempt) -> Deferred[Response]:
        """The head of a 2xx answer, its body waiting. Fails with UpstreamFailure, or CancelledError if cancelled."""
        sent: Deferred[Any] = maybeDeferred(self._request, attempt)
        return sent.addCallbacks(_refuse_unless_2xx, _in_our_terms, callbackArgs=(self._reactor,))

    def _request(self, attempt: Attempt) -> Deferred[Any]:
        url = self._urls.get(attempt.url) or self._urls.setdefault(attempt.url, ascii_url(attempt.url).encode())
        return self._client(attempt.step.provider, attempt.step.connect_timeout).request(
            "POST",
            url,
            headers=ReadyHeaders(headers.lines(attempt.headers)),
            data=_Body(attempt.body),
        )

    def get(
        self, provider: Provider, path: str, sent: Sequence[headers.Header], connect_timeout: float
    ) -> Deferred[Response]:
        """The head of any answer, its body waiting. Fails with UpstreamFailure, or CancelledError if cancelled."""
        asked = ReadyHeaders(headers.lines(sent))
        url = ascii_url(f"{provider.base_url}/{path}").encode()
        request = self._client(provider, connect_timeout).request
        answered: Deferred[Any] = maybeDeferred(request, "GET", url, headers=asked)
        return answered.addErrback(_in_our_terms)

    def close(self) -> None:
        """Abort every connection."""
        for pool in self._pools.values():
            pool.close()

    def _client(self, provider: Provider, connect_timeout: float) -> TreqClient:
        key = provider.name, connect_timeout
        if key not in self._clients:
            host = URL.from_text(ascii_url(provider.base_url)).authority().encode("ascii")
            agent = Agent(self._pools[provider.name], host, connect_timeout)
            self._clients[key] = TreqClient(agent)
        return self._clients[key]


def within(limited: Deferred[T], seconds: float, clock: IReactorTime, reason: Callable[[], Exception]) -> Deferred[T]:
    """``limited``, cancelled after so many seconds; then it fails with ``reason()``, whatever the cancel made of it."""
    fired = False

    def too_late() -> None:
        nonlocal fired
        fired = True
        limited.cancel()

    def settle(result: Any) -> Any:
        limit.stop()
        return Failure(reason()) if fired and isinstance(result, Failure) else result

    limit = Limit(clock, seconds, too_late)
    return limited.addBoth(settle)


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


def _refuse_unless_2xx(response: Response, clock: IReactorTime) -> Any:
    if 200 <= response.code < 300:
        return response

    def refuse(read: tuple[bytes, bool]) -> Response:
        body, whole = read
        error = _error_in(body)
        raise UpstreamRefused(
            response.code,
            detail=message_in(error),
            retry_after=headers.retry_after(response.header, time.time()),
            words=[word for name in ("code", "type") if isinstance(word := error.get(name), str)],
            headers=headers.for_client(response.given.items()),
            body=body if whole and not response.header(b"content-encoding") else None,
        )

    return _Bounded.read(response, clock).addCallback(refuse).addErrback(_in_our_terms)


def _error_in(body: bytes) -> dict[str, Any]:
    """The error object of a provider's refusal, in any of the usual shapes; empty if it has none."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    error = said.get("error", said) if isinstance(said, dict) else {}
    return error if isinstance(error, dict) else {"message": error}


def _in_our_terms(failure: Failure) -> Failure:
    if failure.check(UpstreamFailure, CancelledError):
        return failure
    log.failure("Unexpected failure of an attempt", failure=failure)
    return Failure(UpstreamBroken(f"failed unexpectedly: {type(failure.value).__name__}"))


class _Bounded(Protocol):
    """Reads the body of a refusal, up to MAX_REFUSAL bytes and REFUSAL_SECONDS, and says whether that is all of it."""

    transport: Any

    def __init__(self) -> None:
        self._data = bytearray()
        self._done: Deferred[tuple[bytes, bool]] = Deferred(lambda _: self._stop())

    @classmethod
    def read(cls, response: Response, clock: IReactorTime) -> Deferred[tuple[bytes, bool]]:
        reader = cls()
        limit = Limit(clock, REFUSAL_SECONDS, reader._enough)
        response.deliverBody(reader)

        def stop_limit(result: Any) -> Any:
            limit.stop()
            return result

        return reader._done.addBoth(stop_limit)

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > MAX_REFUSAL:
            self._enough()

    def _enough(self) -> None:
        self._stop()
        self.connectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self._done.called:
            self._done.callback(
                (bytes(self._data[:MAX_REFUSAL]), reason.check(ResponseDone, PotentialDataLoss) is not None)
            )

    def _stop(self) -> None:
        self.transport.stopProducing()


@implementer(IBodyProducer)
class _Body:
    """A request body that can be written again: at once, or, if it is large, as the connection takes it."""

    def __init__(self, body: bytes | Pieces) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        if isinstance(self._body, Pieces):
            cast(Connection, consumer).write_pieces(iter(self._body))
        else:
            consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        pass

    def resumeProducing(self) -> None:
        pass

    def stopProducing(self) -> None:
        pass
