"""The budgets of one process on the disk: they are there again after a restart, also after a kill.

Each change of a budget is a line with its present state, so the last line of a budget counts, and any beginning of the
file is a state that was. A thread writes the lines as they come, and makes the disk keep them once a second. A request
that ran when the process was killed is charged what it had reserved.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue

import msgspec

from aigw.access.ledger import Ledger
from aigw.access.limits import WindowCount
from aigw.config.model import Config
from aigw.telemetry import logs

SYNC_SECONDS = 1.0
AGAIN_SECONDS = 1.0  # between two attempts to write
LOG_SECONDS = 60.0
FINISH_SECONDS = 2.0  # the end of the process waits so long for the disk
MODE = 0o600
SMALL = 1024 * 1024  # bytes of a file that is not made smaller
MOST_PROCESSES = 64  # with one folder
LONGEST_SECONDS = 367 * 86_400.0  # no period is longer; a line that has one is broken

Key = tuple[str, str]
State = tuple[float, int, int]  # the end of the period in Unix seconds, what is spent, and what is reserved


class BudgetLine(msgspec.Struct, array_like=True):
    """One line: whose budget, which one, and its state."""

    account: str
    budget: str
    ends: float
    spent: int
    reserved: int


_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(BudgetLine).decode


class JournaledLedger(Ledger):
    """A Ledger whose budgets are kept in the folder ``state``, if there is one."""

    def __init__(self, seconds: Callable[[], float], wall: Callable[[], float]) -> None:
        super().__init__(seconds, wall)
        self._journal: Journal | None = None
        self._folder: str | None = None
        self._started = False

    def use(self, config: Config) -> None:
        """See Ledger."""
        has_budgets = any(account.budgets for caller in config.callers for account in caller.accounts)
        self._folder = config.state if has_budgets or self._journal is not None else None
        if self._started:
            self._open()

    def start(self) -> None:
        """See Ledger. Budgets of earlier processes count from now on."""
        self._started = True
        self._open()

    def finish(self) -> None:
        """See Ledger."""
        if self._journal is not None:
            self._journal.finish()

    def _open(self) -> None:
        folder = self._folder
        if folder is None or (self._journal is not None and self._journal.folder == folder):
            return
        if self._journal is not None:
            self._journal.finish()
        self._journal = Journal(folder)
        now = self._wall()
        for (account, budget), (ends, spent, reserved) in self._journal.load().items():
            if now < ends < now + LONGEST_SECONDS:
                self.restore(account, budget, ends, spent + reserved)
        for account, budget, count in self.budgets():
            self._journal.note(account, budget, count)
        self.note = self._journal.note
        self._journal.start()


class Journal:
    """The file in ``folder``. Several processes with one folder have a file each."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._path = ""
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
        with self._changing:
            self._changed[account, budget] = count.ends, count.spent, count.reserved
            waits, self._waits = self._waits, False
        if waits:
            self._wake.put(None)

    def load(self) -> Mapping[Key, State]:
        """The budgets of the process before, by account and budget. A line that is broken is left out."""
        self._path = self._own_path()
        if os.path.exists(self._path):
            with self._reported(), open(self._path, "rb") as file:
                for line in file:
                    with suppress(msgspec.DecodeError, UnicodeDecodeError):
                        entry = _decode(line)
                        self._known[entry.account, entry.budget] = entry.ends, entry.spent, entry.reserved
        return dict(self._known)

    def start(self) -> None:
        """Start the thread. A process that forks must fork before."""
        self._thread.start()

    def finish(self) -> None:
        """Write what waits, FINISH_SECONDS at most; the process ends, or another folder follows."""
        self._ending.set()
        self._wake.put(None)
        self._thread.join(FINISH_SECONDS)

    def _own_path(self) -> str:
        """The first file that no other process has."""
        path = os.path.join(self.folder, "budgets.journal")
        for number in range(2, MOST_PROCESSES + 2):
            try:
                self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                self._lock = -1
                path = os.path.join(self.folder, f"budgets-{number}.journal")
            except OSError:
                break  # the thread reports it
            else:
                break
        return path

    # In the thread

    def _run(self) -> None:
        synced, unsynced = time.monotonic(), False
        while True:
            changed = self._taken()
            if changed:
                unsynced = self._until_written(changed) or unsynced
            elif self._ending.is_set():
                break
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
                self._wake.get(timeout=max(0.0, due) if unsynced else None)
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
