"""The handling of signals."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

from twisted.internet.interfaces import IReactorFromThreads

from aigw.net.interfaces import Reactor


def handle_signal(reactor: IReactorFromThreads, number: int, act: Callable[[], object]) -> None:
    """Call ``act`` in the reactor's thread when the signal arrives."""
    signal.signal(number, lambda *_: reactor.callFromThread(act))


def ignore(*numbers: int) -> None:
    """Ignore these signals, which end the process by default."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def handle_stops(reactor: Reactor, stop_now: Callable[[], object]) -> None:
    """The first SIGTERM or SIGINT goes to Twisted's handler; the next one calls ``stop_now``, even at once."""

    def take_over() -> None:
        stopping = False
        twisted: dict[int, Callable[[int, FrameType | None], object]] = {}

        def stop(number: int, frame: FrameType | None) -> None:
            nonlocal stopping
            if stopping:
                reactor.callFromThread(stop_now)
            else:
                stopping = True
                twisted[number](number, frame)

        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(number)
            if callable(handler):  # a shell makes background jobs ignore SIGINT
                twisted[number] = handler
                signal.signal(number, stop)

    reactor.callWhenRunning(take_over)
