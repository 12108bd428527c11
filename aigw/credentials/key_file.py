"""A key in a file. Kubernetes and the agent of Vault replace such a file, or a link on the way to it, at any time."""

from __future__ import annotations

import math
import os
import stat
import time
from collections.abc import Sequence

from twisted.internet.defer import Deferred, fail, succeed

from aigw.credentials.source import RECENT, NoKey, NoteKey, checked
from aigw.secret import Secret
from aigw.telemetry import logs

MOST_BYTES = 16 * 1024
AGAIN_SECONDS = 5.0  # after which there may be a key in a file that had none
_SETTLED = 2.0  # seconds; a file that is younger may change again and look the same


class KeyFile:
    """See KeySource. The file is checked before each use, which takes microseconds, and read when it has changed.

    A file that cannot be used changes nothing: the last key stays in use.
    """

    def __init__(self, provider: str, path: str, note: NoteKey) -> None:
        """Reads the file; ``problem`` is why it has no key, ``advice`` a warning about the key."""
        self.problem: str | None = None
        self.advice: str | None = None
        self.recent: Sequence[Secret] = ()
        self._provider = provider
        self._path = path
        self._note = note
        self._seen = _signature(path)
        try:
            key, self.advice = checked(_content(path))
            self.recent = (key,)  # not noted: it is in use only with its configuration, whose keys are hidden first
        except (OSError, ValueError) as error:
            self.problem = _reason(error)

    @property
    def runs(self) -> bool:
        """See KeySource."""
        return False

    def start(self) -> None:
        """See KeySource."""

    def stop(self) -> None:
        """See KeySource."""

    def close(self) -> None:
        """See KeySource."""

    def present(self) -> Secret | None:
        """See KeySource."""
        seen = _signature(self._path)
        if seen is None or seen != self._seen:
            self._seen = seen
            self._read()
        return self.recent[0] if self.recent else None

    def seconds_left(self) -> float:
        """See KeySource."""
        return math.inf

    def wait(self) -> Deferred[Secret]:
        """See KeySource. A file is not waited for."""
        return fail(NoKey("there is no key for the provider: its key_file has none", AGAIN_SECONDS, self.problem or ""))

    def renew(self, refused: Secret) -> Deferred[Secret | None]:
        """See KeySource. The key that the file had before is no other."""
        self._read()
        return succeed(self.recent[0] if self.recent and self.recent[0] != refused else None)

    def _read(self) -> None:
        try:
            key, advice = checked(_content(self._path))
        except (OSError, ValueError) as error:
            before, self.problem = self.problem, _reason(error)
            if self.problem != before:
                what = "the old key stays in use" if self.recent else "there is no key for the provider"
                text = f"The key_file of a provider cannot be used, so {what}: it {self.problem}"
                logs.warn(text, provider=self._provider)
            return
        self.problem = None
        if self.recent and key == self.recent[0]:
            return
        self._note(key)
        self.recent = (key, *self.recent[: RECENT - 1])
        logs.info("The gateway has read a new key of a provider from its key_file", provider=self._provider)
        if advice:
            logs.warn(f"The key in the key_file of a provider {advice}", provider=self._provider)


def _signature(path: str) -> tuple[int, ...] | None:
    """What changes with the file, or with a link on the way to it; None if a change may not be seen."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    if time.time() - found.st_ctime < _SETTLED:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _content(path: str) -> str:
    """The text of the file. Raises OSError or ValueError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)  # a pipe must not block
    try:  # open() would not close the descriptor of a folder
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("is not a regular file; name a file that holds the key and nothing else")
        data = b""
        while len(data) <= MOST_BYTES and (more := os.read(descriptor, MOST_BYTES + 1 - len(data))):
            data += more
    finally:
        os.close(descriptor)
    if len(data) > MOST_BYTES:
        raise ValueError(f"has more than {MOST_BYTES} bytes; name a file that holds the key and nothing else")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError("is not text; write the key in ASCII") from None


def _reason(error: OSError | ValueError) -> str:
    return f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
