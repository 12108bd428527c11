"""A3, A4: what one pure object says of the bytes of a stream, without a connection, a client or a clock."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aigw.errors import StreamBroken
from aigw.protocols import events
from aigw.protocols.endpoints import ENDPOINTS
from aigw.protocols.error_bodies import error_event
from aigw.protocols.scanner import HOLD_STREAM, Meaning, StreamScanner
from tests.providers import DONE, ROLE, event

SILENCE, OUTPUT, END, ERROR = Meaning
CHAT, RESPONSES = ENDPOINTS["chat/completions"], ENDPOINTS["responses"]
HELLO = event({"content": "hello"})
STOP = event(finish_reason="stop")
RESPONSE_END = b'event: response.completed\ndata: {"type":"response.completed","response":{}}\n\n'
PACKAGE = Path(__file__).parent.parent / "aigw"


def begun(*more: bytes, endpoint=CHAT) -> StreamScanner:
    scanner = endpoint.scanner()
    for data in (b"data: output\n\n", *more):
        scanner.feed(data)
    assert scanner.has_output
    return scanner


@pytest.mark.parametrize(
    ("fed", "passed", "meaning", "has_output"),
    [
        ((b": ping\n\n",), b": ping\n\n", SILENCE, False),
        ((ROLE,), ROLE, SILENCE, False),
        ((ROLE + HELLO[:10],), ROLE, SILENCE, False),
        ((ROLE, HELLO), HELLO, OUTPUT, True),
        ((ROLE + HELLO[:10], HELLO[10:]), HELLO, OUTPUT, True),
        ((ROLE + HELLO + HELLO[:10],), ROLE + HELLO, OUTPUT, True),
        ((HELLO + STOP + DONE,), HELLO + STOP + DONE, END, True),
        ((ROLE + DONE + HELLO,), ROLE + DONE, END, False),
        (
            (ROLE, b'data: {"error":{"message":"no"}}\n\n' + HELLO),
            b'data: {"error":{"message":"no"}}\n\n',
            ERROR,
            False,
        ),
        ((b": " + b"c" * (HOLD_STREAM - 3), b"c"), b"", SILENCE, False),
    ],
    ids=(
        "a comment,a role,a role and a half,output,output in halves,output and a half,all of it,only an end,"
        "an error,64 KiB of comment"
    ).split(","),
)
def test_a2_up_to_the_first_output(fed, passed, meaning, has_output):
    scanner = CHAT.scanner()
    *before, last = fed
    for data in before:
        assert scanner.feed(data)[1] is SILENCE
    assert scanner.feed(last) == (passed, meaning)
    assert scanner.has_output is has_output


@pytest.mark.parametrize(
    ("endpoint", "data", "passed", "meaning", "complete"),
    [
        (CHAT, HELLO, HELLO, OUTPUT, False),
        (CHAT, b": ping\n\n", b": ping\n\n", SILENCE, False),
        (CHAT, ROLE, ROLE, OUTPUT, False),  # T1: only comments are silence now
        (CHAT, HELLO + b"data: {", HELLO, OUTPUT, False),
        (CHAT, b": pi", b"", SILENCE, False),
        (CHAT, b"data", b"", OUTPUT, False),
        (CHAT, STOP, STOP, OUTPUT, True),  # usage may follow
        (CHAT, DONE, DONE, END, True),
        (CHAT, HELLO + DONE + b": bye\n\n", HELLO + DONE, END, True),  # nothing is written behind it
        (RESPONSES, STOP, STOP, OUTPUT, False),
        (RESPONSES, RESPONSE_END, RESPONSE_END, END, True),
        (RESPONSES, RESPONSE_END.replace(b"\n", b"\r\n"), RESPONSE_END.replace(b"\n", b"\r\n"), END, True),
        (RESPONSES, DONE, b"", END, True),  # our event goes out in front of it
    ],
)
def test_a3_a4_after_the_first_output(endpoint, data, passed, meaning, complete):
    scanner = begun(endpoint=endpoint)
    assert scanner.feed(data) == (passed, meaning)
    assert scanner.complete is complete


@pytest.mark.parametrize("rest", [b"data: [DONE]", STOP.rstrip(b"\n"), STOP[:-1]])
def test_a4_an_end_that_lacks_its_empty_line_is_one_if_the_body_ended_well(rest):
    scanner = begun()
    assert scanner.feed(rest) == (b"", OUTPUT)
    assert not scanner.complete
    assert scanner.finish() == rest
    assert scanner.complete


@pytest.mark.parametrize("rest", [b"", STOP[:-5], b": [DONE]"])
def test_a4_a_rest_that_is_no_end_completes_nothing(rest):
    scanner = begun(HELLO + rest)
    assert scanner.finish() == rest
    assert not scanner.complete


def test_a4_our_event_is_one_of_its_own_wherever_the_stream_broke():
    broken = StreamBroken("stream_reset", "It broke.")
    assert begun(HELLO + b"data: half").error_event(broken) == error_event(broken)
    assert begun(b"data: " + b"x" * HOLD_STREAM).error_event(broken) == b"\n\n" + error_event(broken)


# Usage


USED = b'data: {"choices":[],"usage":{"prompt_tokens":7}}\n\n'


@pytest.mark.parametrize("at", range(1, len(USED)))
def test_usage_is_read_from_whole_events_only(at):
    """The half of an event has said nothing yet, wherever it was cut."""
    scanner = begun(USED[:at])
    assert scanner.usage.counts() == {}
    scanner.feed(USED[at:])
    assert scanner.usage.counts() == {"prompt_tokens": 7}


def test_usage_in_half_an_event_that_never_became_whole_is_none():
    scanner = begun(HELLO + USED[:-4])
    scanner.finish()
    assert scanner.usage.counts() == {}


@pytest.mark.parametrize("size", [11, 1000, 5000, 40_000])
@pytest.mark.parametrize("before", [0, 5000, 70_000])
def test_usage_and_the_end_in_an_event_that_is_passed_on_in_pieces(size, before):
    """Wherever they stand in it, and however it is cut there."""
    used = b'"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"x":"%s"},"y":"' % (b"x" * 3000)
    large = (
        b'data: {"choices":[{"delta":{"content":"%s"},' % (b"c" * (70_000 + before)) + used + b"y" * 9000 + b'"}\n\n'
    )
    scanner = begun()
    passed, _ = scanner.feed(large[:70_000])
    for at in range(70_000, len(large), size):
        passed += scanner.feed(large[at : at + size])[0]
    assert passed == large
    assert scanner.complete
    assert scanner.usage.counts() == {"prompt_tokens": 7}


# Properties

_part = st.sampled_from(
    [
        *(HELLO, ROLE, STOP, DONE, USED, RESPONSE_END, HELLO.replace(b"\n", b"\r\n"), HELLO.replace(b"\n", b"\r")),
        *(b": c\n\n", b"\n", b"\r", b"\r\n", b"data: half", b"event: ping\n\n", b"\xef\xbb\xbf"),
    ]
)
_cuts = st.lists(st.integers(0, 2000), max_size=8)


@settings(max_examples=300, deadline=None)
@given(st.lists(_part, max_size=10).map(b"".join), _cuts, st.sampled_from([CHAT, RESPONSES]))
@example(HELLO.replace(b"\n", b"\r\n") * 2, [len(HELLO) + 1], CHAT)
@example(HELLO + STOP + DONE, list(range(0, 2000, 7)), CHAT)
@example(b"\n\xef\xbb\xbf" + STOP, [1], CHAT)
def test_a3_however_a_stream_is_cut_the_same_is_passed_on_and_means_the_same(data, cuts, endpoint):
    def outcome(pieces: list[bytes]) -> tuple:
        scanner, passed = begun(endpoint=endpoint), b""
        for piece in pieces:
            if piece:
                more, meaning = scanner.feed(piece)
                assert meaning is not ERROR
                passed += more
                assert not more or more.endswith((b"\n", b"\r"))
                if meaning is END:
                    break
        else:
            passed += scanner.finish()
        assert data.startswith(passed + scanner.last)
        assert scanner.complete or passed == data
        return scanner.complete, scanner.usage.counts(), scanner.failure is None

    at = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    assert outcome([data[start:end] for start, end in itertools.pairwise(at)]) == outcome([data])


# The house


def test_r3_nothing_asks_which_endpoint_it_is():
    """Another protocol is a row and a file: an endpoint is compared with nothing and looked up by no constant."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                found += [path.name] if ast.unparse(node.value).endswith("ENDPOINTS") else []
            if isinstance(node, ast.Compare) and path.parent.name != "config":  # its endpoints are Twisted's
                sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
                found += [path.name] if any(side.endswith(("endpoint", "endpoint.path")) for side in sides) else []
    assert found == []


