"""Refused keys: each is counted, and logged with the address of its client. The more of them one address sends, the
later its answers come.

A right key is never delayed, because many people may share an address. The pause slows down a client that waits for
the answer; a client that does not wait needs a connection for each key. What protects a key is its length.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import ceil
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime, ITransport

from aigw.errors import WrongKey
from aigw.net.addresses import counts_for
from aigw.telemetry.notices import Notice

FREE = 5  # refusals of one address that are answered at once
FIRST_PAUSE = 0.25  # then this, and twice as long each time
LONGEST_PAUSE = 5.0
FORGET_SECONDS = 10.0  # in which one refusal is forgotten
MOST_COUNTED = FREE + 6.0  # the count of an address ends here: LONGEST_PAUSE is reached
MAX_ADDRESSES = 4096  # the one that was quiet the longest is forgotten first
MAX_WAITING = 200  # of all addresses; beyond them an answer goes out at once
MAX_LINES = 20  # in LOG_SECONDS, on all addresses

_MESSAGE = "The gateway refused an unknown API key of a client"


class RefusedChannel(Protocol):
    """A client's connection."""

    @property
    def transport(self) -> ITransport:
        """It knows the client's address."""

    def read_no_more(self) -> None:
        """Read no further request: the next answer is the last one of this connection."""


class RefusedRequest(Protocol):
    """A request with a wrong key."""

    @property
    def channel(self) -> RefusedChannel:
        """The connection on which it came."""

    def serve(self, serving: Deferred[None]) -> None:
        """Tie the request to what answers it: a client that leaves cancels it."""


def _fields(count: int, by_address: dict[str, int]) -> dict[str, object]:
    return {"address": next(iter(by_address), "other addresses"), "refused": count}


class RefusedKeys:
    """``total`` counts since the start."""

    def __init__(self, clock: IReactorTime) -> None:
        self.total = 0
        self._clock = clock
        self._by_address: OrderedDict[str, tuple[float, float]] = OrderedDict()  # how many, and as of when
        self._waiting: dict[Deferred[None], IDelayedCall] = {}
        self._stopping = False
        self._notice = Notice(clock, _MESSAGE, _fields, lines=MAX_LINES, addresses=MAX_ADDRESSES)

    def delay(self, request: RefusedRequest, error: WrongKey, answer: Callable[[], object]) -> None:
        """Count a wrong key, and call ``answer`` after a pause, if the client has sent many.

        The connection closes after a delayed answer, and what the client sends until then is dropped.
        """

        def answer_now(_: None) -> None:
            answer()

        pause = self.add(request.channel.transport.getPeer(), error.tried)
        if pause:
            request.channel.read_no_more()
            waits = self.wait(pause)
            if waits is not None:
                request.serve(waits.addCallback(answer_now))
                return
        answer()

    def add(self, peer: IAddress, keys: int = 1) -> float:
        """Count ``keys`` of one request from ``peer``; gives the seconds by which the answer is delayed."""
        self.total += keys
        address = counts_for(peer)
        self._notice.note(address or "a Unix socket", keys, shown=getattr(peer, "host", None))
        if address is None or self._stopping:
            return 0.0
        now = self._clock.seconds()
        before, then = self._by_address.pop(address, (0.0, now))
        count = min(MOST_COUNTED, max(0.0, before - (now - then) / FORGET_SECONDS) + keys)
        self._by_address[address] = count, now
        if len(self._by_address) > MAX_ADDRESSES:
            self._by_address.popitem(last=False)
        return min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (ceil(count - FREE) - 1)) if count > FREE else 0.0

    # The pause

    def wait(self, seconds: float) -> Deferred[None] | None:
        """Fires after the seconds, or when the gateway stops; may be cancelled. None if too many wait already."""
        if self._stopping or len(self._waiting) >= MAX_WAITING:
            return None
        waits: Deferred[None] = Deferred(self._leave)
        self._waiting[waits] = self._clock.callLater(seconds, self._end, waits)
        return waits

    def _leave(self, waits: Deferred[None]) -> None:
        self._waiting.pop(waits).cancel()

    def _end(self, waits: Deferred[None]) -> None:
        del self._waiting[waits]
        waits.callback(None)

    def stop(self) -> None:
        """The gateway is stopping: end all pauses."""
        self._stopping = True
        while self._waiting:
            waits, timer = self._waiting.popitem()
            timer.cancel()
            waits.callback(None)

    def close(self) -> None:
        """No client is connected: log the rest."""
        self._notice.close()
