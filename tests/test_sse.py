"""Server-sent events: where one ends, and what its fields are."""

import itertools
import re

import pytest
from hypothesis import example
from hypothesis import strategies as st

from aigw.protocols import sse
from aigw.protocols.sse import boundary, fields, is_silence
from tests.properties import given

QUICK = (100, 500)


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (b"", 0),
        (b"data: 1", 0),
        (b"data: 1\n", 0),
        (b"data: 1\r", 0),
        (b"data: 1\r\n", 0),
        (b"data: 1\r\n\r\n"[:-1], 10),
        (b"data: 1\n\n", 9),
        (b"data: 1\r\n\r\n", 11),
        (b"data: 1\r\r", 9),
        (b"data: 1\n\r\n", 10),
        (b"data: 1\r\n\n", 10),
        (b"data: 1\n\r", 9),
        (b"data: 1\r\n\r", 10),
        (b"data: 1\n\ndata: 2", 9),
        (b"data: 1\n\ndata: 2\n", 9),
        (b"data: 1\n\ndata: 2\n\n", 18),
        (b"data: 1\r\n\r\ndata: 2\r\n", 11),
        (b"data: 1\ndata: 2\n\n: c", 17),
        (b"\n\n", 2),
        (b"\r\n\r\n", 4),
    ],
)
def test_a3_boundary_is_behind_the_last_whole_event(data, end):
    assert boundary(data) == end


@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b"", [b""]),
        (b"data: 1", [b"data: 1"]),
        (b"data: 1\n\n", [b"data: 1\n\n", b""]),
        (b"data: 1\r\n\r\ndata: 2\r\rdata: 3\n\nda", [b"data: 1\r\n\r\n", b"data: 2\r\r", b"data: 3\n\n", b"da"]),
        (b"data: 1\r\n\ndata: 2\n\r\n", [b"data: 1\r\n\n", b"data: 2\n\r\n", b""]),
        (b"data: 1\r\ndata: 2\rdata: 3\ndata: 4", [b"data: 1\r\ndata: 2\rdata: 3\ndata: 4"]),
        (b": a\n\n: b\n\n", [b": a\n\n", b": b\n\n", b""]),
    ],
)
def test_a2_split_cuts_behind_each_event(data, events):
    assert split(data) == events


@pytest.mark.parametrize(
    ("event", "name", "data"),
    [
        (b"", "", None),
        (b"\n\n", "", None),
        (b": comment\n\n", "", None),
        (b"data: 1\n\n", "", b"1"),
        (b"data:1\n\n", "", b"1"),
        (b"data:  1 \n\n", "", b" 1 "),
        (b"data:\t1\n\n", "", b"\t1"),
        (b"data:\n\n", "", b""),
        (b"data\n\n", "", b""),
        (b"data: a: b\n\n", "", b"a: b"),
        (b"data: 1\ndata: 2\n\n", "", b"1\n2"),
        (b"data: 1\r\ndata:\r\ndata: 3\r\n\r\n", "", b"1\n\n3"),
        (b"data: 1\rdata: 2\r\r", "", b"1\n2"),
        (b"data: 1\ndata: 2\r\ndata: 3\r\r", "", b"1\n2\n3"),
        (b"event: error\ndata: 1\n\n", "error", b"1"),
        (b"data: 1\nevent:ping\n\n", "ping", b"1"),
        (b"event: a\nevent: b\n\n", "b", None),
        (b"event\n\n", "", None),
        (b"event: \xff\n\n", "\ufffd", None),
        (b"id: 7\nretry: 10\ndata: 1\nx: y\n\n", "", b"1"),
        (b": data: 0\ndata: 1\n\n", "", b"1"),
        (b" data: 1\n\n", "", None),
        (b"Data: 1\n\n", "", None),
        (b"metadata: 1\n\n", "", None),
        (b"\xef\xbb\xbfdata: 1\n\n", "", b"1"),
        (b"data: \xef\xbb\xbf1\n\n", "", b"\xef\xbb\xbf1"),
        (b"data: \xc3\xa9\xff\n\n", "", b"\xc3\xa9\xff"),
        (b"\ndata: 1\n\n", "", b"1"),
    ],
)
def test_a2_fields(event, name, data):
    assert fields(event) == (name, data)


