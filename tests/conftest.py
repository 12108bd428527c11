from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

if sys.dont_write_bytecode:  # the tests start over 200 processes: each would compile the gateway anew
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).parent.parent / ".pytest_cache" / "bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

import pytest
import pytest_twisted
from _pytest.runner import runtestprotocol
from twisted.internet import endpoints, reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher
from twisted.plugin import getPlugins

from tests.harness import World
from tests.properties import mark_the_rest_of_grids
from tests.sdks import Sdk
from tests.tables import table_of


def pytest_configure():
    """The proxies of this machine are no test's; and Twisted looks for its plugins once, not for each listener."""
    endpoints.getPlugins = cache(lambda interface: [*getPlugins(interface)])
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A worker gets a file after the other, and one of them all the files that drive the clients of ``tests/sdks.py``."""
    from xdist.scheduler import LoadFileScheduling

    driving = {path.name for path in Path(__file__).parent.glob("*.py") if "from tests.sdks import" in path.read_text()}

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            scope = super()._split_scope(nodeid)
            return "clients" if Path(scope).name in driving else scope

    return ByFile(config, log) if config.option.dist == "loadfile" else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    """Of a test that passed, a worker sends one short report: the messages of xdist cost more time than many a test."""
    if not hasattr(item.config, "workerinput") or item.config.option.verbose > 0 or item.config.option.durations:
        return None
    for report in runtestprotocol(item, nextitem=nextitem, log=False):
        if not report.passed:
            item.ihook.pytest_runtest_logreport(report=report)
        elif report.when == "call":
            report.keywords = {}
            item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_addoption(parser):
    parser.addoption("--rows", action="store_true", help="make each row of a table a test of its own")


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector, name, obj):
    """The rows of a table are one test, unless they are asked for one by one."""
    asked = collector.config.option
    rows = asked.rows or asked.keyword or any("[" in word for word in collector.config.args)
    if not rows and isinstance(collector, pytest.Module) and name.startswith("test"):
        return table_of(collector, name, obj)
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    mark_the_rest_of_grids(items)


def pytest_collection_finish():
    """What is there before the first test is no test's garbage; collecting is then quick."""
    gc.collect()
    gc.freeze()


@contextmanager
def failures_logged() -> Iterator[list[str]]:
    """What Twisted logs as a failure meanwhile, in the new style or the old."""
    seen: list[str] = []

    def observe(event):
        failure = event.get("log_failure") or event.get("failure")
        if failure is not None:
            seen.append(f"{event.get('log_format')}: {failure.getTraceback()}")

    globalLogPublisher.addObserver(observe)
    try:
        yield seen
    finally:
        globalLogPublisher.removeObserver(observe)


@pytest.fixture(autouse=True)
def failures():
    """S7: whatever Twisted logs as a failure, "Unhandled error in Deferred" included, fails the test."""
    with failures_logged() as seen:
        yield seen
        gc.collect(1)  # what this test left; the rest is collected when its module is over
    assert not seen, "\n".join(seen)


@pytest.fixture(autouse=True, scope="module")
def late_failures():
    """The same for what only a full collection brings to light."""
    yield
    with failures_logged() as seen:
        gc.collect()
        gc.freeze()  # what is left then is in use, and need not be looked at behind each module
    assert not seen, "\n".join(seen)


@pytest.fixture(autouse=True, scope="module")
def sdks(request):
    """A client that the module drives is imported before the first test that is timed."""
    clients = [each for each in vars(request.module).values() if isinstance(each, Sdk)]
    if clients:
        items = [item for item in request.session.items if item.path == request.path]
        slow = any(item.get_closest_marker("slow") for item in items)
        for each in clients:
            if slow or not each.only_slow:
                each.load()
        gc.collect()
        gc.freeze()  # each has as many objects as all the rest


@pytest.fixture(scope="session")
def warm_reactor():
    """The reactor opens files of its own when it first runs and when it first listens."""
    pytest_twisted.blockon(deferLater(reactor, 0))
    pytest_twisted.blockon(reactor.listenTCP(0, Factory(), interface="127.0.0.1").stopListening())


@pytest.fixture
def world(tmp_path, warm_reactor):
    """Gateways, providers and clients on real sockets; when all are closed nothing of them is left."""
    before = left()
    world = World(tmp_path)
    yield world
    pytest_twisted.blockon(world.close())
    pytest_twisted.blockon(ensureDeferred(nothing_is_left(before)))


def left() -> tuple[int, ...]:
    """How many files are open, delayed calls wait, and sockets the reactor reads and writes."""
    files = len(os.listdir("/proc/self/fd"))
    return files, len(reactor.getDelayedCalls()), len(reactor.getReaders()), len(reactor.getWriters())


async def nothing_is_left(before: tuple[int, ...]) -> None:
    """Within a bound, for a closed connection is gone only a turn or two later."""
    for _ in range(3000):
        if all(now <= then for now, then in zip(left(), before, strict=True)):
            return
        await deferLater(reactor, 0.001)
    raise AssertionError(f"files, delayed calls, readers, writers: {before} before, {left()} now")
