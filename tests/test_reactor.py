"""V1, V2: the gateway's reactor does what Twisted's epoll reactor does, in the same order, and logs the same."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading

import pytest

pytest.importorskip("twisted.internet.epollreactor", exc_type=ImportError)

from twisted.internet import tcp
from twisted.internet.abstract import FileDescriptor
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from aigw.net.reactor import TURNS, LeanReactor
from tests.test_daemon import ROOT, Daemon, run


class Reader(FileDescriptor):
    """One end of a pair of sockets; ``reads`` are what each doRead does."""

    def __init__(self, reactor, notes, name, *reads):
        super().__init__(reactor)
        self.notes, self.name, self.reads = notes, name, list(reads)
        self.ours, self.theirs = socket.socketpair()
        self.number = self.ours.fileno()
        reactor.addReader(self)

    def fileno(self):
        return self.number

    def logPrefix(self):
        return f"the prefix of {self.name}"

    def doRead(self):
        data = self.ours.recv(10)
        self.notes.append(f"{self.name} reads {data!r}")
        return self.reads.pop(0)() if self.reads else None if data else ConnectionDone()

    def doWrite(self):
        self.notes.append(f"{self.name} writes")
        self.reactor.removeWriter(self)

    def connectionLost(self, reason):
        self.notes.append(f"{self.name} lost: {reason.value!r}")
        self.close()

    def close(self):
        self.reactor.removeReader(self)
        self.number = -1
        self.ours.close()
        self.theirs.close()


def fail(kind=RuntimeError):
    raise kind("in doRead")


def an_exception(reactor, notes):
    bad, good = Reader(reactor, notes, "bad", fail), Reader(reactor, notes, "good")
    bad.theirs.send(b"1")
    good.theirs.send(b"2")


def an_exception_that_is_none_of_the_program(reactor, notes):
    Reader(reactor, notes, "bad", lambda: fail(SystemExit)).theirs.send(b"1")


def an_exception_in_connection_lost(reactor, notes):
    bad, good = Reader(reactor, notes, "bad", ConnectionDone), Reader(reactor, notes, "good")
    bad.connectionLost = lambda reason: bad.close() or fail()
    bad.theirs.send(b"1")
    good.theirs.send(b"2")


def an_exception_that_looks_like_the_end_of_the_data(reactor, notes):
    for name, read in (("raises", lambda: fail(ConnectionDone)), ("returns", ConnectionDone)):
        one = Reader(reactor, notes, name, read)
        one.readConnectionLost = lambda _, one=one: notes.append(f"{one.name}: half closed") or one.close()
        one.theirs.send(b"1")


def closes(reactor, notes):
    for reason in (ConnectionDone, ConnectionLost, lambda: OSError(5, "odd")):
        Reader(reactor, notes, f"{reason.__name__}", reason).theirs.send(b"1")
    Reader(reactor, notes, "of a peer that is gone").theirs.close()
    left = Reader(reactor, notes, "with bytes of a peer that is gone")
    left.theirs.send(b"1")
    left.theirs.close()
    deaf = Reader(reactor, notes, "it does not read")
    reactor.removeReader(deaf)
    reactor.addWriter(deaf)
    deaf.theirs.close()


def another_is_closed_in_the_same_poll(reactor, notes):
    one, other = Reader(reactor, notes, "one"), Reader(reactor, notes, "other")

    def close(mine, the_other):
        the_other.close()

    one.reads, other.reads = [lambda: close(one, other)], [lambda: close(other, one)]
    one.theirs.send(b"1")
    other.theirs.send(b"1")


def reads_and_writes(reactor, notes):
    both = Reader(reactor, notes, "both")
    reactor.addWriter(both)
    both.theirs.send(b"1")
    later = Reader(reactor, notes, "later", lambda: reactor.addWriter(later))
    later.theirs.send(b"1")


class Noting(Protocol):
    """What happens to a TCP connection; ``then`` is done after the data."""

    def __init__(self, notes, then):
        self.notes, self.then = notes, then

    def dataReceived(self, data):
        self.notes.append(f"{len(data)} bytes")
        self.then(self)

    def connectionLost(self, reason):
        self.notes.append(f"lost: {reason.value!r}")


def connected(reactor, notes, then=lambda _: None, kind=Noting):
    """A TCP connection of the reactor; returns the other end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    reactor.others = [*getattr(reactor, "others", []), theirs, ours]
    protocol = kind(notes, then)
    protocol.makeConnection(tcp.Server(ours, protocol, ("127.0.0.1", 1), None, 1, reactor))
    return theirs


def tcp_data_and_its_end(reactor, notes):
    theirs = connected(reactor, notes)
    theirs.send(b"1" * 100_000)
    reactor.callLater(0.02, theirs.close)


