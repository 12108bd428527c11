"""The fault table on images, transcripts and speech, whose answers are JSON, bytes, or events with a type. See test_faults for the verdicts.

Of speech as bytes there is no ``next`` once the first byte is there: what breaks then is a close without a proper end.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor

from tests import pages
from tests.harness import AUTH, request, until
from tests.providers import (
    COMMENT,
    DONE,
    ERROR_EVENT,
    LAST_CHUNK,
    answer,
    begin_stream,
    chunk,
    drip,
    fin,
    hang,
    head,
    later,
    raw,
    rst,
    stream,
    then,
)
from tests.test_multipart import form, named, part

LIMIT = 0.4
ERROR = b'{"error": {"message": "overloaded", "type": "server_error"}}'
AUDIO = b"ID3\x04\x00" + bytes(range(256)) * 40
TYPED_ERROR = b'event: error\ndata: {"type":"error","error":{"type":"server_error","message":"overloaded"}}\n\n'


def typed(kind: str, **more) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n".encode()


class Kit(NamedTuple):
    """One endpoint: a request, a good plain answer with its type, and a good stream: two deltas and the end."""

    path: str
    asked: dict
    streamed: dict
    body: bytes
    label: str
    events: list[bytes]
    empty: bytes  # an event without anything in it
    flows: bool = False
    form: bool = False

    def request(self, streamed: bool = False, model: str = "route", **more) -> bytes:
        """The body."""
        asked = {**self.asked, **(self.streamed if streamed else {}), **more, "model": model}
        if not self.form:
            return json.dumps(asked).encode()
        file = part(b"file", b"RIFF", b'; filename="a.wav"')
        return form(file, *[part(name.encode(), str(value).encode()) for name, value in asked.items()])

    async def ask(self, gateway, streamed: bool = False, **more):
        kind = {"Content-Type": named().decode()} if self.form else {}
        return await gateway.ask(self.request(streamed, **more), path=f"/v1/{self.path}", headers={**AUTH, **kind})


IMAGES = Kit(
    "images/generations",
    {"model": "route", "prompt": "a cat"},
    {"stream": True, "partial_images": 2},
    b'{"created": 1, "data": [{"b64_json": "aGVsbG8="}]}',
    "application/json",
    [
        typed("image_generation.partial_image", b64_json="aGU=", partial_image_index=0),
        typed("image_generation.partial_image", b64_json="aGVs", partial_image_index=1),
        typed(
            "image_generation.completed",
            b64_json="aGVsbG8=",
            usage={"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
        ),
    ],
    typed("image_generation.partial_image", b64_json=""),
)
SPEECH = Kit(
    "audio/speech",
    {"model": "route", "input": "hello", "voice": "alloy"},
    {"stream_format": "sse"},
    AUDIO,
    "audio/mpeg",
    [
        typed("speech.audio.delta", audio="aGU="),
        typed("speech.audio.delta", audio="bGxv"),
        typed("speech.audio.done", usage={"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}),
    ],
    typed("speech.audio.delta", audio=""),
    flows=True,
)
TRANSCRIPTS = Kit(
    "audio/transcriptions",
    {"model": "route", "language": "en"},
    {"stream": "true"},
    b'{"text": "hello"}',
    "application/json",
    [
        typed("transcript.text.delta", delta="hel"),
        typed("transcript.text.delta", delta="lo"),
        typed("transcript.text.done", text="hello", usage={"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}),
    ],
    typed("transcript.text.delta", delta=""),
    form=True,
)
KITS = {"images": IMAGES, "speech": SPEECH, "transcripts": TRANSCRIPTS}


def whole(kit: Kit):
    return answer(200, kit.body, kit.label)


def begun(kit: Kit, *parts: bytes):
    """The beginning of a plain answer in chunks."""
    return raw(head(kind=kit.label, Transfer_Encoding="chunked"), *map(chunk, parts or (kit.body[:9],)))


def short(kit: Kit):
    return then(raw(head(kind=kit.label, Content_Length=str(len(kit.body) + 50)), kit.body), fin)


BAD_CHUNK = raw(b"zz\r\n")
END = raw(LAST_CHUNK)
HALF = -12  # of an event
HTTP_1_0 = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"

#   fault                                plain                                                  streamed                                                    plain, and plain where it flows           streamed
TABLE = {
    "connection refused":               (None,                                                 None,                                                       "next unreachable", "next unreachable",      "next unreachable"),
    "no headers":                       (lambda k: hang,                                       lambda k: hang,                                             "next timeout", "next timeout",              "next timeout"),
    "headers, then silence":            (lambda k: raw(head(kind=k.label, Content_Length="9")), lambda k: begin_stream(COMMENT),                          "next timeout", "next timeout",              "next timeout"),
    "fin before headers":               (lambda k: fin,                                        lambda k: fin,                                              "next broken", "next broken",                "next broken"),
    "rst before headers":               (lambda k: rst,                                        lambda k: rst,                                              "next broken", "next broken",                "next broken"),
    "200, JSON error":                  (lambda k: answer(200, ERROR),                         lambda k: answer(200, ERROR),                               "next broken", "next broken",                "next broken"),
    "200, JSON error, right label":     (lambda k: answer(200, ERROR, k.label),                lambda k: answer(200, ERROR, "text/event-stream"),          "next broken", "next broken",                "next broken"),
    "200, JSON error in drips":         (lambda k: drip(head(Content_Length=str(len(ERROR))) + ERROR), lambda k: drip(head(Content_Length=str(len(ERROR))) + ERROR), "next broken", "next broken",  "next broken"),
    "200, {}":                          (lambda k: answer(200, b"{}"),                         lambda k: stream(b"data: {}\n\n"),                          "next broken", "next broken",                "next broken"),
    "200, empty":                       (lambda k: answer(200, b"", k.label),                  lambda k: answer(200, b"", "text/event-stream"),            "next broken", "next broken",                "next broken"),
    "204":                              (lambda k: raw(b"HTTP/1.1 204 No Content\r\n\r\n"),     lambda k: raw(b"HTTP/1.1 204 No Content\r\n\r\n"),           "next broken", "next broken",                "next broken"),
    "200, HTML":                        (lambda k: answer(200, b"<html>oops</html>", "text/html"), lambda k: answer(200, b"<html>oops</html>", "text/html"), "next broken", "next broken",              "next broken"),
    "200, HTML, right label":           (lambda k: answer(200, b"<html>oops</html>", k.label), lambda k: answer(200, b"<html>oops</html>", "text/event-stream"), "next broken", "next broken",         "next broken"),
    "200, plain text":                  (lambda k: answer(200, b"oops", "text/plain"),         lambda k: answer(200, b"oops", "text/plain"),               "next broken", "next broken",                "next broken"),
    "200, a plain answer to a stream":  (None,                                                 whole,                                                      "-", "-",                                    "next broken"),
    "200, a stream to a plain request": (lambda k: stream(*k.events),                          None,                                                       "next broken", "next broken",                "-"),
    "gzip though we asked for identity": (lambda k: answer(200, k.body, k.label, Content_Encoding="gzip"), lambda k: answer(200, b"".join(k.events), "text/event-stream", Content_Encoding="gzip"), "next broken", "next broken", "next broken"),
    **{f"{code}":                       (lambda k, code=code: answer(code, ERROR),             lambda k, code=code: answer(code, ERROR),                   "next refused", "next refused",              "next refused")
       for code in (302, 401, 429, 503)},
    "comments only, whole":             (None,                                                 lambda k: stream(COMMENT, COMMENT),                         "-", "-",                                    "next broken"),
    "an error event first":             (None,                                                 lambda k: stream(COMMENT, ERROR_EVENT),                     "-", "-",                                    "next broken"),
    "a typed error event first":        (None,                                                 lambda k: stream(k.empty, TYPED_ERROR),                     "-", "-",                                    "next broken"),
    "nothing but [DONE]":               (None,                                                 lambda k: stream(k.empty, DONE),                            "-", "-",                                    "next broken"),
    "fin before the first output":      (short,                                                lambda k: then(begin_stream(k.empty), fin),                 "next broken", "break answer_truncated",     "next broken"),
    "fin after output":                 (lambda k: then(begun(k), fin),                        lambda k: then(begin_stream(*k.events[:2]), fin),           "next broken", "break answer_truncated",     "break stream_truncated"),
    "rst after output":                 (lambda k: then(begun(k), later(rst)),                 lambda k: then(begin_stream(*k.events[:2]), later(rst)),    "next broken", "break answer_truncated",     "break stream_reset"),
    "bad chunk after output":           (lambda k: then(begun(k), BAD_CHUNK),                  lambda k: then(begin_stream(*k.events[:2]), BAD_CHUNK),     "next broken", "break answer_truncated",     "break stream_truncated"),
    "silence after output":             (lambda k: begun(k),                                   lambda k: begin_stream(*k.events[:2]),                      "next timeout", "break answer_timeout",      "break stream_idle_timeout"),
    "clean end without the last event": (None,                                                 lambda k: stream(*k.events[:2]),                            "-", "-",                                    "break stream_truncated"),
    "fin in an event":                  (None,                                                 lambda k: then(begin_stream(k.events[0], k.events[1][:HALF]), fin), "-", "-",                            "break stream_truncated"),
    "clean end in the last event":      (None,                                                 lambda k: stream(*k.events[:2], k.events[2][:HALF]),        "-", "-",                                    "break stream_truncated"),
    "an error event after output":      (None,                                                 lambda k: stream(*k.events[:2], ERROR_EVENT),               "-", "-",                                    "reported"),
    "a typed error event after output": (None,                                                 lambda k: stream(*k.events[:2], TYPED_ERROR),               "-", "-",                                    "reported"),
    "a detail after output":            (None,                                                 lambda k: stream(*k.events[:2], b'data: {"detail": "no"}\n\n'), "-", "-",                                   "break provider_error"),
    # Odd, and good
    "a good answer":                    (whole,                                                lambda k: stream(*k.events),                                "whole", "whole",                            "whole"),
    "in drips":                         (lambda k: drip(head(kind=k.label, Content_Length=str(len(k.body))) + k.body, 50), lambda k: drip(head(kind="text/event-stream", Content_Length=str(len(b"".join(k.events)))) + b"".join(k.events), 7), "whole", "whole", "whole"),
    "in chunks":                        (lambda k: then(begun(k, k.body[:1], k.body[1:]), END), lambda k: stream(*k.events, DONE),                         "whole", "whole",                            "whole"),
    "close-delimited":                  (lambda k: then(raw(head(kind=k.label, Connection="close"), k.body), fin), lambda k: then(raw(head(kind="text/event-stream", Connection="close"), *k.events), fin), "whole", "whole", "whole"),
    "no Content-Type":                  (lambda k: then(raw(HTTP_1_0, k.body), fin),            lambda k: then(raw(HTTP_1_0, *k.events), fin),              "whole", "whole",                            "whole"),
    "a stream as application/json":     (None,                                                 lambda k: raw(head(Transfer_Encoding="chunked"), *map(chunk, k.events), LAST_CHUNK), "-", "-",           "whole"),
    "fin after the last event":         (None,                                                 lambda k: then(begin_stream(*k.events), fin),               "-", "-",                                    "whole"),
    "rst after the last event":         (None,                                                 lambda k: then(begin_stream(*k.events), later(rst)),        "-", "-",                                    "whole"),
    "silence after the last event":     (None,                                                 lambda k: begin_stream(*k.events),                          "-", "-",                                    "whole"),
    "CRLF":                             (None,                                                 lambda k: stream(*[each.replace(b"\n", b"\r\n") for each in k.events]), "-", "-",                       "whole"),
    "comments between events":          (None,                                                 lambda k: stream(COMMENT, k.events[0], COMMENT, *k.events[1:]), "-", "-",                               "whole"),
    "[DONE] and no last event":         (None,                                                 lambda k: stream(*k.events[:2], DONE),                      "-", "-",                                    "whole"),
}  # fmt: skip


def expected(kit: Kit, fault: str, streamed: bool) -> str:
    return TABLE[fault][4] if streamed else TABLE[fault][3] if kit.flows else TABLE[fault][2]


def names_by_result(fault: str, streamed: bool) -> list[list[str]]:
    """The names of the kits for which this is a fault, together where the same becomes of it."""
    results: dict[str, list[str]] = {}
    for name, kit in KITS.items():
        if (kit, fault, streamed) != (TRANSCRIPTS, "200, plain text", False):
            results.setdefault(expected(kit, fault, streamed), []).append(name)
    return [names for result, names in results.items() if result != "-"]


CASES = [
    pytest.param(
        *(KITS[name], fault, streamed),
        id=f"{name}-{fault}-{'streamed' if streamed else 'plain'}",
        marks=[pytest.mark.slow] if place != number % len(names) else [],  # by default each result once, on one kit
    )
    for number, fault in enumerate(TABLE)
    for streamed in (False, True)
    for names in names_by_result(fault, streamed)
    for place, name in enumerate(names)
]
GOOD_STREAM = {
    "CRLF": lambda kit: b"".join(kit.events).replace(b"\n", b"\r\n"),
    "comments between events": lambda kit: COMMENT + kit.events[0] + COMMENT + b"".join(kit.events[1:]),
    "[DONE] and no last event": lambda kit: b"".join(kit.events[:2]) + DONE,
    "an error event after output": lambda kit: b"".join(kit.events[:2]) + ERROR_EVENT,
    "a typed error event after output": lambda kit: b"".join(kit.events[:2]) + TYPED_ERROR,
}


@pytest.mark.parametrize(("kit", "fault", "streamed"), CASES)
@ensureDeferred
async def test_a6_a7_fault(world, kit, fault, streamed):
    """B7, A1, A2, A4, T1 on the other endpoints."""
    make = TABLE[fault][streamed]
    verdict, _, outcome = expected(kit, fault, streamed).partition(" ")
    good = stream(*kit.events) if streamed else whole(kit)
    first, second = world.provider(make(kit)) if make else None, world.provider(good)
    gateway = world.gateway(first, second, timeout=LIMIT if outcome == "timeout" else 5, idle_timeout=0.3)

    got = await kit.ask(gateway, streamed)

    (record,) = world.records
    outcomes = [attempt["outcome"] for attempt in record["attempts"]]
    assert got.status == record["status"] == 200
    assert record["bytes_out"] == len(got.body)
    all_of_it = b"".join(kit.events) if streamed else kit.body
    if verdict == "next":
        assert (got.body, got.whole, got.headers["x-aigw-provider"]) == (all_of_it, True, "p2")
        assert got.headers["content-type"] == ("text/event-stream" if streamed else kit.label)
        assert (outcomes, record["outcome"]) == ([outcome, "ok"], "ok")
        (seen,) = second.requests
        assert seen.line == f"POST /v1/{kit.path} HTTP/1.1"
        sent = kit.request(streamed, model="model-2")
        assert seen.body == sent if kit.form else json.loads(seen.body) == json.loads(sent)
        return
    assert (got.headers["x-aigw-provider"], second.requests) == ("p1", [])
    if verdict in ("whole", "reported"):
        assert got.whole
        assert got.body == (GOOD_STREAM[fault](kit) if fault in GOOD_STREAM else all_of_it)
        assert record["outcome"] == ("ok" if verdict == "whole" else "provider_error")
        return
    assert not got.whole
    assert (outcomes, record["outcome"]) == ([outcome], outcome)
    if not streamed:
        assert kit.body.startswith(got.body)
        assert got.body
        return
    *events, last = got.body.removesuffix(b"\n\n").split(b"\n\n")
    assert [each + b"\n\n" for each in events if b"detail" not in each] == [
        each for each in kit.events if each in got.body
    ]
    assert last.startswith(b'data: {"error":{"message":')
    assert last.endswith(b'"type":"upstream_error","param":null,"code":"%s"}}' % outcome.encode())


def page_rows() -> str:
    """The table as the page shows it: one fault a row."""
    lines = ["", "| what the provider does | images or a transcript | speech | a stream |", "|---|---|---|---|"]
    for fault, (_, _, *fates) in TABLE.items():
        shown = []
        for number, fate in enumerate(fates):
            broken = "closed" if number < 2 else f"in-band `{fate.rpartition(' ')[2]}`"
            shown.append(pages.in_words(fate, broken))
        lines.append(f"| {' | '.join([fault, *shown])} |")
    return pages.rows(lines)


def test_the_page_shows_this_table():
    """AIGW_WRITE_DOCS=1 writes it."""
    pages.check_table("media faults", page_rows())


# Speech


@ensureDeferred
async def test_a6_each_piece_of_speech_leaves_within_10_ms_of_its_arrival(world):
    provider = world.provider(begun(SPEECH, b"I"))
    gateway = world.gateway(provider, timeout=0.4)
    client = await gateway.send(b"")
    client.transport.write(_asking(SPEECH))
    await client.started
    assert client.answer.headers["content-type"] == "audio/mpeg"
    took = []
    for number in range(20):
        size = len(client.answer.body)
        began = reactor.seconds()
        provider.connections[0].send(chunk(b"%d" % number))
        await until(lambda size=size: len(client.answer.body) > size)
        took.append(reactor.seconds() - began)
    assert sorted(took)[10] < 0.01


@ensureDeferred
async def test_a6_the_first_byte_of_speech_leaves_within_10_ms_of_its_arrival(world):
    took = []
    for _ in range(7):
        provider = world.provider(hang)
        client = await world.gateway(provider).send(_asking(SPEECH))
        await until(lambda provider=provider: provider.requests)
        began = reactor.seconds()
        provider.connections[0].send(head(kind="audio/mpeg", Transfer_Encoding="chunked") + chunk(b"\xff"))
        await client.started
        took.append(reactor.seconds() - began)
        assert client.answer.body == b"\xff"
    assert sorted(took)[3] < 0.01


def _asking(kit: Kit) -> bytes:
    return request(kit.asked, f"/v1/{kit.path}")


@ensureDeferred
async def test_a6_t2_speech_that_goes_on_outlives_the_timeout(world):
    provider = world.provider(then(begun(SPEECH, AUDIO[:50]), drip(chunk(AUDIO[50:60]) * 10 + LAST_CHUNK, 15, 0.06)))
    gateway = world.gateway(provider, timeout=0.3, idle_timeout=0.3)
    got = await SPEECH.ask(gateway)
    assert (got.whole, len(got.body)) == (True, 150)


@pytest.mark.parametrize(
    "label", ["audio/mpeg", "audio/pcm", "application/octet-stream", "application/json", "text/plain"]
)
@pytest.mark.parametrize("audio", [b"{\x00\x01", b"<\xff\xfe", b'{"a": \xc3\x28', b"\x78\x9c\x01\x02"], ids=repr)
@ensureDeferred
async def test_a6_audio_may_begin_with_any_bytes(world, label, audio):
    if audio[:2] == b"\x78\x9c" and not label.startswith("audio"):
        return  # compressed text, as far as anybody can see
    got = await SPEECH.ask(world.gateway(world.provider(answer(200, audio, label)), None))
    assert (got.status, got.body, got.headers["content-type"]) == (200, audio, label)


@pytest.mark.parametrize("text", [b"{" * 70_000, b'{"data": "' + b"x" * 200_000 + b'"}'], ids=["braces", "JSON"])
@ensureDeferred
async def test_a6_much_text_is_no_audio(world, text):
    slow = drip(head(kind="audio/mpeg", Content_Length=str(len(text))) + text, 20_000)
    got = await SPEECH.ask(world.gateway(world.provider(slow), world.provider(whole(SPEECH))))
    assert (got.body, got.headers["x-aigw-provider"]) == (AUDIO, "p2")


@ensureDeferred
async def test_a6_to_a_client_of_http_1_0_a_broken_answer_does_not_look_whole(world):
    """Its close would be a proper end, so the connection is reset."""
    provider = world.provider(then(begun(SPEECH), later(fin)))
    client = await world.gateway(provider).send(_asking(SPEECH).replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\n", 1))
    reasons = []
    lost = client.connectionLost
    client.connectionLost = lambda reason: (reasons.append(reason.type.__name__), lost(reason))
    await client.closed
    assert reasons == ["ConnectionLost"]


# Images


@ensureDeferred
async def test_a7_a_stream_of_several_images_ends_with_the_last(world):
    (first, _, last) = IMAGES.events
    provider = world.provider(then(begin_stream(first, last), later(raw(chunk(first), chunk(last)), 0.1)))
    got = await IMAGES.ask(world.gateway(provider), True, n=2)
    assert (got.body, got.whole) == ((first + last) * 2, True)
    assert world.records[0]["outcome"] == "ok"


@pytest.mark.parametrize("size", [100_000, 3_000_000])
@ensureDeferred
async def test_a7_a_large_last_event_is_passed_on_to_its_end(world, size):
    """Its type stands at its beginning."""
    large = typed("image_generation.completed", b64_json="x" * size, usage={"total_tokens": 7})
    got = await IMAGES.ask(world.gateway(world.provider(begin_stream(*IMAGES.events[:1], large))), True)
    assert (got.body, got.whole) == (IMAGES.events[0] + large, True)
    assert world.records[0]["usage"]["total_tokens"] == 7


# Transcripts


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("text/plain; charset=utf-8", b"hello\n"),
        ("text/plain", b"\n"),
        ("application/x-subrip", b"1\n00:00:00,000 --> 00:00:01,000\nhello\n"),
        ("text/vtt", b"WEBVTT\n\n00:00.000 --> 00:01.000\nhello\n"),
        ("text/plain", b"[Music]"),
        ("text/plain", "\ufeffgrüß".encode()),
        ("application/json", b'{"text": ""}'),
        ("application/json", b'{"task": "transcribe", "text": "hello", "error": null, "words": []}'),
        ("text/plain", b'{"text": "hello"}'),
    ],
)
@ensureDeferred
async def test_a6_a_transcript_is_passed_on_whatever_it_is_written_in(world, label, text):
    got = await TRANSCRIPTS.ask(world.gateway(world.provider(answer(200, text, label)), None))
    assert (got.status, got.body, got.headers["content-type"]) == (200, text, label)


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("text/plain", b""),
        ("text/vtt", b""),
        ("text/plain", ERROR),
        ("text/vtt", b" \n" + ERROR),
        ("text/html", b"sorry"),
        ("text/plain", b"<!DOCTYPE html><title>oops</title>"),
        ("application/json", b"oops"),
        ("application/json", b'{"text": "", "error": {"message": "overloaded"}}'),
        ("application/json", b'{"text": null}'),
        ("application/json", b'{"text": ["hello"]}'),
        ("application/json", b'{"text": "hel'),
    ],
)
@ensureDeferred
async def test_a6_what_is_no_transcript_falls_through(world, label, text):
    good = answer(200, b"WEBVTT\n", "text/vtt")
    got = await TRANSCRIPTS.ask(world.gateway(world.provider(answer(200, text, label)), world.provider(good)))
    assert (got.body, got.headers["x-aigw-provider"], got.headers["content-type"]) == (b"WEBVTT\n", "p2", "text/vtt")


@ensureDeferred
async def test_a6_a_transcript_that_is_cut_short_falls_through(world):
    cut = then(raw(head(kind="text/plain", Content_Length="50"), b"hel"), fin)
    got = await TRANSCRIPTS.ask(world.gateway(world.provider(cut), world.provider(answer(200, b"hello", "text/plain"))))
    assert (got.body, got.headers["x-aigw-provider"]) == (b"hello", "p2")


@ensureDeferred
async def test_a6_silence_has_an_empty_transcript(world):
    done = typed("transcript.text.done", text="")
    got = await TRANSCRIPTS.ask(world.gateway(world.provider(stream(done)), None), True)
    assert (got.status, got.body, got.whole) == (200, done, True)


# Answers that are held whole


@pytest.mark.parametrize("kit", KITS.values(), ids=KITS)
@pytest.mark.parametrize("streamed", [False, True])
@ensureDeferred
async def test_a6_held_whole_an_answer_that_breaks_falls_through(world, kit, streamed):
    broken = then(begin_stream(*kit.events[:2]), fin) if streamed else then(begun(kit), fin)
    good = stream(*kit.events) if streamed else whole(kit)
    got = await kit.ask(world.gateway(world.provider(broken), world.provider(good), hold="whole"), streamed)
    assert (got.body, got.whole) == (b"".join(kit.events) if streamed else kit.body, True)
    assert got.headers["x-aigw-provider"] == "p2"
