"""Clients that use plain HTTP on an HTTPS port, or TLS on a plain HTTP port: they get an error, and the log a line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IAddress, IReactorTime

from aigw.errors import BadRequest
from aigw.protocols.error_bodies import error_body
from aigw.telemetry.notices import Notice

_BODY = error_body(BadRequest("This is an HTTPS port; write an address that begins with https:// instead of http://."))
_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
    % (len(_BODY), _BODY)
)


class Mismatches:
    """The log lines about such connections."""

    def __init__(self, clock: IReactorTime) -> None:
        self._notices = {
            secure: Notice(clock, message, lambda count, addresses: {"connections": count, "addresses": addresses})
            for secure, message in (
                (True, "A client uses plain HTTP on an HTTPS port; its base URL must begin with https://"),
                (False, "A client uses TLS on a plain HTTP port; its base URL must begin with http://"),
            )
        }

    def note(self, peer: IAddress, secure: bool) -> None:
        """Note a connection from ``peer`` with the wrong protocol for a port that is ``secure``, or is not."""
        self._notices[secure].note(getattr(peer, "host", None))

    def close(self) -> None:
        """All listeners are closed: log the rest."""
        for notice in self._notices.values():
            notice.close()


class AnswersWithoutTls(Protocol):
    """The protocol inside TLS."""

    def answer_without_tls(self, answer: bytes) -> None:
        """Answer a client that uses plain HTTP on a TLS port, and close."""


class SecureProtocol(Protocol):
    """The TLS protocol of a connection; ``dataReceived`` can be replaced."""

    dataReceived: Callable[[bytes], None]
    wrappedProtocol: AnswersWithoutTls


def check_first_bytes(protocol: SecureProtocol) -> None:
    """Make the TLS ``protocol`` check its first bytes: a method begins with a capital letter, a TLS record does not."""

    def first(data: bytes) -> None:
        del protocol.dataReceived  # the class's own from now on
        if data[:1].isupper():
            protocol.dataReceived = lambda _: None
            protocol.wrappedProtocol.answer_without_tls(_ANSWER)
        else:
            protocol.dataReceived(data)

    protocol.dataReceived = first
