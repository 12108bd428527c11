"""The same events on two gateways in memory: what may be seen of each. One has the straight path and knows the heads of answers again, the
other has neither."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import msgspec
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.testing import StringTransport

from aigw.connections import request_head
from aigw.daemon.drain import Drain
from aigw.protocols.charges import charged_tokens
from aigw.routing import cooldown
from aigw.straight import path as straight
from aigw.telemetry.pricing import Charge
from aigw.telemetry.record import Record
from aigw.upstream import response_parser
from tests.harness import HELLO, request
from tests.memory import MemoryGateway, Wire
from tests.providers import head

BODY = b'{"choices": [{"message": {"content": "hi"}}], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}'
GOOD = head(200, "application/json", Content_Length=str(len(BODY))) + BODY
ASK = request(HELLO)
DRAIN_SECONDS = 5.0
FULL = 64 * 1024  # bytes of one write, after which a provider takes no more until it "reads"

Event = tuple[Any, ...]  # its name, and its arguments


class Twin:
    """One of the two. Its client has had an answer, so that a connection to the provider is idle."""

    def __init__(self, is_straight: bool, **settings: Any) -> None:
        self.seen: list[Any] = []
        self._heads = response_parser.MOST_LEARNED if is_straight else 0
        self.sent = 0  # on the straight path
        self._ids = itertools.count()
        with patch.object(straight, "IS_ON", is_straight):
            self.gateway = MemoryGateway(**{"timeout": "30s", **settings})
        self.clients: list[Wire] = [self.gateway.open()]
        self._stalled: set[Wire] = set()
        self._fills: set[Wire] = set()  # clients that stall in the next write to them
        self._full: set[Wire] = set()  # providers' ends that take no more for now
        self._drain: Drain | None = None

    def play(self, events: list[Event]) -> list[Any]:
        """What was seen, event by event."""
        send = straight.StraightPath.send

        def counted(path: Any, *args: Any) -> Any:
            found = send(path, *args)
            self.sent += found is not None
            return found

        def write(wire: Wire, data: bytes) -> None:
            """A connection to a provider pauses its producer above 64 KiB, as Twisted's transport does."""
            StringTransport.write(wire, data)
            if len(data) > FULL and wire in self._wires():
                self._full.add(wire)
                wire.producer.pauseProducing()
            elif wire in self._fills and wire.producer is not None:
                self._fills.discard(wire)
                self._stalled.add(wire)
                wire.producer.pauseProducing()

        with (
            patch.object(Wire, "write", write),
            patch.object(request_head, "new_id", lambda: f"{next(self._ids):032x}"),
            patch.object(straight.StraightPath, "send", counted),
            patch.object(response_parser, "MOST_LEARNED", self._heads),
            patch.object(cooldown, "time", SimpleNamespace(time=self.gateway.clock.seconds)),
        ):
            for event in [("client", ASK), ("provider", GOOD)]:
                self._do(event)
            self.sent = 0
            self.seen.clear()
            self.gateway.records.clear()
            for event in events:
                self._do(event)
                self._look(event)
            self._do(("advance", 700.0))
            self._look("in the end")
            self._do(("close all",))
            self._look("closed")
            self.seen.append(("timers", self.gateway.timers()))
        return self.seen

    def _do(self, event: Event) -> None:
        name, *args = event
        wires = self._wires()
        self.gateway.clock.advance(0.001)  # no two requests have one limit
        if name == "client":
            self.clients[-1].say(*args)
        elif name == "other client":
            self.clients.append(self.gateway.open())
            self.clients[-1].say(*args)
        elif name == "client leaves":
            self.clients[-1].lost(ConnectionDone())
        elif name == "client stalls" and self.clients[-1] not in self._stalled and not self.clients[-1].disconnected:
            self._stalled.add(self.clients[-1])
            self.clients[-1].producer.pauseProducing()
        elif name == "client fills" and self.clients[-1] not in self._stalled:
            self._fills.add(self.clients[-1])
        elif name == "client reads" and self.clients[-1] in self._stalled and not self.clients[-1].disconnected:
            self._stalled.discard(self.clients[-1])
            self.clients[-1].producer.resumeProducing()
        elif name == "provider" and wires:
            wires[-1].say(*args)
        elif name == "other provider" and self.gateway.doors["p2"].wires:
            self.gateway.doors["p2"].wire.say(*args)
        elif name == "provider closes" and wires:
            wires[-1].lost(ConnectionDone())
        elif name == "provider resets" and wires:
            wires[-1].lost(ConnectionLost())
        elif name == "provider stalls" and wires and not wires[-1].disconnected:
            wires[-1].producer.pauseProducing()
        elif name == "provider reads" and wires and not wires[-1].disconnected and wires[-1] in self._full:
            self._full.discard(wires[-1])
            wires[-1].producer.resumeProducing()
        elif name == "advance":
            self.gateway.clock.advance(*args)
        elif name == "jump" and len(self.gateway.gateway.running) < 2:  # limits that pass in a freeze end at one time
            self.gateway.clock.jump(*args)
        elif name == "drain" and self._drain is None:
            self._drain = Drain(self.gateway.site, self.gateway.gateway.running, self.gateway.clock, DRAIN_SECONDS)
            self._drain.begin()
        elif name == "stop" and self._drain is not None:
            self._drain.give_up()
        elif name == "close all":
            for wire in [*self.clients, *self._wires()]:
                wire.lost(ConnectionDone())
        self.gateway.turns()

    def _wires(self) -> list[Wire]:
        """All connections to providers, in the order in which they were made, those of the first provider last."""
        doors = self.gateway.doors
        return [wire for name in sorted(doors, reverse=True) for wire in doors[name].wires]

    def _look(self, event: Any) -> None:
        gateway = self.gateway
        providers, clients = [seen_of(wire) for wire in self._wires()], [seen_of(wire) for wire in self.clients]
        records = [{**msgspec.structs.asdict(record), "charges": charges_of(record)} for record in gateway.records]
        gateway.records.clear()
        running = sorted(each.route for each in gateway.gateway.running)
        upstream: Any = gateway.gateway.upstream
        pools = {name: (len(pool._idle), len(pool._open)) for name, pool in upstream._pools.items()}
        health = {
            path: {
                str(key[0]): (state.kind, state.count, state.until, state.probing)
                for key, state in each._states.items()
            }
            for path, each in gateway.gateway.cooldowns.items()
            if each._states
        }
        failed = [msgspec.structs.asdict(attempt) for attempt in gateway.failed]
        gateway.failed.clear()
        store = gateway.site.resource.known[b"/v1/chat/completions"]._limited.admission.store
        used = [store.usage_of(account) for caller in gateway.config.callers for account in caller.accounts]
        counts = gateway.site.bodies.under_way, len(gateway.site.idle), running, used
        order = str  # what has one time has no order
        self.seen.append(
            (event, clients, providers, sorted(records, key=order), sorted(failed, key=order), pools, health, counts)
        )


def seen_of(wire: Wire) -> tuple[Any, ...]:
    """What was written to it, and its state: one that is closed may have been paused in its last write or not."""
    return wire.take(), wire.disconnected, wire.aborted, "" if wire.disconnected else wire.producerState


def charges_of(record: Record) -> list[Any]:
    """What the counters and the file of usage take for it: without charges of its own, what its provider reported."""
    charges = record.charges or (Charge(record.provider or "", record.model or "", charged_tokens(record.usage)),)
    return [msgspec.structs.astuple(charge) for charge in charges]


def difference(events: list[Event], **settings: Any) -> tuple[list[tuple[Any, Any]], int]:
    """Where the two differ, and how many requests went the straight path."""
    with_path, without = Twin(True, **settings), Twin(False, **settings)
    seen, expected = with_path.play(events), without.play(events)
    assert without.sent == 0
    return [(a, b) for a, b in zip(seen, expected, strict=True) if a != b], with_path.sent