def tcp_is_reset(reactor, notes):
    theirs = connected(reactor, notes)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    reactor.callLater(0.01, theirs.close)


def tcp_has_nothing_to_read(reactor, notes):
    def read_all(protocol):
        if notes[1:]:
            theirs.close()
        else:
            protocol.transport.doRead()  # finds nothing
            theirs.send(b"2")

    theirs = connected(reactor, notes, read_all)
    theirs.send(b"1")


def tcp_protocols_fail(reactor, notes):
    for kind in (RuntimeError, ConnectionDone, OSError):
        connected(reactor, notes, lambda _, kind=kind: fail(kind)).send(b"1")


def tcp_closes_another_in_the_same_poll(reactor, notes):
    protocols = []

    def close(protocol):
        for each in protocols:
            each.transport.abortConnection()

    ends = [connected(reactor, notes, lambda protocol: protocols.append(protocol) or close(protocol)) for _ in range(2)]
    for end in ends:
        end.send(b"1")


def tcp_protocols_close_their_connections(reactor, notes):
    def close_late(transport):
        transport.write(b"x" * 3_000_000)
        transport.loseConnection()

    closes = (
        tcp.Server.loseConnection,
        tcp.Server.abortConnection,
        tcp.Server.loseWriteConnection,
        lambda transport: transport.connectionLost(Failure(ConnectionDone())),
        close_late,
    )
    for close in closes:
        end = connected(reactor, notes, lambda protocol, close=close: close(protocol.transport) or fail())
        end.send(b"1")
        connected(reactor, notes, lambda protocol, close=close: close(protocol.transport)).send(b"22")


@implementer(IHalfCloseableProtocol)
class HalfCloseable(Noting):
    def readConnectionLost(self):
        self.notes.append("their end")
        self.then(self)

    def writeConnectionLost(self):
        self.notes.append("our end")


def tcp_is_half_closed(reactor, notes):
    for then in (lambda _: None, lambda protocol: protocol.transport.loseConnection(), lambda _: fail()):
        connected(reactor, notes, then, HalfCloseable).shutdown(socket.SHUT_WR)


def tcp_has_another_protocol(reactor, notes):
    def become(protocol):
        protocol.transport.protocol = other = Noting(notes, lambda _: theirs.close())
        other.makeConnection(protocol.transport)
        theirs.send(b"22")

    theirs = connected(reactor, notes, become)
    theirs.send(b"1")


def tcp_is_paused_after_data(reactor, notes):
    def pause(protocol):
        protocol.transport.pauseProducing()
        theirs.send(b"2")

    theirs = connected(reactor, notes, pause)
    theirs.send(b"1")


def timed_calls(reactor, notes):
    for seconds in (0.03, 0, 0.01):
        reactor.callLater(seconds, notes.append, f"after {seconds}")
    moved, sooner = reactor.callLater(0.001, notes.append, "moved"), reactor.callLater(9, notes.append, "sooner")
    moved.delay(0.04)
    sooner.reset(0.02)
    reactor.callLater(0.002, notes.append, "never").cancel()
    reactor.callLater(0, fail)


def calls_from_threads(reactor, notes):
    def other():
        reactor.callFromThread(notes.append, "from a thread")
        reactor.callFromThread(fail)
        reactor.callFromThread(lambda: reactor.callFromThread(once_more))

    def once_more():
        notes.append("once more")
        reactor.crash()

    reactor.callLater(0.01, lambda: threading.Thread(target=other).start())
    return "stops"


def it_is_stopped_by_an_event(reactor, notes):
    reactor.addSystemEventTrigger("before", "shutdown", notes.append, "before the shutdown")
    Reader(reactor, notes, "reader", lambda: reactor.stop()).theirs.send(b"1")
    return "stops"


def it_crashes(reactor, notes):
    Reader(reactor, notes, "reader", lambda: reactor.crash()).theirs.send(b"1")
    return "stops"


SCENES = [
    an_exception,
    an_exception_that_is_none_of_the_program,
    an_exception_in_connection_lost,
    an_exception_that_looks_like_the_end_of_the_data,
    closes,
    another_is_closed_in_the_same_poll,
    reads_and_writes,
    tcp_data_and_its_end,
    tcp_is_reset,
    tcp_has_nothing_to_read,
    tcp_protocols_fail,
    tcp_closes_another_in_the_same_poll,
    tcp_protocols_close_their_connections,
    tcp_is_half_closed,
    tcp_has_another_protocol,
    tcp_is_paused_after_data,
    timed_calls,
    calls_from_threads,
    it_is_stopped_by_an_event,
    it_crashes,
]


