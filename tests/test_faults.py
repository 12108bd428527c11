"""The fault table: every way in which a provider can fail, and what the client sees. One row is one fault.

Each row runs plain and streamed, against a provider on http and on https, with a good provider as the second step, and
says for each kind of request what becomes of it:

    next X    the client gets the second provider's answer and not a byte of the first; the attempt's outcome is X
    reported  the client gets all that the provider sent, its error too, and the end; the outcome is provider_error
    whole     the client gets the first provider's answer, byte for byte and whole; the second is not asked
    break X   the client gets the whole events that came, then the in-band error X, no proper end; the second is not asked
    -         the fault does not exist for this kind of request

and every time three things are looked at: what the client received, what each provider saw, and the record.
"""

from __future__ import annotations

import email.utils
import time

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor

from tests import pages
from tests.harness import HELLO, contents
from tests.providers import (
    COMMENT,
    DONE,
    ERROR_EVENT,
    LAST_CHUNK,
    ROLE,
    STREAM,
    STREAM_HEAD,
    answer,
    as_asked,
    begin_stream,
    chunk,
    completion,
    drip,
    event,
    fin,
    hang,
    head,
    later,
    raw,
    rst,
    stream,
    then,
    whole_stream,
)

LIMIT = 0.4
IDLE = 0.3
HEL, LO, STOP = STREAM[1:4]
HALF = LO[:-20]
GOOD = b"".join(STREAM)
ERROR = b'{"error": {"message": "no such thing", "type": "x"}}'
TOLD = b'{"error": {"message": "slow down"}}'
CLOSE_DELIMITED = head(kind="text/event-stream", Connection="close")
BODY = completion()
HTTP_DATE = email.utils.formatdate(time.time() + 3600, usegmt=True)
BAD_CHUNK = raw(b"zz\r\n")
LARGE = event({"content": "x" * 2**20})
CHUNKED = head(Transfer_Encoding="chunked")
GOOD_TRAILERS = b"0\r\nX-A: a\r\nX-B: b\r\n\r\n"
TRAILERS = b"0\r\n" + b"X: y\r\n" * 201 + b"\r\n"
TRAILER = b"0\r\nX: " + b"y" * 300_000
EXTENSION = b"5;" + b"y" * 300_000
NO_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/ev"
FAILED = b'data: {"error": {"message": "no"}, "choices": [{"index": 0, "delta": {}, "finish_reason": "error"}]}\n\n'
FAILED_FIRST = (
    b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "error", "error": {"message": "no"}}]}\n\n'
)
ABORT = event(finish_reason="abort")
ERROR_FIELD = b'error: {"code": 500, "message": "no"}\n\n'
BASE_RESP = b'{"choices": null, "base_resp": {"status_code": 1008, "status_msg": "no"}}'
DETAIL, CODE = b'{"detail": "no"}', b'{"code": 10013, "message": "no"}'
OBJECT = b'{"object": "error", "message": "no"}'
CHOICE = b'{"choices": [{"finish_reason": "error", "error": {"message": "no"}, "message": {"content": ""}}]}'
JSON_STREAM = head(Transfer_Encoding="chunked")
NAN = b'{"choices": [{"message": {"content": "hello"}, "logprobs": [NaN, -Infinity]}]}'
FINE = b'{"choices": [{"message": {"content": "hello"}}], "error": null, "code": 0, "base_resp": {"status_code": 0}}'
FINE_EVENT = event({"content": "lo"}, error=None, code=0, base_resp={"status_code": 0})


def short(body: bytes, kind: str = "application/json"):
    """Fewer bytes than Content-Length says, then the end."""
    return then(raw(head(kind=kind, Content_Length=str(len(body) + 50)), body), fin)


def crlf(events, end):
    return [each.replace(b"\n", end) for each in events]


def both(plain, streamed):
    return as_asked(plain, streamed)


def delimited(events):
    return then(raw(CLOSE_DELIMITED, *events), fin)


def plain_delimited():
    return then(raw(head(Connection="close"), BODY), fin)


def early(behaviour):
    """Before the body has arrived, which is 20 MB."""
    return {"on_head": behaviour}


