"""S1, S3: a corpus of malformed, smuggled and split requests, and good ones that look odd.

Each goes over TCP and over TLS, in one segment and byte by byte, with two good requests behind it. Whichever way it
comes the answers are the same, and what the provider saw proves that nothing behind an error was executed.
"""

from __future__ import annotations

import json

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred as as_deferred
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater

from aigw.connections import closing
from aigw.connections.request_head import SINGLE
from tests.harness import AUTH, CHAT, HELLO, bounded, request
from tests.memory import MemoryGateway, error_of
from tests.properties import grid
from tests.test_front import HEALTHY, LIMIT, answers

KEY = f"Authorization: {AUTH['Authorization']}".encode()
BODY = json.dumps(HELLO).encode()
SIZE = len(BODY)
AT_ONCE = 12  # connections
BEHIND = request(HELLO) + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
SMUGGLED = request(HELLO)
POST = b"POST %s HTTP/1.1" % CHAT.encode()


def get(*lines: bytes, start: bytes = b"GET /health HTTP/1.1", host: bytes = b"Host: x") -> bytes:
    return b"\r\n".join([start, *([host] if host else []), *lines, b"", b""])


def post(*lines: bytes, body: bytes = b"", start: bytes = POST) -> bytes:
    return get(KEY, *lines, start=start) + body


def chunked(body: bytes) -> bytes:
    """A request whose body is framed as written."""
    return post(b"Transfer-Encoding: chunked", body=body)


def length(written: bytes) -> bytes:
    return post(b"Content-Length: " + written, body=BODY)


CHUNK = b"%x\r\n%s\r\n" % (SIZE, BODY)
END = b"0\r\n\r\n"
TE = b"Transfer-Encoding: chunked"
CL = b"Content-Length: %d" % SIZE

