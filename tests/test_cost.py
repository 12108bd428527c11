"""What a request and a chunk cost, in calls of functions: the same on every machine, so that the hot path cannot grow unnoticed.

All of the gateway is in it but the sockets: Twisted's channel, treq, the record and its log line. A budget that is passed is raised on
purpose or not at all; one that is far from being used is lowered.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable

import pytest
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from aigw.straight import path as straight
from aigw.telemetry import logs
from aigw.telemetry.telemetry import Telemetry
from tests.harness import HELLO, request
from tests.memory import MemoryGateway, Wire
from tests.providers import STREAM_HEAD, chunk, event

# What it costs, by Python functions and by C functions. A few per cent more are let pass: releases of Twisted and treq
# differ. ``bytes.find`` is counted; ``in`` is not, although it takes longer.
BUDGET = {
    "a plain request": (99, 98),
    "a request with the headers of an SDK": (99, 98),
    "a plain request on the long way": (227, 213),
    "a request with the headers of an SDK on the long way": (233, 225),
    "a chunk of a stream": (10, 13),
    "a read that holds 50 chunks": (14, 22),
}
OVER, UNDER = 1.05, 0.85
_NAMES = "Lang Package-Version OS Arch Runtime Async Retry-Count".split()
SDK = "".join(f"X-Stainless-{name}: some-value\r\n" for name in _NAMES)
ANSWER = json.dumps(
    {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello. " * 40}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 60, "total_tokens": 72},
    }
).encode()
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)
CHUNK = chunk(event({"content": "a few words"}))


class Nowhere:
    """A log file."""

    def write(self, line: str) -> None:
        pass

    def write_bytes(self, line: bytes) -> None:
        pass

    def flush(self) -> None:
        pass


@pytest.fixture
def is_straight():
    return True


@pytest.fixture
def gateway(is_straight, monkeypatch):
    monkeypatch.setattr(straight, "IS_ON", is_straight)
    lines = logs.JsonLines(Nowhere())
    others = list(globalLogPublisher._observers)  # a daemon has no other observer
    for other in others:
        globalLogPublisher.removeObserver(other)
    globalLogPublisher.addObserver(lines)
    telemetry = Telemetry(lambda: None, Clock(), lines.redaction)
    gateway = MemoryGateway(sink=telemetry.record)
    telemetry.use(gateway.config)
    lines.redaction.use(gateway.config.secrets)
    yield gateway
    globalLogPublisher.removeObserver(lines)
    for other in others:
        globalLogPublisher.addObserver(other)


def calls(run: Callable[[], object]) -> tuple[int, int]:
    """How many functions of Python, and how many of C, ``run`` calls."""
    counted = {"call": 0, "c_call": 0}

    def count(_frame: object, kind: str, _of: object) -> None:
        if kind in counted:
            counted[kind] += 1

    before = sys.getprofile()
    gc.disable()
    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(before)
        gc.enable()
    return counted["call"], counted["c_call"]


def hold_to(budget: str, counted: tuple[int, int], capsys) -> None:
    with capsys.disabled():
        print(f" [{budget}: {counted[0]} calls of Python functions, {counted[1]} of C's]", end="")
    for number, allowed in zip(counted, BUDGET[budget], strict=True):
        assert number <= allowed * OVER, f"{budget} costs {counted}, more than its budget of {BUDGET[budget]}"
        assert number >= allowed * UNDER, f"{budget} costs {counted}: its budget of {BUDGET[budget]} can be lowered"


def asked_and_answered(gateway: MemoryGateway, client: Wire, sent: bytes) -> bytes:
    client.say(sent)
    gateway.doors["p1"].wire.take()
    gateway.doors["p1"].wire.say(WHOLE)
    return client.take()


@pytest.mark.parametrize(
    ("budget", "is_straight", "more"),
    [
        ("a plain request", True, ""),
        ("a request with the headers of an SDK", True, SDK),
        ("a plain request on the long way", False, ""),
        ("a request with the headers of an SDK on the long way", False, SDK),
    ],
    ids=["plain", "sdk", "plain, long", "sdk, long"],
)
def test_a_request_stays_within_its_budget(gateway, capsys, budget, is_straight, more):
    """Q1, Q4."""
    sent = request(HELLO).replace(b"\r\n\r\n", b"\r\n" + more.encode() + b"\r\n", 1)
    client = gateway.open()
    for _ in range(3):  # a connection that is kept, and whatever is made once is made
        assert asked_and_answered(gateway, client, sent).endswith(ANSWER)
    hold_to(budget, calls(lambda: asked_and_answered(gateway, client, sent)), capsys)


@pytest.mark.parametrize(
    ("budget", "read"), [("a chunk of a stream", CHUNK), ("a read that holds 50 chunks", CHUNK * 50)], ids=["one", "50"]
)
def test_a_chunk_stays_within_its_budget(gateway, capsys, budget, read):
    client = gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    provider.say(STREAM_HEAD + CHUNK)
    provider.say(CHUNK)
    client.take()
    hold_to(budget, calls(lambda: provider.say(read)), capsys)
    assert client.take().count(b"a few words") == read.count(b"a few words")
