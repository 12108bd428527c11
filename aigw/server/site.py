"""The site that every listener serves."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred, succeed
from twisted.web.resource import Resource as TwistedResource
from twisted.web.server import Site

from aigw.access.refused_keys import RefusedKeys
from aigw.net.slices import Slices
from aigw.server.bodies import Bodies
from aigw.server.channel import Channel
from aigw.server.connection_limits import ConnectionLimiter
from aigw.server.mismatch import Mismatches
from aigw.server.request import Request


class GatewaySite(Site):
    """The site that every listener serves; assigning ``resource`` replaces the whole tree for the next requests."""

    protocol = Channel  # type: ignore[assignment]  # not twisted.web's wrapper, which exists for HTTP/2
    noisy = False
    displayTracebacks = False
    draining = False

    def __init__(self, tree: TwistedResource, reactor: Any) -> None:
        super().__init__(tree, requestFactory=Request, timeout=None, parsePOSTFormSubmission=False, reactor=reactor)
        self.admission = ConnectionLimiter(reactor, self._make_way)
        self.refused_keys = RefusedKeys(reactor)
        self.bodies = Bodies()
        self.mismatches = Mismatches(reactor)
        self.slices = Slices(reactor)
        self.idle: OrderedDict[Channel, None] = OrderedDict()  # without a request, the longest so at first
        self._open: set[Channel] = set()
        self._emptied: Deferred[None] | None = None

    def entered(self, channel: Channel) -> None:
        """A client has connected."""
        self._open.add(channel)
        self.idle[channel] = None
        peer = channel.transport.getPeer()
        channel.client_address = getattr(peer, "host", None)
        self.admission.entered(peer)

    def left(self, channel: Channel) -> None:
        """A client's connection is gone."""
        self._open.discard(channel)
        self.idle.pop(channel, None)
        self.admission.left(channel.transport.getPeer(), channel.closing.gives_way)
        if self._emptied is not None and not self._open:
            emptied, self._emptied = self._emptied, None
            self.refused_keys.close()
            emptied.callback(None)

    def _make_way(self) -> bool:
        """Close the connection that has been without a request for the longest, if there is one, as nginx does."""
        if not self.idle:
            return False
        channel, _ = self.idle.popitem(last=False)
        channel.closing.give_way()
        return True

    def drain(self) -> Deferred[None]:
        """Take one more request of each client at most; fires when all connections are gone."""
        self.draining = True
        self.refused_keys.stop()
        if not self._open:
            self.refused_keys.close()
            return succeed(None)
        self._emptied = Deferred()
        for channel in list(self._open):
            channel.drain()
        return self._emptied

    def end(self) -> None:
        """Close every connection as soon as what was written is sent."""
        for channel in list(self._open):
            channel.end()

    def abort(self) -> None:
        """Close every connection now."""
        for channel in list(self._open):
            channel.transport.abortConnection()

    def getResourceFor(self, request: Any) -> Any:
        """The leaf that serves a path: at once where the whole path is known, else by a walk down the tree."""
        known = self.resource.known.get(request.path)
        if known is not None:
            request.postpath = []
            return known
        request.prepath = []
        request.postpath = [unquote_to_bytes(part) for part in request.path[1:].split(b"/")]
        return super().getResourceFor(request)

    def acceptableProtocols(self) -> list[bytes]:
        """What ALPN offers, whatever else is installed."""
        return [b"http/1.1"]

    def startFactory(self) -> None:
        """Twisted would start a timer for its access log here."""

    def stopFactory(self) -> None:
        """No listener is left."""
        self.admission.close()
        self.mismatches.close()
