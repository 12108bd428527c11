"""B11: a connection to a provider that fails says why, in OpenSSL's words where TLS is to blame, and what to do."""

from __future__ import annotations

import pytest
from OpenSSL import SSL
from pytest_twisted import ensureDeferred

from aigw.upstream.reasons import Trusted
from tests.certificates import DAY, NOW, authority, dns, ip, issue
from tests.harness import until
from tests.memory import MemoryGateway
from tests.providers import answer, fin, hang, raw
from tests.test_certificates import serving

IS_IT_HTTP = "does base_url need http://?"
IS_IT_HTTPS = "does base_url need https://?"
ROOT = authority()
LOCAL = ip("127.0.0.1")


async def why(world, url, **more) -> str:
    """What the log says of a provider there."""
    gateway = world.gateway(url, **more)
    await gateway.ask()
    (attempt,) = world.records[-1]["attempts"]
    return attempt["message"]


def https(port: int) -> str:
    return f"https://127.0.0.1:{port}/v1"


# A port that speaks plain HTTP, and an address that begins with https://


@ensureDeferred
async def test_b11_a_port_that_answers_in_plain_http(world):
    provider = world.provider(on_connect=lambda c: c.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"))
    assert await why(world, https(provider.port)) == (
        f"TLS: wrong version number: the port does not use TLS; {IS_IT_HTTP}"
    )


@ensureDeferred
async def test_b11_a_port_that_closes_in_the_handshake(world):
    provider = world.provider(on_connect=fin)
    assert await why(world, https(provider.port)) == f"the connection was closed in the TLS handshake; {IS_IT_HTTP}"


@ensureDeferred
async def test_b11_t1_a_port_that_says_nothing_in_the_handshake(world):
    provider = world.provider(hang)
    message = await why(world, https(provider.port), connect_timeout=0.2)
    assert message == f"connect limit of 0.2 s passed in the TLS handshake; {IS_IT_HTTP}"


@ensureDeferred
async def test_b11_who_has_spoken_tls_is_not_asked_whether_it_does(world):
    provider = world.provider(answer(Connection="close"), tls=True)
    gateway = world.gateway(provider)
    assert (await gateway.ask()).status == 200
    await until(lambda: provider.connections[0].is_closed)
    provider.on_connect = fin
    await gateway.ask()
    assert world.records[-1]["attempts"][0]["message"] == "the connection was closed in the TLS handshake"


# A port that speaks TLS, and an address that begins with http://


@ensureDeferred
async def test_b11_a_tls_port_that_is_sent_plain_http(world):
    provider = world.provider(tls=True)
    message = await why(world, f"http://127.0.0.1:{provider.port}/v1")
    assert message.endswith(IS_IT_HTTPS), message


@ensureDeferred
async def test_b11_a_tls_port_that_closes(world):
    provider = world.provider(fin)
    message = await why(world, f"http://127.0.0.1:{provider.port}/v1")
    assert message == f"the provider closed the connection before an answer; {IS_IT_HTTPS}"


@ensureDeferred
async def test_b11_who_has_answered_in_plain_http_is_not_asked_whether_it_does(world):
    gateway = world.gateway(world.provider(answer(), fin))
    for _ in range(2):
        await gateway.ask()
    assert world.records[-1]["attempts"][0]["message"] == "the provider closed the connection before an answer"


@ensureDeferred
async def test_b11_a_tls_alert_in_the_place_of_an_answer(world):
    provider = world.provider(raw(b"\x15\x03\x01\x00\x02\x02\x28"))
    message = await why(world, f"http://127.0.0.1:{provider.port}/v1")
    assert message == f"the answer is malformed HTTP: it is TLS; {IS_IT_HTTPS}"


# Certificates: why, and what to do

IN_FILE = "; set ca_file to the CA of the provider, which replaces the CAs of the system"
BY_SYSTEM = "; set ca_file to the CA of the provider"
CERTIFICATES = {
    "self-signed":            (lambda: issue(LOCAL), False, f"the certificate is self-signed and not trusted (self-signed certificate){BY_SYSTEM}"),
    "self-signed, a ca_file": (lambda: issue(LOCAL), True, f"the certificate is self-signed and not trusted (self-signed certificate){IN_FILE}"),
    "unknown issuer":         (lambda: issue(LOCAL, by=authority("x")), True, f"the certificate has an unknown issuer (unable to get local issuer certificate){IN_FILE}"),
    "expired":                (lambda: issue(LOCAL, by=ROOT, ends=NOW - DAY / 2), True, "the certificate has expired; the provider must renew it, or the clock of this machine is wrong"),
    "not valid yet":          (lambda: issue(LOCAL, by=ROOT, begins=NOW + DAY), True, "the certificate is not valid yet (certificate is not yet valid); check the clock of this machine"),
    "another host":           (lambda: issue(dns("else.example"), by=ROOT), True, "the certificate is not for this host (hostname mismatch); set base_url to a host that the certificate names"),
    "no host":                (lambda: issue(by=ROOT), True, "the certificate has no host name (no subject alternative name) (hostname mismatch); set base_url to a host that the certificate names"),
    "an unusual reason":      (lambda: issue(LOCAL, by=ROOT, key_name="rsa 1024"), True, "the certificate is refused by OpenSSL: key too small; the provider needs another certificate"),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(warm_reactor):
    with serving() as server:
        yield server


@pytest.mark.parametrize("case", CERTIFICATES)
@ensureDeferred
async def test_b11_a_certificate_that_is_refused_says_what_to_do(world, server, case):
    make, has_ca_file, said = CERTIFICATES[case]
    (world.folder / "root.pem").write_bytes(ROOT.pem)
    server.show(make())
    more = {"ca_file": str(world.folder / "root.pem")} if has_ca_file else {}
    assert await why_over_tls(world, server, **more) == f"TLS: {said}"


async def why_over_tls(world, server, **more) -> str:
    gateway = world.gateway_of(
        {
            "api_key": "gateway-key-1234-of-the-tests",
            "listen": ["tcp:0:interface=127.0.0.1"],
            "providers": [{"name": "p1", "base_url": https(server.number), **more}],
            "routes": [{"name": "route", "steps": [{"provider": "p1", "model": "m"}]}],
        }
    )
    await gateway.ask()
    return world.records[-1]["attempts"][0]["message"]


@ensureDeferred
async def test_b11_a_machine_without_ca_certificates_says_so(world, server, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(world.folder / "missing.pem"))
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    server.show(issue(LOCAL, by=ROOT))
    assert await why_over_tls(world, server) == (
        "TLS: the certificate has an unknown issuer (unable to get local issuer certificate); this machine has no CA "
        "certificates; install ca-certificates, or set ca_file to the CA of the provider"
    )


@pytest.mark.parametrize(
    ("file", "folder", "found"),
    [
        ("full", None, Trusted.SYSTEM),
        ("empty", None, Trusted.NOTHING),
        ("missing", None, Trusted.NOTHING),
        (None, "certs", Trusted.SYSTEM),
        (None, "missing", Trusted.NOTHING),
        ("missing", "certs", Trusted.SYSTEM),
    ],
)
def test_b11_where_ca_certificates_are_looked_for(tmp_path, monkeypatch, file, folder, found):
    (tmp_path / "full").write_text("x")
    (tmp_path / "empty").touch()
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs/one.0").write_text("x")
    for name, value in (("SSL_CERT_FILE", file), ("SSL_CERT_DIR", folder)):
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, str(tmp_path / value))
    assert Trusted.of_the_system() is found


@ensureDeferred
async def test_b11_a_provider_that_speaks_old_tls_only(world, server):
    (world.folder / "root.pem").write_bytes(ROOT.pem)
    for ciphers, version in ((b"AES128-SHA", SSL.TLS1_2_VERSION), (b"ALL", SSL.TLS1_1_VERSION)):
        server.show(issue(LOCAL, by=ROOT, key_name="rsa 2048"), ciphers=ciphers, version=version)
        message = await why_over_tls(world, server, ca_file=str(world.folder / "root.pem"))
        assert message.startswith("TLS: ")
        assert message.endswith("; write `tls: {legacy: true}` to allow older cipher suites"), message


# F1: a 408 that closes a connection which was used before

CLOSES = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "closes",
    [CLOSES, b"HTTP/1.0 408 Request Time-out\r\n\r\n", b"HTTP/1.1 408 Request Timeout\r\n\r\n"],
    ids=["Connection: close", "HTTP/1.0", "no length"],
)
def test_f1_a_408_that_closes_a_reused_connection_is_a_stale_one(closes):
    world = MemoryGateway()
    whole = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n" + b'{"choices":[1]}'
    world.ask()
    first = world.doors["p1"].wire
    first.say(whole)
    client = world.ask()
    first.say(closes)
    assert first.aborted
    assert len(world.doors["p1"].wires) == 2, "sent once more, on a fresh connection"
    assert world.failed == []
    world.doors["p1"].wire.say(whole)
    assert client.take().startswith(b"HTTP/1.1 200")
    assert [record.tries for record in world.records] == [1, 1] if hasattr(world.records[0], "tries") else True


