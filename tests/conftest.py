from __future__ import annotations

import gc

import pytest
from twisted.logger import globalLogPublisher

from aigw import logs
from tests.harness import World


def pytest_collection_finish():
    """What is there before the first test is no test's garbage; collecting is then quick."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def failures():
    """S7: whatever Twisted logs as a failure, "Unhandled error in Deferred" included, fails the test."""
    seen: list[str] = []

    def observe(event):
        failure = event.get("log_failure") or event.get("failure")  # new and old style
        if failure is not None:
            seen.append(f"{event.get('log_format')}: {failure.getTraceback()}")

    globalLogPublisher.addObserver(observe)
    yield seen
    gc.collect(1)  # what this test left; the rest is collected when its module is over
    globalLogPublisher.removeObserver(observe)
    logs.hide([])
    assert not seen, "\n".join(seen)


@pytest.fixture(autouse=True, scope="module")
def late_failures():
    """The same for what only a full collection brings to light."""
    seen: list[str] = []

    def observe(event):
        if event.get("log_failure") is not None:
            seen.append(event["log_failure"].getTraceback())

    yield
    globalLogPublisher.addObserver(observe)
    gc.collect()
    globalLogPublisher.removeObserver(observe)
    assert not seen, "\n".join(seen)


@pytest.fixture
def world(tmp_path):
    """Gateways, providers and clients on real sockets, all gone when the test is over."""
    import pytest_twisted

    world = World(tmp_path)
    yield world
    pytest_twisted.blockon(world.close())
