"""The head of a request, read strictly and in one place.

One pattern reads the request line, llhttp reads the headers, and the rest is checked here. Where RFC 9112 allows
several readings, the request is refused, so that no proxy before the gateway can read it differently.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from http import HTTPStatus

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from aigw.errors import BadRequest, GatewayError, HeadersTooLarge
from aigw.protocols.error_bodies import error_body

MAX_LINE = 16 * 1024
MAX_HEAD = 32 * 1024
MAX_HEADERS = 100
MAX_DIGITS = 18
SINGLE = frozenset(
    b"host content-length content-type authorization proxy-authorization x-api-key api-key cookie origin "
    b"sec-fetch-site expect x-request-id traceparent idempotency-key http-referer x-title anthropic-version".split()
)  # all headers that the gateway uses or forwards, except lists, whose lines make one value (RFC 9110, section 5.3)
IDS_AT_ONCE = 256  # made of one block of random bytes: one system call for each id would cost more than the id
TLS_HANDSHAKE = b"\x16"  # the first byte of a record with a ClientHello (RFC 8446, 5.1)
REASONS = {each.value: each.phrase.encode() for each in HTTPStatus}  # Twisted has none for 422, 429 and others
_HOST = rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]"
_REST = rb"[!-\"$-~]*"
_REQUEST_LINE = re.compile(
    rb"(?:\r\n)?"  # section 2.2: one empty line before it
    rb"([!#$%%&'*+.^_`|~0-9A-Za-z-]+) "
    rb"(/%s|\*|(?i:https?)://%s+(?:[/?]%s)?) "  # 3.2: a path, a URI without credentials, the asterisk; no fragment
    rb"(HTTP/1\.[01])\r\n" % (_REST, _HOST, _REST)
)
_ANY_LINE = b"POST / HTTP/1.1\r\n"  # for llhttp in place of the real one: it knows some methods only
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
ORIGIN = re.compile(rb"^https?://[^/?]*", re.IGNORECASE)  # 3.2.2: servers accept a whole URI
_is_host = re.compile(_HOST + rb"*").fullmatch  # 3.2: may be empty; no path, no credentials, no white space


class RequestHead:
    """A head with the empty line after it. Raises BadRequest or HeadersTooLarge.

    ``headers`` are by lower-case name; of a list all its lines are one value. ``length`` is that of the body, None for
    one in chunks. ``persistent``: another request may follow. ``expects_continue``: the client waits for
    ``100 Continue`` before it sends the body.
    """

    __slots__ = (
        "_complete",
        "_repeated",
        "expects_continue",
        "headers",
        "length",
        "method",
        "persistent",
        "request_id",
        "target",
        "version",
    )

    def __init__(self, data: bytes) -> None:
        line = _REQUEST_LINE.match(data)
        if line is None:
            raise invalid()
        if data.count(b"\r\n", line.end()) > MAX_HEADERS + 1:
            raise _too_large()
        self.method, self.target, self.version = line.groups()
        self.headers: dict[bytes, bytes] = {}
        self._repeated = b""
        self._complete = False
        self._read(data[line.end() :])
        if self._repeated:
            raise BadRequest(f"The header {self._repeated.decode()!r} is repeated; send it once.")
        if not self._complete:
            raise invalid()
        self.length = self._length()
        self.request_id = id_of(self.headers.get(b"x-request-id"))
        host = self.headers.get(b"host", b"" if self.version == b"HTTP/1.0" else None)
        if host is None or not _is_host(host):
            raise invalid()
        options = self.headers.get(b"connection")
        self.persistent = self.version == b"HTTP/1.1" and (
            options is None or b"close" not in [each.strip() for each in options.lower().split(b",")]
        )
        expected = self.headers.get(b"expect")
        self.expects_continue = (
            expected is not None and self.version == b"HTTP/1.1" and expected.lower() == b"100-continue"
        )

    def _read(self, lines: bytes) -> None:
        parser = HttpRequestParser(self)
        try:
            parser.feed_data(_ANY_LINE)
            parser.feed_data(lines)
        except HttpParserUpgrade:  # the request is served without an upgrade
            pass
        except HttpParserError:
            self._complete = False
            if (b"\n" + lines.lower()).count(b"\ncontent-length:") > 1:
                self._repeated = b"content-length"

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        name, value = name.lower(), value.strip(b" \t")
        if name in self.headers:
            if name in SINGLE:
                self._repeated = self._repeated or name
            value = self.headers[name] + b", " + value
        self.headers[name] = value

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._complete = True

    def _length(self) -> int | None:
        """The framing of the body: either one length or chunks; no chunks in HTTP/1.0."""
        length = self.headers.get(b"content-length")
        coding = self.headers.get(b"transfer-encoding")
        if coding is not None:
            if length is not None or coding.lower() != b"chunked" or self.version != b"HTTP/1.1":
                raise invalid()
            return None
        if length is None:
            return 0
        if not length.isdigit() or len(length) > MAX_DIGITS:
            raise invalid()
        return int(length)


class HeadReader:
    """Finds the end of a head. A head in several reads is checked line by line, so a bad one is refused early."""

    def __init__(self) -> None:
        self.stop()

    def feed(self, data: bytes) -> tuple[RequestHead, bytes] | None:
        """A head and what is behind it, None if it is not whole. Raises BadRequest or HeadersTooLarge."""
        end = 0 if self.data else data.find(b"\r\n\r\n", 0, MAX_LINE) + 4
        if end < 4:
            end = self._scan(data)
            if not end:
                return None
            data = bytes(self.data)
            self.stop()
        try:
            return RequestHead(data[:end]), data[end:]
        except GatewayError:
            self.data += data[:end]  # for ``path``
            raise

    @property
    def path(self) -> bytes:
        """The path in a head that is refused or not whole; empty if it is not known."""
        line = _REQUEST_LINE.match(self.data)
        return ORIGIN.sub(b"", line[2]).partition(b"?")[0] if line else b""

    def stop(self) -> None:
        """Forget what there is of a head."""
        self.data = bytearray()  # what has come of a head that is not whole
        self._line = 0  # where the line begins that is not whole yet
        self._scanned = 0
        self._lines = 0

    def _scan(self, data: bytes) -> int:
        """Where the head ends, 0 if it has not."""
        self.data += data
        while (end := self.data.find(b"\r\n", self._scanned)) >= 0:
            self._check_size(end)
            if end == self._line and end:
                return end + 2
            if end and not self._lines:
                if not _REQUEST_LINE.match(self.data):
                    raise invalid()
                self._lines = 1
            elif end:
                self._lines += 1
            if self._lines > MAX_HEADERS + 1:
                raise _too_large()
            self._line = self._scanned = end + 2
        self._scanned = max(self._line, len(self.data) - 1)
        self._check_size(len(self.data))
        return 0

    def _check_size(self, end: int) -> None:
        """``end`` is the end of the line, or of its part that has arrived."""
        if end - self._line > MAX_LINE:
            raise HeadersTooLarge(f"A line of the request head is longer than {MAX_LINE} bytes.")
        if end > MAX_HEAD:
            raise _too_large()


def id_of(offered: bytes | None) -> str:
    """The client's request id if it is sane, else a new one of 32 hexadecimal digits."""
    if offered and _REQUEST_ID.fullmatch(offered):
        return offered.decode()
    return new_id()


