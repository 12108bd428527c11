"""treq's client as a gateway needs it: a call goes to the agent as it is, and its answer comes back as it is.

treq builds two wrappers for each call, for cookies and for gzip, takes the URL apart for them twice, and wraps the
response. Here no cookie is kept, no coding asked for and no redirect followed, so all of that would do nothing, for a
seventh of what relaying a small request costs.
"""

from __future__ import annotations

from typing import Any

from hyperlink import URL
from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.web.iweb import IBodyProducer

from aigw.upstream.agent import Agent, ReadyHeaders
from aigw.upstream.connection import Response


class TreqClient(HTTPClient):
    """Calls over one agent. Bodies are producers already, headers and URLs in their final form."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent)

    def request(  # type: ignore[override]
        self, method: str, url: bytes, *, headers: ReadyHeaders, data: IBodyProducer | None = None, **_: Any
    ) -> Deferred[Response]:
        """The head of the answer, its body unread: neither buffered nor decoded, whatever else is asked for."""
        answered: Deferred[Any] = self._agent.request(method.encode("ascii"), url, headers, data)
        return answered


def ascii_url(url: str) -> str:
    """An international URL in the form that goes over the wire. Raises ValueError."""
    return url if url.isascii() else str(URL.from_text(url).to_uri().to_text())
