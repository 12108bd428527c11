"""The budgets on the disk: they are there again after a restart, also after a kill.

Each change of a budget is a line with its present state, so the last line of a budget counts, and any beginning of the
file is a state that was. A thread writes the lines as they come, and makes the disk keep them once a second. A request
that ran when the process was killed is charged what it had reserved. Processes with one folder count together: each
writes what it spent itself, and adds what the others write.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue

import msgspec

from aigw.access.limits import WindowCount
from aigw.access.other_journals import BudgetLine, JournalFile, Key, OtherJournals, State, Sum
from aigw.telemetry import logs

SYNC_SECONDS = 1.0
AGAIN_SECONDS = 1.0  # between two attempts to write
LOG_SECONDS = 60.0
FINISH_SECONDS = 2.0  # the end of the process waits so long for the disk
MODE = 0o600
SMALL = 1024 * 1024  # bytes of a file that is not made smaller
MOST_PROCESSES = 256  # with one folder
FOLLOW_SECONDS = 0.5  # between two looks at the files of other processes

_encode = msgspec.json.encode


class Journal:
    """The file in ``folder``. Several processes with one folder have a file each."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.elsewhere: dict[Key, Sum] = {}  # what the counts have of other processes; the event loop's alone
        self._path = ""
        self._others: OtherJournals | None = None
        self._news: Mapping[Key, Sum] | None = None
        self._looked = 0.0
        self._lock = -1
        self._fd = -1
        self._size = 0
        self._smallest = 0  # bytes, when the file was made anew
        self._known: dict[Key, State] = {}
        self._changed: dict[Key, State] = {}
        self._changing = threading.Lock()
        self._waits = False
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._ending = threading.Event()
        self._logged = -LOG_SECONDS
        self._thread = threading.Thread(target=self._run, name="budgets", daemon=True)

    def note(self, account: str, budget: str, count: WindowCount) -> None:
        """A budget has changed. Never blocks: of each budget at most one state waits."""
        spent, elsewhere = count.spent, self.elsewhere.get((account, budget))
        if elsewhere is not None and count.ends <= elsewhere[0]:  # else it has begun a new period
            spent -= elsewhere[1]
        with self._changing:
            self._changed[account, budget] = count.ends, spent, count.reserved
            waits, self._waits = self._waits, False
        if waits:
            self._wake.put(None)

    def load(self) -> Mapping[Key, State]:
        """The budgets of the process that had the file before, by account and budget."""
        self._path = self._own_path()
        if self._path and os.path.exists(self._path):
            with self._reported():
                file = JournalFile(self._path)
                file.read()
                self._known = file.states
        self._others = OtherJournals(self.folder, os.path.basename(self._path))
        self._read_others()
        return dict(self._known)

    def take_news(self) -> Mapping[Key, Sum] | None:
        """What other processes have spent in all; None if that has not changed since the last time."""
        with self._changing:
            news, self._news = self._news, None
        return news

    def start(self) -> None:
        """Start the thread. A process that forks must fork before."""
        self._thread.start()

    def finish(self) -> None:
        """Write what waits, FINISH_SECONDS at most; the process ends, or another folder follows."""
        self._ending.set()
        self._wake.put(None)
        self._thread.join(FINISH_SECONDS)

    def _own_path(self) -> str:
        """The first file that no other process has; nothing if this process cannot have one of its own."""
        path = os.path.join(self.folder, "budgets.journal")
        for number in range(2, MOST_PROCESSES + 2):
            try:
                self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE)
            except OSError:
                return path  # the thread cannot write it either, and reports it
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(self._lock)
                self._lock = -1
                if not isinstance(error, BlockingIOError):
                    self._log_no_file(f"its files cannot be locked ({error.strerror})")
                    return ""
                path = os.path.join(self.folder, f"budgets-{number}.journal")
            else:
                return path
        self._log_no_file(f"{MOST_PROCESSES} other processes use it, which is the limit")
        return ""

    def _log_no_file(self, reason: str) -> None:
        logs.error(
            f"The gateway cannot keep the budgets in {self.folder}: {reason}; only memory has them, until it ends. "
            "Give this process another folder in `state`"
        )

    def _read_others(self) -> None:
        self._looked = time.monotonic()
        with suppress(OSError):  # the file of this process has the same one, which is reported
            if self._others is not None and self._others.read():
                sums = self._others.sums(time.time())
                with self._changing:
                    self._news = sums

    # In the thread

    def _run(self) -> None:
        synced, unsynced = time.monotonic(), False
        while True:
            changed = self._taken()
            if changed and self._path:
                unsynced = self._until_written(changed) or unsynced
            elif self._ending.is_set():
                break
            if time.monotonic() - self._looked >= FOLLOW_SECONDS:
                self._read_others()
            due = synced + SYNC_SECONDS - time.monotonic()
            if unsynced and due <= 0:
                with self._reported():
                    os.fdatasync(self._fd)
                synced, unsynced = time.monotonic(), False
            with self._changing:
                self._waits = may_wait = not (self._changed or self._ending.is_set())
            if not may_wait:
                continue
            with suppress(Empty):
                self._wake.get(timeout=min(max(0.0, due), FOLLOW_SECONDS) if unsynced else FOLLOW_SECONDS)
        self._close(unsynced)

    def _until_written(self, changed: Mapping[Key, State]) -> bool:
        """Write these states; where that fails, all states a second later. False if it fails until the end."""
        while not self._written(changed):
            changed = self._known
            if self._ending.wait(AGAIN_SECONDS):
                return self._written(changed)
            self._taken()
        return True

    def _taken(self) -> dict[Key, State]:
        """The states that have changed since the last time."""
        with self._changing:
            changed, self._changed = self._changed, {}
        self._known |= changed
        return changed

    def _written(self, changed: Mapping[Key, State]) -> bool:
        done = False
        with self._reported():
            if self._fd < 0 or self._size > max(SMALL, 4 * self._smallest):
                self._make_anew()
            else:
                self._append(self._fd, changed)
            done = True
        if not done and self._fd >= 0:  # half a line may be there
            os.close(self._fd)
            self._fd = -1
        return done

    def _append(self, fd: int, states: Mapping[Key, State]) -> None:
        lines = [BudgetLine(*key, ends, spent, reserved) for key, (ends, spent, reserved) in states.items()]
        data = b"".join([_encode(line) + b"\n" for line in lines])
        done = 0
        while done < len(data):
            done += os.write(fd, data[done:])
        self._size += done

    def _make_anew(self) -> None:
        """Write all budgets whose period is not over to a new file, which takes the place of the old one."""
        now = time.time()
        self._known = {key: state for key, state in self._known.items() if now < state[0]}
        fd = os.open(f"{self._path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, MODE)
        self._size = 0
        try:
            self._append(fd, self._known)
            os.fsync(fd)
            os.rename(f"{self._path}.new", self._path)
        except OSError:
            os.close(fd)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._smallest = fd, self._size
        folder = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with suppress(OSError):  # a file system that cannot sync a folder
                os.fsync(folder)
        finally:
            os.close(folder)

    def _close(self, unsynced: bool) -> None:
        with self._reported():
            if self._fd >= 0 and unsynced:
                os.fdatasync(self._fd)
        for fd in (self._fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock = -1

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """An error of the disk is one line of the log in a minute."""
        try:
            yield
        except OSError as error:
            now = time.monotonic()
            if now - self._logged >= LOG_SECONDS:
                self._logged = now
                logs.error(f"The gateway cannot keep the budgets in {self.folder}: {error.strerror}; memory has them")
