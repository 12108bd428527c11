"""A provider that costs next to nothing, so that it is not what is measured: epoll and bytes made in advance.

    python provider.py PORT

What it answers is the request's ``model``: ``mock`` a small answer, ``answer-N`` one with N bytes of text,
``stream-N-MS`` N chunks of a stream, MS milliseconds apart, ``idle`` a stream of one chunk and silence. A chunk's text
is the time in nanoseconds at which it was sent.
"""

from __future__ import annotations

import gc
import heapq
import re
import select
import socket
import sys
import time
from collections import deque

_LENGTH = re.compile(rb"content-length: *(\d+)", re.I)
_MODEL = re.compile(rb'"model": *"([^"]*)"')
_ROLE = b'"choices":[{"index":0,"message":{"role":"assistant","content":"%s"},"finish_reason":"stop"}]'
_PLAIN = b'{"id":"chatcmpl-mock","object":"chat.completion","created":1700000000,"model":"mock",' + _ROLE
_USAGE = b',"usage":{"prompt_tokens":12,"completion_tokens":60,"total_tokens":72}}'
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_BEFORE = b'data: {"id":"chatcmpl-mock","object":"chat.completion.chunk","created":1700000000,"model":"mock",' + (
    b'"choices":[{"index":0,"delta":{"content":"'
)
_AFTER = b' "},"finish_reason":null}]}\n\n'
_SIZE = b"%x\r\n" % (len(_BEFORE) + 19 + len(_AFTER))
_CHUNK = _SIZE + _BEFORE + b"%d" + _AFTER + b"\r\n"
_DONE = b"data: [DONE]\n\n"
_LAST = b"%x\r\n%s\r\n0\r\n\r\n" % (len(_DONE), _DONE)


def plain(text: int) -> bytes:
    """A whole answer with so many bytes of text."""
    body = _PLAIN % (b"Hello world. " * (text // 13 + 1))[:text] + _USAGE
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class Peer:
    """A connection, and the stream that it is sent."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.parts: list[bytes] = []
        self.missing = 0
        self.unsent: deque[memoryview] = deque()
        self.left = 0
        self.every = 0
        self.head = b""


class Provider:
    """All connections of one listening socket, in one thread."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._epoll = select.epoll()
        self._peers: dict[int, Peer] = {}
        self._due: list[tuple[int, int, Peer]] = []
        self._plain: dict[int, bytes] = {}
        listening.setblocking(False)
        self._epoll.register(listening, select.EPOLLIN)

    def run(self) -> None:
        """Until the process is ended."""
        while True:
            wait = -1.0 if not self._due else max(0.0, (self._due[0][0] - time.monotonic_ns()) / 1e9)
            for descriptor, event in self._epoll.poll(wait):
                peer = self._peers.get(descriptor)
                if peer is None:
                    self._accept()
                elif event & select.EPOLLOUT:
                    self._flush(peer)
                else:
                    self._read(peer)
            now = time.monotonic_ns()
            while self._due and self._due[0][0] <= now:
                due, _, peer = heapq.heappop(self._due)
                if peer.left:
                    self._next(peer, due)

    def _accept(self) -> None:
        for _ in range(64):
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._peers[sock.fileno()] = Peer(sock)
            self._epoll.register(sock, select.EPOLLIN)

    def _close(self, peer: Peer) -> None:
        peer.left = 0
        self._peers.pop(peer.sock.fileno(), None)
        peer.sock.close()

    def _read(self, peer: Peer) -> None:
        try:
            data = peer.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(peer)
            return
        if not peer.missing:
            data = b"".join([*peer.parts, data])
            head, end, body = data.partition(b"\r\n\r\n")
            peer.parts = [data]
            if not end:
                return
            length = _LENGTH.search(head)
            peer.missing = (int(length[1]) if length else 0) - len(body)
        else:
            peer.parts.append(data)
            peer.missing -= len(data)
        if peer.missing <= 0:
            request, peer.parts, peer.missing = b"".join(peer.parts), [], 0
            self._answer(peer, request)

    def _answer(self, peer: Peer, request: bytes) -> None:
        found = _MODEL.search(request)
        kind, *numbers = (found[1] if found else b"mock").split(b"-")
        if kind in (b"stream", b"idle"):
            count, milliseconds = map(int, numbers or (b"1", b"0"))
            peer.left, peer.every, peer.head = count, milliseconds * 1_000_000, _HEAD
            if kind == b"idle":  # and never the end
                self._send(peer, _HEAD + _CHUNK % time.time_ns())
            elif peer.every:
                self._next(peer, time.monotonic_ns())
            else:
                self._burst(peer)
        else:
            size = int(numbers[0]) if kind == b"answer" else 260
            if size not in self._plain:
                self._plain[size] = plain(size)
            self._send(peer, self._plain[size])

    def _burst(self, peer: Peer) -> None:
        self._send(peer, _HEAD + _CHUNK % time.time_ns())
        for _ in range(peer.left - 1):
            self._send(peer, _CHUNK % time.time_ns())
        self._send(peer, _LAST)

    def _next(self, peer: Peer, due: int) -> None:
        head, peer.head = peer.head, b""
        peer.left -= 1
        self._send(peer, head + _CHUNK % time.time_ns())
        if peer.left:
            heapq.heappush(self._due, (due + peer.every, id(peer), peer))
        else:
            self._send(peer, _LAST)

    def _send(self, peer: Peer, data: bytes) -> None:
        if peer.unsent:
            peer.unsent.append(memoryview(data))
            return
        try:
            sent = peer.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # reading tells of the end
        if sent < len(data):
            peer.unsent.append(memoryview(data)[sent:])
            self._epoll.modify(peer.sock, select.EPOLLIN | select.EPOLLOUT)

    def _flush(self, peer: Peer) -> None:
        waiting, peer.unsent = peer.unsent, deque()
        while waiting and not peer.unsent:
            self._send(peer, bytes(waiting.popleft()))
        peer.unsent.extend(waiting)
        if not peer.unsent:
            self._epoll.modify(peer.sock, select.EPOLLIN)


def main() -> None:
    """Serve on loopback."""
    gc.disable()  # no cycles are made, and a collection would be measured as delay
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096) as listening:
        Provider(listening).run()


if __name__ == "__main__":
    main()
