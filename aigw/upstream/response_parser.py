"""Parses a provider's answer in HTTP/1.1: the head, the body, the end. A malformed answer has a reason, ``broken``.

llhttp (``httptools``) does the parsing. An ambiguous answer counts as malformed; its meaning is never guessed.
"""

from __future__ import annotations

import re
from typing import Protocol

import httptools

from aigw.upstream.known_head import Headers, KnownHead, known_head

MAX_HEAD = 64 * 1024  # bytes of all headers of one answer: those of 1xx, of its head and of its trailers
MAX_HEADERS = 200  # their number
MAX_FRAMING = 2 * MAX_HEAD  # bytes in a row without body: heads, trailers, sizes and extensions of chunks

NO_CODINGS = frozenset([b"", b"identity", b"none", b"utf-8", b"utf8"])  # names for an uncompressed body
_TEXTUAL = re.compile(rb"\s*(?:text/|[^;]*json|;|$)", re.IGNORECASE)
_COMPRESSED = (b"\x1f", b"\x28\xb5\x2f\xfd", b"\x78\x01", b"\x78\x9c", b"\x78\xda")  # gzip, zstd, zlib: never text
MOST_LEARNED = 8  # heads for each connection: a provider whose heads always differ costs no more
IDLE_SECONDS = 4.0  # uvicorn and Node close idle connections after 5 s
MOST_IDLE_SECONDS = 300.0
_ALLOWED = re.compile(rb"(?:^|[\s,;])timeout\s*=\s*\"?([0-9]{1,9})(?![0-9])", re.IGNORECASE)
_TLS_ALERT = b"\x15\x03"  # RFC 8446, section 5.1


