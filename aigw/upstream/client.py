"""The client of one provider: the gateway's own agent, with the interface of treq's client.

A call is written like a call of treq, but none of treq's code runs. For each call treq makes two wrappers, for cookies
and for gzip, parses the URL twice, and wraps the response. The gateway needs none of that, and it would cost a seventh
of relaying a small request.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from hyperlink import URL
from treq.client import HTTPClient
from twisted.internet.defer import Deferred

from aigw.protocols.envelope import Parts
from aigw.settings.addresses import socket_of
from aigw.upstream.connection import Connection
from aigw.upstream.pool import Pool
from aigw.upstream.response import Response

_INTERNATIONAL = re.compile(r"[^.:]*[^\x00-\x7f.:][^.:]*")  # a label of a host
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


class ProviderClient(HTTPClient):
    """Calls to one provider over its Pool."""

    def __init__(self, pool: Pool, base_url: str) -> None:
        """``Host`` is the host of ``base_url``, ``localhost`` for a Unix socket.

        HTTPClient's own __init__ would only make a store for cookies.
        """
        self.pool = pool
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
        sent_on: Connection | None = None,
        **_: object,
    ) -> Deferred[Response]:
        """The head of the answer. Its body is unread: it is not buffered and not decoded.

        ``tail`` follows the URL. ``headers`` are lines with their ends. Fails with UpstreamUnreachable, UpstreamTimeout
        or UpstreamBroken.
        """
        start = self._starts.get((method, url)) or self._start(method, url)
        head = b"%s%s%sContent-Length: %d\r\n%s\r\n" % (start, tail, self._rest, len(data), headers)
        return self.pool.send(head, data, connect_timeout, sent_on)

    def start_of(self, method: str, url: str, tail: bytes) -> bytes:
        """The head of a request up to the digits of its Content-Length."""
        return b"%s%s%sContent-Length: " % (self._start(method, url), tail, self._rest)

    def _start(self, method: str, url: str) -> bytes:
        target = ascii_url(url).split("/", 3)[3]
        return self._starts.setdefault((method, url), f"{method} /{target}".encode("ascii"))


def ascii_url(url: str) -> str:
    """An international URL in its ASCII form. Raises ValueError.

    IDNA is for labels that need it: it allows no underscore, which another label of the host may have.
    """
    if url.isascii():
        return url
    scheme, _, authority, *path = url.split("/", 3)
    host = _INTERNATIONAL.sub(lambda label: URL.from_text(f"http://{label[0]}").to_uri().host, authority)
    return "/".join([scheme, "", host, *(quote(each, safe=_PRINTABLE) for each in path)])