#   fault                                 behaviour of the first provider                                       plain               streamed
UNTYPED = b"HTTP/1.1 200 OK\r\n%s\r\n\r\n"
TABLE = {
    # Connecting
    "name not found":                    ("http://no-such-host.invalid/v1",                                    "next unreachable", "next unreachable"),
    "connection refused":                (None,                                                                "next unreachable", "next unreachable"),
    "black hole":                        ("black hole",                                                        "next timeout",     "next timeout"),
    "TLS silent":                        ("TLS silent",                                                        "next timeout",     "next timeout"),
    "certificate for another host":      ("wrong certificate",                                                 "next unreachable", "next unreachable"),
    # Sending
    "reset while we send 20 MB":         (early(rst),                                                          "next broken",      "next broken"),
    "413 while we send 20 MB":           (early(answer(413, TOLD)),                                            "next refused",     "next refused"),
    "413 and fin while we send 20 MB":   (early(then(answer(413, TOLD), later(fin))),                          "next refused",     "next refused"),
    # Waiting
    "no headers":                        (hang,                                                                "next timeout",     "next timeout"),
    "headers, then silence":             (raw(STREAM_HEAD),                                                    "next timeout",     "next timeout"),
    "half a plain body, then silence":   (raw(head(Content_Length="99"), b'{"a":'),                            "next timeout",     "next timeout"),
    "comments only, then silence":       (begin_stream(COMMENT, COMMENT),                                      "next timeout",     "next timeout"),
    "comments without end":              (drip(STREAM_HEAD + chunk(COMMENT) * 500, 40, 0.05),                  "next timeout",     "next timeout"),
    "a role, then silence":              (begin_stream(COMMENT, ROLE),                                         "next timeout",     "next timeout"),
    "a head in drips":                   (drip(STREAM_HEAD + b"x" * 999, 1, 0.05),                             "next timeout",     "next timeout"),
    "100 Continue, then silence":        (raw(b"HTTP/1.1 100 Continue\r\n\r\n"),                               "next timeout",     "next timeout"),
    # Answers that are none
    "comments only, whole":              (stream(COMMENT, COMMENT),                                            "next broken",      "next broken"),
    "comments only, fin":                (then(begin_stream(COMMENT), fin),                                    "next broken",      "next broken"),
    "a role, then an error event":       (stream(COMMENT, ROLE, ERROR_EVENT),                                  "next broken",      "next broken"),
    "an error event first":              (stream(ERROR_EVENT),                                                 "next broken",      "next broken"),
    "a role, then [DONE]":               (stream(ROLE, DONE),                                                  "next broken",      "next broken"),
    "200, JSON error":                   (answer(200, ERROR),                                                  "next broken",      "next broken"),
    "200, JSON error as a stream":       (answer(200, ERROR, "text/event-stream"),                             "next broken",      "next broken"),
    "200, empty":                        (answer(200, b""),                                                    "next broken",      "next broken"),
    "200, empty stream":                 (answer(200, b"", "text/event-stream"),                               "next broken",      "next broken"),
    "200, HTML":                         (answer(200, b"<html>oops</html>", "text/html"),                      "next broken",      "next broken"),
    "200, plain text":                   (answer(200, b"oops", "text/plain"),                                  "next broken",      "next broken"),
    "200, half of JSON":                 (answer(200, BODY[:-9]),                                              "next broken",      "next broken"),
    "204":                               (raw(b"HTTP/1.1 204 No Content\r\n\r\n"),                             "next broken",      "next broken"),
    "200 to a stream request, plain":    (answer(200, BODY),                                                   "whole",            "next broken"),
    "101":                               (raw(b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"), "next broken",      "next broken"),
    "200, choices is null":              (both(answer(200, BASE_RESP), stream(b"data: " + BASE_RESP + b"\n\n")), "next broken",   "next broken"),
    "200, choices is empty":             (both(answer(200, b'{"choices":[]}'), stream(b'data: {"choices":[]}\n\n')), "next broken", "next broken"),
    "200, {}":                           (both(answer(200, b"{}"), stream(b"data: {}\n\n")),                  "next broken",      "next broken"),
    "200, detail":                       (both(answer(200, DETAIL), stream(b"data: " + DETAIL + b"\n\n")),    "next broken",      "next broken"),
    "200, code and message":             (both(answer(200, CODE), stream(b"data: " + CODE + b"\n\n")),        "next broken",      "next broken"),
    "200, object error":                 (both(answer(200, OBJECT), stream(b"data: " + OBJECT + b"\n\n")),    "next broken",      "next broken"),
    "200, a list with an error":         (both(answer(200, b"[%s]" % ERROR), stream(b"data: [%s]\n\n" % ERROR)), "next broken",   "next broken"),
    "200, a choice with an error":       (both(answer(200, CHOICE), stream(ROLE, FAILED_FIRST, DONE)),         "next broken",      "next broken"),
    "200, choices of nothing":           (answer(200, b'{"choices": [null]}'),                                 "next broken",      "next broken"),
    "a field error first":               (stream(ERROR_FIELD),                                                 "next broken",      "next broken"),
    "finish_reason abort first":         (stream(ROLE, ABORT, DONE),                                           "-",                "next broken"),
    "a first event of malformed JSON":   (stream(ROLE, b'data: {"choices": [{"del\n\n', DONE),                 "-",                "next broken"),
    "pings without end":                 (drip(STREAM_HEAD + chunk(b'data: {"type": "ping"}\n\n') * 200, 400, 0.05), "-",          "next timeout"),
    "200 keep-alives, then silence":     (begin_stream(*[COMMENT] * 200),                                      "-",                "next timeout"),
    "a stream as application/json, an error": (then(raw(JSON_STREAM, chunk(ERROR_EVENT), LAST_CHUNK)),         "-",                "next broken"),
    # Refusals
    **{f"{code}":                        (answer(code, ERROR),                                                 "next refused",     "next refused")
       for code in (301, 302, 307, 400, 401, 402, 403, 404, 408, 409, 413, 415, 422, 424, 425, 429, 499, 500, 501, 502, 503, 529)},
    "302 to elsewhere":                  (answer(302, b"", Location="http://127.0.0.1:1/"),                    "next refused",     "next refused"),
    "429, Retry-After: seconds":         (answer(429, TOLD, Retry_After="30"),                                 "next refused",     "next refused"),
    "429, Retry-After: date":            (answer(429, TOLD, Retry_After=HTTP_DATE),                            "next refused",     "next refused"),
    "429, retry-after-ms":               (answer(429, TOLD, Retry_After_Ms="30000"),                           "next refused",     "next refused"),
    "403, Retry-After":                  (answer(403, ERROR, Retry_After="30"),                                "next refused",     "next refused"),
    "503, Retry-After":                  (answer(503, ERROR, Retry_After="30"),                                "next refused",     "next refused"),
    "500 without a body":                (raw(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"),                 "next refused",     "next refused"),
    "500, cut short":                    (then(raw(head(500, Content_Length="99"), b"{"), fin),                "next refused",     "next refused"),
    # Cut before the first output
    "fin before headers":                (fin,                                                                 "next broken",      "next broken"),
    "rst before headers":                (rst,                                                                 "next broken",      "next broken"),
    "fin in the headers":                (then(raw(NO_HEAD), fin),                                             "next broken",      "next broken"),
    "rst in the headers":                (then(raw(NO_HEAD), later(rst)),                                      "next broken",      "next broken"),
    "fin before the first output":       (both(short(BODY[:20]), then(begin_stream(ROLE), fin)),               "next broken",      "next broken"),
    "rst before the first output":       (then(begin_stream(ROLE), later(rst)),                                "next broken",      "next broken"),
    "bad chunk before the first output": (then(begin_stream(ROLE), BAD_CHUNK),                                 "next broken",      "next broken"),
    "short length before the first output": (both(short(BODY), short(ROLE, "text/event-stream")),              "next broken",      "next broken"),
    # Cut after it
    "fin after output":                  (then(begin_stream(ROLE, HEL), fin),                                  "-",                "break stream_truncated"),
    "rst after output":                  (then(begin_stream(ROLE, HEL), later(rst)),                           "-",                "break stream_reset"),
    "bad chunk after output":            (then(begin_stream(ROLE, HEL), BAD_CHUNK),                            "-",                "break stream_truncated"),
    "short length after output":         (short(ROLE + HEL, "text/event-stream"),                              "-",                "break stream_truncated"),
    "clean end after output":            (stream(ROLE, HEL),                                                   "-",                "break stream_truncated"),
    "close-delimited, cut after output": (delimited([ROLE, HEL]),                                              "-",                "break stream_truncated"),
    "fin in an event":                   (then(begin_stream(ROLE, HEL, HALF), fin),                            "-",                "break stream_truncated"),
    "rst in an event":                   (then(begin_stream(ROLE, HEL, HALF), later(rst)),                     "-",                "break stream_reset"),
    "bad chunk in an event":             (then(begin_stream(ROLE, HEL, HALF), BAD_CHUNK),                      "-",                "break stream_truncated"),
    "short length in an event":          (short(ROLE + HEL + HALF, "text/event-stream"),                       "-",                "break stream_truncated"),
    "clean end in an event":             (stream(ROLE, HEL, HALF),                                             "-",                "break stream_truncated"),
    "fin after finish_reason":           (then(begin_stream(ROLE, HEL, STOP), fin),                            "-",                "break stream_truncated"),
    "rst after finish_reason":           (then(begin_stream(ROLE, HEL, STOP), later(rst)),                     "-",                "break stream_reset"),
    "bad chunk after finish_reason":     (then(begin_stream(ROLE, HEL, STOP), BAD_CHUNK),                      "-",                "break stream_truncated"),
    "short length after finish_reason":  (short(ROLE + HEL + STOP, "text/event-stream"),                       "-",                "break stream_truncated"),
    "fin after [DONE]":                  (then(begin_stream(*STREAM), fin),                                    "-",                "whole"),
    "rst after [DONE]":                  (then(begin_stream(*STREAM), later(rst)),                             "-",                "whole"),
    "bad chunk after [DONE]":            (then(begin_stream(*STREAM), BAD_CHUNK),                              "-",                "whole"),
    "short length after [DONE]":         (short(GOOD, "text/event-stream"),                                    "-",                "whole"),
    "silence after output":              (begin_stream(ROLE, HEL),                                             "-",                "break stream_idle_timeout"),
    "silence in an event":               (begin_stream(ROLE, HEL, HALF),                                       "-",                "break stream_idle_timeout"),
    "comments after output":             (drip(STREAM_HEAD + chunk(ROLE) + chunk(HEL) + chunk(COMMENT) * 99, 300, 0.05), "-",     "break stream_idle_timeout"),
    "an error event after output":       (stream(ROLE, HEL, ERROR_EVENT, DONE),                                "-",                "reported"),
    "an error event after output, then silence": (begin_stream(ROLE, HEL, ERROR_EVENT),                        "-",                "reported"),
    "an error beside a choice after output": (stream(ROLE, HEL, FAILED, DONE),                                 "-",                "reported"),
    "a field error after output":        (stream(ROLE, HEL, ERROR_FIELD),                                      "-",                "break provider_error"),
    "detail after output":               (stream(ROLE, HEL, b"data: " + DETAIL + b"\n\n", DONE),               "-",                "break provider_error"),
    "code and message after output":     (stream(ROLE, HEL, b"data: " + CODE + b"\n\n", DONE),                 "-",                "break provider_error"),
    "base_resp after output":            (stream(ROLE, HEL, b"data: " + BASE_RESP + b"\n\n", DONE),            "-",                "break provider_error"),
    "finish_reason abort after output":  (stream(ROLE, HEL, ABORT, DONE),                                      "-",                "break provider_error"),
    "silence after [DONE]":              (begin_stream(*STREAM),                                               "-",                "whole"),
    # Odd, and good
    "a good answer":                     (both(answer(), stream()),                                            "whole",            "whole"),
    "in drips":                          (both(drip(head(Content_Length=str(len(BODY))) + BODY), drip(whole_stream(), 3)), "whole", "whole"),
    "close-delimited":                   (both(plain_delimited(), delimited(STREAM)),                          "whole",            "whole"),
    "100 Continue and 103 before":       (then(raw(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n"), both(answer(), stream())), "whole", "whole"),
    "a 1 MiB event":                     (stream(ROLE, LARGE, STOP, DONE),                                     "-",                "whole"),
    "CRLF":                              (stream(*crlf(STREAM, b"\r\n")),                                      "-",                "whole"),
    "lone CR":                           (stream(*crlf(STREAM, b"\r")),                                        "-",                "whole"),
    "a BOM":                             (both(answer(200, b"\xef\xbb\xbf" + BODY), stream(b"\xef\xbb\xbf", *STREAM)), "whole",    "whole"),
    "invalid UTF-8":                     (both(answer(200, b'{"choices": ["\xff"]}'), stream(ROLE, b"data: \xff\n\n", STOP)), "whole", "whole"),
    "no Content-Type":                   (both(raw(UNTYPED % (b"Content-Length: %d" % len(BODY)), BODY), raw(UNTYPED % b"Transfer-Encoding: chunked", chunk(GOOD), LAST_CHUNK)), "whole", "whole"),
    "no [DONE]":                         (stream(*STREAM[:-1]),                                                "-",                "whole"),
    "no finish_reason":                  (stream(ROLE, HEL, DONE),                                             "-",                "whole"),
    "no last blank line":                (stream(*STREAM[:-1], b"data: [DONE]"),                               "-",                "whole"),
    "200 keep-alives, then an answer":   (stream(*[COMMENT] * 200, *STREAM),                                   "-",                "whole"),
    "a stream as application/json":      (then(raw(JSON_STREAM, *map(chunk, STREAM), LAST_CHUNK)),             "-",                "whole"),
    "NaN in the answer":                 (both(answer(200, NAN), stream()),                                    "whole",            "whole"),
    "error null, code 0, status_code 0": (both(answer(200, FINE), stream(ROLE, HEL, FINE_EVENT, STOP, DONE)),  "whole",            "whole"),
    "comments between events":           (stream(COMMENT, ROLE, COMMENT, HEL, COMMENT, STOP, COMMENT),         "-",                "whole"),
    "usage at the end":                  (stream(ROLE, HEL, STOP, event(usage={"total_tokens": 9}), DONE),     "-",                "whole"),
    # Malformed
    "not HTTP":                          (raw(b"HELLO\r\n\r\n"),                                               "next broken",      "next broken"),
    "two lengths":                       (answer(200, None, content_length="3"),                               "next broken",      "next broken"),
    "length and chunks":                 (raw(head(Content_Length="3", Transfer_Encoding="chunked"), LAST_CHUNK), "next broken",   "next broken"),
    "gzip though we asked for identity": (answer(200, None, Content_Encoding="gzip"),                          "next broken",      "next broken"),
    "300 kB of headers":                 (raw(b"HTTP/1.1 200 OK\r\n", *[b"X: %s\r\n" % (b"y" * 1000)] * 300),  "next broken",      "next broken"),
    "one header without end":            (raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000),                     "next broken",      "next broken"),
    "201 headers":                       (raw(b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 201, b"\r\n"),          "next broken",      "next broken"),
    "201 headers in 1xx":                (raw(b"HTTP/1.1 103 X\r\nX: y\r\n\r\n" * 201),                            "next broken",      "next broken"),
    "1xx without end":                   (raw(b"HTTP/1.1 102 X\r\n\r\n" * 20_000),                                "next broken",      "next broken"),
    "trailers":                          (both(raw(CHUNKED, chunk(BODY), GOOD_TRAILERS), then(begin_stream(*STREAM), raw(GOOD_TRAILERS))), "whole", "whole"),
    "201 trailers before the first output": (both(raw(CHUNKED, chunk(BODY), TRAILERS), then(begin_stream(ROLE), raw(TRAILERS))), "next broken", "next broken"),
    "one trailer without end before the first output": (both(raw(CHUNKED, chunk(BODY), TRAILER), then(begin_stream(ROLE), raw(TRAILER))), "next broken", "next broken"),
    "a chunk extension without end before the first output": (both(raw(CHUNKED, EXTENSION), then(begin_stream(ROLE), raw(EXTENSION))), "next broken", "next broken"),
    "201 trailers after [DONE]":         (then(begin_stream(*STREAM), raw(TRAILERS)),                          "-",                "whole"),
    "one trailer without end after [DONE]": (then(begin_stream(*STREAM), raw(TRAILER)),                        "-",                "whole"),
    "a chunk extension without end after output": (then(begin_stream(ROLE, HEL), raw(EXTENSION)),              "-",                "break stream_truncated"),
}  # fmt: skip

WHOLE = {  # what a good provider said, plain and streamed, where it is not BODY and GOOD
    "a 1 MiB event": (b"", ROLE + LARGE + STOP + DONE),
    "CRLF": (b"", GOOD.replace(b"\n", b"\r\n")),
    "lone CR": (b"", GOOD.replace(b"\n", b"\r")),
    "a BOM": (b"\xef\xbb\xbf" + BODY, b"\xef\xbb\xbf" + GOOD),
    "invalid UTF-8": (b'{"choices": ["\xff"]}', ROLE + b"data: \xff\n\n" + STOP),
    "an error event after output": (b"", ROLE + HEL + ERROR_EVENT + DONE),
    "an error event after output, then silence": (b"", ROLE + HEL + ERROR_EVENT),
    "an error beside a choice after output": (b"", ROLE + HEL + FAILED + DONE),
    "200 keep-alives, then an answer": (b"", COMMENT * 200 + GOOD),
    "NaN in the answer": (NAN, GOOD),
    "error null, code 0, status_code 0": (FINE, ROLE + HEL + FINE_EVENT + STOP + DONE),
    "no [DONE]": (b"", GOOD.removesuffix(DONE)),
    "no finish_reason": (b"", ROLE + HEL + DONE),
    "no last blank line": (b"", GOOD.removesuffix(b"\n\n")),
    "comments between events": (b"", COMMENT + ROLE + COMMENT + HEL + COMMENT + STOP + COMMENT),
    "usage at the end": (b"", ROLE + HEL + STOP + event(usage={"total_tokens": 9}) + DONE),
}
NOTHING_SENT = {"name not found", "connection refused", "black hole", "TLS silent", "certificate for another host"}
ONLY_HTTPS = {"TLS silent", "certificate for another host"}
ONLY_HTTP = {"name not found", "connection refused", "black hole"}
CASES = [
    pytest.param(fault, streamed, tls, id=f"{fault}-{'streamed' if streamed else 'plain'}-{'https' if tls else 'http'}")
    for fault, (_, *expected) in TABLE.items()
    for streamed in (False, True)
    for tls in (False, True)
    if expected[streamed] != "-" and fault not in (ONLY_HTTP if tls else ONLY_HTTPS)
]


BOTH = [fault for fault, (_, *expected) in TABLE.items() if "-" not in expected and fault not in ONLY_HTTP | ONLY_HTTPS]


# With ``hold: whole`` a stream that breaks after its first output is a failure like another.
HELD = {"break stream_idle_timeout": "next timeout"}


def held(expected: str) -> str:
    """What becomes of a streamed request on a route with ``hold: whole``."""
    breaks = expected.startswith("break") or expected == "reported"
    return HELD.get(expected, "next broken") if breaks else expected


def first_step(world, what, tls):
    """What stands at the first step: a provider, or an address where there is none."""
    if what == "black hole":
        return f"http://127.0.0.1:{world.black_hole()}/v1"
    if what == "TLS silent":
        return f"https://127.0.0.1:{world.black_hole()}/v1"
    if what == "wrong certificate":
        return world.provider(tls=True, host="other.example")
    if isinstance(what, str) or what is None:
        return what
    return world.provider(tls=tls, **what) if isinstance(what, dict) else world.provider(what, tls=tls)


UNHELD_CASES = [
    pytest.param(
        *(fault, streamed, tls, "first_output"),
        id=case.id,  # by default each fault is tried over http and over https, once streamed and once not
        marks=[pytest.mark.slow] if fault in BOTH and (streamed ^ tls ^ BOTH.index(fault)) & 1 else [],
    )
    for case in CASES
    for fault, streamed, tls in [case.values]
]
HELD_CASES = [
    pytest.param(
        *(fault, True, fault in ONLY_HTTPS, "whole"),
        id=f"{fault}-streamed-held",
        marks=[pytest.mark.slow] if streamed.startswith("next") else [],  # before the first output nothing differs
    )
    for fault, (_, _, streamed) in TABLE.items()
    if streamed != "-"
]


@pytest.mark.parametrize(("fault", "streamed", "tls", "hold"), [*UNHELD_CASES, *HELD_CASES])
@ensureDeferred
async def test_fault(world, fault, streamed, tls, hold):
    """B7, A1, A2, A4, T1; with ``hold: whole`` H1, H2."""
    what, *expected = TABLE[fault]
    is_silence = expected[streamed] in HELD
    verdict, _, outcome = (held(expected[streamed]) if hold == "whole" else expected[streamed]).partition(" ")
    first, second = first_step(world, what, tls), world.provider()
    timeout = LIMIT if outcome == "timeout" and not is_silence else 5
    gateway = world.gateway(first, second, timeout=timeout, idle_timeout=IDLE, connect_timeout=LIMIT, hold=hold)
    messages = HELLO["messages"]
    if isinstance(what, dict):
        messages = [{"role": "user", "content": "x" * 20_000_000}]
    begun = reactor.seconds()

    got = await gateway.ask(stream=streamed, messages=messages)

    took = reactor.seconds() - begun
    (record,) = world.records
    seen = len(getattr(first, "requests", ()))
    outcomes = [attempt["outcome"] for attempt in record["attempts"]]
    assert got.status == record["status"] == 200
    assert record["bytes_out"] == len(got.body)
    if verdict == "next":
        assert got.whole
        assert contents(got.body) == "hello" if streamed else got.json["choices"][0]["message"]["content"] == "hello"
        assert got.headers["x-aigw-provider"] == record["provider"] == "p2"
        assert (outcomes, record["outcome"]) == ([outcome, "ok"], "ok")
        assert (seen, len(second.requests)) == (0 if fault in NOTHING_SENT else 1, 1)
        limit = IDLE if is_silence else LIMIT
        assert outcome != "timeout" or limit <= took < limit + 0.5
        return
    assert got.headers["x-aigw-provider"] == record["provider"] == "p1"
    assert (seen, len(second.requests), len(second.connections)) == (1, 0, 0)
    if verdict == "reported":
        assert got.whole
        assert got.body == WHOLE[fault][streamed]
        assert (outcomes, record["outcome"]) == (["provider_error"], "provider_error")
        return
    if verdict == "whole":
        assert got.whole
        assert got.body == WHOLE.get(fault, (BODY, GOOD))[streamed]
        assert (outcomes, record["outcome"]) == (["ok"], "ok")
        return
    assert not got.whole
    assert (outcomes, record["outcome"]) == ([outcome], outcome)
    body = got.body
    if outcome == "provider_error" and body.endswith(DONE):
        body = body.removesuffix(DONE)  # our event stands in front of it
    *events, last = body.removesuffix(b"\n\n").split(b"\n\n")
    assert last.startswith(b'data: {"error":{"message":')
    assert last.endswith(b'"type":"upstream_error","param":null,"code":"%s"}}' % outcome.encode())
    came = [each.removesuffix(b"\n\n") for each in (ROLE, HEL, STOP, DONE)]
    ours = (COMMENT.strip(), LO.strip(), ABORT.strip(), ERROR_FIELD.strip())
    ours += tuple(b"data: " + error for error in (DETAIL, CODE, BASE_RESP))
    assert [each for each in events if each not in ours] == [e for e in came if e in events]
    assert events[:2] == came[:2], "what came before the break was passed on"


HEADINGS = {  # by the first fault under each
    "name not found": "Connecting",
    "reset while we send 20 MB": "Sending the request",
    "no headers": "Waiting for the answer",
    "comments only, whole": "Answers that are none",
    "301": "Refusals",
    "fin before headers": "Broken before the first output",
    "fin after output": "Broken after the first output",
    "a good answer": "Odd, and good",
}


def page_rows() -> str:
    """The table as the page shows it: one fault a row."""
    lines = []
    for fault, (_, *expected) in TABLE.items():
        if fault in HEADINGS:
            head = "| what the provider does | a plain request gets | a streamed request gets | with `hold: whole` |"
            lines += ["", f"## {HEADINGS[fault]}", "", head, "|---|---|---|---|"]
        fates = [pages.in_words(each, f"in-band `{each.partition(' ')[2]}`") for each in (*expected, held(expected[1]))]
        lines.append(f"| {' | '.join([fault, *fates])} |")
    return pages.rows(lines)


def test_the_page_shows_this_table():
    """AIGW_WRITE_DOCS=1 writes it."""
    assert set(HEADINGS) <= set(TABLE)
    pages.check_table("faults", page_rows())
