"""The providers of the soak, a process of their own: two ports, plain and TLS, each answering well, mostly.

``python -m tests.soak_providers CERTIFICATE`` prints both ports and serves until its standard input ends.
"""

from __future__ import annotations

import json
import random
import sys
from collections import deque
from pathlib import Path

from twisted.internet import reactor, ssl
from twisted.internet.protocol import Protocol
from twisted.internet.stdio import StandardIO

from tests.providers import (
    COMMENT,
    DONE,
    ERROR_EVENT,
    ROLE,
    STREAM_HEAD,
    Behaviour,
    Provider,
    answer,
    as_asked,
    begin_stream,
    chunk,
    drip,
    event,
    fin,
    hang,
    head,
    later,
    raw,
    rst,
    stream,
    then,
    whole_stream,
)

SEVERAL = [ROLE, *[event({"content": f"{number} "}) for number in range(12)], event(finish_reason="stop"), DONE]
WORDS = event({"content": "hel"})

#   share of requests, and what becomes of them
FAULTS: list[tuple[float, Behaviour]] = [
    (6, answer(500, b'{"error": {"message": "x"}}')),
    (4, answer(429, b'{"error": {"message": "x"}}', retry_after_ms="200")),
    (3, answer(400, b'{"error": {"message": "x", "type": "invalid_request_error"}}')),
    (4, answer(200, b'{"error": {"message": "overloaded"}}')),
    (2, answer(200, b"not json")),
    (2, answer(200, b"")),
    (2, answer(302, b"", Location="/x")),
    (4, fin),
    (4, rst),
    (3, raw(head(Content_Length="500"), b'{"choices')),
    (3, then(raw(head(Content_Length="500"), b'{"choices'), fin)),
    (3, then(begin_stream(ROLE), fin)),
    (3, then(begin_stream(ROLE, WORDS), later(fin, 0.005))),
    (3, then(begin_stream(ROLE, WORDS), later(rst, 0.005))),
    (3, stream(ROLE, ERROR_EVENT)),
    (3, stream(ROLE, WORDS, ERROR_EVENT)),
    (2, raw(STREAM_HEAD, chunk(ROLE), chunk(WORDS), b"zz\r\n")),
    (2, begin_stream(COMMENT, COMMENT)),
    (2, begin_stream(ROLE, WORDS)),
    (2, raw(b"HTTP/1.1 2000 OK\r\n\r\n")),
    (2, hang),
    (2, drip(head(Content_Length="2") + b"{}", 1)),
    (2, drip(whole_stream(), 50)),
    (1, answer(200, b'{"data": ["%s"]}' % (b"x" * 300_000))),
    (3, then(as_asked(), fin)),
]
SHARE = 0.06  # of all requests


class Mixed(Provider):
    """Behaves by chance, and keeps nothing of what it saw."""

    def __init__(self, seed: int) -> None:
        super().__init__([])
        self.requests = deque(maxlen=1)  # type: ignore[assignment]
        self.connections = deque(maxlen=1)  # type: ignore[assignment]
        self._random = random.Random(seed)
        self._weights = [weight for weight, _ in FAULTS]
        self._faults = [fault for _, fault in FAULTS]
        self._well = as_asked(answer(), stream(*SEVERAL))

    def next_behaviour(self) -> Behaviour:
        if self._random.random() > SHARE:
            return self._well
        return self._random.choices(self._faults, self._weights)[0]


class UntilTheEnd(Protocol):
    def connectionLost(self, reason) -> None:
        if reactor.running:
            reactor.stop()


def main() -> None:
    certificate = ssl.PrivateCertificate.loadPEM(Path(sys.argv[1]).read_bytes())
    plain = reactor.listenTCP(0, Mixed(1), 500, interface="127.0.0.1")
    options = ssl.CertificateOptions(
        privateKey=certificate.privateKey.original,
        certificate=certificate.original,
        acceptableProtocols=[b"http/1.1"],  # which the gateway offers
    )
    secure = reactor.listenSSL(0, Mixed(2), options, 500, interface="127.0.0.1")
    print(json.dumps([plain.getHost().port, secure.getHost().port]), flush=True)
    StandardIO(UntilTheEnd())
    reactor.run()


if __name__ == "__main__":
    main()
