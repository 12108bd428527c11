"""The client of one provider: the gateway's own agent, with the interface of treq's client.

A call is written like a call of treq, but none of treq's code runs. For each call treq makes two wrappers, for cookies
and for gzip, parses the URL twice, and wraps the response. The gateway needs none of that, and it would cost a seventh
of relaying a small request.
"""

from __future__ import annotations

from hyperlink import URL
from treq.client import HTTPClient
from twisted.internet.defer import Deferred

from aigw.config.addresses import socket_of
from aigw.protocols.envelope import Parts
from aigw.upstream.connection import Response
from aigw.upstream.pool import Pool


class ProviderClient(HTTPClient):
    """Calls to one provider over its Pool."""

    def __init__(self, pool: Pool, base_url: str) -> None:
        """``Host`` is the host of ``base_url``, ``localhost`` for a Unix socket.

        HTTPClient's own __init__ would only make a store for cookies.
        """
        self._pool = pool
        self._host = "localhost" if socket_of(base_url) else URL.from_text(ascii_url(base_url)).authority()
        self._starts: dict[tuple[str, str], bytes] = {}  # the beginning of a request's head, by method and URL
        self._rest = f" HTTP/1.1\r\nHost: {self._host}\r\nAccept-Encoding: identity\r\n".encode("ascii")

    def request(  # type: ignore[override]
        self,
        method: str,
        url: str,
        *,
        tail: bytes = b"",
        headers: bytes,
        data: bytes | Parts = b"",
        connect_timeout: float,
        **_: object,
    ) -> Deferred[Response]:
        """The head of the answer. Its body is unread: it is not buffered and not decoded.

        ``tail`` follows the URL. ``headers`` are lines with their ends. Fails with UpstreamUnreachable, UpstreamTimeout
        or UpstreamBroken.
        """
        start = self._starts.get((method, url)) or self._start(method, url)
        head = b"%s%s%sContent-Length: %d\r\n%s\r\n" % (start, tail, self._rest, len(data), headers)
        return self._pool.send(head, data, connect_timeout)

    def _start(self, method: str, url: str) -> bytes:
        target = ascii_url(url).split("/", 3)[3]
        return self._starts.setdefault((method, url), f"{method} /{target}".encode("ascii"))


def ascii_url(url: str) -> str:
    """An international URL in its ASCII form. Raises ValueError."""
    return url if url.isascii() else str(URL.from_text(url).to_uri().to_text())
