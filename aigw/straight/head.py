"""The head of an answer on the straight path: the part that the gateway forwards."""

from __future__ import annotations

import msgspec

from aigw.access.limit_lines import renamed
from aigw.net import headers
from aigw.proxy.answers import Stream
from aigw.proxy.plain import Plain
from aigw.routing.router import Router
from aigw.upstream.known_head import Headers
from aigw.upstream.response_parser import ResponseParser

MOST = 256  # heads that are remembered; a provider has few
MOST_BYTES = 4096  # of the lines of one of them


class AnswerHead(msgspec.Struct, frozen=True, gc=False):
    """The lines of the provider's headers that the client gets, and the type of the body in lower case.

    A client with limits gets ``limited`` instead of ``lines``.
    """

    lines: bytes
    limited: bytes
    kind: bytes


class AnswerHeads:
    """Makes the heads, and remembers those that are the same in the next answer, while the same keys are hidden."""

    def __init__(self, router: Router, of_streams: bool = False) -> None:
        self._router = router
        self._of_streams = of_streams
        self._keys = router.keys
        self._known: dict[bytes | tuple[headers.Header, ...], AnswerHead | None] = {}

    def head_of(self, parser: ResponseParser) -> AnswerHead | None:
        """The head of the answer that ``parser`` has read; None if there may be a key in it."""
        if self._router.keys is not self._keys or len(self._known) > MOST:
            self._keys = self._router.keys
            self._known.clear()
        known, given = parser.read_by, parser.headers
        sent = headers.forwarded(given.items()) if known is None else []
        key = tuple(sent) if known is None else known.shape
        try:
            return self._known[key]
        except KeyError:
            varies = False
            if known is not None:
                given = parser.known_headers()
                sent = headers.forwarded(given.items())
                varies = any(headers.is_forwarded(name) for name in known.varying)
            head = self._made(headers.bounded(sent), given)
            if head is not None and not varies and len(head.lines) <= MOST_BYTES:
                self._known[key] = head
            return head

    def _made(self, shown: list[headers.Header], given: Headers) -> AnswerHead | None:
        if b"content-type" not in dict(shown):
            shown.append((b"content-type", (Stream if self._of_streams else Plain).default_type))
        if self._of_streams:
            shown = [*headers.of_a_stream(shown, mislabelled=False), (b"transfer-encoding", b"chunked")]
        if self._router.keys.may_be_in(shown):
            return None
        lines = headers.lines(shown)
        return AnswerHead(lines, renamed(lines), given.get(b"content-type", [b""])[-1].lower())
