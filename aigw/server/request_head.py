"""How the head of a request is read: strictly, and in one go where it is plain and came in one read, as nearly all do.

What RFC 9112 leaves open is refused, so that no proxy before us can read it otherwise.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any

from twisted.web.http import HTTPChannel

from aigw.errors import BadRequest, GatewayError
from aigw.server.chunks import ChunkedBody

MAX_LINE = 16 * 1024
MAX_HEAD = 32 * 1024
MAX_HEADERS = 100
MAX_DIGITS = 18
SINGLE = frozenset(
    b"host content-length content-type authorization proxy-authorization x-api-key cookie origin sec-fetch-site expect "
    b"x-request-id traceparent idempotency-key http-referer x-title".split()
)  # of what is read here, acted on or passed on: all but the lists, whose lines make one value (RFC 9110, section 5.3)
TLS_HANDSHAKE = b"\x16"  # the first byte of a record with a ClientHello (RFC 8446, 5.1)
_PLAIN = re.compile(
    rb"([A-Z]+) ([!-~]+) HTTP/1\.1\r\n((?:[!#$%%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r\n){1,%d})\r\n" % MAX_HEADERS
)


class HeadReader(HTTPChannel, ABC):
    """Twisted's channel, and how it reads a head. What is not plain is read by Twisted, line by line."""

    MAX_LENGTH = MAX_LINE
    totalHeadersSize = MAX_HEAD
    maxHeaders = MAX_HEADERS
    requests: list[Any]
    _closing = False

    @abstractmethod
    def begin_head(self) -> None:
        """The head of a request begins."""

    @abstractmethod
    def judge(self, request: Any, given: dict[bytes, bytes], host: bytes, options: bytes) -> None:
        """The head of ``request`` is complete; ``given`` are its headers by lower-case name, of a list all its lines.

        ``options`` are those of all Connection headers.
        """

    @abstractmethod
    def await_body(self) -> None:
        """The request was not refused, and some of its body is still to come."""

    @abstractmethod
    def _reject(self, error: GatewayError) -> None:
        """Answer what never became a request, and close."""

    @abstractmethod
    def misread(self) -> None:
        """What came is TLS, on a connection that is not."""

    def dataReceived(self, data: bytes) -> None:
        """See IProtocol."""
        if self.line_mode and self.persistent and not (self._busyReceiving or self._buffer or self._in_head()):
            end = data.find(b"\r\n\r\n", 0, MAX_LINE)
            plain = _PLAIN.fullmatch(data, 0, end + 4) if end > 0 else None
            given = _once_each(plain[3]) if plain else None
            if plain and given is not None:
                self._busyReceiving = True  # if this is answered at once, what follows waits in Twisted's buffer
                try:
                    self._read(plain[1], plain[2], given, data, end + 4)
                finally:
                    self._busyReceiving = False
                if not self._buffer:
                    return
                data = b""
            elif data[:1] == TLS_HANDSHAKE and not self.isSecure():
                self.misread()
                return
        if not self._closing:
            super().dataReceived(data)

    def _read(self, method: bytes, target: bytes, given: dict[bytes, bytes], data: bytes, start: int) -> None:
        """What Twisted does for a head line by line, and for a body that came with it piece by piece."""
        self.begin_head()
        request = self.requestFactory(self, 0)
        self.requests.append(request)
        self._command, self._path, self._version = method, target, b"HTTP/1.1"
        self._receivedHeaderSize = start
        length = given.get(b"content-length")
        if length is not None and not self._maybeChooseTransferDecoder(b"Content-Length", length):
            return
        self.judge(request, given, given[b"host"], given.get(b"connection", b""))
        if self._closing:
            return
        end = start + (self.length or 0)
        if len(data) < end:
            self.setRawMode()
            self.await_body()
            self.rawDataReceived(data[start:])
            return
        if self.length:
            request.handleContentChunk(data[start:end])
        if self._closing:
            return
        if len(data) > end:
            self._finishRequestBody(data[end:])
        else:
            self.allContentReceived()

    def _in_head(self) -> bool:
        """Whether the next line belongs to a request whose first line was read."""
        return "_version" in self.__dict__  # Twisted's, from the first line until the body is there

    def lineReceived(self, line: bytes) -> None:
        """A line of the head."""
        if line[:1] in (b" ", b"\t"):  # obs-fold
            self._respondToBadRequestAndDisconnect()
        if self._closing:
            return
        if line and self._in_head():  # Twisted keeps each header back, for a fold that was refused above
            self._receivedHeaderSize += len(line)
            if self._receivedHeaderSize > self.totalHeadersSize:
                self._respondToBadRequestAndDisconnect()
            else:
                self.headerReceived(line)
        else:
            if not self._in_head():
                self.begin_head()
            super().lineReceived(line)

    def headerReceived(self, line: bytes) -> bool:
        """One header."""
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if (name == b"content-length" and len(value) > MAX_DIGITS) or (
            name == b"transfer-encoding" and (value.lower() != b"chunked" or self._version != b"HTTP/1.1")
        ):
            self._respondToBadRequestAndDisconnect()
        elif name in SINGLE and self.requests[-1].requestHeaders.hasHeader(name):
            self._reject(BadRequest(f"The header {name.decode()!r} stands twice; send it once."))
        return not self._closing and bool(super().headerReceived(line))

    def allHeadersReceived(self) -> None:
        """See HTTPChannel: all that is not plain ends here."""
        if self._closing:
            return
        request = self.requests[-1]
        given = {name.lower(): values for name, values in request.requestHeaders.getAllRawHeaders()}
        hosts = given.get(b"host") or [b""] * (self._version != b"HTTP/1.1")
        if len(hosts) != 1:
            self._respondToBadRequestAndDisconnect()
            return
        joined = {name: b", ".join(values) for name, values in given.items()}
        if self.length is None:
            self._transferDecoder = ChunkedBody(request.handleContentChunk, self._finishRequestBody)
        self.judge(request, joined, hosts[0], joined.get(b"connection", b""))
        if self.length != 0 and not self._closing:
            self.await_body()


def _once_each(lines: bytes) -> dict[bytes, bytes] | None:
    """Headers by lower-case name; None where one stands twice, or where how long the body is takes a closer look."""
    fields = [line.partition(b":") for line in lines.split(b"\r\n")[:-1]]
    given = {name.lower(): value.strip(b" \t") for name, _, value in fields}
    if len(given) != len(fields) or b"host" not in given or b"transfer-encoding" in given:
        return None
    length = given.get(b"content-length", b"0")
    return given if length.isdigit() and len(length) <= MAX_DIGITS else None


_HOST = rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]"


_REST = rb"[!-\"$-~]*"


is_host = re.compile(_HOST + rb"*").fullmatch
"""Section 3.2: a Host, which may be empty, but holds no path, no credentials, no white space."""


is_target = re.compile(rb"/%s|\*|https?://%s+(?:[/?]%s)?" % (_REST, _HOST, _REST), re.IGNORECASE).fullmatch
"""Section 3.2: a path, an absolute URI without credentials, or the asterisk; no fragment, control or 8-bit byte."""
