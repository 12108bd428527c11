"""The clients of the soak, a process of their own: cheap ones, who ask, stream, err and hang up at every phase.

``python -m tests.soak_clients PLAIN_PORT TLS_PORT CA_FILE REQUESTS`` prints, once a second, a line of JSON with the number
of requests so far and what became of them.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import ssl
import struct
import sys
from collections import Counter

from tests.harness import HELLO, request

WORKERS = 64
PATIENCE = 20.0
PLAIN, STREAM = request(HELLO), request({**HELLO, "stream": True})
LARGE = request({**HELLO, "user": "x" * 60_000})
HEALTH = request(None, "/health", "GET", {})
MODELS = request(None, "/v1/models", "GET")
CHUNKED = PLAIN.replace(
    b"Content-Length: %d\r\n" % len(PLAIN.partition(b"\r\n\r\n")[2]), b"Transfer-Encoding: chunked\r\n"
)
CHUNKED = b"%s\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (
    CHUNKED.partition(b"\r\n\r\n")[0],
    len(PLAIN.partition(b"\r\n\r\n")[2]),
    PLAIN.partition(b"\r\n\r\n")[2],
)
WRONG = [
    request({**HELLO, "model": "none"}),
    request(HELLO, headers={}),
    request(b"{"),
    request(None, "/nothing", "GET"),
    request(None, method="PUT"),
    b"GET /health HTTP/1.1\r\n\r\n",
    b"\x00\x01\x02\r\n\r\n",
    PLAIN.replace(b"\r\nHost", b"\r\nTransfer-Encoding: chunked\r\nHost"),
    b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * 20_000),
]
#   a share of all requests, and how they are made: what is sent, over TLS, whether it is hung up on
KINDS: list[tuple[float, str, bool]] = [
    (50, "plain", False),
    (12, "plain", True),
    (13, "stream", False),
    (5, "stream", True),
    (2, "large", False),
    (2, "chunked", False),
    (4, "health", False),
    (1, "models", True),
    (3, "wrong", False),
    (1, "wrong", True),
    (0.5, "connects and leaves", False),
    (0.5, "connects and leaves", True),
    (0.5, "leaves in the handshake", True),
    (1, "leaves in the head", False),
    (0.2, "leaves in the head", True),
    (1, "leaves in the body", False),
    (0.2, "leaves in the body", True),
    (1, "leaves waiting", False),
    (0.3, "leaves waiting", True),
    (1, "leaves in the stream", False),
    (0.5, "leaves in the stream", True),
]
SENT = {"plain": [PLAIN], "stream": [STREAM], "large": [LARGE], "chunked": [CHUNKED], "health": [HEALTH]}
SENT |= {"models": [MODELS], "wrong": WRONG}


class Connection(asyncio.Protocol):
    """One at a time: ``ask`` gives the status when the answer is whole, or how it ended."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self._waiting: asyncio.Future | None = None
        self._at_first = False

    def connection_made(self, transport) -> None:
        self.transport = transport

    def ask(self, data: bytes, at_first: bool = False) -> asyncio.Future:
        """``at_first``: to know of the first bytes is enough."""
        self._waiting = asyncio.get_running_loop().create_future()
        self._at_first = at_first
        self._buffer = bytearray()
        self._whole: int | None = None
        self._status = 0
        self.transport.write(data)
        return self._waiting

    def _tell(self, outcome: object) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(outcome)

    def data_received(self, data: bytes) -> None:
        if self._waiting is None:
            return
        buffer = self._buffer
        buffer += data
        if self._at_first:
            self._tell("begun")
            return
        if not self._status:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self._status = int(buffer[9:12])
            length = buffer.lower().find(b"content-length: ", 0, end)
            if length >= 0:
                self._whole = end + 4 + int(buffer[length + 16 : buffer.find(b"\r\n", length)])
        if len(buffer) >= self._whole if self._whole is not None else buffer.endswith(b"\r\n0\r\n\r\n"):
            if self._whole is not None and len(buffer) > self._whole:
                self._tell("more than an answer")
            elif self._whole is None and b"data: [DONE]\n\n" not in buffer:
                self._tell("a stream without end")
            else:
                self._tell(self._status)

    def connection_lost(self, problem) -> None:
        self.closed = True
        broken = b'"error": ' in self._buffer or b'"error":' in self._buffer if self._waiting is not None else False
        self._tell("a broken stream, told" if broken else "a broken answer")

    def reset(self) -> None:
        """Leave without a word."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and not self.closed:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


class Clients:
    def __init__(self, plain: int, secure: int, ca_file: str, requests: int) -> None:
        self._ports = {False: plain, True: secure}
        self._context = ssl.create_default_context(cafile=ca_file)
        self._requests = requests
        self.begun = 0
        self.outcomes: Counter[str] = Counter()

    async def _connect(self, secure: bool) -> Connection:
        host = "127.0.0.2" if secure else "127.0.0.1"
        more = {"ssl": self._context, "server_hostname": "localhost"} if secure else {}
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, host, self._ports[secure], **more)
        return connection

    async def work(self, seed: int) -> None:
        chance = random.Random(seed)
        kept: dict[bool, Connection | None] = {False: None, True: None}
        weights = [weight for weight, _, _ in KINDS]
        while self.begun < self._requests:
            self.begun += 1
            _, kind, secure = chance.choices(KINDS, weights)[0]
            try:
                async with asyncio.timeout(PATIENCE):
                    outcome = await self._one(kind, secure, chance, kept)
            except TimeoutError:
                outcome = "no answer in time"
                if kept[secure] is not None:
                    kept[secure].reset()
                    kept[secure] = None
            except OSError as error:
                outcome = f"no connection: {type(error).__name__}"
            self.outcomes[f"{kind.split()[0]}: {outcome}"] += 1
        for connection in kept.values():
            if connection is not None:
                connection.transport.close()

    async def _one(self, kind: str, secure: bool, chance: random.Random, kept: dict) -> object:
        if not kind.startswith(("leaves", "connects")):
            if kept[secure] is None or kept[secure].closed:
                kept[secure] = await self._connect(secure)
            connection = kept[secure]
            outcome = await connection.ask(chance.choice(SENT[kind]))
            if not isinstance(outcome, int) or outcome >= 400 or chance.random() < 0.01:
                connection.transport.close()
                connection.closed = True
            return outcome
        if kind == "leaves in the handshake":
            connection = Connection()
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: connection, "127.0.0.2", self._ports[True])
            connection.transport.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[: chance.randrange(11)])
        else:
            connection = await self._connect(secure)
        if kind == "leaves in the head":
            connection.ask(PLAIN[: chance.randrange(1, 120)])
        elif kind == "leaves in the body":
            connection.ask(LARGE[: chance.randrange(300, 60_000)])
        elif kind == "leaves waiting":
            connection.ask(chance.choice([PLAIN, STREAM]))
        elif kind == "leaves in the stream":
            await connection.ask(STREAM, at_first=True)
        if chance.random() < 0.7:
            await asyncio.sleep(chance.random() * 0.004)
        if chance.random() < 0.5:
            connection.reset()
        else:
            connection.transport.close()
        return "left"


async def main() -> None:
    plain, secure, ca_file, requests = sys.argv[1:5]
    clients = Clients(int(plain), int(secure), ca_file, int(requests))
    working = [asyncio.create_task(clients.work(seed)) for seed in range(WORKERS)]
    left = set(working)
    while left:
        done, left = await asyncio.wait(left, timeout=1.0)
        for each in done:
            each.result()
        print(json.dumps({"requests": clients.begun, "outcomes": clients.outcomes}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
