"""Clients of streams and of single requests: many connections in one thread, with the times of all that arrives.

wrk does the plain scenes; it cannot tell when each chunk of a stream was sent, nor keep a pace.
"""

from __future__ import annotations

import contextlib
import gc
import re
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

_SENT_AT = re.compile(rb"\d{19}")
_LENGTH = re.compile(rb"content-length: *(\d+)", re.I)
APART_SECONDS = 0.001  # longer than a gateway that has time for it takes to read the first segment


@dataclass(frozen=True, eq=False)
class Target:
    """Where requests go and what they are."""

    name: str
    port: int
    request: bytes
    tls: ssl.SSLContext | None = None
    rest: bytes = b""  # of the request, in a segment of its own
    pause: float = APART_SECONDS  # before it

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """A connection; the handshake is done."""
        sock = socket.create_connection(("127.0.0.1", self.port), 30, (source, 0))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls is not None:
            sock = self.tls.wrap_socket(sock, server_hostname="localhost")
        return sock


@dataclass
class Times:
    """What was seen of one target, in milliseconds."""

    first: list[float] = field(
        default_factory=list
    )  # from the request to the first output, or to all of a plain answer
    whole: list[float] = field(default_factory=list)
    chunks: list[float] = field(default_factory=list)  # from the provider's sending to our reading
    errors: list[str] = field(default_factory=list)


class Connection:
    """A connection and the answer that it is reading."""

    def __init__(self, target: Target, times: Times, source: str = "127.0.0.1") -> None:
        self.target = target
        self.times = times
        self.sock = target.connect(source)
        self.sock.setblocking(False)
        self.descriptor = self.sock.fileno()

    def ask(self) -> None:
        """Send the request, or its first segment; it must fit into an empty socket buffer."""
        self._head = False
        self._missing = -1
        self._done = False
        self._tail = b""
        self._asked = time.time_ns()
        self._begun = False
        self.sock.send(self.target.request)

    def send_rest(self) -> None:
        """Send the second segment."""
        self.sock.send(self.target.rest)

    def read(self) -> bool:
        """Take in what has come; whether the answer is over. Raises OSError where it is cut or no success."""
        while True:
            try:
                data = self.sock.recv(65536)
            except (BlockingIOError, ssl.SSLWantReadError):
                return False
            now = time.time_ns()
            if not data:
                raise ConnectionError("closed in the middle of an answer")
            if self._feed(data, now):
                self.times.whole.append((now - self._asked) / 1e6)
                return True
            if self.target.tls is None:
                return False

    def _feed(self, data: bytes, now: int) -> bool:
        if not self._head:
            head, end, data = (self._tail + data).partition(b"\r\n\r\n")
            if not end:
                self._tail = head
                return False
            if not head.startswith(b"HTTP/1.1 200"):
                raise ConnectionError(head.partition(b"\r")[0].decode("latin-1"))
            self._head, self._tail = True, b""
            length = _LENGTH.search(head)
            self._missing = int(length[1]) if length else -1
        if self._missing >= 0:
            self._missing -= len(data)
            if self._missing > 0:
                return False
            self.times.first.append((now - self._asked) / 1e6)
            return True
        lines, _, self._tail = (self._tail + data).rpartition(b"\n")
        sent_at = _SENT_AT.findall(lines)
        if sent_at:
            if not self._begun:
                self._begun = True
                self.times.first.append((now - self._asked) / 1e6)
            self.times.chunks.extend([(now - int(each)) / 1e6 for each in sent_at])
        self._done = self._done or b"[DONE]" in lines
        return self._done and not self._tail and lines.endswith(b"0\r\n\r")

    def close(self) -> None:
        """Go away, answer or not."""
        with contextlib.suppress(OSError):
            self.sock.close()


