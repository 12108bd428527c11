"""The IAgent under treq: the connections to one provider, made, kept and used again.

- Connecting is DNS, TCP and TLS as one step, with one time limit and one cancel.
- A request that dies on a *reused* connection before any byte of its answer is sent once more on a fresh one: the
  provider closed an idle connection just as we wrote (RFC 9112, section 9.3.1).
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer
from zope.interface import implementer

from aigw.upstream.connection import Response, Stale
from aigw.upstream.pool import Pool


class ReadyHeaders(Headers):
    """Headers as ``lines``, in their final form: treq copies others twice for a request, and encodes each name anew.

    What treq would add, a cookie and that gzip is welcome, is kept out.
    """

    def __init__(self, lines: bytes) -> None:
        super().__init__()
        self.lines = lines

    def copy(self) -> ReadyHeaders:
        """See Headers; these never change."""
        return self

    def hasHeader(self, name: str | bytes) -> bool:
        """Whether treq need not look for it."""
        return True

    def addRawHeader(self, name: str | bytes, value: str | bytes) -> None:
        """Nothing is added."""


@implementer(IAgent)
class Agent:
    """Requests over a Pool, each within ``connect_timeout`` seconds where it needs a fresh connection."""

    def __init__(self, pool: Pool, host: bytes, connect_timeout: float) -> None:
        self._pool = pool
        self._host = host
        self._connect_timeout = connect_timeout

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[Any]:
        """A Response. Fails with UpstreamUnreachable, UpstreamTimeout or UpstreamBroken; see IAgent.request."""
        head = self._head(method, uri, headers, 0 if bodyProducer is None else bodyProducer.length)
        idle = self._pool.take()
        if idle is None:
            return self._on_a_fresh_one(head, bodyProducer)
        return idle.send(head, bodyProducer, reused=True).addErrback(self._once_more, head, bodyProducer)

    def _on_a_fresh_one(self, head: bytes, body: IBodyProducer | None) -> Deferred[Response]:
        return self._pool.connect(self._connect_timeout).addCallback(lambda connection: connection.send(head, body))

    def _once_more(self, failure: Failure, head: bytes, body: IBodyProducer | None) -> Deferred[Response]:
        failure.trap(Stale)
        return self._on_a_fresh_one(head, body)

    def _head(self, method: bytes, uri: bytes, headers: Headers | None, length: Any) -> bytes:
        if not isinstance(headers, ReadyHeaders):
            raise TypeError("only ReadyHeaders are sent: others may ask for a coding, or hold a cookie")
        return b"%s /%s HTTP/1.1\r\nHost: %s\r\nAccept-Encoding: identity\r\nContent-Length: %d\r\n%s\r\n" % (
            method,
            uri.split(b"/", 3)[3],
            self._host,
            length,
            headers.lines,
        )
