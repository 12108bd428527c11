"""A3, A4: events that are like the last one but for their text are not examined, and everything means what it means without that."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aigw.errors import StreamBroken
from aigw.protocols import events
from aigw.protocols.endpoints import ENDPOINTS
from aigw.protocols.known_events import MOST_KNOWN, RENEWED, KnownEvents
from aigw.protocols.like_events import like_the_last
from aigw.protocols.meaning import END, ERROR, OUTPUT
from aigw.protocols.scanner import StreamScanner
from tests.providers import DONE, ROLE, event

CHAT, RESPONSES, MESSAGES = ENDPOINTS["chat/completions"], ENDPOINTS["responses"], ENDPOINTS["messages"]
OF = {
    CHAT: 'data: {"choices":[{"index":0,"delta":{"content":%s},"finish_reason":null}]}\n\n',
    RESPONSES: 'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":%s}\n\n',
    MESSAGES: 'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta","text":%s}}\n\n',
}
MATTER = [
    *(
        DONE,
        ROLE,
        event(finish_reason="stop"),
        event({"content": "x"}, finish_reason="error"),
        b": c\n\n",
        b"\n",
        b"\r\n",
        b"data: half",
    ),
    b'data: {"choices":[],"usage":{"prompt_tokens":7}}\n\n',
    b'data: {"error":{"message":"no"}}\n\n',
    b'event: error\ndata: {"type":"error","error":{"message":"no"}}\n\n',
    b'data: {"choices":[{"index":1,"delta":{"content":"b"},"finish_reason":null}]}\n\n',
    b'data: {"type":"response.completed","response":{}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
]
TEXTS = [
    "",
    " a",
    "a\nb",
    'a "b"',
    "\\",
    "an error",
    "data: [DONE]",
    "ü",
    '"error"',
    '"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
]
RAW = [
    '"a\nb"',
    '"a\n\ndata: [DONE]\n\n"',
    '"a\r\rdata: [DONE]\r\r"',
    '"a\\"',
    '"a\\\\"',
    '"',
    '"a" "b"',
    '"a","finish_reason":"stop","x":"b"',
    "null",
]


FIRST = b"data: output\n\n"


def outcome(scanner: StreamScanner, pieces: list[bytes]) -> list[object]:
    found: list[object] = []
    for piece in pieces:
        if piece:
            found.append(scanner.feed(piece))
            if found[-1][1] is END or (found[-1][1] is ERROR and not scanner.has_output):
                break
    else:
        found.append(scanner.finish())
    failure = scanner.failure and (scanner.failure.code, scanner.failure.reported)
    found += [scanner.complete, scanner.finished, failure, scanner.last, scanner.usage.counts()]
    return [*found, scanner.error_event(StreamBroken("stream_reset", "It broke."))]


def of_like_events(endpoint):
    text = st.one_of(st.sampled_from(TEXTS), st.text(max_size=8)).map(json.dumps)
    like = st.one_of(text, text, st.sampled_from(RAW)).map(lambda text: (OF[endpoint] % text).encode())
    parts = st.lists(st.one_of(like, like, like, st.sampled_from(MATTER)), max_size=12)
    return st.tuples(st.just(endpoint), parts)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([*OF]).flatmap(of_like_events),
    st.lists(st.integers(0, 2500), max_size=6),
    st.booleans(),
    st.sampled_from(["alone", "in the first read", "none"]),
)
@example((CHAT, [(OF[CHAT] % '"a"').encode()] * 3 + [event(finish_reason="stop"), DONE]), [400], False, "alone")
@example((CHAT, [(OF[CHAT] % each).encode() for each in ('"a"', *RAW)]), [], True, "alone")
@example((CHAT, [event(finish_reason="stop"), *[(OF[CHAT] % '"a"').encode()] * 30, DONE]), [], False, "none")
@example(
    (CHAT, [b'data: {"choices":[],"usage":{"prompt_tokens":7}}\n\n', *[(OF[CHAT] % '"a"').encode()] * 30, DONE]),
    [],
    False,
    "in the first read",
)
def test_a3_a4_events_like_the_last_mean_what_they_mean_examined(events, cuts, one_by_one, output):
    """``output``: where the first output is, which need not be like the others."""
    endpoint, parts = events
    data = b"".join(parts)
    ends = itertools.accumulate(map(len, parts)) if one_by_one else cuts
    at = [0, *sorted({min(cut, len(data)) for cut in [*ends, *cuts]}), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(at)]
    if output == "in the first read":
        pieces[0] = FIRST + pieces[0]
    elif output == "alone":
        pieces.insert(0, FIRST)
    plain = endpoint.scanner()
    plain._learns, plain.known = 0, None  # so it examines each event
    assert outcome(endpoint.scanner(), pieces) == outcome(plain, pieces)


@pytest.mark.parametrize("endpoint", OF, ids=["chat", "responses", "messages"])
@pytest.mark.parametrize("escaped", ["b", "\\n\\t\\\\", "\\u0022"])
def test_a3_an_event_like_the_last_is_not_searched(endpoint, escaped):
    first, like = ((OF[endpoint] % f'"{text}"').encode() for text in ("a", escaped))
    scanner = endpoint.scanner()
    scanner.feed(first)  # alone in its read
    scanner.sign = scanner.other = None  # a search would fail
    assert scanner.feed(like) == (like, OUTPUT)
    several = like + first + like
    assert scanner.feed(several) == (several, OUTPUT)


def test_a3_a_read_of_several_events_is_learned_from_and_only_what_follows_them_is_searched():
    event_of = lambda text: (OF[CHAT] % f'"{text}"').encode()  # noqa: E731
    scanner = CHAT.scanner()
    scanner.feed(event_of("a") + event_of("b") + event_of("c"))
    searched = []
    scanner._matters = lambda events: searched.append(events)
    end = event(finish_reason="stop") + DONE
    data = event_of("d") + event_of("e") + end
    assert scanner.feed(data[:-3]) == (data[: data.index(DONE)], OUTPUT)
    assert scanner.feed(data[-3:])[0] == DONE
    assert searched == [event(finish_reason="stop"), DONE]


def test_a4_an_event_that_begins_with_a_question_mark_is_examined_before_another_was_learned():
    scanner = CHAT.scanner()
    scanner.feed(b"data: output\n\n")
    assert scanner.feed(b"?\n" + DONE)[1] is END


# Events that are known from earlier streams

NAMED = {
    CHAT: 'data: {"id":%s,"created":%s,"model":%s,"choices":[{"index":0,"delta":{"content":%s}%s}]%s}\n\n',
    MESSAGES: 'data: {"id":%s,"created":%s,"model":%s,"type":"content_block_delta","delta":{"type":"text_delta","text":%s%s}%s}\n\n',
}
NAMES = [
    '"chatcmpl-1"',
    '"msg_2"',
    '"a"',
    '"a"',
    '""',
    '"\u00fc"',
    '"\\u00fc"',
    '"[DONE]"',
    '"error"',
    '"a\\"b"',
    "1",
    "null",
    '"\udcff"',
]
TIMES = ["1700000000", "1700000001", "0", "007", "1" * 30, '"1"', "1.5", "null"]
WORDS = [
    '"a"',
    '" b"',
    '"\u00fc"',
    '"\udcff"',
    '""',
    '"\\n"',
    '"\t"',
    '"error"',
    '"usage"',
    "null",
    '"a","x":"b"',
    '"' + "long " * 300 + '"',
]
INSIDE = [
    "",
    "",
    "",
    ',"finish_reason":null',
    ',"finish_reason":"stop"',
    ',"index":1',
    ',"error":{"message":"no"}',
    ',"id":""',
    ',"id":"x"',
]
BEHIND = [
    "",
    "",
    "",
    ',"obfuscation":"xyz"',
    ',"obfuscation":"abcdef"',
    ',"usage":null',
    ',"usage":{"prompt_tokens":7}',
    ',"error":null',
    "}",
]


def learn(known: KnownEvents, first: bytes, endpoint=CHAT) -> None:
    like = like_the_last(first, endpoint.scanner().text)
    assert like is not None
    known.learn(first, like)


def of_known_events(endpoint):
    parts = st.tuples(*map(st.sampled_from, (NAMES, TIMES, NAMES, WORDS, INSIDE, BEHIND)))
    one = parts.map(lambda parts: (NAMED[endpoint] % parts).encode(errors="surrogateescape"))
    stream = st.lists(st.one_of(one, one, one, st.sampled_from(MATTER)), min_size=1, max_size=5)
    return st.tuples(st.just(endpoint), st.lists(one, max_size=12), stream)


USUAL = ('"chatcmpl-1"', "1700000000", '"m"', '"a"', "", ',"obfuscation":"xyz"')


@pytest.mark.parametrize("endpoint", NAMED, ids=["chat", "messages"])
@pytest.mark.parametrize(
    ("at", "other"),
    [*((at, each) for at, of in enumerate((NAMES, TIMES, NAMES, WORDS, INSIDE, BEHIND)) for each in of)],
)
def test_a3_a_first_event_with_one_member_that_is_not_as_usual_means_what_it_means_examined(endpoint, at, other):
    usual, changed = USUAL, (*USUAL[:at], other, *USUAL[at + 1 :])
    scanner, plain = endpoint.scanner(), endpoint.scanner()
    scanner.known, plain.known, plain._learns = KnownEvents(), None, 0
    learn(scanner.known, (NAMED[endpoint] % usual).encode(), endpoint)
    assert scanner.known.find((NAMED[endpoint] % usual).encode())
    pieces = [(NAMED[endpoint] % changed).encode(errors="surrogateescape"), (NAMED[endpoint] % usual).encode(), DONE]
    assert [*outcome(scanner, pieces), scanner.error] == [*outcome(plain, pieces), plain.error]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*NAMED]).flatmap(of_known_events), st.booleans())
def test_a3_a4_events_known_from_earlier_streams_mean_what_they_mean_examined(events, one_by_one):
    endpoint, earlier, parts = events
    known = KnownEvents()
    for event_of in earlier:
        scanner = endpoint.scanner()
        scanner.known = known
        scanner.feed(event_of)
    scanner, plain = endpoint.scanner(), endpoint.scanner()
    scanner.known, plain.known, plain._learns = known, None, 0
    pieces = parts if one_by_one else [b"".join(parts)]
    assert [*outcome(scanner, pieces), scanner.error] == [*outcome(plain, pieces), plain.error]


@pytest.mark.parametrize("endpoint", NAMED, ids=["chat", "messages"])
@pytest.mark.parametrize("behind", ["", ',"obfuscation":"%s"'])
def test_a3_the_first_output_of_a_stream_is_not_decoded_if_an_earlier_one_began_alike(endpoint, behind, monkeypatch):
    event_of = lambda *parts: (NAMED[endpoint] % (*parts, "", behind and behind % parts[0][1:-1])).encode()  # noqa: E731
    known = KnownEvents()
    earlier, scanner = endpoint.scanner(), endpoint.scanner()
    earlier.known = scanner.known = known
    earlier.feed(event_of('"chatcmpl-1"', "1700000000", '"m"', '"a"'))
    monkeypatch.setattr(events, "read", None)
    scanner.sign = scanner.other = None  # a search would fail
    for text in ("b", " some more", "\u00fc"):
        data = event_of(f'"chatcmpl-{text.strip()}2"' if behind else '"chatcmpl-2"', "1700000001", '"n"', f'"{text}"')
        assert scanner.feed(data) == (data, OUTPUT)
        assert scanner.has_output


def test_a3_what_is_known_of_earlier_streams_has_bounds():
    known = KnownEvents()
    for number in range(200):
        if known.may_learn:
            inside = f',"x{number}":1'
            learn(known, (NAMED[CHAT] % ('"a"', "1", '"m"', '"text"', inside, "")).encode())
    assert (len(known._known), known.may_learn) == (MOST_KNOWN, False)


def test_a3_events_that_are_not_found_again_do_not_end_what_is_known_of_others():
    event_of = lambda text, inside="": (NAMED[CHAT] % ('"a"', "1", '"m"', text, inside, "")).encode()  # noqa: E731
    known = KnownEvents()
    tools = ',"tool_calls":[{"index":0,"id":"call_1","function":{"name":"f","arguments":"{}"}}]'
    for first in [event_of("null", tools), event_of('"\\n"'), event_of('""', tools)] * 30:
        scanner = CHAT.scanner()
        scanner.known = known
        scanner.feed(first)
    usual, number = event_of('"text"'), 0
    learn(known, usual)
    while known.may_learn:  # as of logprobs
        number += 1
        differs = event_of('"text"', f',"logprobs":{{"token":"t{number}"}}')
        learn(known, differs)
        assert known.find(usual)
    assert number > MOST_KNOWN
    misses = next(each for each in range(2 * RENEWED) if known.may_learn or known.find(b"data: {}\n\n"))
    assert 0 < misses <= RENEWED, "a form that comes later is learned too"


@pytest.mark.parametrize("text", ['"text"', '"\\n"', "null"])
def test_a3_a_first_event_that_is_alone_is_searched_once(text):
    scanner, searched = CHAT.scanner(), []
    scanner.known, matters = KnownEvents(), scanner._matters
    scanner._matters = lambda events: searched.append(events) or matters(events)
    first = (NAMED[CHAT] % ('"a"', "1", '"m"', text, ',"refusal":"x"', "")).encode()
    assert scanner.feed(first) == (first, OUTPUT)
    assert searched == [first]
