"""An answer of a provider: its head, and the way to its body, which its connection delivers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.interfaces import IProtocol

from aigw.upstream.response_parser import ResponseParser

if TYPE_CHECKING:
    from aigw.upstream.connection import Connection


class Response:
    """The head of an answer. Its body is unread until ``deliverBody``. It has a part of IResponse's methods.

    ``code`` is the status, ``coded`` whether there is a Content-Encoding, ``given`` the headers.
    """

    def __init__(self, connection: Connection, head: ResponseParser) -> None:
        self._connection = connection
        self.code = head.status
        self.coded = head.coded
        self.given = head.headers or head.known_headers()  # the values by lower-case name
        self.length = int(self.given[b"content-length"][0]) if b"content-length" in self.given else None

    def header(self, name: bytes) -> bytes | None:
        """The last value of a header, by its lower-case name."""
        return self.given[name][-1] if name in self.given else None

    def deliverBody(self, protocol: IProtocol) -> None:
        """Deliver the body to ``protocol``. Its transport can pause, resume and stop (abort) the connection."""
        self._connection.deliver_to(protocol, self)

    def end(self) -> bool:
        """Whether the body is whole: then nothing more is delivered, and the connection is kept or closed."""
        return self._connection.end(self)

    def pauseProducing(self) -> None:
        """Read nothing more from the provider for now."""
        if self._connection.delivers(self):
            self._connection.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Continue reading."""
        if self._connection.delivers(self):
            self._connection.transport.resumeProducing()

    def stopProducing(self) -> None:
        """Abort the connection."""
        if self._connection.delivers(self):
            self._connection.abort()