#   the one answer, and what it answers; the connection is closed behind it
REFUSED = {
    # which of two framings
    "CL.TE":                          (400, post(b"Content-Length: 6", TE, body=END + b"G")),
    "TE.CL":                          (400, post(TE, b"Content-Length: 4", body=b"5c\r\n" + SMUGGLED + b"\r\n" + END)),
    "CL.TE, the body good in both":   (400, post(CL, TE, body=CHUNK + END)),
    "TE twice":                       (400, post(TE, TE, body=CHUNK + END)),
    "TE twice, one unknown":          (400, post(TE, b"Transfer-Encoding: cow", body=CHUNK + END)),
    "TE xchunked":                    (400, post(b"Transfer-Encoding: xchunked", body=CHUNK + END)),
    "TE chunked, identity":           (400, post(b"Transfer-Encoding: chunked, identity", body=CHUNK + END)),
    "TE identity, chunked":           (400, post(b"Transfer-Encoding: identity, chunked", body=CHUNK + END)),
    "TE gzip, chunked":               (400, post(b"Transfer-Encoding: gzip, chunked", body=CHUNK + END)),
    "TE identity":                    (400, post(b"Transfer-Encoding: identity", CL, body=BODY)),
    "TE quoted":                      (400, post(b'Transfer-Encoding: "chunked"', body=CHUNK + END)),
    "TE with a parameter":            (400, post(b"Transfer-Encoding: chunked;q=1", body=CHUNK + END)),
    "TE with a comma":                (400, post(b"Transfer-Encoding: chunked,", body=CHUNK + END)),
    "TE behind VT":                   (400, post(b"Transfer-Encoding:\x0bchunked", body=CHUNK + END)),
    "TE behind NUL":                  (400, post(b"Transfer-Encoding: \0chunked", body=CHUNK + END)),
    "TE with an 8-bit space":         (400, post(b"Transfer-Encoding: chunked\xa0", body=CHUNK + END)),
    "TE before a space and colon":    (400, post(b"Transfer-Encoding : chunked", CL, body=BODY)),
    "TE in an obs-fold":              (400, post(b"X-A: a", b"\tTransfer-Encoding: chunked", CL, body=BODY)),
    "TE with its value folded":       (400, post(b"Transfer-Encoding:", b" chunked", body=CHUNK + END)),
    "TE behind a bare LF":            (400, post(b"X-A: a\nTransfer-Encoding: chunked", CL, body=BODY)),
    "TE behind a bare CR":            (400, post(b"X-A: a\rTransfer-Encoding: chunked", CL, body=BODY)),
    "TE in HTTP/1.0":                 (400, post(TE, body=CHUNK + END, start=b"POST %s HTTP/1.0" % CHAT.encode())),
    "TE before a tab":                (400, post(b"Transfer-Encoding: chunked \t", body=CHUNK + END)),  # llhttp is strict
    "an Upgrade, CL.TE":              (400, post(b"Connection: Upgrade", b"Upgrade: h2c", CL, TE, body=CHUNK + END)),
    "an Upgrade, TE gzip, chunked":   (400, post(b"Connection: Upgrade", b"Upgrade: h2c", b"Transfer-Encoding: gzip, chunked",
                                                 body=CHUNK + END)),
    # lengths
    "two lengths":                    (400, post(CL, b"Content-Length: 0", body=BODY)),
    "two lengths, the same":          (400, post(CL, CL, body=BODY)),
    "a list of lengths":              (400, length(b"%d, %d" % (SIZE, SIZE))),
    "a negative length":              (400, length(b"-1")),
    "a signed length":                (400, length(b"+%d" % SIZE)),
    "a hexadecimal length":           (400, length(b"0x10")),
    "a length with an underscore":    (400, length(b"1_0")),
    "a length with a space":          (400, length(b"5 0")),
    "a length with an exponent":      (400, length(b"1e1")),
    "a length with a point":          (400, length(b"5.0")),
    "an 8-bit digit":                 (400, length("５".encode())),
    "a length with NUL":              (400, length(b"5\0")),
    "no length":                      (400, length(b"")),
    "19 digits":                      (400, length(b"0" * 17 + b"50")),
    "a length that overflows":        (400, length(b"18446744073709551616")),
    "a length over the limit":        (413, length(b"9" * 18)),
    # chunks
    "a chunk size with 0x":           (400, chunked(b"0x5\r\nhello\r\n" + END)),
    "a chunk size with +":            (400, chunked(b"+5\r\nhello\r\n" + END)),
    "a chunk size with -":            (400, chunked(b"-5\r\nhello\r\n" + END)),
    "a chunk size with _":            (400, chunked(b"1_0\r\nhello\r\n" + END)),
    "a space before a chunk size":    (400, chunked(b" 5\r\nhello\r\n" + END)),
    "a space after a chunk size":     (400, chunked(b"5 \r\nhello\r\n" + END)),
    "a tab before an extension":      (400, chunked(b"5\t;a=b\r\nhello\r\n" + END)),
    "no chunk size":                  (400, chunked(b"\r\nhello\r\n" + END)),
    "an extension without a size":    (400, chunked(b";a=b\r\nhello\r\n" + END)),
    "a chunk size that is none":      (400, chunked(b"hello\r\nhello\r\n" + END)),
    "a chunk size in 8 bits":         (400, chunked(b"\xb5\r\nhello\r\n" + END)),
    "a chunk size behind LF":         (400, chunked(b"5\nhello\r\n" + END)),
    "a chunk size behind CR":         (400, chunked(b"5\rhello\r\n" + END)),
    "an extension with LF":           (400, chunked(b"5;a\nb\r\nhello\r\n" + END)),
    "an extension with CR":           (400, chunked(b"5;a\rb\r\nhello\r\n" + END)),
    "an extension with NUL":          (400, chunked(b"5;a\0b\r\nhello\r\n" + END)),
    "an extension without end":       (400, chunked(b"5;" + b"a" * 2000 + b"\r\nhello\r\n" + END)),
    "a chunk too long":               (400, chunked(b"4\r\nhello\r\n" + END)),
    "a chunk too short":              (400, chunked(b"6\r\nhello\r\n" + END)),
    "a chunk behind LF":              (400, chunked(b"5\r\nhello\n" + END)),
    "a chunk behind nothing":         (400, chunked(b"5\r\nhello0\r\n\r\n")),
    "a chunk over the limit":         (413, chunked(b"ffff\r\n" + b"x" * 3000)),
    "a chunk size that overflows":    (400, chunked(b"1" + b"0" * 16 + b"5\r\n" + b"x" * 3000)),
    "a last chunk with +0":           (400, chunked(CHUNK + b"+0\r\n\r\n")),
    "a trailer with a bare LF":       (400, chunked(CHUNK + b"0\r\nX-A: a\nX-B: b\r\n\r\n")),
    "a trailer that ends in LF":      (400, chunked(CHUNK + b"0\r\nX-A: a\n\n")),
    "a trailer with a bare CR":       (400, chunked(CHUNK + b"0\r\nX-A: a\rX-B: b\r\n\r\n")),
    "a trailer with NUL":             (400, chunked(CHUNK + b"0\r\nX-A: \0\r\n\r\n")),
    "a trailer that is folded":       (400, chunked(CHUNK + b"0\r\nX-A: a\r\n b\r\n\r\n")),
    "a trailer without colon":        (400, chunked(CHUNK + b"0\r\nX-A\r\n\r\n")),
    "a trailer with a bad name":      (400, chunked(CHUNK + b"0\r\nX A: a\r\n\r\n")),
    "a request for a trailer":        (400, chunked(CHUNK + b"0\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n")),
    "trailers without end":           (400, chunked(CHUNK + b"0\r\n" + b"X-A: %s\r\n" % (b"a" * 900) * 80)),
    # line ends
    "LF for every CRLF":              (400, get().replace(b"\r\n", b"\n") + b"\r\n\r\n"),
    "LF behind the request line":     (400, get().replace(b"\r\n", b"\n", 1)),
    "LF behind a header":             (400, get(b"X-A: a\nX-B: b")),
    "CR for CRLF":                    (400, get().replace(b"\r\n", b"\r") + b"\r\n\r\n"),
    "CR CR LF":                       (400, get(b"X-A: a\r")),
    "CR in the request line":         (400, get(start=b"GET /health\r HTTP/1.1")),
    "an obs-fold":                    (400, get(b"X-A: a", b" b")),
    "an obs-fold with a tab":         (400, get(b"X-A: a", b"\tb")),
    "an obs-fold of nothing":         (400, get(b"X-A: a", b" ")),
    "a space before the headers":     (400, get(b" X-A: a", host=b"").replace(b"\r\n\r\n", b"\r\nHost: x\r\n\r\n")),
    "two lines before the request":   (400, b"\r\n\r\n" + get()),
    # names and values
    "a space before the colon":       (400, get(b"X-A : a")),
    "a space in a name":              (400, get(b"X A: a")),
    "a tab in a name":                (400, get(b"X\tA: a")),
    "an 8-bit name":                  (400, get(b"X-\xc3\xa9: a")),
    "NUL in a name":                  (400, get(b"X\0A: a")),
    "no name":                        (400, get(b": a")),
    "no colon":                       (400, get(b"X-A")),
    "NUL in a value":                 (400, get(b"X-A: a\0b")),
    "a control byte in a value":      (400, get(b"X-A: a\x01b")),
    "DEL in a value":                 (400, get(b"X-A: a\x7fb")),
    # Host
    "no Host":                        (400, get(host=b"")),
    "two Hosts":                      (400, get(b"Host: x")),
    "two Hosts that differ":          (400, get(b"Host: other")),
    "a Host with a space":            (400, get(host=b"Host: a b")),
    "a Host with a path":             (400, get(host=b"Host: a/b")),
    "a Host with credentials":        (400, get(host=b"Host: a@b")),
    "a Host in 8 bits":               (400, get(host=b"Host: \xe9")),
    # the request line
    "HTTP/0.9 without version":       (400, b"GET /health\r\n\r\n"),
    "HTTP/0.9":                       (400, get(start=b"GET /health HTTP/0.9")),
    "HTTP/1.2":                       (400, get(start=b"GET /health HTTP/1.2")),
    "HTTP/2.0":                       (400, get(start=b"GET /health HTTP/2.0")),
    "the preface of HTTP/2":          (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"),
    "HTTP/1.10":                      (400, get(start=b"GET /health HTTP/1.10")),
    "http/1.1":                       (400, get(start=b"GET /health http/1.1")),
    "two spaces":                     (400, get(start=b"GET  /health HTTP/1.1")),
    "a space at the end":             (400, get(start=b"GET /health HTTP/1.1 ")),
    "a space at the start":           (400, get(start=b" GET /health HTTP/1.1")),
    "tabs for spaces":                (400, get(start=b"GET\t/health\tHTTP/1.1")),
    "a space in the target":          (400, get(start=b"GET /health x HTTP/1.1")),
    "no target":                      (400, get(start=b"GET HTTP/1.1")),
    "a method that is no token":      (400, get(start=b"G(T /health HTTP/1.1")),
    "8 bits in the target":           (400, get(start=b"GET /health?\xe9 HTTP/1.1")),
    "NUL in the target":              (400, get(start=b"GET /health?\0 HTTP/1.1")),
    "DEL in the target":              (400, get(start=b"GET /health?\x7f HTTP/1.1")),
    "a fragment in the target":       (400, get(start=b"GET /health#x HTTP/1.1")),
    "a target without slash":         (400, get(start=b"GET health HTTP/1.1")),
    "a target with another letter":   (400, get(start=b"GET xhealth HTTP/1.1")),
    "a URI without host":             (400, get(start=b"GET http:///health HTTP/1.1")),
    "a URI of another scheme":        (400, get(start=b"GET ftp://x/health HTTP/1.1")),
    "a URI with credentials":         (400, get(start=b"GET http://a@x/health HTTP/1.1")),
    "CONNECT":                        (400, get(start=b"CONNECT x:443 HTTP/1.1")),
    # too much
    "a line of 17 KiB":               (431, get(start=b"GET /%s HTTP/1.1" % (b"x" * 17_000))),
    "a header of 17 KiB":             (431, get(b"X-A: " + b"x" * 17_000)),
    "headers of 33 KiB":              (431, get(*[b"X-A: " + b"x" * 11_250] * 3)),
    "101 headers":                    (431, get(*[b"X: y"] * 100)),
    # S21: what may stand once
    "Authorization twice":            (400, post(CL, KEY, body=BODY)),
    "Authorization twice, in the end":(400, post(CL, b"X-A: a", b"authorization: Bearer other", body=BODY)),
    "Authorization, one is empty":    (400, post(CL, b"Authorization:", body=BODY)),
    "Authorization, odd white space": (400, post(CL, b"AUTHORIZATION:\t Bearer x \t", body=BODY)),
    "X-Api-Key twice":                (400, get(b"X-Api-Key: a", CL, b"x-api-key: b", start=POST) + BODY),
    "X-Api-Key in an obs-fold":       (400, get(b"X-Api-Key: a", b" " + KEY, CL, start=POST) + BODY),
    "a space behind the name":        (400, post(CL, b"Authorization : Bearer x", body=BODY)),
    "a wrong key beside a right one": (401, post(CL, b"X-Api-Key: wrong", body=BODY)),
    "two keys in one header":         (401, get(KEY + b", " + KEY[15:], CL, start=POST) + BODY),
    **{f"{name} twice":               (400, post(CL, *[b"%s: a" % name.encode()] * 2, body=BODY))
       for name in ("Content-Type", "traceparent", "Idempotency-Key", "X-Request-Id", "Expect", "Origin", "Cookie", "X-Title")},
    "two lengths that agree":         (400, post(CL, CL, body=BODY)),
    # judged by the head, the body unread
    "no key":                         (401, get(CL, start=b"POST %s HTTP/1.1" % CHAT.encode()) + BODY),
    "no key, smuggling":              (401, get(b"Content-Length: %d" % len(SMUGGLED), start=b"POST / HTTP/1.1") + SMUGGLED),
    "another path, smuggling":        (404, post(b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED, start=b"POST /v2 HTTP/1.1")),
    "another method, chunked":        (405, post(TE, body=CHUNK + END, start=b"PUT %s HTTP/1.1" % CHAT.encode())),
    "a GET with a body, no key":      (401, get(b"Content-Length: %d" % len(SMUGGLED), start=b"GET /v1/models HTTP/1.1") + SMUGGLED),
    "Expect, and no key":             (401, get(b"Expect: 100-continue", CL, start=b"POST / HTTP/1.1") + BODY),
}  # fmt: skip

#   good, though odd: the answers to it; what is behind it is served too
ACCEPTED = {
    "plain":                          ([200], post(CL, body=BODY)),
    "chunked":                        ([200], chunked(CHUNK + END)),
    "TE in capitals":                 ([200], post(b"TRANSFER-ENCODING: CHUNKED", body=CHUNK + END)),
    "TE behind a tab":                ([200], post(b"Transfer-Encoding:\tchunked", body=CHUNK + END)),
    "an Upgrade, and a length":       ([200], post(b"Connection: Upgrade", b"Upgrade: websocket", CL, body=BODY)),
    "an Upgrade, chunked":            ([200], post(b"Connection: Upgrade", b"Upgrade: h2c", TE, body=CHUNK + END)),
    "a name that only looks like TE": ([200], post(b"Transfer_Encoding: chunked", CL, body=BODY)),
    "a chunk of each byte":           ([200], chunked(b"".join(b"1\r\n%c\r\n" % each for each in BODY) + END)),
    "zeros before a chunk size":      ([200], chunked(b"000000%x\r\n%s\r\n" % (SIZE, BODY) + b"000\r\n\r\n")),
    "extensions":                     ([200], chunked(b'%x;a=b;c="d e"\r\n%s\r\n0;x\r\n\r\n' % (SIZE, BODY))),
    "trailers":                       ([200], chunked(CHUNK + b"0\r\nX-A: a\r\nContent-Length: 5\r\nTransfer-Encoding: x\r\n\r\n")),
    "zeros before a length":          ([200], length(b"0000%d" % SIZE)),
    "one line before the request":    ([200], b"\r\n" + post(CL, body=BODY)),
    "no space behind the colon":      ([200], post(b"Content-Length:%d" % SIZE, body=BODY)),
    "an absolute URI":                ([200], get(start=b"GET http://x/health HTTP/1.1")),
    "an absolute URI and a Host":     ([200], get(start=b"GET HTTPS://other:1/health?x HTTP/1.1")),
    "a Host with a port":             ([200], get(host=b"Host: [::1]:8080")),
    "an empty Host":                  ([200], get(host=b"Host:")),
    "an Upgrade to h2c":              ([200], get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAM")),
    "an Upgrade to websocket":        ([200], get(b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: x")),
    "an Upgrade to TLS":              ([200], get(b"Connection: Upgrade", b"Upgrade: TLS/1.0")),
    "Expect of something else":       ([200], post(b"Expect: 200-ok", CL, body=BODY)),
    "Expect in capitals":             ([100, 200], post(b"Expect: 100-Continue", CL, body=BODY)),
    "OPTIONS *":                      ([401], get(start=b"OPTIONS * HTTP/1.1")),
    "TRACE":                          ([401], get(start=b"TRACE / HTTP/1.1")),
    "a lower-case method":            ([405], get(start=b"get /health HTTP/1.1")),
    "a path that climbs":             ([401], get(start=b"GET /v1/../health HTTP/1.1")),
    "a path with two slashes":        ([401], get(start=b"GET //health HTTP/1.1")),
    "a percent sign of nothing":      ([401], get(start=b"GET /%zz HTTP/1.1")),
    "100 headers":                    ([200], get(*[b"X: y"] * 99)),
}  # fmt: skip

WAYS = pytest.mark.parametrize("way", ["in one segment", "in many"])
SECURE = pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])


@pytest.fixture
def brief(monkeypatch):
    """Over TLS a refusing gateway waits two seconds for the client to close; here it has less patience."""
    monkeypatch.setattr(closing, "LINGER_SECONDS", 0.1)


async def exchanged(gateway, sent: bytes, behind: bytes, way: str) -> bytes:
    """All that the gateway says until it closes."""
    client = await gateway.connect()
    if way == "in one segment":
        client.transport.write(sent + behind)
    else:
        size = 1 if len(sent) < 1000 else len(sent) // 100
        for at in range(0, len(sent), size):
            client.transport.write(sent[at : at + size])
            await deferLater(reactor, 0)
        for at in range(0, len(behind), 50):
            client.transport.write(behind[at : at + 50])
            await deferLater(reactor, 0)
    await bounded(client.closed)
    return client.received


@grid("way", "tls")
@SECURE
@WAYS
@ensureDeferred
async def test_s1_s3_one_answer_a_close_and_nothing_behind_it(world, brief, way, tls):
    """All cases on one gateway, some at a time, because over TLS each waits for the close."""
    provider = world.provider()
    gateway = world.gateway(provider, tls=tls, top=LIMIT)
    wrong = {}

    async def judge(case: str) -> None:
        status, sent = REFUSED[case]
        received = await exchanged(gateway, sent, BEHIND, way)
        try:
            (got,) = answers(received)
            assert (got.status, got.headers["connection"]) == (status, "close")
            assert got.error["message"]
            assert HEALTHY not in received
            assert not provider.connections
        except Exception as error:
            wrong[case] = f"{error!r}, received {received[:300]!r}"

    cases = list(REFUSED)
    for first in range(0, len(cases), AT_ONCE):
        await gatherResults([as_deferred(judge(case)) for case in cases[first : first + AT_ONCE]])
    assert wrong == {}


@SECURE
@WAYS
@ensureDeferred
async def test_s1_a_body_that_nobody_asked_for_is_not_read_and_nothing_behind_it(world, brief, way, tls):
    provider = world.provider()
    sent = get(b"Content-Length: %d" % len(SMUGGLED)) + SMUGGLED
    (got,) = answers(await exchanged(world.gateway(provider, tls=tls, top=LIMIT), sent, BEHIND, way))
    assert (got.status, got.body, got.headers["connection"]) == (200, HEALTHY, "close")
    assert not provider.connections


@grid("case", "way", "tls")
@SECURE
@WAYS
@pytest.mark.parametrize("case", ACCEPTED)
@ensureDeferred
async def test_s1_s3_odd_but_good_and_so_is_what_is_behind_it(world, brief, case, way, tls):
    expected, sent = ACCEPTED[case]
    provider = world.provider()
    received = await exchanged(world.gateway(provider, tls=tls, top=LIMIT), sent, BEHIND, way)
    *got, chat, health = answers(received)
    assert [status for each in got for status in [*each.informational, each.status]] == expected
    assert (chat.status, health.status, health.body) == (200, 200, HEALTHY)
    posted = sent.lstrip().startswith(b"POST")
    assert len(provider.requests) == posted + 1
    assert provider.bodies == [{**HELLO, "model": "model-1"}] * len(provider.requests)


@SECURE
@WAYS
@pytest.mark.parametrize(
    "case", ["CL.TE", "TE.CL", "a chunk too long", "two Hosts", "a line of 17 KiB", "no key, smuggling"]
)
@ensureDeferred
async def test_s1_what_came_before_an_error_is_answered_first(world, brief, case, way, tls):
    status, sent = REFUSED[case]
    provider = world.provider()
    gateway = world.gateway(provider, tls=tls, top=LIMIT)
    received = await exchanged(gateway, request(HELLO) + sent, BEHIND, way)
    assert [each.status for each in answers(received)] == [200, status]
    assert len(provider.requests) == 1


@SECURE
@pytest.mark.parametrize("case", ["plain", "chunked", "trailers", "an absolute URI"])
@ensureDeferred
async def test_s1_a_request_that_ends_early_is_none(world, case, tls):
    """The client closes at each byte of it but the last."""
    _, sent = ACCEPTED[case]
    provider = world.provider()
    gateway = world.gateway(provider, tls=tls, top=LIMIT)
    for end in range(0, len(sent), 7):
        client = await gateway.send(sent[:end])
        client.transport.loseConnection()
        await bounded(client.closed)
        assert client.received == b""
    assert not provider.connections


@pytest.mark.parametrize("name", sorted(SINGLE))
def test_s21_a_header_that_may_stand_once_is_named_when_it_stands_twice(name):
    gateway = MemoryGateway()
    client = gateway.open()
    client.say(get(KEY, *[name + b": 1"] * 2, host=b"" if name == b"host" else b"Host: x"))
    answer = client.take()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert error_of(answer)["message"] == f"The header {name.decode()!r} is repeated; send it once."
    assert not any(door.wires for door in gateway.doors.values())


@pytest.mark.parametrize("name", ["Accept", "OpenAI-Beta"])
@ensureDeferred
async def test_s21_r4_the_lines_of_a_list_are_one_value(world, name):
    provider = world.provider()
    client = await world.gateway(provider).send(
        post(CL, *[name.encode() + each for each in (b": a, b", b": c")], body=BODY)
    )
    assert (await bounded(client.done)).status == 200
    assert provider.requests[0].header(name.lower()) == "a, b, c"
