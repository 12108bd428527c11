"""What takes an answer: the client's request, or what is in front of it."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IPushProducer

from aigw.net.headers import Header


class BodySink(Protocol):
    """Takes the bytes of an answer's body."""

    def write(self, data: bytes, chunk: bytes = b"") -> None:
        """Send a part of the body. ``chunk`` is the same in the chunked coding, if there is such a copy."""

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """See IConsumer; the producer is paused while the client does not read."""

    def unregisterProducer(self) -> None:
        """See IConsumer."""


class Responder(BodySink, Protocol):
    """Takes an answer for the client that sent the request."""

    def header(self, name: bytes) -> bytes | None:
        """The value of a header of the request, by its lower-case name."""

    def begin(self, status: int, headers: list[Header], length: int | None, is_early: bool = False) -> None:
        """Commit: send the head of the answer. ``length`` is the size of the body in bytes, None if it is not known.

        With ``is_early`` set, no step has answered yet, so the body of the request is still needed.
        """

    def release_body(self) -> None:
        """The body of the request is not needed any more. ``begin`` includes this."""

    def end(self) -> None:
        """The answer is whole."""

    def cut(self, flush: bool | None) -> None:
        """The answer broke: close the connection without a proper end; with ``flush``, after the written bytes.

        None: after them if the framing of HTTP shows that the end is missing.
        """
