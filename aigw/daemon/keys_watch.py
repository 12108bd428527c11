"""Looks often whether the ``keys_file`` has changed, so that a key can be taken away without a signal."""

from __future__ import annotations

import os
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

EVERY_SECONDS = 0.15
# How many checks more must find the same new state. A file that was renamed is whole. One that is written in place may
# be written in parts, and a part is a right file with fewer keys.
REPLACED, IN_PLACE = 1, 2

_State = tuple[str, int, int, int, int] | None


class KeysWatch:
    """``path`` gives the present file, None if there is none; ``changed`` is called after each change of it."""

    def __init__(self, clock: IReactorTime, path: Callable[[], str | None], changed: Callable[[], object]) -> None:
        """The state of the file at this moment is the one that was read."""
        self._path = path
        self._changed = changed
        self._known = self._seen = _state_of(path())
        self._same = 0
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
        before, known = self._seen, self._known
        self._seen = state = _state_of(self._path())
        self._same = self._same + 1 if state == before else 0
        if state == known:
            return
        in_place = state is not None and (known is None or known[:2] == state[:2])
        if self._same >= (IN_PLACE if in_place else REPLACED):
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
