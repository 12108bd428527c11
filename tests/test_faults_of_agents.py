"""The fault table on /v1/messages and /v1/responses: the rows of tests/test_faults.py that are about no protocol, and each
protocol's own streams.

A row says what it says there. In the streams of these protocols an error is an event of the protocol's own, so the answer
ends properly after it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from pytest_twisted import ensureDeferred

from tests import test_faults, test_messages, test_responses
from tests.providers import (
    COMMENT,
    LAST_CHUNK,
    STREAM_HEAD,
    answer,
    as_asked,
    begin_stream,
    chunk,
    drip,
    fin,
    later,
    raw,
    rst,
    stream,
    then,
    whole_stream,
)
from tests.test_faults import (
    BAD_CHUNK,
    CHUNKED,
    CLOSE_DELIMITED,
    EXTENSION,
    JSON_STREAM,
    TRAILER,
    TRAILERS,
    UNTYPED,
    short,
)

LIMIT = 0.3
RESPONSE = {"id": "resp_1", "object": "response", "status": "completed", "output": [{"type": "message", "content": []}]}
COMPLETED = test_responses.sent("response.completed", 4, response=RESPONSE)
FAILED = test_responses.sent("response.failed", 4, response={"id": "resp_1", "error": {"code": "x", "message": "no"}})


@dataclass
class Protocol:
    """One protocol: a request, a plain answer, and the events of a stream; ``stop`` precedes the end."""

    path: str
    asked: dict
    plain: bytes
    start: bytes
    hel: bytes
    lo: bytes
    stop: bytes
    end: bytes
    error: bytes
    empty: bytes  # an answer that shows none
    ours: Callable[[bytes], str]  # the message in our event

    @property
    def stream(self) -> list[bytes]:
        return [each for each in (self.start, self.hel, self.lo, self.stop, self.end) if each]


def message_of(event: bytes) -> str:
    name, data = event.split(b"\n", 1)
    assert name == b"event: error"
    error = json.loads(data.removeprefix(b"data: "))
    assert (error["type"], error["error"]["type"]) == ("error", "api_error")
    return error["error"]["message"]


def failed_message_of(event: bytes) -> str:
    name, data = event.split(b"\n", 1)
    assert name == b"event: response.failed"
    return json.loads(data.removeprefix(b"data: "))["response"]["error"]["message"]


PROTOCOLS = {
    "messages": Protocol(
        test_messages.PATH,
        test_messages.ASKED,
        test_messages.PLAIN,
        test_messages.START,
        *test_messages.HEL_LO,
        test_messages.STOP,
        test_messages.END_OF_ALL,
        test_messages.OVERLOADED,
        b'{"content": null}',
        message_of,
    ),
    "responses": Protocol(
        test_responses.RESPONSES.path.join(["/v1/", ""]),
        {"model": "route", "input": "hi"},
        json.dumps(RESPONSE).encode(),
        test_responses.CREATED,
        test_responses.delta(2, "hel"),
        test_responses.delta(3, "lo"),
        b"",
        COMPLETED,
        FAILED,
        b'{"output": null}',
        failed_message_of,
    ),
}
MESSAGES = {
    "stream_truncated": "The provider's stream ended before it was complete.",
    "stream_reset": "The provider's connection was reset in the middle of the stream.",
    "stream_idle_timeout": "The provider sent nothing for",
}
CHAT_ONLY = ("role", "choice", "finish_reason", "[DONE]", "first output", "JSON error as a stream", "malformed JSON")
COMMON = {
    fault: (what, *expected)
    for fault, (what, *expected) in test_faults.TABLE.items()
    if all(each == "-" or each.startswith("next ") for each in expected)
    and not any(word in fault for word in CHAT_ONLY)
}


def rows(p: Protocol) -> dict[str, tuple]:
    """The rows of a protocol's own streams, and of answers that are good or show none."""
    start, hel, lo, stop, end = p.start, p.hel, p.lo, p.stop, p.end
    half, good, begun = lo[:-20], b"".join(p.stream), [start, hel]
    error, before_end = p.error, [each for each in (start, hel, lo, stop) if each]
    large = p.lo.replace(b'lo"', b"x" * 2**20 + b'"')
    after = {
        "fin": lambda *events: then(begin_stream(*events), fin),
        "rst": lambda *events: then(begin_stream(*events), later(rst)),
        "bad chunk": lambda *events: then(begin_stream(*events), BAD_CHUNK),
        "short length": lambda *events: short(b"".join(events), "text/event-stream"),
        "clean end": stream,
        "silence": begin_stream,
    }
    broken = dict.fromkeys(after, "break stream_truncated")
    broken |= {"rst": "break stream_reset", "silence": "break stream_idle_timeout"}
    good_answer = as_asked(answer(200, p.plain), stream(*p.stream))
    table = {
        "200, no answer":              (answer(200, p.empty),                                  "next broken",  "next broken"),
        "a start, then silence":       (begin_stream(COMMENT, start),                          "-",            "next timeout"),
        "a start, then an error":      (stream(COMMENT, start, error),                         "-",            "next broken"),
        "a first event of malformed JSON": (stream(half + b"\n\n"),                             "-",            "next broken"),
        "an error first":              (stream(error),                                         "-",            "next broken"),
        "a start, then the end":       (stream(start, b"data: [DONE]\n\n"),                    "-",            "next broken"),
        "a start, then nothing":       (stream(start),                                         "-",            "next broken"),
        "fin after the start":         (then(begin_stream(start), fin),                        "-",            "next broken"),
        "rst after the start":         (then(begin_stream(start), later(rst)),                 "-",            "next broken"),
        "bad chunk after the start":   (then(begin_stream(start), BAD_CHUNK),                  "-",            "next broken"),
        "an error as application/json": (raw(JSON_STREAM, chunk(error), LAST_CHUNK),           "-",            "next broken"),
        "a plain answer to a stream request": (answer(200, p.plain),                           "whole",        "next broken"),
        "a plain answer, cut":         (short(p.plain),                                        "next broken",  "next broken"),
        **{f"{how} after output":      (make(*begun),                                          "-",            broken[how])
           for how, make in after.items()},
        **{f"{how} in an event":       (make(*begun, half),                                    "-",            broken[how])
           for how, make in after.items()},
        **{f"{how} before the end":    (make(*before_end),                                     "-",            broken[how])
           for how, make in after.items() if not (stop and how == "clean end")},
        **{f"{how} after the end":     (make(*p.stream),                                       "-",            "whole")
           for how, make in after.items()},
        "comments after output":       (drip(STREAM_HEAD + b"".join(map(chunk, begun)) + chunk(COMMENT) * 99, 900, 0.05), "-", "break stream_idle_timeout"),
        "an error after output":       (stream(*begun, error),                                 "-",            "reported"),
        "an error after output, then silence": (begin_stream(*begun, error),                   "-",            "reported"),
        "a chunk extension without end after output": (then(begin_stream(*begun), raw(EXTENSION)), "-",        "break stream_truncated"),
        "201 trailers after the end":  (then(begin_stream(*p.stream), raw(TRAILERS)),          "-",            "whole"),
        "a trailer without end after the end": (then(begin_stream(*p.stream), raw(TRAILER)),   "-",            "whole"),
        "trailers":                    (as_asked(raw(CHUNKED, chunk(p.plain), test_faults.GOOD_TRAILERS), then(begin_stream(*p.stream), raw(test_faults.GOOD_TRAILERS))), "whole", "whole"),
        "a good answer":               (good_answer,                                           "whole",        "whole"),
        "100 Continue before":         (then(raw(b"HTTP/1.1 100 Continue\r\n\r\n"), good_answer), "whole",     "whole"),
        "in drips":                    (drip(whole_stream(p.stream), 7),                       "-",            "whole"),
        "close-delimited":             (then(raw(CLOSE_DELIMITED, good), fin),                 "-",            "whole"),
        "CRLF":                        (stream(good.replace(b"\n", b"\r\n")),                  "-",            "whole"),
        "lone CR":                     (stream(good.replace(b"\n", b"\r")),                    "-",            "whole"),
        "a BOM":                       (as_asked(answer(200, b"\xef\xbb\xbf" + p.plain), stream(b"\xef\xbb\xbf", good)), "whole", "whole"),
        "no Content-Type":             (raw(UNTYPED % b"Transfer-Encoding: chunked", chunk(good), LAST_CHUNK), "-", "whole"),
        "a stream as application/json": (raw(JSON_STREAM, chunk(good), LAST_CHUNK),            "-",            "whole"),
        "200 keep-alives, then an answer": (stream(*[COMMENT] * 200, *p.stream),               "-",            "whole"),
        "a 1 MiB event":               (stream(start, hel, large, *filter(None, (stop, end))), "-",            "whole"),
    }  # fmt: skip
    if stop:
        table["clean end after a stop_reason"] = (stream(*before_end), "-", "whole")
    return table


