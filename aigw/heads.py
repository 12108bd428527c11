"""How the head of a request is read: strictly, and in one go where it is plain and came in one read, as nearly all do.

What RFC 9112 leaves open is refused, so that no proxy before us can read it otherwise.
"""

from __future__ import annotations

import re
from typing import Any

from twisted.web.http import HTTPChannel

MAX_LINE = 16 * 1024
MAX_HEAD = 32 * 1024
MAX_HEADERS = 100
MAX_DIGITS = 18
_PLAIN = re.compile(
    rb"[A-Z]+ [!-~]+ HTTP/1\.1\r\n(?:[!#$%%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r\n){1,%d}\r\n" % MAX_HEADERS
)


class HeadReader(HTTPChannel):
    """Twisted's channel, and how it reads a head. What is not plain is read by Twisted, line by line."""

    MAX_LENGTH = MAX_LINE
    totalHeadersSize = MAX_HEAD
    maxHeaders = MAX_HEADERS
    requests: list[Any]
    _closing = False

    def dataReceived(self, data: bytes) -> None:
        """See IProtocol."""
        if self.line_mode and not (self._busyReceiving or self._buffer or self._in_head()):
            end = data.find(b"\r\n\r\n", 0, MAX_LINE)
            if end > 0 and _PLAIN.fullmatch(data, 0, end + 4):
                self._plain_head(data[:end])
                data = data[end + 4 :]
        if data and not self._closing:
            super().dataReceived(data)

    def _plain_head(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        self.lineReceived(first)  # which makes the request
        self._receivedHeaderSize = len(head)
        self._receivedHeaderCount = len(lines)
        add = self.requests[-1].requestHeaders.addRawHeader
        for line in lines:
            name, _, value = line.partition(b":")
            if name.lower() in (b"content-length", b"transfer-encoding"):
                if not self.headerReceived(line):
                    return
            else:
                add(name, value.strip(b" \t"))
        self.lineReceived(b"")

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
            super().lineReceived(line)

    def headerReceived(self, line: bytes) -> bool:
        """One header."""
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if (name == b"content-length" and len(value) > MAX_DIGITS) or (
            name == b"transfer-encoding" and (value.lower() != b"chunked" or self._version != b"HTTP/1.1")
        ):
            self._respondToBadRequestAndDisconnect()
        return not self._closing and bool(super().headerReceived(line))
