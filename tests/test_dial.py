"""From a name to a connection: one look-up a name, none in another's way, and the next address at once."""

from __future__ import annotations

import threading

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError, DNSLookupError
from twisted.internet.task import Clock

from aigw.upstream import connector
from aigw.upstream.connector import Host, Resolver
from tests.harness import bounded


class LookUps:
    """Counts look-ups; those of ``dead`` names hang until the test is over."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.over = threading.Event()

    def __call__(self, host: str) -> list[str]:
        self.asked.append(host)
        if host.startswith("dead"):
            self.over.wait(20)
            raise OSError
        return {"localhost": ["127.0.0.1"], "both": ["::1", "127.0.0.1"], "none": []}[host]


@pytest.fixture
def resolver():
    resolver = LookUps()
    yield resolver
    resolver.over.set()


@ensureDeferred
async def test_t1_dead_names_delay_no_other(resolver):
    """Twenty look-ups of dead names, and the good one answers at once: Twisted's own ten threads would all be taken."""
    names = Resolver(reactor, resolver)
    dead = [names.addresses(f"dead-{number % 15}") for number in range(20)]
    begun = reactor.seconds()
    assert await bounded(names.addresses("localhost")) == ["127.0.0.1"]
    assert reactor.seconds() - begun < 0.5
    assert len(resolver.asked) == 16, "one look-up a name"
    for each in dead:
        each.cancel()
        each.addErrback(lambda failure: failure.trap(CancelledError))


@ensureDeferred
async def test_addresses_are_kept_for_a_while_and_failures_are_not(resolver):
    names = Resolver(reactor, resolver)
    for _ in range(3):
        assert await bounded(names.addresses("localhost")) == ["127.0.0.1"]
        with pytest.raises(DNSLookupError):
            await bounded(names.addresses("none"))
    assert resolver.asked == ["localhost", "none", "none", "none"]


def test_the_real_resolver_knows_localhost():
    assert set(connector.look_up("localhost")) <= {"127.0.0.1", "::1"}


class Address:
    """An endpoint whose outcome is the test's."""

    def __init__(self, outcome: Deferred | None = None) -> None:
        self.outcome = outcome or Deferred(lambda _: setattr(self, "cancelled", True))
        self.tried = self.cancelled = False

    def connect(self, factory: object) -> Deferred:
        self.tried = True
        return self.outcome


def race(*addresses: Address):
    clock, got = Clock(), []
    winner = connector._AddressRace(clock, addresses, None).winner
    winner.addBoth(got.append)
    return clock, winner, got


def test_the_next_address_is_tried_at_once_when_one_fails():
    first, second = Address(fail(ConnectionRefusedError())), Address(succeed("protocol"))
    clock, _, got = race(first, second)
    assert got == ["protocol"]
    assert not clock.getDelayedCalls()


def test_the_next_address_is_tried_after_a_while_and_the_first_to_answer_wins():
    first, second, third = Address(), Address(), Address()
    clock, _, got = race(first, second, third)
    assert [first.tried, second.tried] == [True, False]
    clock.advance(0.25)
    assert [second.tried, third.tried] == [True, False]
    second.outcome.callback("protocol")
    assert got == ["protocol"]
    assert first.cancelled
    assert not clock.getDelayedCalls()


def test_all_fail_as_the_last_one_failed():
    clock, _, got = race(Address(fail(OSError("first"))), Address(fail(OSError("last"))))
    assert str(got[0].value) == "last"
    assert not clock.getDelayedCalls()


def test_t4_cancelling_cancels_what_runs():
    first, second, third = Address(), Address(), Address()
    clock, winner, got = race(first, second, third)
    clock.advance(0.25)
    winner.cancel()
    assert [first.cancelled, second.cancelled, third.tried] == [True, True, False]
    assert got[0].check(CancelledError)
    assert not clock.getDelayedCalls()


@ensureDeferred
async def test_a_name_with_two_addresses_reaches_the_one_that_listens(world, resolver):
    provider = world.provider()
    host = Host(reactor, Resolver(reactor, resolver), "both", provider.port)
    from twisted.internet.protocol import Factory, Protocol

    begun = reactor.seconds()
    protocol = await bounded(host.connect(Factory.forProtocol(Protocol)))
    assert reactor.seconds() - begun < 0.2
    assert protocol.transport.protocol is protocol, "nothing in between passes the reads on"
    protocol.transport.abortConnection()


@ensureDeferred
async def test_b7_a_name_that_does_not_exist_falls_through(world):
    second = world.provider()
    dead = "no-such-host.invalid"
    gateway = world.gateway_of(
        {
            "api_key": "gateway-key-1234-of-the-tests",
            "listen": ["tcp:0:interface=127.0.0.1"],
            "providers": [
                {"name": "p1", "base_url": f"http://{dead}/v1"},
                {"name": "p2", "base_url": world.base_url(second).replace("127.0.0.1", "localhost")},
            ],
            "routes": [
                {"name": "route", "steps": [{"provider": "p1", "model": "m"}, {"provider": "p2", "model": "m"}]}
            ],
        }
    )
    got = await gateway.ask()
    assert (got.status, got.headers["x-aigw-provider"]) == (200, "p2")
    assert world.records[0]["attempts"][0]["message"] == "name not found"
    assert dead not in "".join(world.log).replace(f'"host":"{dead}"', "")


@ensureDeferred
async def test_whatever_a_look_up_raises_is_told_and_the_next_one_is_a_new_one():
    asked = []

    def broken(host):
        asked.append(host)
        raise ValueError("embedded null")

    names = Resolver(reactor, broken)
    for _ in range(2):
        with pytest.raises(DNSLookupError):
            await bounded(names.addresses("x"))
    assert asked == ["x", "x"]


@ensureDeferred
async def test_a_look_up_without_a_thread_is_tried_again(resolver, monkeypatch):
    names = Resolver(reactor, resolver)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda self: exec("raise RuntimeError('no thread')"))
        with pytest.raises(RuntimeError):
            names.addresses("localhost")
    assert await bounded(names.addresses("localhost")) == ["127.0.0.1"]


@ensureDeferred
async def test_one_waiter_may_cancel_another(resolver):
    names = Resolver(reactor, resolver)
    waiters = [names.addresses("localhost") for _ in range(2)]
    got = []
    for each, other in zip(waiters, reversed(waiters), strict=True):
        each.addCallbacks(
            lambda found, other=other: (got.append(found), other.cancel()), lambda failure: got.append("gone")
        )
    from tests.harness import until

    await until(lambda: len(got) == 2)
    assert sorted(map(str, got)) == ["['127.0.0.1']", "gone"]


def test_no_timer_is_left_where_an_address_fails_at_once():
    second = Address()
    clock, _, got = race(Address(fail(OSError())), second, Address())
    second.outcome.callback("protocol")
    assert got == ["protocol"]
    assert not clock.getDelayedCalls()