SENT = {  # where it is not the whole stream
    "a BOM": lambda p: b"\xef\xbb\xbf" + b"".join(p.stream),
    "CRLF": lambda p: b"".join(p.stream).replace(b"\n", b"\r\n"),
    "lone CR": lambda p: b"".join(p.stream).replace(b"\n", b"\r"),
    "200 keep-alives, then an answer": lambda p: COMMENT * 200 + b"".join(p.stream),
    "clean end after a stop_reason": lambda p: p.start + p.hel + p.lo + p.stop,
    "a 1 MiB event": lambda p: p.start + p.hel + p.lo.replace(b'lo"', b"x" * 2**20 + b'"') + p.stop + p.end,
    "an error after output": lambda p: p.start + p.hel + p.error,
    "an error after output, then silence": lambda p: p.start + p.hel + p.error,
}
OWN = {name: rows(protocol) for name, protocol in PROTOCOLS.items()}
CASES = [
    pytest.param(
        name,
        fault,
        streamed,
        id=f"{name}-{fault}-{'streamed' if streamed else 'plain'}",
        # No protocol is in what is common: each is tried once, streamed, on one of the two.
        marks=[pytest.mark.slow] if fault in COMMON and (not streamed or number % len(PROTOCOLS) != place) else [],
    )
    for place, name in enumerate(PROTOCOLS)
    for number, (fault, (what, *expected)) in enumerate({**COMMON, **OWN[name]}.items())
    for streamed in (False, True)
    if expected[streamed] != "-"
    and fault not in test_faults.ONLY_HTTPS
    and not (fault in COMMON and not streamed and expected == ["next timeout"] * 2)  # the same code, and its time
    and not isinstance(what, dict)  # 20 MB, which is the connection's and not the protocol's
]


