"""A3, A4: events that are like the last one but for their text are not examined, and everything means what it means without that."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aigw.errors import StreamBroken
from aigw.protocols.endpoints import ENDPOINTS
from aigw.protocols.meaning import END, OUTPUT
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
            if found[-1][1] is END:
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
    plain._learns = 0  # so it examines each event
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
