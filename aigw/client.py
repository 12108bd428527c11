"""treq's client as a gateway needs it: a call goes to the agent as it is, and its answer comes back as it is.

treq builds two wrappers for each call, for cookies and for gzip, takes the URL apart for them twice, and wraps the
response. Here no cookie is kept, no coding asked for and no redirect followed, so all of that would do nothing, for a
seventh of what relaying a small request costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from hyperlink import URL
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import Deferred
from twisted.web.iweb import IAgent, IBodyProducer, IResponse

from aigw.agent import ReadyHeaders


class Client(HTTPClient):
    """Calls over one agent. Bodies are producers already, headers and URLs in their final form."""

    def __init__(self, agent: IAgent) -> None:
        super().__init__(agent, cookiejar=NO_COOKIES, data_to_body_producer=lambda body: body)

    def request(  # type: ignore[override]
        self, method: str, url: ReadyUrl, *, headers: ReadyHeaders, data: IBodyProducer | None = None, **_: Any
    ) -> Deferred[IResponse]:
        """The head of the answer, its body unread: neither buffered nor decoded, whatever else is asked for."""
        return self._agent.request(method.encode("ascii"), url.final, headers, data)


class ReadyUrl(URL):
    """A URL with its bytes on the wire made once."""

    final: bytes

    @classmethod
    def of(cls, text: str) -> ReadyUrl:
        """``text`` may be international. Raises ValueError."""
        ready = cast(ReadyUrl, cls.from_text(ascii_url(text)))
        ready.final = ascii_url(text).encode("ascii")
        return ready


def ascii_url(url: str) -> str:
    """An international URL in the form that goes over the wire. Raises ValueError."""
    return url if url.isascii() else str(URL.from_text(url).to_uri().to_text())


class _NoCookies(IndexableCookieJar):
    """Keeps no cookie of any provider."""

    def set_cookie(self, cookie: Any) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return iter(())


NO_COOKIES = _NoCookies()
