"""The reactor of the gateway on Linux: Twisted's epoll reactor without what most turns of its loop do not need.

- An event that is nothing but data to read calls ``doRead`` at once. Twisted first makes a log context, which no line
  of this gateway shows, and looks whether the descriptor is still open. All other events go Twisted's way.
- A TCP connection is read here, and its protocol called, without the two functions that Twisted has for that.
- Between two polls timed calls are looked for only where one is due.

Chosen by ``twistd --reactor=aigw``. The gateway runs on every other reactor too.

The private names are those of Twisted's epoll reactor, which has no public place for either.
"""

from __future__ import annotations

import select
from errno import EWOULDBLOCK
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST, installReactor
from twisted.internet.tcp import Client, Server
from twisted.logger import Logger
from twisted.python.log import callWithLogger, err

TURNS = 100  # polls in a row; after them Twisted looks at all timed calls, and frees those that were cancelled
LONGEST = 1_000_000.0  # seconds that a poll may wait for the next timed call; Twisted looks at one that is later
_EPOLLIN = getattr(select, "EPOLLIN", 0)  # for the types of other systems; without epoll the import above has failed
_errors = Logger().failureHandler("Unexpected error in main loop")


class LeanReactor(EPollReactor):
    """See the module. The semantics are those of EPollReactor."""

    def mainLoop(self) -> None:
        """See ReactorBase."""
        seconds = self.seconds
        while self._started:
            with _errors:
                self.runUntilCurrent()
                self.doIteration(self.running and self.timeout())
                for _ in range(TURNS):
                    timed_calls = self._pendingTimedCalls
                    # timeout() gives the same, and takes a sixth of the instructions of a chunk.
                    due = timed_calls[0].time if timed_calls and not self._newTimedCalls else None
                    wait = due - seconds() if due is not None else self.timeout()
                    if (
                        (wait is not None and not 0 < wait < LONGEST)
                        or self.threadCallQueue
                        or self._justStopped
                        or not self.running
                    ):
                        break
                    self.doIteration(wait)
        super().mainLoop()  # logs that it has ended

    def doPoll(self, timeout: float | None) -> None:
        """See EPollReactor."""
        selectables = self._selectables
        for fd, event in self._poller.poll(-1 if timeout is None else timeout, len(selectables)):
            try:
                selectable = selectables[fd]
            except KeyError:
                continue  # it was closed by an earlier event of this poll
            if event != _EPOLLIN:
                callWithLogger(selectable, self._doReadOrWrite, selectable, fd, event)
                continue
            why: Any = None
            has_read = False  # as in Twisted: an exception is never the end of one half only
            kind = type(selectable)
            try:
                # The doRead of these two, once they are connected, is what is repeated here.
                if (kind is Server or kind is Client) and selectable.connected:
                    try:
                        data = selectable.socket.recv(selectable.bufferSize)
                    except OSError as refused:
                        why = None if refused.args[0] == EWOULDBLOCK else CONNECTION_LOST
                    else:
                        if data:
                            selectable.protocol.dataReceived(data)
                        else:
                            why = CONNECTION_DONE
                else:
                    why = selectable.doRead()
                has_read = True
            except BaseException as error:
                callWithLogger(selectable, err)
                why = error
            if why:
                callWithLogger(selectable, self._disconnectSelectable, selectable, why, has_read)

    doIteration = doPoll


def install() -> Any:
    """Make it the reactor of this process."""
    reactor: Any = LeanReactor()  # type: ignore[no-untyped-call]
    installReactor(reactor)
    return reactor
