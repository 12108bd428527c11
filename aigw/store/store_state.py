"""Whether the store can be used: it answers in time, and takes what is written. While it is away it is probed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from aigw.key_forms import shortened
from aigw.settings.store import StoreAddress
from aigw.store.scripts import PROBE
from aigw.store.store_link import Connect, Link, StoreError
from aigw.telemetry import logs

LIMIT_SECONDS = 0.05
TURNS = 5
LOG_SECONDS = 60.0
PROBE_SECONDS = 1.0
CONNECT_SECONDS = 1.0  # in which the first connection is no failure
FIRST_SECONDS = 0.01  # between the first probes

_PROBE_KEYS = ["aigw:{limits}:probe", "aigw:{limits}:epoch"]


class ShortLimit:
    """Calls ``passed`` after LIMIT_SECONDS, unless it is stopped before.

    It counts in TURNS of the event loop. Where many requests came at once, one turn takes longer than the limit, and
    what they ask of the store is sent at its end: the store must get time to answer.
    """

    def __init__(self, clock: IReactorTime, passed: Callable[[], None]) -> None:
        self._clock = clock
        self._passed = passed
        self._left = TURNS
        self._timer: IDelayedCall | None = clock.callLater(LIMIT_SECONDS / TURNS, self._fire)

    def _fire(self) -> None:
        self._left -= 1
        if self._left:
            self._timer = self._clock.callLater(LIMIT_SECONDS / TURNS, self._fire)
        else:
            self._timer = None
            self._passed()

    def stop(self) -> None:
        """The answer is here."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


class StoreState:
    """Owns the connection. ``failures`` counts the calls that failed or took longer than LIMIT_SECONDS.

    ``recovered`` is called when the store can be used again, with a text that is another one if the store was emptied.
    ``tick`` is called each second while it can be used.
    """

    def __init__(
        self, clock: IReactorTime, connect: Connect, recovered: Callable[[str], None], tick: Callable[[], None]
    ) -> None:
        self.failures = 0
        self.is_up = False
        self._clock = clock
        self._connect = connect
        self._recovered = recovered
        self._each_second = tick
        self._link: Link | None = None
        self._name = ""
        self._instead: Callable[[], str] = str
        self._probing = False
        self._opened = 0.0
        self._first: IDelayedCall | None = None
        self._logged = -LOG_SECONDS
        self._reported = False  # that it is away
        self._ticks = LoopingCall(self._tick)
        self._ticks.clock = clock

    @property
    def is_open(self) -> bool:
        """Whether there is a store, be it away or not."""
        return self._link is not None

    def open(self, store: StoreAddress, instead: Callable[[], str]) -> None:
        """Connect. ``instead`` gives the text for the log: what happens while the store is away."""
        self._link, self._name, self._instead = self._connect(store), str(store), instead
        self._link.start()
        self._opened = self._clock.seconds()
        self._ticks.start(PROBE_SECONDS, now=False)
        self._first = self._clock.callLater(FIRST_SECONDS, self._probe)

    def close(self) -> None:
        """Use it no more."""
        link, self._link = self._link, None
        self.is_up = self._probing = False
        if self._ticks.running:
            self._ticks.stop()
        if self._first is not None and self._first.active():
            self._first.cancel()
        if link is not None:
            link.close()

    def run(self, script: str, keys: Sequence[str], args: Sequence[str]) -> Deferred[str]:
        """See Link. The caller reports a failure."""
        return fail(StoreError("it is not used any more")) if self._link is None else self._link.run(script, keys, args)

    def too_slow(self) -> None:
        """A call took longer than LIMIT_SECONDS."""
        self.failed(Failure(StoreError(f"it took longer than {LIMIT_SECONDS * 1000:g} ms")))

    def failed(self, failure: Failure) -> None:
        """A call failed: the store is away until a probe succeeds."""
        if self._link is None:
            return
        self.failures += 1
        self.is_up = False
        now = self._clock.seconds()
        if now - self._logged >= LOG_SECONDS:
            self._logged, self._reported = now, True
            logs.warn(f"The gateway cannot use the store: {self._instead()} ({self._name}: {_reason(failure)})")

    def _tick(self) -> None:
        if self.is_up:
            self._each_second()
        else:
            self._probe()

    def _probe(self) -> None:
        link, began = self._link, self._clock.seconds()
        if link is None or self._probing or self.is_up:
            return
        self._probing = True

        def answered(epoch: str) -> None:
            if link is self._link:
                self._probing = False
                if self._clock.seconds() - began <= LIMIT_SECONDS:
                    self._use_again(epoch)

        def failed(failure: Failure) -> None:
            if link is self._link:
                self._probing = False
                if self._clock.seconds() - self._opened < CONNECT_SECONDS:
                    self._first = self._clock.callLater(FIRST_SECONDS, self._probe)
                else:
                    self.failed(failure)

        link.run(PROBE, _PROBE_KEYS, []).addCallbacks(answered, failed)

    def _use_again(self, epoch: str) -> None:
        self.is_up = True
        if self._reported:
            self._reported = False
            logs.info(f"The gateway uses the store again ({self._name})")
        self._recovered(epoch)


def _reason(failure: Failure) -> str:
    return shortened(str(failure.value) or type(failure.value).__name__, 200)
