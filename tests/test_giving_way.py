"""S2, S3, S7, D2: what a reviewer found at the edges of a connection's life, each a case that failed."""

from __future__ import annotations

import pytest
from twisted.internet.error import ConnectionLost

from aigw.daemon.drain import Drain
from aigw.net.slices import Slices
from tests import memory
from tests.harness import HELLO, request
from tests.memory import MemoryGateway, SteadyClock, Wire, error_of

CLOSING = request(None, "/health", "GET", {"Connection": "close"})


class OverTls(Wire):
    """A peer that does not answer close_notify: it is gone only when the connection is aborted, a turn later."""

    clock: SteadyClock

    def loseConnection(self) -> None:
        pass

    def unregisterProducer(self) -> None:
        """As often as a real one takes it."""
        self.producer = None

    def abortConnection(self) -> None:
        self.aborted = True
        self.clock.callLater(0, self.lost, ConnectionLost())


@pytest.fixture
def world(monkeypatch):
    made = MemoryGateway(top={"limits": {"connections": 2}})
    monkeypatch.setattr(memory, "Wire", OverTls)
    monkeypatch.setattr(OverTls, "clock", made.clock, raising=False)
    return made


def test_s2_whoever_is_answered_and_does_not_close_gives_way(world):
    """Over TLS the gateway waits for the client's word on the close, for as long as an idle connection lives."""
    for _ in range(2):
        client = world.open()
        client.say(CLOSING)
        assert client.take().startswith(b"HTTP/1.1 200 ")
        assert not client.disconnected
    one_more = world.open()
    one_more.say(CLOSING)
    assert one_more.take().startswith(b"HTTP/1.1 200 ")


def test_s7_a_connection_that_is_aborted_in_this_very_turn_gives_way_without_a_failure(world):
    late = [world.open() for _ in range(2)]
    clock = world.clock
    clock.advance(15.2)  # without a head: they are closed within 2 s
    clock.rightNow += 2.0
    for call in [each for each in clock.getDelayedCalls() if each.getTime() <= clock.rightNow]:
        clock.calls.remove(call)  # as a turn of the reactor: what is added meanwhile is for the next
        call.called = 1
        call.func(*call.args, **call.kw)
    assert [each.aborted for each in late] == [True, True]
    assert not late[0].disconnected
    world.open().say(CLOSING)
    clock.advance(1)
    assert world.site.limiter.leaving == 0


def test_d2_a_body_that_is_being_read_in_steps_is_told_that_the_gateway_stops():
    world = MemoryGateway()
    client = world.open()
    client.say(request({**HELLO, "x": [1, 2, 3] * 300_000}))
    assert not world.gateway.running, "its reading has not ended"
    drain = Drain(world.site, world.gateway.running, world.clock, 0.0)
    drain.begin()
    world.clock.advance(0)
    assert error_of(client.take())["code"] == "draining"
    assert [(record.status, record.error) for record in world.records] == [(503, "draining")]
    assert world.site.bodies.under_way == 0


def test_s3_what_raises_in_its_turn_leaves_the_others_theirs(failures):
    clock = SteadyClock()
    slices, done = Slices(clock), []

    def fails():
        yield
        raise ValueError

    def works():
        yield
        done.append("served")

    slices.add(fails())
    slices.add(works())
    assert done == []
    clock.advance(0)
    assert done == ["served"]
    assert "ValueError" in failures.pop()
    clock.advance(0)
    assert not clock.getDelayedCalls()
