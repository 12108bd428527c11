"""Keys that were refused: each is counted, logged with the address that it came from, and answered the later the more
of them came from there.

A right key is never held up: many people may share an address. So a pause slows down whoever waits for the answer, and
costs whoever does not wait a connection for each key. What protects a key is its length.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import ceil
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from aigw.errors import WrongKey
from aigw.net.addresses import counts_for
from aigw.telemetry.notices import Notice

FREE = 5  # refusals of one address that are answered at once
FIRST_PAUSE = 0.25  # then this, and twice as long each time
LONGEST_PAUSE = 5.0
FORGET_SECONDS = 10.0  # in which one refusal is forgotten
MOST_COUNTED = FREE + 6.0  # no more are kept against an address: LONGEST_PAUSE is reached
MAX_ADDRESSES = 4096  # the one that was quiet the longest is forgotten first
MAX_WAITING = 200  # of all addresses; beyond them an answer goes out at once
MAX_LINES = 20  # in LOG_SECONDS, on all addresses

_MESSAGE = "A key was refused: it is not one of this gateway's"


def _fields(count: int, by_address: dict[str, int]) -> dict[str, Any]:
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

    def delay(self, request: Any, error: WrongKey, answer: Callable[[], object]) -> None:
        """Count a wrong key, and call ``answer`` after the pause that its sender has to wait, if any.

        Behind such an answer the connection closes, and until then nothing that it sends is kept.
        """
        pause = self.add(request.channel.transport.getPeer(), error.tried)
        if pause:
            request.channel.read_no_more()
            waits = self.wait(pause)
            if waits is not None:
                request.serve(waits.addCallback(lambda _: answer()))
                return
        answer()

    def add(self, peer: Any, keys: int = 1) -> float:
        """Count ``keys`` that came from ``peer`` in one request; the seconds that the answer is to wait."""
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
        """Fires after that, and sooner if the gateway stops; may be cancelled. None where too many wait already."""
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
        """The gateway is stopping: nobody waits any more."""
        self._stopping = True
        while self._waiting:
            waits, timer = self._waiting.popitem()
            timer.cancel()
            waits.callback(None)

    def close(self) -> None:
        """No client is connected: log what is not logged."""
        self._notice.close()
