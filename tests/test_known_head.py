"""Q7: an answer that is read by the head of an earlier one is what llhttp would have read, or is left to llhttp."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import strategies as st

from aigw.upstream import response_parser
from aigw.upstream.response_parser import ResponseParser
from tests.properties import given

BODY = b'{"choices": [{}]}'


def answer(*lines: bytes, body: bytes = BODY, first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([first, *lines, b"Content-Length: %d" % len(body), b"", body])


TYPE, DATE = b"Content-Type: application/json", b"Date: Sat, 28 Nov 2026 21:05:17 GMT"
COOKIES = b"Set-Cookie: a=1; path=/", b"set-cookie: b=2; path=/"
IDS = TYPE, DATE, b"X-Request-Id: one", *COOKIES
OTHER_IDS = TYPE, DATE.replace(b"17", b"18"), b"X-Request-Id: other", COOKIES[0].replace(b"1", b"one"), COOKIES[1]
USUAL = answer(TYPE, DATE)

# What comes first, what comes then, and whether that is read by what is known.
CASES: dict[str, tuple[list[bytes], bytes, bool]] = {
    "the same": ([USUAL], USUAL, True),
    "another date": ([USUAL], USUAL.replace(b"17 GMT", b"18 GMT"), True),
    "another body": ([USUAL], answer(TYPE, DATE, body=BODY * 3), True),
    "an empty body": ([USUAL], answer(TYPE, DATE, body=b""), True),
    "another type": ([USUAL], answer(b"Content-Type: text/plain", DATE), False),
    "an id that was the same so far": ([answer(*IDS)], answer(*OTHER_IDS), False),
    "an id that differs each time": ([answer(*IDS), answer(*OTHER_IDS)], answer(*IDS), True),
    "an id in another place": ([answer(*IDS), answer(*OTHER_IDS)], answer(*reversed(IDS)), False),
    "one cookie fewer": ([answer(*IDS), answer(*OTHER_IDS)], answer(*IDS[:-1]), False),
    "one more header": ([USUAL], answer(TYPE, DATE, b"X: y"), False),
    "a line of a header goes on": ([USUAL], answer(TYPE, DATE + b"\r\n more"), False),
    "a value with a line feed": ([USUAL], answer(TYPE, DATE + b"\nX: y"), False),
    "a value with a zero": ([USUAL], answer(TYPE, DATE + b"\0"), False),
    "a value that is no ASCII": ([USUAL], answer(TYPE, DATE + b"\xe9"), False),
    "a value with a space behind it": ([USUAL], answer(TYPE, DATE + b" "), False),
    "a value with a space before it": ([USUAL], answer(TYPE, DATE.replace(b" ", b"  ", 1)), False),
    "a date without a value": ([USUAL], answer(TYPE, b"Date: "), False),
    "two lengths": ([USUAL], answer(TYPE, DATE, b"Content-Length: 3"), False),
    "a length with zeros": ([USUAL], USUAL.replace(b"Length: ", b"Length: 00"), True),
    "a length with a sign": ([USUAL], USUAL.replace(b"Length: ", b"Length: +"), False),
    "a length that is no number": ([USUAL], USUAL.replace(b"Length: 17", b"Length: 1_7"), False),
    "a length that is too small": ([USUAL], USUAL + b"x", False),
    "a second answer behind it": ([USUAL], USUAL + USUAL, False),
    "a length that is too large": ([USUAL], USUAL[:-1], False),
    "chunks": ([USUAL], answer(TYPE, DATE, b"Transfer-Encoding: chunked"), False),
    "another status": ([USUAL], answer(TYPE, DATE, first=b"HTTP/1.1 500 OK"), False),
    "another version": ([USUAL], answer(TYPE, DATE, first=b"HTTP/1.0 200 OK"), False),
    "a 100 before it": ([USUAL], b"HTTP/1.1 100 Continue\r\n\r\n" + USUAL, False),
    "an empty line before it": ([USUAL], b"\r\n" + USUAL, False),
    "a 100 before the first": ([b"HTTP/1.1 100 Continue\r\n\r\n" + USUAL], USUAL, False),
    "it is the last one": ([USUAL], answer(TYPE, b"Connection: close", DATE), False),
    "whether it is the last one differs": (
        [answer(DATE, b"Connection: keep-alive"), answer(DATE, b"Connection: Keep-Alive")],
        answer(DATE, b"Connection: close"),
        False,
    ),
    "another limit for an idle connection": (
        [answer(b"Keep-Alive: timeout=9"), answer(b"Keep-Alive: timeout=8")],
        answer(b"Keep-Alive: timeout=7"),
        False,
    ),
    "the limit of another head came between": (
        [answer(b"Keep-Alive: timeout=9"), answer(b"Keep-Alive: timeout=3", first=b"HTTP/1.1 404 No")],
        answer(b"Keep-Alive: timeout=9"),
        True,
    ),
    "an upgrade": ([answer(b"Upgrade: h2c"), answer(b"Upgrade: x")], answer(b"Upgrade: y"), False),
    "it is compressed": ([USUAL], answer(TYPE, DATE, body=b"\x1f\x8b\x08" + BODY), False),
    "it is coded": ([answer(b"Content-Encoding: identity")], answer(b"Content-Encoding: gzip"), False),
    "zeros before the first length": ([USUAL.replace(b"Length: ", b"Length: 00")], USUAL, True),
    "a head that is too large to be known": ([answer(b"X: " + b"y" * 9000)], answer(b"X: " + b"y" * 9000), False),
}


def seen(parser: ResponseParser, data: list[bytes]) -> tuple[list[object], bool]:
    """What the parser found in one answer, which came in these reads, and whether it was read by what was known."""
    found: list[object] = []
    parser.start()
    for each in data:
        parser.feed(each)
        state = (parser.status, bool(parser.broken), parser.coded, parser.head_done, parser.complete)
        framing = parser.has_unrequested, parser.keep_alive, parser.framed, getattr(parser, "idle_seconds", None)
        headers = [*(parser.headers or parser.known_headers()).items()]
        found.append((state, framing, headers, parser.take()))
    return found, parser.read_by is not None


def both(before: list[bytes], data: list[bytes]) -> tuple[list[object], list[object], bool]:
    """What is found by a parser that knows heads, and by one that does not; and whether the first one used one."""
    knowing = ResponseParser()
    with patch.object(response_parser, "MOST_LEARNED", 0):
        plain = ResponseParser()
    for each in before:
        assert seen(knowing, [each])[0] == seen(plain, [each])[0]
        if knowing.broken or not (knowing.complete and knowing.keep_alive) or knowing.has_unrequested:
            return [], [], False  # the connection is closed
    found, is_known = seen(knowing, data)
    return found, seen(plain, data)[0], is_known


@pytest.mark.parametrize("case", CASES)
def test_q7_a_known_head_is_read_as_llhttp_reads_it(case):
    before, data, expected = CASES[case]
    found, by_llhttp, is_known = both(before, [data])
    assert found == by_llhttp
    assert is_known == expected


def test_q7_only_a_whole_read_is_read_by_a_known_head():
    for at in (1, len(USUAL) - len(BODY), len(USUAL) - 1):
        found, by_llhttp, is_known = both([USUAL], [USUAL[:at], USUAL[at:]])
        assert found == by_llhttp
        assert not is_known


def test_q7_bytes_behind_an_answer_are_seen():
    for more in (USUAL, b"\r\n", b"x"):
        found, by_llhttp, is_known = both([USUAL], [USUAL, more])
        assert found == by_llhttp
        assert is_known


def test_q7_a_provider_whose_heads_always_differ_is_no_longer_learned_from():
    parser = ResponseParser()
    for number in range(response_parser.MOST_LEARNED + 3):
        parser.start()
        parser.feed(answer(b"X-%d: y" % number))
        assert parser.read_by is None
    parser.start()
    parser.feed(answer(b"X-%d: y" % number))
    assert parser.read_by is None


_values = st.binary(max_size=6) | st.sampled_from(
    [b"close", b"keep-alive", b"chunked", b"gzip", b"7", b"timeout=9", b"a b", b" a", b"a "]
)
_names = st.sampled_from(
    b"Date X-Request-Id x-request-id Connection Keep-Alive Transfer-Encoding Content-Encoding Content-Type Content-Length Upgrade".split()
)


@given(
    st.lists(st.tuples(_names, st.lists(_values, min_size=3, max_size=3)), max_size=4),
    st.binary(max_size=5),
    st.integers(0, 3),
    examples=(300, 5000),
)
def test_q7_random_heads_are_read_as_llhttp_reads_them(lines, body, cut):
    """Three answers with the same names and other values, of which the last may be cut."""
    first, second, third = (
        answer(*[b"%s: %s" % (name, values[at]) for name, values in lines], body=body) for at in range(3)
    )
    found, by_llhttp, _ = both(
        [first, second], [third[: len(third) - cut], third[len(third) - cut :]] if cut else [third]
    )
    assert found == by_llhttp