def hostile_reads():
    """Reads in which one event matters: the last one, behind many small ones, with each kind of line end."""
    small, done = b"data: {}", b"data: [DONE]"
    for end in (b"\n\n", b"\r\n\r\n", b"\r\r"):
        yield (small + end) * 6000 + done + end
    yield b"data: {}\n\n" * 3000 + b'data: {"error": null, "pad": "' + b"x" * 30_000 + b'"}\n\n'


@pytest.mark.parametrize("data", [*hostile_reads()], ids=["LF", "CRLF", "CR", "a large one"])
def test_b3_a3_many_small_events_in_one_read_are_gone_through_once(data):
    scanner = ENDPOINTS["chat/completions"].scanner()
    scanner.feed(event({"content": "x"}))
    asked = 0
    matters = scanner._matters

    def counted(events: bytes) -> bool:
        nonlocal asked
        asked += len(events)
        return matters(events)

    scanner._matters = counted
    passed, _ = scanner.feed(data)
    assert passed == data
    assert asked < 3 * len(data)


@pytest.mark.parametrize("first", [b"\n\n", b"\r\n\r\n", b"\r\r"])
@pytest.mark.parametrize("second", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_a4_events_whose_line_ends_differ_are_two(first, second):
    scanner = ENDPOINTS["chat/completions"].scanner()
    scanner.feed(event({"content": "x"}))
    finished = event(finish_reason="stop").rstrip()
    data = finished + first + b"data: [DONE]" + second
    assert scanner.feed(data) == (data, Meaning.END)
    assert scanner.finished
    assert scanner.complete


@pytest.mark.parametrize(
    ("data", "read"),
    [
        (b'{"error":{"code":NaN}}', "{'error': {'code': nan}}"),
        (b'{"error":1e999}', "{'error': inf}"),
        (rb'{"error":"\ud800"}', r"{'error': '\ud800'}"),
        (b'\xef\xbb\xbf{"error":1}', "{'error': 1}"),
        (b'{"error":12345678901234567890123}', "{'error': 12345678901234567890123}"),
        (b'{"error":-0, "a":-0.0}', "{'error': 0, 'a': -0.0}"),
        (b'{"a":1,"error":2,"a":3}', "{'a': 3, 'error': 2}"),
        (b'{"error":1', "None"),
        (b'{"error":1} 2', "None"),
        (b'{"error":"a\tb"}', "None"),
    ],
)
def test_a2_the_data_of_an_event_is_read_as_by_python(data, read):
    assert repr(events.read(b"data: " + data + b"\n\n")[2]) == read


@pytest.mark.parametrize("begin", [b"data: ", b"data:"])
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n"])
def test_a2_the_data_of_an_event_is_the_same_however_its_lines_end(begin, end):
    assert events.read(begin + b' {"a": 1} ' + end)[:3] == ("", b' {"a": 1} '[begin == b"data:" :], {"a": 1})
    assert events.read(begin + b"1" + end[:1] + b"data:2" + end)[1:3] == (b"1\n2", None)
    assert events.read(begin + end)[1:] == (None, None, None)