class Clients:
    """Connections that are read together. A Times belongs to each target."""

    def __init__(self, targets: Iterable[Target]) -> None:
        self.times = {target: Times() for target in targets}
        self._epoll = select.epoll()
        self._open: dict[int, Connection] = {}
        self._owed: deque[tuple[float, Connection]] = deque()  # second segments, and when each is due

    def __enter__(self) -> Clients:
        gc.disable()  # a collection would be measured as delay
        return self

    def __exit__(self, *_: object) -> None:
        for connection in list(self._open.values()):
            self.drop(connection)
        self._epoll.close()
        gc.enable()

    def __len__(self) -> int:
        return len(self._open)

    def forget(self) -> None:
        """What was seen so far is not counted."""
        for target, times in self.times.items():
            self.times[target] = fresh = Times()
            for connection in self._open.values():
                if connection.times is times:
                    connection.times = fresh

    def connect(self, target: Target, source: str = "127.0.0.1") -> Connection:
        """One more connection, without a request yet."""
        connection = Connection(target, self.times[target], source)
        self._open[connection.descriptor] = connection
        self._epoll.register(connection.descriptor, select.EPOLLIN)
        return connection

    def drop(self, connection: Connection) -> None:
        """Close one."""
        if self._open.pop(connection.descriptor, None) is not None:
            self._epoll.unregister(connection.descriptor)
            connection.close()

    def ask(self, connection: Connection) -> None:
        """Send a request on a connection that reads no answer now."""
        connection.ask()
        if connection.target.rest:
            self._owed.append((time.monotonic() + connection.target.pause, connection))

    def _send_owed(self) -> None:
        while self._owed and self._owed[0][0] <= time.monotonic():
            _, connection = self._owed.popleft()
            if self._open.get(connection.descriptor) is connection:
                with contextlib.suppress(OSError):  # reading tells of the end
                    connection.send_rest()

    def wait(self, seconds: float) -> Iterator[Connection]:
        """Read what comes within so long, at most once each; gives those whose answer is over."""
        if self._owed:
            self._send_owed()
        if self._owed:
            seconds = min(seconds, self._owed[0][0] - time.monotonic())
        for descriptor, _ in self._epoll.poll(max(0.0, seconds), 1024):
            connection = self._open.get(descriptor)
            if connection is None:
                continue
            try:
                if connection.read():
                    yield connection
            except OSError as error:
                connection.times.errors.append(str(error))
                self.drop(connection)

    def keep_busy(self, target: Target, connections: int, seconds: float, spread: float) -> None:
        """As many connections all the time, each asking again when its answer is over; they begin over ``spread``."""
        began = time.monotonic()
        due = [began + spread * index / connections for index in range(connections)] if not self._open else []
        until = began + seconds
        for connection in list(self._open.values()):
            if connection.target is not target:
                raise ValueError("one target at a time is kept busy")
        while (now := time.monotonic()) < until:
            lost = connections - len(self._open) - len(due)
            due = [*due, *[now] * lost]
            while due and due[0] <= now:
                due.pop(0)
                self.ask(self.connect(target))
            for connection in self.wait(min(until, due[0] if due else until) - now):
                self.ask(connection)

    def exactly(self, target: Target, connections: int, count: int) -> None:
        """So many requests and no more, on as many connections; returns when all are answered. Raises RuntimeError."""
        while len(self._open) < connections:
            self.connect(target)
        times = self.times[target]
        wanted, left = len(times.whole) + count, count - connections
        for connection in list(self._open.values()):
            self.ask(connection)
        until = time.monotonic() + 300
        while len(times.whole) < wanted:
            for connection in self.wait(1):
                if left > 0:
                    left -= 1
                    self.ask(connection)
            if times.errors or time.monotonic() > until:
                raise RuntimeError(f"{target.name}: {times.errors[:3] or 'no answer'}")

    def pace(self, rate: float, seconds: float) -> None:
        """So many requests a second to each of the targets in turn, whether the others are answered or not."""
        gap = 1 / rate / len(self.times)
        began = time.monotonic()
        targets = list(self.times)
        schedule = deque(
            (began + gap * index, targets[index % len(targets)])
            for index in range(round(rate * seconds) * len(targets))
        )
        free: dict[Target, list[Connection]] = {target: [] for target in targets}
        running = 0
        until = began + seconds + 30
        while (schedule or running) and time.monotonic() < until:
            now = time.monotonic()
            while schedule and schedule[0][0] <= now:
                _, target = schedule.popleft()
                connection = free[target].pop() if free[target] else self.connect(target)
                self.ask(connection)
                running += 1
            before = len(self._open)
            for connection in self.wait((schedule[0][0] if schedule else until) - now):
                free[connection.target].append(connection)
                running -= 1
            lost = before - len(self._open)
            running -= lost
            if lost:
                alive = set(self._open.values())
                free = {target: [each for each in kept if each in alive] for target, kept in free.items()}


def request(path: str, body: bytes, key: str, headers: Iterable[str] = ()) -> bytes:
    """A POST of JSON; a GET where there is no body."""
    lines = [
        f"{'POST' if body else 'GET'} {path} HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {key}",
        *headers,
    ]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def percentile(values: list[float], percent: float) -> float:
    """The nearest value of the list; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(percent / 100 * len(ordered)))] if ordered else 0.0


def added(through: list[float], direct: list[float], percent: float) -> float:
    """What the way through somebody adds at that percentile."""
    return percentile(through, percent) - percentile(direct, percent)
