"""A scripted provider on a real socket. Its vocabulary is the ways in which providers answer, and fail to."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from socket import SO_LINGER, SOL_SOCKET

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

Behaviour = Callable[["Connection"], None]


@dataclass
class Seen:
    """One request as it arrived."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key.lower() == name]
        assert len(values) < 2, values
        return values[0] if values else None


class Connection(Protocol):
    """One connection of the gateway to the provider."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.buffer = bytearray()
        self.wanted = 0
        self.closed: Deferred = Deferred()
        self.is_closed = False

    def connectionMade(self) -> None:
        self.provider.connections.append(self)
        if self.provider.on_connect is not None:
            self.provider.on_connect(self)

    def dataReceived(self, data: bytes) -> None:
        self.buffer += data
        if len(self.buffer) < self.wanted:
            return
        head, separator, rest = bytes(self.buffer).partition(b"\r\n\r\n")
        if not separator:
            return
        if self.provider.on_head is not None:
            on_head, self.provider.on_head = self.provider.on_head, None
            self.provider.requests.append(Seen(head.decode("latin-1").split("\r\n")[0], [], b""))
            self.buffer, self.dataReceived = bytearray(), lambda data: None
            on_head(self)
            return
        line, *lines = head.decode("latin-1").split("\r\n")
        headers = [(name, value.strip()) for name, _, value in (each.partition(":") for each in lines)]
        length = int(dict((name.lower(), value) for name, value in headers).get("content-length", 0))
        self.wanted = len(head) + 4 + length
        if len(rest) < length:
            return
        self.buffer, self.wanted = bytearray(rest[length:]), 0
        self.provider.requests.append(Seen(line, headers, rest[:length]))
        self.provider.next_behaviour()(self)

    def connectionLost(self, reason) -> None:
        self.is_closed = True
        self.closed.callback(self)

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    def fin(self) -> None:
        self.transport.loseConnection()

    def rst(self) -> None:
        socket = getattr(self.transport, "transport", self.transport).socket
        socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abortConnection()


@dataclass
class Provider(Factory):
    """Behaviours are used up one a request; the last one stays."""

    behaviours: list[Behaviour]
    on_connect: Behaviour | None = None
    on_head: Behaviour | None = None
    requests: list[Seen] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    noisy = False
    port = 0

    def buildProtocol(self, addr) -> Connection:
        return Connection(self)

    def next_behaviour(self) -> Behaviour:
        return self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]

    @property
    def bodies(self) -> list:
        return [json.loads(seen.body) for seen in self.requests]


# What a provider says


def completion(text: str = "hello", **more) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    shape = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return json.dumps({**shape, **more}).encode()


def event(delta: dict | None = None, finish_reason: str | None = None, **more) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish_reason}
    shape = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more}
    return b"data: " + json.dumps(shape).encode() + b"\n\n"


ROLE = event({"role": "assistant", "content": ""})
DONE = b"data: [DONE]\n\n"
STREAM = [ROLE, event({"content": "hel"}), event({"content": "lo"}), event(finish_reason="stop"), DONE]
ERROR_EVENT = b'data: {"error": {"message": "overloaded", "type": "server_error"}}\n\n'
COMMENT = b": keep-alive\n\n"


def head(status: int = 200, kind: str = "application/json", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Type: {kind}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


STREAM_HEAD = head(kind="text/event-stream", Transfer_Encoding="chunked")
LAST_CHUNK = b"0\r\n\r\n"


def whole_stream(events: list[bytes] | None = None) -> bytes:
    return STREAM_HEAD + b"".join(chunk(each) for each in events or STREAM) + LAST_CHUNK


# How a provider behaves


def answer(status: int = 200, body: bytes | None = None, kind: str = "application/json", **headers: str) -> Behaviour:
    body = completion() if body is None else body
    return lambda c: c.send(head(status, kind, Content_Length=str(len(body)), **headers) + body)


def stream(*events: bytes) -> Behaviour:
    return lambda c: c.send(whole_stream(list(events)))


def begin_stream(*events: bytes) -> Behaviour:
    """Sends these events and then nothing more."""
    return lambda c: c.send(STREAM_HEAD + b"".join(chunk(each) for each in events))


def raw(*parts: bytes) -> Behaviour:
    return lambda c: c.send(b"".join(parts))


def then(*behaviours: Behaviour) -> Behaviour:
    def run(connection: Connection) -> None:
        for each in behaviours:
            each(connection)

    return run


def fin(connection: Connection) -> None:
    connection.fin()


def rst(connection: Connection) -> None:
    connection.rst()


def later(behaviour: Behaviour, seconds: float = 0.03) -> Behaviour:
    """Behave so when what was sent before has arrived: a reset overtakes it otherwise."""
    return lambda connection: reactor.callLater(seconds, lambda: connection.is_closed or behaviour(connection)) and None


def hang(connection: Connection) -> None:
    """Say nothing, ever."""


def drip(data: bytes, size: int = 1, seconds: float = 0.0) -> Behaviour:
    """Send ``data`` in pieces."""

    def run(connection: Connection) -> None:
        pieces = [data[at : at + size] for at in range(0, len(data), size)]

        def next_piece() -> None:
            if pieces and not connection.is_closed:
                connection.send(pieces.pop(0))
                reactor.callLater(seconds, next_piece)

        next_piece()

    return run


def as_asked(plain: Behaviour | None = None, streamed: Behaviour | None = None) -> Behaviour:
    """Streams if the request says so."""
    plain, streamed = plain or answer(), streamed or stream()

    def run(connection: Connection) -> None:
        asked = json.loads(connection.provider.requests[-1].body)
        (streamed if asked.get("stream") else plain)(connection)

    return run
