"""The sixteen faults by which Failover Bench scores a gateway, named in our words (H6).

The first provider has the fault, the second is well. What the client then has is one of four:

    pass      the whole answer of the second provider, and nothing of the first
    partial   an answer that is whole, with a trace of the fault in it
    safe      no whole answer, and a clear error: a status, or an error event and no proper end
    fail      half an answer that looks like a whole one, or silence
"""

from __future__ import annotations

from collections import Counter

import pytest
from pytest_twisted import ensureDeferred

from tests import pages
from tests.harness import Answer, contents
from tests.providers import (
    DONE,
    ERROR_EVENT,
    ROLE,
    STREAM,
    STREAM_HEAD,
    answer,
    as_asked,
    begin_stream,
    completion,
    event,
    fin,
    hang,
    raw,
    stream,
    then,
)
from tests.test_faults import first_step

HEL = event({"content": "HEL"})
ERROR = b'{"error": {"message": "overloaded", "type": "server_error"}}'
TIMEOUT, IDLE = 0.5, 0.3
MALFORMED = b'data: {"choices": [{"delta": {"content": "HEL\n\n'

#   fault                                       the first provider                              plain too, and the score as it comes
SIXTEEN = {
    "the connection is refused":                (None,                                                True,  "pass"),
    "the name is not found":                    ("http://no-such-host.invalid/v1",                    True,  "pass"),
    "the TLS handshake fails":                  ("wrong certificate",                                 True,  "pass"),
    "429, too many requests":                   (answer(429, ERROR, Retry_After="30"),                True,  "pass"),
    "500, the server failed":                   (answer(500, ERROR),                                  True,  "pass"),
    "503, the server is overloaded":            (answer(503, ERROR),                                  True,  "pass"),
    "401, the key is refused":                  (answer(401, ERROR),                                  True,  "pass"),
    "no answer within the time limit":          (hang,                                                True,  "pass"),
    "200 with an empty body":                   (answer(200, b""),                                    True,  "pass"),
    "200 with an error as its body":            (answer(200, ERROR),                                  True,  "pass"),
    "a stream that opens, then silence":        (raw(STREAM_HEAD),                                    False, "pass"),
    "an error as the first event":              (stream(ERROR_EVENT),                                 False, "pass"),
    "a first event that is malformed":          (stream(MALFORMED, DONE),                             False, "pass"),
    "a break in the middle of the stream":      (then(begin_stream(ROLE, HEL), fin),                  False, "safe"),
    "silence in the middle of the stream":      (begin_stream(ROLE, HEL),                             False, "safe"),
    "an error event in the middle of the stream": (stream(ROLE, HEL, ERROR_EVENT),                    False, "safe"),
}  # fmt: skip
HOLDS = ("first_output", "whole")
CASES = [
    (fault, hold, streamed)
    for fault, (_, is_plain, _) in SIXTEEN.items()
    for hold in HOLDS
    for streamed in ((False, True) if is_plain and hold == "first_output" else (True,))
]


def expected(fault: str, hold: str) -> str:
    return "pass" if hold == "whole" else SIXTEEN[fault][2]


def score(got: Answer, streamed: bool) -> str:
    """By what the client received, and nothing else."""
    reports = b'"error"' in got.body
    if not streamed:
        return "pass" if got.status == 200 and got.body == completion() else "safe" if got.status >= 400 else "fail"
    text = contents(got.body)
    if got.whole and got.body == b"".join(STREAM):
        return "pass"
    if got.whole and text.endswith("hello"):
        return "partial"
    return "safe" if got.status >= 400 or reports else "fail"


@pytest.mark.parametrize(("fault", "hold", "streamed"), CASES)
@ensureDeferred
async def test_h6_one_of_the_sixteen(world, fault, hold, streamed):
    what = SIXTEEN[fault][0]
    first = first_step(world, what, what == "wrong certificate")
    second = world.provider(as_asked(answer(), stream()))
    gateway = world.gateway(first, second, timeout=TIMEOUT, idle_timeout=IDLE, hold=hold)
    got = await gateway.ask(stream=streamed)
    assert score(got, streamed) == expected(fault, hold)


def total(hold: str) -> str:
    scores = Counter(expected(fault, hold) for fault in SIXTEEN)
    return " / ".join(str(scores[each]) for each in ("pass", "partial", "safe", "fail"))


def page_rows() -> str:
    lines = ["", "| what the first provider does | as it comes | with `hold: whole` |", "|---|---|---|"]
    lines += [f"| {fault} | {' | '.join(expected(fault, hold) for hold in HOLDS)} |" for fault in SIXTEEN]
    lines.append(f"| **pass / partial / safe / fail** | **{total('first_output')}** | **{total('whole')}** |")
    return pages.rows(lines)


def test_h6_the_page_shows_this_table():
    """AIGW_WRITE_DOCS=1 writes it."""
    assert (total("first_output"), total("whole")) == ("13 / 0 / 3 / 0", "16 / 0 / 0 / 0")
    pages.check_table("sixteen", page_rows())
