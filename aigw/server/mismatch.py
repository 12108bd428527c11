"""Clients that speak HTTP to a port for HTTPS, or the other way round: they hear so, and the log does."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IReactorTime

from aigw.errors import BadRequest
from aigw.protocols.error_bodies import error_body
from aigw.telemetry.notices import Notice

_BODY = error_body(BadRequest("This is an HTTPS port: the address begins with https://, not with http://."))
_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
    % (len(_BODY), _BODY)
)


class Mismatches:
    """What the log hears of them."""

    def __init__(self, clock: IReactorTime) -> None:
        self._notices = {
            secure: Notice(clock, message, lambda count, addresses: {"connections": count, "addresses": addresses})
            for secure, message in (
                (True, "A client speaks plain HTTP to an HTTPS port: its address must begin with https://"),
                (False, "A client speaks TLS to a plain HTTP port: its address must begin with http://"),
            )
        }

    def note(self, peer: Any, secure: bool) -> None:
        """A connection from ``peer`` to a port that is ``secure``, or is not, speaks the other."""
        self._notices[secure].note(getattr(peer, "host", None))

    def close(self) -> None:
        """Nothing listens any more."""
        for notice in self._notices.values():
            notice.close()


def watch_first_bytes(protocol: Any) -> None:
    """Have TLS's ``protocol`` look at its first bytes: no record of TLS begins with a capital letter, a method does."""

    def first(data: bytes) -> None:
        del protocol.dataReceived  # the class's own from now on
        if data[:1].isupper():
            protocol.dataReceived = lambda _: None
            protocol.wrappedProtocol.answer_in_plain(_ANSWER)
        else:
            protocol.dataReceived(data)

    protocol.dataReceived = first
