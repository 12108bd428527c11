"""Looks often whether the ``keys_file`` has changed, so that a key can be taken away without a signal."""

from __future__ import annotations

import os
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

EVERY_SECONDS = 0.15  # a file is read when two checks find the same new state: it may be written in parts

_State = tuple[str, int, int, int, int] | None


class KeysWatch:
    """``path`` gives the present file, None if there is none; ``changed`` is called after each change of it."""

    def __init__(self, clock: IReactorTime, path: Callable[[], str | None], changed: Callable[[], object]) -> None:
        """The state of the file at this moment is the one that was read."""
        self._path = path
        self._changed = changed
        self._known = self._seen = _state_of(path())
        self._ticking = LoopingCall(self._check)
        self._ticking.clock = clock

    def start(self) -> None:
        """Check from now on."""
        self._ticking.start(EVERY_SECONDS, now=False)

    def stop(self) -> None:
        """Check no more."""
        if self._ticking.running:
            self._ticking.stop()

    def _check(self) -> None:
        seen, self._seen = self._seen, _state_of(self._path())
        state = self._seen
        if state == seen and state != self._known:
            self._known = state
            self._changed()


def _state_of(path: str | None) -> _State:
    """What changes with each change of the file, of its mode and owner too; None where there is no file."""
    if path is None:
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return path, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
