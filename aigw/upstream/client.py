"""One provider's client: our agent, with treq's client type as its face.

A call reads as treq's calls do, and nothing of treq's own runs for it. treq makes two wrappers for each call, for
cookies and for gzip, takes the URL apart twice, and wraps the response. The gateway keeps no cookie, asks for no coding
and follows no redirect, so all of that would do nothing, for a seventh of what relaying a small request costs.
"""

from __future__ import annotations

from typing import Any

from hyperlink import URL
from treq.client import HTTPClient
from twisted.internet.defer import Deferred

from aigw.protocols.envelope import Pieces
from aigw.upstream.connection import Response
from aigw.upstream.pool import Pool


class ProviderClient(HTTPClient):
    """Calls to one provider over its Pool."""

    def __init__(self, pool: Pool, base_url: str) -> None:
        """``base_url`` says whom ``Host`` names. HTTPClient's own __init__ would only make a store for cookies."""
        self._pool = pool
        self._host = URL.from_text(ascii_url(base_url)).authority()
        self._starts: dict[tuple[str, str], bytes] = {}  # of request heads

    def request(  # type: ignore[override]
        self, method: str, url: str, *, headers: bytes, data: bytes | Pieces = b"", connect_timeout: float, **_: Any
    ) -> Deferred[Response]:
        """The head of the answer, its body unread: neither buffered nor decoded, whatever else is asked for.

        ``headers`` are lines, each ended. Fails with UpstreamUnreachable, UpstreamTimeout or UpstreamBroken.
        """
        start = self._starts.get((method, url)) or self._start(method, url)
        head = b"%sContent-Length: %d\r\n%s\r\n" % (start, len(data), headers)
        return self._pool.send(head, data, connect_timeout)

    def _start(self, method: str, url: str) -> bytes:
        target = ascii_url(url).split("/", 3)[3]
        start = f"{method} /{target} HTTP/1.1\r\nHost: {self._host}\r\nAccept-Encoding: identity\r\n".encode("ascii")
        return self._starts.setdefault((method, url), start)


def ascii_url(url: str) -> str:
    """An international URL in the form that goes over the wire. Raises ValueError."""
    return url if url.isascii() else str(URL.from_text(url).to_uri().to_text())
