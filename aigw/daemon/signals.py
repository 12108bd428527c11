"""What the process does when it gets a signal."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any


def obey(reactor: Any, number: int, act: Callable[[], object]) -> None:
    """``act``, in the reactor's own time, whenever the signal comes."""
    signal.signal(number, lambda *_: reactor.callFromThread(act))


def ignore(*numbers: int) -> None:
    """Let none of these signals end the process, which is what they do by default."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def obey_stops(reactor: Any, stop_now: Callable[[], object]) -> None:
    """The first SIGTERM or SIGINT stops as Twisted has it; the next is ``stop_now``, even if it comes at once."""

    def take_over() -> None:
        stopping = False
        twisted: dict[int, Any] = {}

        def stop(number: int, frame: FrameType | None) -> None:
            nonlocal stopping
            if stopping:
                reactor.callFromThread(stop_now)
            else:
                stopping = True
                twisted[number](number, frame)

        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(number)
            if callable(handler):  # a shell has background jobs ignore SIGINT
                twisted[number] = handler
                signal.signal(number, stop)

    reactor.callWhenRunning(take_over)