def new_id() -> str:
    """Make an id of 32 hexadecimal digits."""
    if not _ids:
        block = os.urandom(16 * IDS_AT_ONCE).hex()
        _ids.extend([block[at : at + 32] for at in range(0, len(block), 32)])
    return _ids.pop()


_ids: list[str] = []  # that are not used yet
os.register_at_fork(after_in_child=_ids.clear)  # else both processes would give the same ids


def invalid() -> BadRequest:
    """The error for data that is not a request."""
    return BadRequest("The request is not valid HTTP/1.1.")


def _too_large() -> HeadersTooLarge:
    return HeadersTooLarge(f"The headers are larger than {MAX_HEAD} bytes, or more than {MAX_HEADERS}.")


def answer_to_no_request(
    error: GatewayError,
    request_id: str,
    with_body: bool,
    body_of: Callable[[GatewayError, str], bytes] = error_body,
    more: bytes = b"",
) -> bytes:
    """The whole answer to data that is not a valid request; the connection closes after it. ``more`` are headers."""
    request_id = request_id or id_of(None)
    body = body_of(error, request_id)
    return (
        b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
        b"X-Request-Id: %s\r\nConnection: close\r\n%s\r\n%s"
        % (error.status, REASONS[error.status], len(body), request_id.encode(), more, body if with_body else b"")
    )