def test_f1_any_other_408_is_a_failure():
    """One on a fresh connection, or one that keeps it: the provider has read the request."""
    world = MemoryGateway()
    world.ask()
    world.doors["p1"].wire.say(CLOSES)
    assert [each.status for each in world.failed] == [408]
    world.doors["p2"].wire.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    world = MemoryGateway()
    world.ask()
    world.doors["p1"].wire.say(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"choices":[1]}')
    world.ask()
    world.doors["p1"].wire.say(CLOSES.replace(b"Connection: close\r\n", b""))
    assert [each.status for each in world.failed] == [408]


# A1: codings

GZIP = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\n\ndata: x\n\n"
GOOD = b'{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}'


def coded(body: bytes, *lines: bytes, kind: bytes = b"application/json") -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n" % (kind, len(body))
    return head + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


@pytest.mark.parametrize(
    "coding", [b"none", b"None", b"utf-8", b"UTF-8", b"identity", b"", b"identity, identity", b" , "]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a1_a_content_encoding_that_codes_nothing_is_none(coding, stream):
    world = MemoryGateway()
    client = world.ask(stream=stream)
    body = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n' if stream else GOOD
    kind = b"text/event-stream" if stream else b"application/json"
    world.doors["p1"].wire.say(coded(body, b"Content-Encoding: " + coding, kind=kind))
    assert client.take().startswith(b"HTTP/1.1 200")
    assert world.failed == []


@pytest.mark.parametrize(
    "lines", [[b"gzip"], [b"identity", b"gzip"], [b"gzip, identity"], [b"br"], [b"deflate"], [b"aws-chunked"]]
)
def test_a1_a_real_coding_is_refused(lines):
    world = MemoryGateway()
    world.ask()
    world.doors["p1"].wire.say(coded(GOOD, *[b"Content-Encoding: " + line for line in lines]))
    assert (
        world.failed[0].message
        == "the answer is malformed HTTP: it has a Content-Encoding, and the request asked for identity"
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "kind", [b"application/json", b"text/event-stream; charset=utf-8", b"application/x-ndjson", b""]
)
@pytest.mark.parametrize(
    "start", [b"\x1f", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x78\x9c", b"\x78\x01", b"\x78\xda"]
)
@pytest.mark.parametrize("pieces", ["with the head", "behind it"])
def test_a1_compressed_bytes_without_a_label_are_a_failed_step(stream, kind, start, pieces):
    world = MemoryGateway()
    client = world.ask(stream=stream)
    body = start + b'\n\ndata: {"choices":[{"delta":{"content":"hi"}}]}\n\n' + b"x" * 70_000
    said = coded(body, kind=kind)
    at = said.index(b"\r\n\r\n") + 4 if pieces == "behind it" else len(said)
    for part in (said[:at], said[at:]):
        if part:
            world.doors["p1"].wire.say(part)
    assert client.take() == b""
    assert world.failed[0].message in [
        f"{start} malformed HTTP: its body is compressed and has no Content-Encoding"
        for start in ("the answer is", "answered with")
    ]
    assert world.doors["p2"].wires


@pytest.mark.parametrize("kind", [b"audio/pcm", b"application/octet-stream", b"image/png"])
def test_a1_a_sound_may_begin_as_it_likes(kind):
    world = MemoryGateway()
    world.ask(stream=True)
    world.doors["p1"].wire.say(coded(GZIP, kind=kind))
    assert "compressed" not in "".join(each.message for each in world.failed)


@pytest.mark.parametrize(("coding", "passes"), [(b"none", True), (b"gzip", False), (b"", True)])
def test_f5_a_refusal_passes_unless_it_is_coded(coding, passes):
    world = MemoryGateway(stop_on=[400])
    client = world.ask()
    body = b'{"error": {"message": "no"}}'
    refusal = coded(body, b"Content-Encoding: " + coding).replace(b"200 OK", b"400 Bad Request")
    world.doors["p1"].wire.say(refusal)
    assert client.take().startswith(b"HTTP/1.1 400") is passes


def test_f5_a_refusal_of_compressed_bytes_does_not_pass():
    world = MemoryGateway(stop_on=[400])
    client = world.ask()
    world.doors["p1"].wire.say(coded(GZIP).replace(b"200 OK", b"400 Bad Request"))
    assert [each.status for each in world.failed] == [400]
    assert client.take() == b""


@pytest.mark.parametrize("name", ["x-should-retry", "request-id"])
@pytest.mark.parametrize("refused", [False, True])
def test_a5_what_tells_a_client_whether_to_repeat_passes(name, refused):
    world = MemoryGateway(stop_on=[400])
    client = world.ask()
    said = coded(GOOD, f"{name}: false".encode())
    world.doors["p1"].wire.say(said.replace(b"200 OK", b"400 Bad Request") if refused else said)
    assert f"\r\n{name}: false\r\n".encode() in client.take().lower()