def played(kind, scene):
    """What happens, and what is logged: the format, the exception, and the ``system`` of the old log."""
    reactor, notes = kind(), []

    def observe(event):
        failure = event.get("log_failure")
        notes.append((event["log_level"].name, event["log_format"], event.get("log_system"), failure and failure.value))

    globalLogPublisher.addObserver(observe)
    try:
        if scene(reactor, notes) != "stops":
            reactor.callLater(0.1, reactor.crash)  # a stop would close all, in no order
        run_to_its_stop(reactor)
    finally:
        globalLogPublisher.removeObserver(observe)
        end(reactor)
    return [str(note) for note in notes]


def run_to_its_stop(reactor):
    """A fault that keeps it from its stop is a failed test, not one without end."""
    late = threading.Timer(10, reactor.callFromThread, [reactor.crash])
    late.start()
    try:
        reactor.run(installSignalHandlers=False)
    finally:
        late.cancel()


def end(reactor):
    """Close the files of a reactor that has stopped."""
    for each in reactor.removeAll():
        if isinstance(each, Reader):
            each.close()
    for each in getattr(reactor, "others", []):
        each.close()
    reactor._poller.close()
    if reactor.waker:
        reactor.waker.connectionLost(None)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_v1_it_does_what_twisted_s_does(scene, failures):
    lean, twisted = played(LeanReactor, scene), played(EPollReactor, scene)
    failures.clear()
    assert lean == twisted
    assert len(lean) > 1


def test_v1_iterate():
    reactor, notes = LeanReactor(), []
    Reader(reactor, notes, "one").theirs.send(b"1")
    reactor.callLater(0, notes.append, "timed")
    reactor.iterate(0)
    assert notes == ["timed", "one reads b'1'"]
    end(reactor)


def test_v1_events_without_end_do_not_hold_up_timed_calls():
    reactor, notes, ticks = LeanReactor(), [], []
    reader = Reader(reactor, notes, "one")

    def again():
        reader.theirs.send(b"1")
        if len(notes) == 3 * TURNS:
            reactor.stop()

    def forever():
        ticks.append(len(notes))
        if len(ticks) < 10 * TURNS:  # else the list would fill the memory if nothing stops the reactor
            reactor.callLater(0, forever)

    reader.reads = [again] * (3 * TURNS)
    reader.theirs.send(b"1")
    reactor.callLater(0, forever)
    run_to_its_stop(reactor)
    assert ticks[: 3 * TURNS] == list(range(3 * TURNS))
    end(reactor)


def test_v1_busy_turns_free_the_calls_that_were_cancelled():
    reactor, notes = LeanReactor(), []
    reader = Reader(reactor, notes, "one")

    def again():
        reader.theirs.send(b"1")
        calls = [reactor.callLater(300, print) for _ in range(3)]
        reactor.timeout()  # they are in the heap now
        for each in calls:
            each.cancel()
        sizes.append(len(reactor._pendingTimedCalls))
        if len(notes) == 10 * TURNS:
            reactor.stop()

    sizes: list[int] = []
    reader.reads = [again] * (10 * TURNS)
    reader.theirs.send(b"1")
    run_to_its_stop(reactor)
    assert len(sizes) == 10 * TURNS
    assert max(sizes) <= 3 * (TURNS + 2)
    end(reactor)


def test_v2_an_ordinary_reactor_plugin(tmp_path):
    """It is chosen before the words of the gateway. A reload and a stop, which are signals, work with it."""
    done = run(tmp_path, "--check-config", before=("--reactor=aigw",))
    assert (done.returncode, done.stderr) == (0, "")
    with Daemon(tmp_path, before=("--reactor=aigw",)) as daemon:
        daemon.wait_for("The gateway has started")
        assert "aigw.net.reactor.LeanReactor" in daemon.err.read_text()
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("The gateway has reloaded")
        assert daemon.stop() == -signal.SIGTERM


def test_v2_only_the_plugin_imports_it():
    """So that the gateway runs where there is no epoll."""
    code = "import sys, aigw.tap, aigw.command, aigw.daemon.service; print('aigw.net.reactor' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


TWISTED_S_OWN = "core threads time socket sigchld stdio"
RUN_THEM = """
from twisted.internet.test.reactormixins import ReactorBuilder
from twisted.scripts import trial
ReactorBuilder._reactors = ["aigw.net.reactor.LeanReactor"]
trial.run()
"""


@pytest.mark.slow
def test_v1_twisted_s_own_tests_of_reactors(tmp_path):
    words = [sys.executable, "-c", RUN_THEM, *(f"twisted.internet.test.test_{name}" for name in TWISTED_S_OWN.split())]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    assert "LeanReactorTests" in done.stdout
