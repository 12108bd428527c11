"""Sends attempts with keys that may change: with the present key, once it is there, and once more after a 401."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from aigw.config.model import Provider
from aigw.credentials.changing_keys import ChangingKeys
from aigw.credentials.source import KeySource, NoKey
from aigw.errors import UpstreamRefused
from aigw.net.headers import Lines
from aigw.net.lateness import within
from aigw.protocols.refusals import KEY_REFUSED
from aigw.routing.router import Router
from aigw.secret import Secret
from aigw.upstream import body
from aigw.upstream.attempt import Attempt
from aigw.upstream.client import ProviderClient
from aigw.upstream.connection import Connection
from aigw.upstream.response import Response

_SOON = 1.0  # seconds after which a command that still runs may have ended

Send = Callable[[Lines, float], Deferred[Response]]  # with a provider's headers, and the time limit for connecting


class Sender(Protocol):
    """See Upstream."""

    def send(self, attempt: Attempt, sent_on: Connection | None = None) -> Deferred[Response]:
        """See Upstream."""

    def straight_to(self, provider: Provider) -> ProviderClient | None:
        """The client of a provider whose requests are sent as they are; None if its key may change."""

    def get(self, provider: Provider, url: str, sent: Lines, seconds: float, tail: bytes = b"") -> Deferred[Response]:
        """See Upstream."""


def with_keys(upstream: Sender, keys: ChangingKeys, router: Router, clock: IReactorTime) -> Sender:
    """``upstream``, or a KeyedUpstream in front of it if a provider has a key that may change."""
    return KeyedUpstream(upstream, keys, router, clock) if keys.sources else upstream


class KeyedUpstream:
    """See Upstream. ``router`` makes the headers, and hides each key from its first use on."""

    def __init__(self, upstream: Sender, keys: ChangingKeys, router: Router, clock: IReactorTime) -> None:
        self._upstream = upstream
        self._keys = keys
        self._router = router
        self._clock = clock
        self._made: dict[str, tuple[Secret, Lines]] = {}  # the key that was used last, and the headers with it

    def straight_to(self, provider: Provider) -> ProviderClient | None:
        """See Sender."""
        return None if provider.name in self._keys.sources else self._upstream.straight_to(provider)

    def send(self, attempt: Attempt, sent_on: Connection | None = None) -> Deferred[Response]:
        """See Upstream."""
        step = attempt.step
        source = self._keys.sources.get(step.provider.name)
        if source is None:
            return self._upstream.send(attempt, sent_on)

        def send(lines: Lines, seconds: float) -> Deferred[Response]:
            limited = step if seconds == step.connect_timeout else replace(step, connect_timeout=seconds)
            headers = {**attempt.headers, **lines}
            return self._upstream.send(replace(attempt, step=limited, headers=headers))

        return self._with_key(source, step.provider, step.connect_timeout, send)

    def get(self, provider: Provider, url: str, sent: Lines, seconds: float, tail: bytes = b"") -> Deferred[Response]:
        """See Upstream."""
        source = self._keys.sources.get(provider.name)
        if source is None:
            return self._upstream.get(provider, url, sent, seconds, tail)

        def send(lines: Lines, seconds: float) -> Deferred[Response]:
            return self._upstream.get(provider, url, {**sent, **lines}, seconds, tail)

        return self._with_key(source, provider, seconds, send)

    # The key

    def _with_key(self, source: KeySource, provider: Provider, seconds: float, send: Send) -> Deferred[Response]:
        used: list[Secret] = []

        def send_with(key: Secret) -> Deferred[Response]:
            used.append(key)
            # The request is written before the time comes in which the key may not be sent any more.
            return send(self._lines(provider, key), max(0.0, min(seconds, source.seconds_left())))

        def answered(response: Response) -> Response | Deferred[Any]:
            """The answer of a GET, whose status is not looked at elsewhere."""
            if response.code not in KEY_REFUSED:
                return response

            def renewed(key: Secret | None) -> Response | Deferred[Response]:
                if key is None:
                    return response
                body.let_end(response, _SOON, self._clock)
                return send_with(key)

            def left(failure: Failure) -> Failure:
                body.let_end(response, 0.0, self._clock)
                return failure

            return source.renew(used[-1]).addCallbacks(renewed, left)

        def refused(failure: Failure) -> Failure | Deferred[Any]:
            if not failure.check(UpstreamRefused) or cast(UpstreamRefused, failure.value).status not in KEY_REFUSED:
                return failure
            return source.renew(used[-1]).addCallback(lambda key: failure if key is None else send_with(key))

        key = source.present()
        sent: Deferred[Any]
        if key is not None:
            sent = send_with(key)
        else:
            sent = within(source.wait(), seconds, self._clock, lambda: _too_slow(provider, seconds))
            sent.addCallback(send_with)
        return sent.addCallbacks(answered, refused)

    def _lines(self, provider: Provider, key: Secret) -> Lines:
        made = self._made.get(provider.name)
        if made is None or made[0] is not key:
            made = key, self._router.headers_with(provider, key, self._keys.secrets)
            self._made[provider.name] = made
        return made[1]


def _too_slow(provider: Provider, seconds: float) -> NoKey:
    text = f"there is no key for the provider: its {provider.key_setting} has given none for {seconds:g} s"
    return NoKey(text, _SOON)
