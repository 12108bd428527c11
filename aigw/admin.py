"""The resources that show what the gateway does, for administrators and their machines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from aigw.config import Config
from aigw.errors import PathNotFound
from aigw.gates import Gate, open_gate, with_key, with_key_or_near
from aigw.headers import Header
from aigw.request import Request
from aigw.watch import Watch
from aigw.web import Health, Leaf

CheckReady = Callable[[], None]


class Shown(Leaf):
    """Something to look at, behind a gate."""

    def __init__(self, config: Config, gate: Gate) -> None:
        super().__init__(config)
        self.gate = gate

    def admit(self, request: Request) -> None:
        """Judge the request by its head: the gate first, so that who may not look learns nothing."""
        self.gate(request)
        self.check_path(request)
        self.check_method(request)

    def getChild(self, path: bytes, request: Any) -> Resource:
        """Anything below that is not a resource of its own is unknown."""
        return Nothing(self.config, self.gate)

    def headers(self, request: Request) -> list[Header]:
        """What is shown is of this moment."""
        return [*super().headers(request), (b"cache-control", b"no-store")]


class Nothing(Shown):
    """Every path where there is nothing to see."""

    def check_path(self, request: Request) -> None:
        """Always refuses."""
        raise PathNotFound("Unknown path; there are /metrics, /ready and /health.")


class Root(Nothing):
    """All that is on the listener for administrators."""

    isLeaf = False


class Metrics(Shown):
    """``GET /metrics``, for Prometheus."""

    def __init__(self, config: Config, gate: Gate, watch: Watch) -> None:
        super().__init__(config, gate)
        self._watch = watch

    def render(self, request: Any) -> int:
        """In the format that the scraper asks for."""
        body, kind = self._watch.metrics.scrape((request.header(b"accept") or b"").decode("latin-1"))
        return send(request, kind, self._watch.hidden(body))


class Ready(Shown):
    """``GET /ready``: whether new requests should be sent here, for whoever balances the load."""

    def __init__(self, config: Config, gate: Gate, check: CheckReady) -> None:
        """``check`` raises a GatewayError if they should not."""
        super().__init__(config, gate)
        self._check = check

    def render(self, request: Any) -> bytes:
        """Raises what ``check`` does."""
        self._check()
        return b'{"status": "ready"}'


def send(request: Any, kind: bytes, body: bytes, *headers: Header) -> int:
    """Answer with something that is no JSON."""
    own = [(b"content-type", kind), (b"x-content-type-options", b"nosniff"), *headers]
    request.begin(200, own, len(body))
    request.write(body)
    request.end()
    return NOT_DONE_YET


def show(root: Leaf, config: Config, watch: Watch, check_ready: CheckReady, gate: Gate | None = None) -> None:
    """Put the resources below ``root``, where a key is asked for unless ``gate`` is given."""
    root.putChild(b"ready", Ready(config, gate or with_key_or_near(config.callers), check_ready))
    root.putChild(b"metrics", Metrics(config, gate or with_key(config.callers), watch))


def tree(config: Config, watch: Watch, check_ready: CheckReady) -> Leaf:
    """What the listener for administrators has: all of this without a key, and nothing of the API."""
    root = Root(config, open_gate)
    root.putChild(b"health", Health(config))
    show(root, config, watch, check_ready, open_gate)
    return root
