"""The site that every listener serves."""

from __future__ import annotations

from collections import OrderedDict
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred, succeed
from twisted.web.server import Site

from aigw.access.refused_keys import RefusedKeys
from aigw.config.model import Config
from aigw.connections.bodies import Bodies
from aigw.connections.connection_limits import ConnectionLimiter
from aigw.connections.mismatch import Mismatches
from aigw.connections.request_head import id_of
from aigw.connections.timeouts import KEEP_ALIVE_SECONDS, LAST_REQUEST_SECONDS
from aigw.net.interfaces import Reactor
from aigw.net.slices import Slices
from aigw.server.channel import Channel
from aigw.server.request import Request
from aigw.server.resources import ApiResource
from aigw.telemetry.redaction import Redaction


class GatewaySite(Site):
    """The site that every listener serves; assigning ``resource`` replaces the whole tree for the next requests."""

    protocol = Channel  # type: ignore[assignment]  # instead of twisted.web's wrapper, which is for HTTP/2
    noisy = False
    displayTracebacks = False
    draining = False
    resource: ApiResource

    def __init__(self, tree: ApiResource, reactor: Reactor, redaction: Redaction | None = None) -> None:
        """``redaction`` hides keys that a client put where an error would repeat them."""
        super().__init__(tree, requestFactory=Request, timeout=None, parsePOSTFormSubmission=False, reactor=reactor)
        self.redaction = redaction or Redaction()
        self.limiter = ConnectionLimiter(reactor, self._make_room)
        self.refused_keys = RefusedKeys(reactor)
        self.bodies = Bodies()
        self.keep_alive = KEEP_ALIVE_SECONDS
        self.mismatches = Mismatches(reactor)
        self.slices = Slices(reactor)
        self.idle: OrderedDict[Channel, None] = (
            OrderedDict()
        )  # without a request; the first one has been idle the longest
        self._open: set[Channel] = set()
        self._emptied: Deferred[None] | None = None

    def limit(self, config: Config) -> None:
        """Use the limits of ``config`` from now on. A head that was judged with another one is judged anew."""
        self.limiter.limit(config.max_connections, config.max_per_address)
        self.bodies.limit = config.max_bodies
        self.keep_alive = LAST_REQUEST_SECONDS if self.draining else config.keep_alive
        for channel in self._open:
            channel.plain.forget()

    def shown_id(self, request_id: str) -> str:
        """The id of a request that its client chose; a new one if it holds a key, because ids are shown and kept."""
        return request_id if self.redaction.hide(request_id) is request_id else id_of(None)

    def entered(self, channel: Channel) -> None:
        """A client has connected."""
        self._open.add(channel)
        self.idle[channel] = None
        peer = channel.transport.getPeer()
        channel.client_address = getattr(peer, "host", None)
        self.limiter.entered(peer)

    def left(self, channel: Channel) -> None:
        """A client's connection is closed."""
        self._open.discard(channel)
        self.idle.pop(channel, None)
        channel.plain.forget()
        self.limiter.left(channel.transport.getPeer(), channel.closing.makes_room)
        if self._emptied is not None and not self._open:
            emptied, self._emptied = self._emptied, None
            self.refused_keys.close()
            emptied.callback(None)

    def _make_room(self) -> bool:
        """Close the connection that has been without a request for the longest, if there is one, as nginx does."""
        if not self.idle:
            return False
        channel, _ = self.idle.popitem(last=False)
        channel.closing.make_room()
        return True

    def drain(self) -> Deferred[None]:
        """Accept at most one more request of each client; fires when all connections are closed."""
        self.draining = True
        self.keep_alive = LAST_REQUEST_SECONDS
        self.refused_keys.stop()
        if not self._open:
            self.refused_keys.close()
            return succeed(None)
        self._emptied = Deferred()
        for channel in list(self._open):
            channel.drain()
        return self._emptied

    def end(self) -> None:
        """Close every connection when what was written is sent."""
        for channel in list(self._open):
            channel.end()

    def abort(self) -> None:
        """Close every connection now."""
        for channel in list(self._open):
            channel.transport.abortConnection()

    def getResourceFor(self, request: Request) -> ApiResource:
        """The leaf that serves a path, by a walk down the tree: for paths that are not in its ``known``."""
        request.prepath = []
        request.postpath = [unquote_to_bytes(part) for part in request.path[1:].split(b"/")]
        found: ApiResource = super().getResourceFor(request)
        return found

    def acceptableProtocols(self) -> list[bytes]:
        """The protocols for ALPN; without HTTP/2 even if h2 is installed."""
        return [b"http/1.1"]

    def startFactory(self) -> None:
        """Twisted would start a timer for its access log here."""

    def stopFactory(self) -> None:
        """All listeners are closed."""
        self.limiter.close()
        self.mismatches.close()
