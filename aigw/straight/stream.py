"""A streamed call on the straight path. Its Relay judges and carries the answer, as on the long way.

Before the commit point it goes the long way from its very start, as every StraightCall. What was sent to the client
cannot be sent again: after the commit point ``Exchange.resume`` takes over the Relay, if anything but its whole answer
comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from aigw.access.claim import Claim
from aigw.protocols.endpoint import Call
from aigw.protocols.shaping import Difference
from aigw.proxy.answers import Stream
from aigw.proxy.plain import HOLD_PLAIN
from aigw.straight.call import Client, StraightCall
from aigw.straight.head import AnswerHead
from aigw.straight.plan import Plan
from aigw.upstream.connection import Connection
from aigw.upstream.response import Response
from aigw.upstream.response_parser import ResponseParser

if TYPE_CHECKING:
    from aigw.straight.path import StraightPath

log = Logger()


class StraightStream(StraightCall):
    """One streamed call. It follows its Relay, which calls it at the commit point, and once more at the end.

    ``first_byte`` is the time of the commit point, and ``response`` is there from then on. ``relay`` is there until the
    end, or until the long way has it.
    """

    __slots__ = ("_difference", "_failed", "_head", "called", "first_byte", "relay", "response")

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
        difference: Difference,
    ) -> None:
        super().__init__(path, call, plan, client, began, address, connection, claim)
        self._difference = difference
        self.called = self._failed = False
        self.relay: Stream | None = None
        self.response: Response | None = None
        self.first_byte = 0.0
        self._head: AnswerHead | None = None

    # Up to the commit point

    def on_data(self, parser: ResponseParser) -> bool:
        """See AnswerTaker."""
        if not parser.broken and (parser.status == 200 or not parser.head_done):
            if not parser.head_done:
                return True
            if self._holds(parser):
                if not self.called:
                    return True
                if self._commit(parser):
                    return False
        self._resume()
        return False

    def _begins(self, parser: ResponseParser) -> bool:
        """Whether the head is that of a stream, of which no header may have a key."""
        head = self._head = self._path.stream_heads.head_of(parser)
        if head is None or not head.kind.startswith(b"text/event-stream"):
            return False
        clock = self._path.gateway.clock
        self.relay = Stream(self.call, clock, head.kind, self.plan.must_finish, self._difference, self)
        self.relay.transport = self
        return True

    def _holds(self, parser: ResponseParser) -> bool:
        """Hand a read to the Relay; False if the answer has failed, or may have. The long way gets the same bytes."""
        try:
            if self.relay is None and not self._begins(parser):
                return False
            if piece := parser.take():
                self._parser = parser
                self._pieces.append(piece)
                self._size += len(piece)
                cast(Stream, self.relay).dataReceived(piece)
        except Exception:
            log.failure("A stream takes the long way: unexpected error")
            return False
        return self.called or not (self._failed or parser.complete or self._size > HOLD_PLAIN)

    def stopProducing(self) -> None:
        """The Relay has no use for the answer before the commit point. The long way has."""

    def callback(self, _: object) -> None:
        """See Deferred: the commit point is reached, or the answer is whole."""
        if self.response is None:
            self.called = True
        elif self.relay is not None:
            try:
                self._path.end(self, self.relay)
            except Exception:
                self.take_over().errback(Failure())
            self.relay = None  # it refers to this

    def errback(self, failure: Failure) -> None:
        """See Deferred: the answer has failed."""
        if self.response is None:
            self._failed = True
        elif self.relay is not None:
            self.take_over().errback(failure)

    # From the commit point on

    def _commit(self, parser: ResponseParser) -> bool:
        """Send what is held, and the rest as it comes; False if the long way is to do that."""
        relay, head = cast(Stream, self.relay), cast(AnswerHead, self._head)
        try:
            self.first_byte = self._path.seconds()
            lines = self._path.head(self, head)
            self.response = Response(self.connection, parser)
            self._pieces.clear()
            self._parser = None
            self.call.members.clear()  # see Exchange.commit
            if self.call.form is not None:
                self.call.form.release()
            self.connection.deliver_straight(relay, self.response)
            self.client.begin(lines, self.plan.step.idle_timeout)
            relay.flow(self.client, self.plan.step.idle_timeout)
        except Exception:
            if self.response is not None:
                self.connection.abort()
                relay.hang_up()
                flowing = relay.flowing if self.relay is None else self.take_over()
                flowing.errback(Failure())
                return True
            log.failure("A stream takes the long way: unexpected error")
        return self.response is not None

    def take_over(self) -> Deferred[None]:
        """Let the Exchange go on with the answer; what fires at its end. If that fails, this call is abandoned."""
        relay = cast(Stream, self.relay)
        self._path.gateway.running.discard(self)
        self.client.take_long_way(self)
        self.relay = None
        return relay.flowing

    def abandon(self) -> None:
        """See StraightCall."""
        super().abandon()
        relay, self.relay = self.relay, None
        if relay is not None:
            relay.hang_up()

    def _resume(self) -> None:
        self.relay = None
        super()._resume()

    def time_left(self) -> float:
        """See StraightCall."""
        return 0.0 if self.relay is None or self.response is None else self.relay.time_left()

    def leave(self) -> None:
        """See StraightCall."""
        if self.response is None:
            super().leave()
        else:
            self.take_over()
