"""Reading the body of one request as it arrives: counted if its length is known, else decoded chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from aigw.connections.chunks import BodyTooLong, ChunkedBody, MalformedChunks
from aigw.connections.request_head import invalid
from aigw.net import read
from aigw.server.request import Request

if TYPE_CHECKING:
    from aigw.server.channel import Channel


class BodyReader:
    """Gives the body to ``request``, and the data after it to ``complete``. ``length`` is None for one in chunks."""

    def __init__(
        self, channel: Channel, request: Request, length: int | None, complete: Callable[[bytes], None]
    ) -> None:
        self._channel = channel
        self._request = request
        self._left = length or 0
        self._complete = complete
        self._stopped = False
        self._decoding = False  # waits for a turn to read more
        self._chunks: ChunkedBody | None = None
        self._reads_more = self._left > read.USUAL
        if self._reads_more:
            read.expect(channel.transport, self._left)
        if length is None:
            self._chunks = ChunkedBody(request.take_body, self._finish)
            self._chunks.limit = request.max_body

    def feed(self, data: bytes) -> None:
        """One read."""
        if self._chunks is not None:
            self._decode(self._chunks.dataReceived, data)
            return
        left = self._left
        self._left -= len(data)
        self._request.take_body(data if len(data) <= left else data[:left])
        if self._left <= 0:
            self._finish(data[left:])

    def stop(self) -> None:
        """Read no more of the body, and drop the decoder, which makes a cycle with the request and its body."""
        self._stopped = True
        self._chunks = None
        if self._reads_more:
            self._reads_more = False
            read.expect(self._channel.transport, 0)

    def _finish(self, rest: bytes) -> None:
        if not self._stopped:
            self.stop()
            self._complete(rest)

    def _decode(self, decode: Callable[..., None], *data: bytes) -> None:
        """Decode some chunks; the rest of a read with many chunks is decoded in later turns of the reactor."""
        try:
            decode(*data)
        except MalformedChunks:
            self._channel.reject(invalid())
        except BodyTooLong:
            self._channel.refuse(self._request, self._request.too_large())
        if self._has_unread() and not self._decoding:
            self._decoding = True
            self._channel.transport.pauseProducing()
            self._channel.site.slices.add(self._decode_rest())

    def _decode_rest(self) -> Generator[None, None, None]:
        while self._chunks is not None and self._has_unread():
            self._decode(self._chunks.go_on)
            yield
        self._decoding = False
        self._channel.read_on()

    def _has_unread(self) -> bool:
        return self._chunks is not None and self._chunks.unread