class ResponseParser:
    """Parses one answer after the other. The attributes describe the data so far; ``broken`` is a reason, or empty.

    ``may_skip``: a chunk has just ended, and its data with an event, so that a next chunk need not be parsed if it is
    whole. No line of HTTP has two LF in a row: behind those of the event only the CRLF of the chunk can end the read.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append  # called for each chunk: list's method is faster than a function
        self._parser = httptools.HttpResponseParser(self)
        self._known: KnownHead | None = None
        self._to_learn = MOST_LEARNED
        self.start()

    def start(self) -> None:
        """Reset the state for the next answer."""
        self.status = 0
        self.broken = ""
        self._is_new = True  # nothing of the answer has come
        self.read_by: KnownHead | None = None  # the head that was known before the answer came
        self._found: re.Match[bytes] | None = None
        self.coded = False
        self._at_the_start = True  # no byte of the body was parsed yet
        self.head_done = False
        self.complete = False
        self.has_unrequested = False
        self.keep_alive = False
        self.framed = False
        self._pieces.clear()
        self._last: list[bytes] = []
        self._size = 0
        self._count = 0
        self._framing = 0
        self.may_skip = False
        self.headers: Headers = {}

    def known_headers(self) -> Headers:
        """The headers of an answer that was read by a known head. ``headers`` are none then, because few need them."""
        return {} if self.read_by is None or self._found is None else self.read_by.headers(self._found)

    def feed(self, data: bytes) -> None:
        """Parse one network read."""
        is_new = self._is_new
        if is_new:
            self._is_new = False
            if self._known is not None and self._read_by(self._known, data):
                return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as problem:
            is_tls = not self.status and data.startswith(_TLS_ALERT)
            self.broken = self.broken or ("it is TLS; does base_url need https://?" if is_tls else str(problem)[:100])
        except httptools.HttpParserUpgrade:
            self.broken = "it changes the protocol without a request to do so"
        self.may_skip = False
        if self._pieces:
            self._framing = 0
            self.may_skip = data[-4:] == b"\n\n\r\n" and self._pieces[-1][-2:] == b"\n\n" and not self.complete
            if self._at_the_start:
                self._at_the_start = False
                if self._pieces[0].startswith(_COMPRESSED):
                    self._found_compressed()
        else:
            self._framing += len(data)
            if self._framing > MAX_FRAMING and not self.broken:
                # One header or chunk extension without an end: llhttp would wait for that end for ever.
                self.broken = "its headers or chunk extensions are too large"
        if is_new and self.complete and self._to_learn:
            self._learn(data)

    def _read_by(self, known: KnownHead, data: bytes) -> bool:
        """Read a whole answer with the known head; False if ``data`` is none."""
        found = known.read(data)
        if found is None or data.startswith(_COMPRESSED, found.end()):
            return False
        self.read_by, self._found = known, found
        self.status = 200
        self.keep_alive = self.framed = self.head_done = self.complete = True
        self.idle_seconds = known.idle_seconds
        self._last = [data[found.end() :]]
        return True

    def _learn(self, data: bytes) -> None:
        """Know the head of the whole answer ``data``, which was parsed, if the next one may be like it."""
        if self.status == 200 and self.keep_alive and not (self.broken or self.has_unrequested or self.coded):
            self._to_learn -= 1
            self._known = known_head(data, self.headers, self.idle_seconds, self._known)

    def _found_compressed(self) -> None:
        """A client cannot read compressed text without Content-Encoding, so the answer is broken.

        Only text is checked: audio may begin with the same bytes.
        """
        kinds = self.headers.get(b"content-type", [])
        if 200 <= self.status < 300 and all(_TEXTUAL.match(kind) for kind in kinds):
            self.broken = self.broken or "its body is compressed and has no Content-Encoding"
            self._pieces.clear()
            self.complete = False

    def take(self) -> bytes:
        """Return the new data of the body as one piece, and forget it."""
        pieces = self._last if self.complete else self._pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return body

    def give_back(self, body: bytes) -> None:
        """Put what was taken of the body before the data that is there."""
        (self._last if self.complete else self._pieces).insert(0, body)

    # llhttp's callbacks

    def on_message_begin(self) -> None:
        """A message starts; a second one after the answer was not requested."""
        if self.complete:
            self.has_unrequested = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer; trailers are dropped."""
        self._count += 1
        self._size += len(name) + len(value) + 4
        if self._count > MAX_HEADERS or self._size > MAX_HEAD:
            self.broken = self.broken or "its headers are too many or too large"
        elif not self.head_done:
            self.headers.setdefault(name.lower(), []).append(value)

    def on_headers_complete(self) -> None:
        """The head is complete. Check the framing and the coding of its body."""
        status = self._parser.get_status_code()
        if self.complete or status < 200:
            return
        self.status = status
        self.keep_alive = self._parser.should_keep_alive()
        given = self.headers
        self.framed = b"transfer-encoding" in given or b"content-length" in given
        if b"transfer-encoding" in given and _lower(given[b"transfer-encoding"]) != [b"chunked"]:
            self.broken = "its Transfer-Encoding is not chunked"
        if b"content-encoding" in given:
            codings = b",".join(_lower(given[b"content-encoding"])).split(b",")
            self.coded = not NO_CODINGS.issuperset([coding.strip() for coding in codings])
            if self.coded and 200 <= status < 300:
                self.broken = self.broken or "it has a Content-Encoding, and the request asked for identity"
        self.idle_seconds = _idle_seconds(given[b"keep-alive"]) if b"keep-alive" in given else IDLE_SECONDS
        self.head_done = not self.broken

    def on_message_complete(self) -> None:
        """The message is complete by its framing. A 1xx message is not the answer."""
        if not self.head_done:
            self.headers = {}
        elif not self.complete and not self.broken:
            self.complete = True
            self._last = self._pieces.copy()  # later data is not part of this answer


class AnswerTaker(Protocol):
    """Takes an answer without a Deferred, or leaves it to ``Connection.resume``. See straight/path."""

    def on_data(self, parser: ResponseParser) -> bool:
        """One network read is parsed. False: the call has resumed with a Deferred, which gets what there is."""

    def leave(self) -> None:
        """The connection is lost: resume with a Deferred."""


def _lower(values: list[bytes]) -> list[bytes]:
    return [value.lower() for value in values]


def _idle_seconds(keep_alive: list[bytes]) -> float:
    """How long a connection may be idle by the header Keep-Alive of its answer: a second less, for the way there.

    The header is that of RFC 2068, section 19.7.1.1. Without a time in it the gateway's own limit holds.
    """
    found = _ALLOWED.search(b", ".join(keep_alive))
    return min(MOST_IDLE_SECONDS, int(found[1]) - 1.0) if found else IDLE_SECONDS


def is_compressed(body: bytes) -> bool:
    """Whether the bytes begin like compressed data."""
    return body.startswith(_COMPRESSED)