@pytest.mark.parametrize(
    ("data", "silence"),
    [
        (b"", True),
        (b"\n", True),
        (b"\r\n\r\n", True),
        (b":\n\n", True),
        (b": ping\n\n", True),
        (b": ping\r\n\r\n: ping\r\r", True),
        (b": pi", True),
        (b"\n\n: pi", True),
        (b": data: 1\n\n", True),
        (b"data: 1\n\n", False),
        (b": ping\n\ndata: 1\n\n", False),
        (b": ping\n\nd", False),
        (b": ping\rdata: 1", False),
        (b"event: ping\n\n", False),
        (b" : ping\n\n", False),
        (b"\n x", False),
        (b"ping", False),
    ],
)
def test_t1_comments_and_blank_lines_are_silence(data, silence):
    assert is_silence(data) is silence


def test_t1_long_comments_are_silence_too():
    assert is_silence((b":" + b"x" * 50 + b"\n\n") * 20_000)
    assert not is_silence((b":" + b"x" * 50 + b"\n\n") * 20_000 + b"y")


# Properties

_end = st.sampled_from([b"\n", b"\r\n", b"\r"])
_line = st.sampled_from(
    [b"data: 1", b"data: 2", b"data:", b"data", b": comment", b"event: error", b"id: 7", b"data: {}", b"\xffx"]
)
# Lines and blank lines in any mixture, each with a line end of its own, and perhaps a last line without one.
_stream = st.tuples(
    st.lists(st.tuples(st.one_of(_line, st.just(b"")), _end).map(b"".join), max_size=12).map(b"".join),
    st.one_of(_line, st.just(b"")),
).map(b"".join)
_anything = st.one_of(_stream, st.lists(st.sampled_from([b"\r", b"\n", b":", b"x"]), max_size=12).map(b"".join))
_cuts = st.lists(st.integers(0, 150), max_size=6)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(at)]


def relayed(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    """What a relay passes on of the pieces, each time as far as whole events go, and what it has left at the end."""
    passed, rest = [], b""
    for piece in pieces:
        rest += piece
        end = boundary(rest)
        if end:
            passed.append(rest[:end])
            rest = rest[end:]
    return passed, rest


def split(data: bytes) -> list[bytes]:
    """The whole events in ``data``, and what follows them."""
    events, start = [], 0
    while end := sse.find_end(data, start, 13 in data):
        events.append(data[start:end])
        start = end
    return [*events, data[start:]]


def said(data: bytes) -> list[list[bytes]]:
    """The events of a whole stream as the standard says: the lines up to each blank line; an unfinished one is none."""
    *blocks, _ = re.split(rb"\n(?=\n)", b"\n" + data.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
    return [lines for block in blocks if (lines := [line for line in block.split(b"\n") if line])]


@given(_anything, examples=QUICK)
def test_a3_split_loses_nothing(data):
    events = split(data)
    assert b"".join(events) == data
    assert all(boundary(event) == len(event) for event in events[:-1])
    assert all(events[:-1])
    assert not events[-1].strip(b"\r\n") or boundary(events[-1]) == 0


@given(_stream, _cuts, examples=QUICK)
@example(b"data: 1\r\n\r\ndata: 2\r\n\r\n", [10])
@example(b"data: 1\r\r\ndata: 2\r\r\n", [8, 9])
@example(b"data: 1\n\ndata: 2\n\n", [8])
@example(b"data: 1\r\n\ndata: 2\n\r\n", [8, 9, 18])
def test_a3_however_it_is_cut_nothing_is_lost_or_reordered(data, cuts):
    passed, rest = relayed(pieces_of(data, cuts))
    assert b"".join(passed) + rest == data
    for whole in passed:
        assert whole.endswith((b"\n", b"\r"))
        assert boundary(whole) == len(whole)


@given(_stream, _cuts, examples=QUICK)
@example(b"data: 1\r\n\r\ndata: 2\r\n\r\n", [10])
@example(b"data: 1\r\ndata: 2\r\n\r\n", [8])
def test_a3_however_it_is_cut_the_events_are_the_same(data, cuts):
    passed, _ = relayed(pieces_of(data, cuts))
    events = [event for whole in passed for event in split(whole)]
    found = [fields(event) for event in events if event.strip(b"\r\n")]
    assert found == [fields(b"\n".join(lines)) for lines in said(data)]


@given(_anything, examples=QUICK)
def test_t1_silence_says_nothing(data):
    lines = re.split(rb"[\r\n]", data)
    assert is_silence(data) is all(line[:1] in (b"", b":") for line in lines)
