"""A3, B1: a read that is one whole chunk is not parsed again, and everything is as if it were."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aigw.upstream import connection
from aigw.upstream.connection import Connection
from tests.memory import MemoryGateway
from tests.providers import DONE, LAST_CHUNK, STREAM_HEAD, chunk, event

HELLO, STOP, LONG = event({"content": "hello"}), event(finish_reason="stop"), event({"content": "x" * 3000})
READS = [
    *(chunk(HELLO), chunk(LONG), chunk(b": c\n\n"), chunk(STOP), chunk(DONE), LAST_CHUNK),
    chunk(HELLO) * 2,
    chunk(HELLO[:20]),
    chunk(HELLO[20:]),
    chunk(HELLO.replace(b"\n", b"\r\n")),
    chunk(HELLO).replace(b"\r\n", b";a=b\r\n", 1),
    chunk(HELLO).upper(),
    b"0" + chunk(HELLO),
    chunk(HELLO)[:-2] + b"xx",
    chunk(HELLO)[:-2],
    b"\r\n",
    chunk(b'data: {"error":{"message":"no"}}\n\n'),
    chunk(b'data: {"choices":[],"usage":{"prompt_tokens":7}}\n\n'),
    b"5\r\nab\n\n\r\n",
    b"4\r\nab\n\n",
    b"zz\r\n",
    chunk(b"\n\n"),
    b"0\r\nX: y\r\n\r\n",
    b"\n" + HELLO + b"\r\n",  # an empty size
    b"\n" + LONG + b"\r\n",
]


def outcome(reads: list[bytes], parses_all: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """What the client gets, its data of the chunks joined; whether the connections are open; and the record."""
    with monkeypatch.context() as patch:
        if parses_all:
            patch.setattr(connection, "LARGEST", 0)
        gateway = MemoryGateway()
        client = gateway.ask(stream=True)
        provider = gateway.doors["p1"].wire
        for read in (STREAM_HEAD + chunk(HELLO), *reads):
            if provider.aborted or provider.disconnecting:
                break
            provider.say(read)
        got, is_open = (
            re.sub(rb"(?i)x-request-id: [0-9a-f]+", b"", client.take()),
            not (provider.aborted or provider.disconnecting),
        )
        gateway.clock.advance(100)
        records = [(each.outcome, each.status, each.bytes_out, each.usage, each.error) for each in gateway.records]
        return got, client.take(), is_open, client.disconnecting, client.aborted, records


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(READS), max_size=9), st.lists(st.integers(0, 600), max_size=3))
@example([chunk(HELLO)] * 3 + [chunk(STOP), chunk(DONE), LAST_CHUNK], [])
@example([chunk(HELLO), b"5\r\nab\n\n\r\n", b"4\r\nab\n\n", b"\r\n", chunk(HELLO)], [])
def test_a3_b1_a_whole_chunk_means_what_it_means_parsed(reads, cuts):
    data = b"".join(reads)
    ends = {*itertools.accumulate(map(len, reads)), *(cut for cut in cuts if cut < len(data))}
    pieces = [data[start:end] for start, end in itertools.pairwise(sorted({0, *ends}))]
    with pytest.MonkeyPatch.context() as patch:
        assert outcome(pieces, False, patch) == outcome(pieces, True, patch)


OTHER_FORMS = {
    "no size": b"\n%s\r\n",
    "no size, CRLF": b"\r\n%s\r\n",
    "LF": b"%x\n%s\r\n",
    "a space before": b" %x\r\n%s\r\n",
    "a sign": b"+%x\r\n%s\r\n",
    "0x": b"0x%x\r\n%s\r\n",
    "no digit": b"g%x\r\n%s\r\n",
    "no CRLF behind it": b"%x\r\n%s\n\n",
}


@pytest.mark.parametrize("form", OTHER_FORMS.values(), ids=OTHER_FORMS)
@pytest.mark.parametrize("size", [0, 2, 18, 259, 2048, 3000])
def test_b1_a_malformed_frame_is_never_passed_on(size, form):
    """Reads of 21 bytes, of 262 and of more than 2055 are never a whole chunk that need not be parsed."""
    data = (b"data: " + b"x" * size)[:size]
    if size >= 2:
        data = data[:-2] + b"\n\n"
    gateway = MemoryGateway()
    client = gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    provider.say(STREAM_HEAD + chunk(HELLO))
    client.take()
    provider.say(form % ((size, data) if b"%x" in form else data))
    assert provider.aborted
    got, sent = client.take(), []
    while got:
        size_line, _, rest = got.partition(b"\r\n")
        sent.append(rest[: int(size_line, 16)])
        got = got.removeprefix(chunk(sent[-1])) if got.startswith(chunk(sent[-1])) else pytest.fail(repr(got))
    assert b"stream_truncated" in sent[-1]


def test_a3_a_whole_chunk_is_sent_on_as_it_is_and_not_parsed(monkeypatch):
    gateway = MemoryGateway()
    client = gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    provider.say(STREAM_HEAD + chunk(HELLO))
    client.take()
    monkeypatch.setattr(connection.ResponseParser, "feed", None)
    for _ in range(3):
        provider.say(chunk(HELLO))
        assert client.take() == chunk(HELLO)


@pytest.mark.parametrize("size", [3, 5, 21, 276, 3000])
def test_b1_a_line_feed_where_a_chunk_should_begin_is_malformed(size):
    """Also in a read whose size no whole chunk has."""
    gateway = MemoryGateway()
    client = gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    provider.say(STREAM_HEAD + chunk(HELLO))
    provider.say(chunk(HELLO))
    client.take()
    provider.say(b"\n".ljust(size - 2, b"x") + b"\r\n")
    assert provider.aborted
    assert b"xx\r\n" not in client.take()
    assert [record.outcome for record in gateway.records] == ["stream_truncated"]


def test_b1_after_another_exchange_has_begun_nothing_is_skipped():
    lost: list[Connection] = []
    made = Connection(False, lost.append, lost.append)
    assert made._on_chunk is None
    made._on_chunk = lambda *_: None
    made._start()
    assert made._on_chunk is None
