"""B7: the client gets the first answer that works, and not a byte of one that does not."""

from __future__ import annotations

import pytest
from pytest_twisted import ensureDeferred

from tests.harness import contents
from tests.providers import (
    COMMENT,
    DONE,
    ERROR_EVENT,
    ROLE,
    STREAM_HEAD,
    answer,
    begin_stream,
    event,
    fin,
    hang,
    head,
    raw,
    rst,
    stream,
    then,
)

JSON_ERROR = b'{"error": {"message": "no such thing", "type": "x"}}'
CLOSE = head(kind="text/event-stream", Connection="close")

#   fault                       behaviour                                              plain outcome   streamed outcome
FAULTS = {
    "refused":                  (None,                                                 "unreachable", "unreachable"),
    "500":                      (answer(500),                                          "refused",     "refused"),
    "429":                      (answer(429),                                          "refused",     "refused"),
    "400":                      (answer(400, JSON_ERROR),                              "refused",     "refused"),
    "redirect":                 (answer(302, b"", Location="http://127.0.0.1/"),       "refused",     "refused"),
    "hangs":                    (hang,                                                 "timeout",     "timeout"),
    "headers, then silence":    (raw(STREAM_HEAD),                                     "timeout",     "timeout"),
    "closes unasked":           (fin,                                                  "broken",      "broken"),
    "resets":                   (rst,                                                  "broken",      "broken"),
    "closes in its head":       (then(raw(b"HTTP/1.1 200 OK\r\nContent-"), fin),       "broken",      "broken"),
    "200, then nothing":        (then(raw(CLOSE), fin),                                "broken",      "broken"),
    "200, empty":               (answer(200, b""),                                     "broken",      "broken"),
    "200, HTML":                (answer(200, b"<html></html>", "text/html"),           "broken",      "broken"),
    "200, JSON error":          (answer(200, JSON_ERROR),                              "broken",      "broken"),
    "200, cut short":           (then(raw(head(Content_Length="500"), b'{"a":'), fin), "broken",      "broken"),
    "only comments, then fin":  (then(begin_stream(COMMENT, COMMENT), fin),            "broken",      "broken"),
    "only comments, whole":     (stream(COMMENT, COMMENT),                             "broken",      "broken"),
    "comments without end":     (begin_stream(COMMENT, ROLE, COMMENT),                 "timeout",     "timeout"),
    "an error event first":     (stream(ERROR_EVENT),                                  "broken",      "broken"),
    "a role, then an error":    (begin_stream(COMMENT, ROLE, ERROR_EVENT),             "timeout",     "broken"),
    "a role, then the end":     (stream(ROLE, DONE),                                   "broken",      "broken"),
    "switches protocols":       (raw(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"), "broken", "broken"),
    "malformed HTTP":           (raw(b"HELLO\r\n\r\n"),                                "broken",      "broken"),
    "two lengths":              (answer(200, None, content_length="3"),                "broken",      "broken"),
    "gzip unasked":             (answer(200, None, Content_Encoding="gzip"),           "broken",      "broken"),
    "300 kB of headers":        (raw(b"HTTP/1.1 200 OK\r\n" + b"X: %s\r\n" % (b"y" * 1000) * 300), "broken", "broken"),
    "one header without end":   (raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000),      "broken",      "broken"),
}  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("fault", FAULTS)
@ensureDeferred
async def test_b7_first_provider_fails(world, fault, streamed):
    behaviour, *outcomes = FAULTS[fault]
    first = world.provider(behaviour) if behaviour else None
    second = world.provider()
    gateway = world.gateway(first, second, timeout=0.3)

    got = await gateway.ask(stream=streamed)

    assert (got.status, got.whole) == (200, True)
    assert contents(got.body) == "hello" if streamed else got.json["choices"][0]["message"]["content"] == "hello"
    assert (got.headers["x-aigw-provider"], got.headers["x-aigw-attempts"]) == ("p2", "2")
    assert len(second.requests) == 1
    (record,) = world.records
    assert [attempt["outcome"] for attempt in record["attempts"]] == [outcomes[streamed], "ok"]
    assert (record["status"], record["provider"], record["outcome"]) == (200, "p2", "ok")


@ensureDeferred
async def test_a2_an_error_after_output_is_the_client_s_to_see(world):
    first = world.provider(stream(ROLE, event({"content": "x"}), ERROR_EVENT, DONE))
    got = await world.gateway(first, world.provider()).ask(stream=True)
    assert ERROR_EVENT in got.body
    assert got.headers["x-aigw-provider"] == "p1"
