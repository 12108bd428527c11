"""The requests that the demo sends to itself, so that its status page lives."""

from __future__ import annotations

import json
from typing import Any

import treq
from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.internet.ssl import Certificate
from twisted.internet.task import LoopingCall
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool

EVERY_SECONDS = 1.0
MOST = 3600  # whoever forgets the demo finds no log of days
SECONDS = 10.0  # that one may take


class OwnRequests:
    """One request after the other, at most one a second, over a connection of its own each."""

    def __init__(self, reactor: Any, url: str, ca: bytes, key: str, body: dict[str, Any]) -> None:
        """``ca`` is the certificate, in PEM, that the gateway shows."""
        policy = BrowserLikePolicyForHTTPS(trustRoot=Certificate.loadPEM(ca))
        pool = HTTPConnectionPool(reactor, persistent=False)  # a drain waits for who is connected
        self._client = HTTPClient(Agent(reactor, policy, pool=pool))
        self._reactor = reactor
        self._url = url
        self._headers: Any = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._body = json.dumps(body).encode()
        self._running: Deferred[Any] | None = None
        self._left = MOST
        self._ticking = LoopingCall(self._send)
        self._ticking.clock = reactor

    def start(self) -> None:
        """Send the first one in a second."""
        self._ticking.start(EVERY_SECONDS, now=False)

    def stop(self) -> None:
        """Send no more, and give up the one under way."""
        if self._ticking.running:
            self._ticking.stop()
        if self._running is not None:
            self._running.cancel()

    def _send(self) -> Deferred[Any]:
        self._left -= 1
        if self._left <= 0:
            self._ticking.stop()
        sent: Deferred[Any] = self._client.post(self._url, data=self._body, headers=self._headers)
        self._running = sent.addCallback(treq.content).addTimeout(SECONDS, self._reactor)
        return self._running.addBoth(self._over)

    def _over(self, _: object) -> None:
        """What became of it is in the log and on the page."""
        self._running = None
