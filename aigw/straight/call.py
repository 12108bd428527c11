"""One call on the straight path, from its request to its answer, or to where it takes the long way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from aigw.access.claim import Claim
from aigw.protocols.endpoint import Call
from aigw.proxy.answers import Stream
from aigw.proxy.exchange import Exchange
from aigw.proxy.plain import HOLD_PLAIN
from aigw.proxy.responder import BodySink
from aigw.straight.plan import Plan
from aigw.upstream.connection import Connection
from aigw.upstream.response import Response
from aigw.upstream.response_parser import ResponseParser

if TYPE_CHECKING:
    from aigw.straight.path import StraightPath


class Client(BodySink, Protocol):
    """The client's connection. It has one request at a time, and another one may follow."""

    def finish(self, answer: bytes) -> None:
        """Send the whole answer."""

    def begin(self, head: bytes, seconds: float) -> None:
        """Commit: send the head of a streamed answer with the first ``write``.

        After ``seconds`` the call is asked for its ``time_left``, and once more after each time that it gives. It is to
        ``leave`` when it has none.
        """

    def end(self, last: bytes) -> None:
        """Send ``last``, the rest of the streamed answer, and the end."""

    def abort(self, why: str) -> None:
        """Close the connection, on which the answer may be half sent, and log the exception."""

    def take_long_way(self, call: StraightCall) -> None:
        """Serve the request as any other; ``call`` is to be resumed by Gateway.resume."""


class StraightCall:
    """One call on the straight path, from its request to its answer.

    ``began`` is when the head of the client's request was there, ``received`` when its body was whole. On the long way
    it has ``seconds_left`` for the answer. ``response`` and ``relay`` are there if a part of the answer was sent.
    """

    response: Response | None = None
    relay: Stream | None = None
    first_byte = 0.0

    __slots__ = (
        "_parser",
        "_path",
        "_pieces",
        "_size",
        "address",
        "began",
        "call",
        "claim",
        "client",
        "connection",
        "exchange",
        "plan",
        "received",
        "seconds_left",
        "waiting_since",
    )

    def __init__(
        self,
        path: StraightPath,
        call: Call,
        plan: Plan,
        client: Client,
        began: float,
        address: str | None,
        connection: Connection,
        claim: Claim | None,
    ) -> None:
        self._path = path
        self.claim = claim
        self.call = call
        self.plan = plan
        self.client = client
        self.began = began
        self.received = self.waiting_since = path.seconds()
        self.seconds_left = plan.step.timeout
        self.address = address
        self.connection = connection
        self.exchange: Exchange | None = None  # once it goes the long way
        self._parser: ResponseParser | None = None  # of an answer of which only ``_pieces`` have come
        self._pieces: list[bytes] = []
        self._size = 0

    @property
    def route(self) -> str:
        """The name of the route, for those who count what runs."""
        return self.plan.route.name

    def on_data(self, parser: ResponseParser) -> bool:
        """See AnswerTaker."""
        if not parser.broken and (parser.status == 200 or not parser.head_done):
            if not parser.complete:
                if not parser.head_done:
                    return True
                piece = parser.take()
                self._parser = parser
                self._pieces.append(piece)
                self._size += len(piece)
                if self._size <= HOLD_PLAIN:
                    return True
            elif self._path.finish(self, parser):
                return True
        self._resume()
        return False

    def body_with(self, parser: ResponseParser) -> bytes:
        """The whole body, of which ``parser`` has the last part."""
        piece = parser.take()
        if not self._pieces:
            return piece
        pieces, self._pieces = self._pieces, []
        return b"".join([*pieces, piece])

    def time_left(self) -> float:
        """The seconds that it has, when the time limit that its client's connection knows has passed."""
        return 0.0

    def leave(self) -> None:
        """Go the long way, on which the answer is awaited as that of any other call."""
        self._resume()
        self.connection.go_on()

    def interrupt(self) -> None:
        """See Exchange."""
        self.leave()
        if self.exchange is not None:
            self.exchange.interrupt()

    def abandon(self) -> None:
        """A fault of the gateway: nothing awaits the answer any more."""
        self.connection.abort()

    def _resume(self) -> None:
        if self._parser is not None:
            self._parser.give_back(b"".join(self._pieces))
            self._pieces.clear()
        self._path.gateway.running.discard(self)
        self.client.take_long_way(self)
