"""The resources that show what the gateway does."""

from __future__ import annotations

from typing import Any

from twisted.web.server import NOT_DONE_YET

from aigw.config import Config
from aigw.headers import Header
from aigw.request import Request
from aigw.watch import Watch
from aigw.web import Leaf


class Shown(Leaf):
    """Something to look at."""

    def __init__(self, config: Config, watch: Watch) -> None:
        super().__init__(config)
        self._watch = watch

    def headers(self, request: Request) -> list[Header]:
        """What is shown is of this moment."""
        return [*super().headers(request), (b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]


class Metrics(Shown):
    """``GET /metrics``, for Prometheus."""

    def render(self, request: Any) -> int:
        """In the format that the scraper asks for."""
        body, kind = self._watch.metrics.scrape((request.header(b"accept") or b"").decode("latin-1"))
        return send(request, kind, self._watch.hidden(body))


def send(request: Request, kind: bytes, body: bytes, *headers: Header) -> int:
    """Answer with something that is no JSON."""
    request.begin(200, [(b"content-type", kind), *headers], len(body))
    request.write(body)
    request.end()
    return NOT_DONE_YET


def show(root: Leaf, config: Config, watch: Watch) -> None:
    """Put the resources below ``root``."""
    root.putChild(b"metrics", Metrics(config, watch))