@pytest.mark.parametrize(("name", "fault", "streamed"), CASES)
@ensureDeferred
async def test_fault(world, name, fault, streamed):
    """B7, A1, A2, A4, T1, M2, M3."""
    p = PROTOCOLS[name]
    what, *expected = {**COMMON, **OWN[name]}[fault]
    verdict, _, outcome = expected[streamed].partition(" ")
    first = test_faults.first_step(world, what, tls=False)
    second = world.provider(as_asked(answer(200, p.plain), stream(*p.stream)))
    gateway = world.gateway(
        first,
        second,
        timeout=LIMIT if outcome == "timeout" else 5,
        idle_timeout=0.2,
        connect_timeout=LIMIT,
        on_context_overflow="next",
    )

    got = await gateway.ask(json.dumps({**p.asked, "stream": streamed}).encode(), path=p.path)

    (record,) = world.records
    outcomes = [attempt["outcome"] for attempt in record["attempts"]]
    whole = b"".join(p.stream) if streamed else p.plain
    assert got.status == record["status"] == 200
    assert record["bytes_out"] == len(got.body)
    assert got.whole, "an error is an event of the protocol's own"
    if verdict == "next":
        assert got.body == whole
        assert got.headers["x-aigw-provider"] == record["provider"] == "p2"
        assert (outcomes, record["outcome"]) == ([outcome, "ok"], "ok")
        assert len(second.requests) == 1
        return
    assert got.headers["x-aigw-provider"] == record["provider"] == "p1"
    assert (len(second.requests), len(second.connections)) == (0, 0)
    if verdict in ("whole", "reported"):
        if streamed:
            whole = SENT[fault](p) if fault in SENT else whole
        elif fault == "a BOM":
            whole = b"\xef\xbb\xbf" + whole
        assert got.body == whole
        booked = "ok" if verdict == "whole" else "provider_error"
        assert (outcomes, record["outcome"]) == ([booked], booked)
        return
    assert (outcomes, record["outcome"]) == ([outcome], outcome)
    *events, last = got.body.removesuffix(b"\n\n").split(b"\n\n")
    assert p.ours(last).startswith(MESSAGES[outcome])
    came = [each.removesuffix(b"\n\n") for each in p.stream]
    assert [each for each in events if each != COMMENT.strip()] == came[: len([e for e in events if e in came])]
    assert events[:2] == came[:2], "what came before the break was passed on"


def test_most_of_the_table_is_tried_here():
    assert len(COMMON) > 60
    assert len(CASES) > 200
