"""The whole gateway in memory, on a Clock: the test holds both ends of every connection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from aigw.accounting.accounts import Accounts
from aigw.config import loader
from aigw.connections.connection_limits import ConnectionGuard
from aigw.credentials.changing_keys import ChangingKeys, Run
from aigw.proxy.gateway import Gateway
from aigw.routing.cooldown import CooldownsByEndpoint
from aigw.routing.keyed_upstream import with_keys
from aigw.routing.router import Router
from aigw.server import api
from aigw.server.site import GatewaySite
from aigw.telemetry.record import AttemptRecord, Record, Sink
from aigw.upstream.providers import Upstream
from tests.harness import HELLO, KEY, request


class Wire(StringTransport):
    """One end of a connection; the test is the other end. Closing it tells the protocol, as a socket would."""

    protocol: Any = None
    aborted = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def connect(self, protocol: Any) -> None:
        self.protocol = protocol
        protocol.makeConnection(self)

    def loseConnection(self) -> None:
        self.lost(ConnectionDone())

    def loseWriteConnection(self) -> None:
        pass

    def abortConnection(self) -> None:
        self.aborted = True
        self.lost(ConnectionLost())

    def lost(self, reason: Exception) -> None:
        """The other end is gone."""
        if not self.disconnected:
            self.disconnected = True
            self.protocol.connectionLost(Failure(reason))

    def say(self, data: bytes) -> None:
        """The other end sends this."""
        if not self.disconnected:
            self.protocol.dataReceived(data)

    def take(self) -> bytes:
        """What was written since the last time."""
        data = self.value()
        self.clear()
        return data


class SteadyClock(Clock):
    """Time as an event loop sees it that turns; what passes in one ``jump`` passed without it."""

    jump = Clock.advance

    def advance(self, amount: float) -> None:
        end = self.seconds() + amount
        while end - self.rightNow > 0.5:
            due = min([call.getTime() for call in self.calls], default=end)
            while end - self.rightNow > 0.5 and self.rightNow + 0.5 < due:
                self.rightNow += 0.5  # a turn in which nothing is due
            if end - self.rightNow > 0.5:
                super().advance(0.5)
        super().advance(end - self.seconds())


@implementer(IStreamClientEndpoint)
class Door:
    """Where a provider would be: connects at once, or when ``opens`` fires."""

    def __init__(self) -> None:
        self.wires: list[Wire] = []
        self.opens: Deferred | None = None

    def connect(self, factory: Any) -> Deferred:
        def connected(_: object) -> Any:
            wire = Wire()
            self.wires.append(wire)
            protocol = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
            wire.connect(protocol)
            return protocol

        return (self.opens or succeed(None)).addCallback(connected)

    @property
    def wire(self) -> Wire:
        return self.wires[-1]


class MemoryGateway:
    """``doors`` are the providers' ends by host name: step 1 is at ``p1``, step 2 at ``p2``."""

    make_clock = SteadyClock

    def __init__(
        self,
        steps: int = 2,
        top: dict | None = None,
        sink: Sink | None = None,
        run: Run | None = None,
        accounts: Accounts | None = None,
        **route: Any,
    ) -> None:
        """``run`` stands for the runs of every ``key_command``."""
        self.clock = self.make_clock()
        self.doors: dict[str, Door] = {}
        self.records: list[Record] = []
        self.failed: list[AttemptRecord] = []
        names = [f"p{number}" for number in range(1, steps + 1)]
        written = {
            "api_key": KEY,
            "providers": [{"name": n, "base_url": f"http://{n}/v1", "api_key": f"key-of-{n}"} for n in names],
            "routes": [{"name": "route", "steps": [{"provider": n, "model": f"model-of-{n}"} for n in names], **route}],
            **(top or {}),
        }
        self.config = settings = loader.build(written, {}, Path("/nonexistent"))
        upstream = Upstream(self.clock, settings.providers.values(), self._door)
        self.health = CooldownsByEndpoint(self.clock.seconds)
        self.hidden = list(settings.secrets)  # as the log would hide them
        self.keys = ChangingKeys(self.clock, settings, self.hidden.append, run=run)
        router = Router(settings)
        self.gateway = Gateway(
            settings,
            with_keys(upstream, self.keys, router, self.clock),
            self.health,
            self.clock,
            lambda _, __, attempt: self.failed.append(attempt),
            lambda: 1.0,
            router=router,
        )
        tree = api.tree(settings, self.gateway, sink or self.records.append, pricing=accounts)
        self.site = GatewaySite(tree, self.clock)
        self.limiter = self.site.limiter
        self.limiter.connections = settings.max_connections
        self.limiter.per_address = settings.max_per_address
        self.site.bodies.limit = settings.max_bodies
        self.site.keep_alive = settings.keep_alive

    def _door(self, host: str, port: int) -> Door:
        return self.doors.setdefault(host, Door())

    def open(self, host: str = "127.0.0.1", secure: bool = False) -> Wire:
        """A client's connection; ``secure`` only says that it would be TLS's."""
        peer = (IPv6Address if ":" in host else IPv4Address)("TCP", host, 2)
        wire = Wire(peerAddress=peer)
        protocol = ConnectionGuard(self.limiter, self.site, secure).buildProtocol(peer)
        if protocol is None:
            wire.disconnected = True
        else:
            wire.connect(protocol)
        return wire

    def ask(self, body: Any = None, **more: Any) -> Wire:
        """A client that has sent a request."""
        wire = self.open()
        wire.say(request(body if body is not None else {**HELLO, **more}))
        return wire

    def turns(self) -> None:
        """Turns of the reactor until nothing is due any more."""
        while any(when <= self.clock.seconds() for when in self.timers()):
            self.clock.advance(0)

    def timers(self) -> list[float]:
        """What is still going to happen."""
        return [call.getTime() for call in self.clock.getDelayedCalls()]


def body_of(message: bytes) -> bytes:
    """A message's body, not chunked."""
    return message.partition(b"\r\n\r\n")[2]


def error_of(message: bytes) -> dict:
    return json.loads(body_of(message))["error"]
