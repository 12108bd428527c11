"""B11, S5: TLS on both sides, seen by Python's own ``ssl`` in a thread, so that the reactor keeps running."""

from __future__ import annotations

import json
import re
import socket
import ssl
import warnings
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from aigw.errors import ConfigError
from tests.harness import bounded, request, tls_options, until
from tests.providers import completion, raw

HEALTHY = b'{"status": "healthy"}'
HEALTH = request(None, "/health", "GET", {"Connection": "close"})
FILES = {"tls": {"cert_file": "server.pem", "key_file": "server.key"}}
LOOPBACK = "tcp:0:interface=127.0.0.1"


def gateway_with(world, certificate, *steps, **top):
    """A gateway that shows ``certificate``, and its root, without which a warning says that the issuer is not known."""
    certificate.private_key_pem.write_to_path(str(world.folder / "server.key"))
    (world.folder / "server.pem").write_bytes(
        b"".join(pem.bytes() for pem in (*certificate.cert_chain_pems, world.ca.cert_pem))
    )
    return world.gateway(*(steps or [None]), top={**FILES, **top})


def secure(world, key_type=trustme.KeyType.ECDSA, **top):
    return gateway_with(world, world.ca.issue_cert("127.0.0.1", "::1", "localhost", key_type=key_type), **top)


@dataclass
class Visit:
    """What a client learns of the listener."""

    version: str
    cipher: str
    alpn: str | None
    answer: bytes
    session: ssl.SSLSession
    reused: bool


def trusting(world, *, version=None, ciphers=None, offers=()) -> ssl.SSLContext:
    """A client that trusts the world's CA and would speak even the oldest TLS."""
    context = ssl.create_default_context(cafile=str(world.ca_file))
    context.set_ciphers(f"{ciphers or 'ALL'}:@SECLEVEL=0")
    if offers:
        context.set_alpn_protocols(offers)
    if version:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = version
    return context


def visit(port: int, context: ssl.SSLContext, address: str = "127.0.0.1", session: ssl.SSLSession | None = None):
    """Ask for /health over TLS, to the end of the connection; a Deferred of the Visit."""

    def blocking() -> Visit:
        with (
            socket.create_connection((address, port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=address, session=session) as tls,
        ):
            tls.sendall(HEALTH)
            answer = b"".join(iter(lambda: tls.recv(65536), b""))
            alpn, cipher = tls.selected_alpn_protocol(), tls.cipher()[0]
            return Visit(tls.version(), cipher, alpn, answer, tls.session, tls.session_reused)

    return bounded(deferToThread(blocking))


def alarming(world) -> list[str]:
    """What was logged as more than information."""
    return [line for line in world.log if json.loads(line)["level"] != "INFO"]


# B11: versions and cipher suites


@pytest.mark.parametrize(("version", "told"), [("TLSv1_2", "TLSv1.2"), ("TLSv1_3", "TLSv1.3")])
@ensureDeferred
async def test_b11_tls_1_2_and_1_3_are_spoken(world, version, told):
    got = await visit(secure(world).port, trusting(world, version=ssl.TLSVersion[version]))
    assert got.version == told
    assert got.answer.endswith(HEALTHY)


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
@ensureDeferred
async def test_b11_older_ones_are_refused_by_the_gateway(world, version):
    gateway = secure(world)
    with pytest.raises(ssl.SSLError) as refused:
        await visit(gateway.port, trusting(world, version=ssl.TLSVersion[version]))
    assert refused.value.reason == "TLSV1_ALERT_PROTOCOL_VERSION", "its alert, not our client's unwillingness"
    assert not alarming(world)


RSA, ECDSA = trustme.KeyType.RSA, trustme.KeyType.ECDSA

#   suite offered in TLS 1.2          certificate  accepted
SUITES = {
    "ECDHE-ECDSA-AES128-GCM-SHA256":  (ECDSA,      True),
    "ECDHE-ECDSA-AES256-GCM-SHA384":  (ECDSA,      True),
    "ECDHE-ECDSA-CHACHA20-POLY1305":  (ECDSA,      True),
    "ECDHE-RSA-AES128-GCM-SHA256":    (RSA,        True),
    "ECDHE-RSA-AES256-GCM-SHA384":    (RSA,        True),
    "ECDHE-RSA-CHACHA20-POLY1305":    (RSA,        True),
    "ECDHE-ECDSA-AES128-SHA256":      (ECDSA,      False),
    "ECDHE-ECDSA-AES256-SHA":         (ECDSA,      False),
    "ECDHE-RSA-AES128-SHA256":        (RSA,        False),
    "ECDHE-RSA-AES256-SHA384":        (RSA,        False),
    "ECDHE-RSA-AES128-SHA":           (RSA,        False),
    "AES128-GCM-SHA256":              (RSA,        False),
    "AES256-GCM-SHA384":              (RSA,        False),
    "AES256-SHA":                     (RSA,        False),
    "DHE-RSA-AES128-GCM-SHA256":      (RSA,        False),
    "ADH-AES128-GCM-SHA256":          (RSA,        False),
}  # fmt: skip


@pytest.mark.parametrize("suite", SUITES)
@ensureDeferred
async def test_b11_only_forward_secret_aead_suites_are_accepted(world, suite):
    key_type, accepted = SUITES[suite]
    gateway = secure(world, key_type)
    context = trusting(world, version=ssl.TLSVersion.TLSv1_2, ciphers=suite)
    if accepted:
        got = await visit(gateway.port, context)
        assert (got.cipher, got.answer.endswith(HEALTHY)) == (suite, True)
    else:
        with pytest.raises(ssl.SSLError) as refused:
            await visit(gateway.port, context)
        assert refused.value.reason in ("SSLV3_ALERT_HANDSHAKE_FAILURE", "SSL/TLS_ALERT_HANDSHAKE_FAILURE")
        assert not alarming(world)


@pytest.mark.parametrize(
    ("offers", "chosen"),
    [(["http/1.1"], "http/1.1"), (["h2", "http/1.1"], "http/1.1"), (["http/1.0", "http/1.1"], "http/1.1"), ([], None)],
)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@ensureDeferred
async def test_s5_alpn_is_http_1_1(world, version, offers, chosen):
    got = await visit(secure(world).port, trusting(world, version=version, offers=offers))
    assert got.alpn == chosen
    assert got.answer.endswith(HEALTHY)


@ensureDeferred
async def test_s5_a_client_that_speaks_only_h2_is_not_told_that_we_do(world):
    gateway = secure(world)
    try:
        got = await visit(gateway.port, trusting(world, offers=["h2"]))
    except ssl.SSLError as refused:  # RFC 7301 would have it so, though with an alert of its own
        assert "_ALERT_" in refused.reason  # noqa: PT017
    else:
        assert (got.alpn, got.answer.endswith(HEALTHY)) == (None, True)
    assert not alarming(world)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@ensureDeferred
async def test_s25_a_client_resumes_its_session_until_a_reload(world, version):
    gateway = secure(world)
    context = trusting(world, version=version)
    first = await visit(gateway.port, context)
    assert first.session.has_ticket
    assert 0 < first.session.ticket_lifetime_hint <= 3600
    for _ in range(3):
        again = await visit(gateway.port, context, session=first.session)
        assert again.reused
        assert again.answer.endswith(HEALTHY)
    assert await gateway.reload()
    other = await visit(gateway.port, context, session=first.session)
    assert not other.reused
    assert other.answer.endswith(HEALTHY)


# B11: what the listener shows, and where


@ensureDeferred
async def test_b11_ipv4_and_ipv6_both_serve(world):
    gateway = secure(world, listen=[LOOPBACK, r"tcp6:0:interface=\:\:1"])
    four, six = (port.getHost() for port in gateway.service.ports)
    assert (four.host, six.host) == ("127.0.0.1", "::1")
    for host in (four, six):
        got = await visit(host.port, trusting(world), host.host)
        assert got.answer.endswith(HEALTHY)


@ensureDeferred
async def test_b11_the_whole_chain_is_shown(world):
    """The client knows only the root."""
    certificate = world.ca.create_child_ca().issue_cert("127.0.0.1")
    assert len(certificate.cert_chain_pems) == 2
    got = await visit(gateway_with(world, certificate).port, trusting(world))
    assert got.answer.endswith(HEALTHY)


@ensureDeferred
async def test_b11_plain_http_beside_tls(world):
    gateway = secure(world, listen=[LOOPBACK, {"endpoint": LOOPBACK, "insecure": True}])
    tls, plain = (port.getHost().port for port in gateway.service.ports)
    assert (await visit(tls, trusting(world))).answer.endswith(HEALTHY)
    gateway.port = plain
    assert (await gateway.get("/health", {})).body == HEALTHY
    listening = [
        json.loads(line)["fields"] for line in world.log if '"message":"The gateway has opened a listener"' in line
    ]
    assert {each["address"]: each["tls"] for each in listening} == {
        f"127.0.0.1:{tls}": True,
        f"127.0.0.1:{plain}": False,
    }


@ensureDeferred
async def test_b11_without_a_certificate_one_warning_says_that_it_is_plain_http(world):
    gateway = world.gateway(None)
    assert (await gateway.get("/health", {})).body == HEALTHY
    (warning,) = alarming(world)
    assert "plain HTTP" in warning
    assert json.loads(warning)["level"] == "WARN"


# B11: certificates that cannot be used


def encrypted(key: bytes) -> bytes:
    loaded = load_pem_private_key(key, None)
    return loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


NO_BASE64 = b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"

#   case                          file           its content, made from (certificate, key); None is no file   blamed
UNUSABLE = {
    "no certificate file":       ("server.pem",  lambda pem, key: None,                                       "tls.cert_file"),
    "no key file":               ("server.key",  lambda pem, key: None,                                       "tls.key_file"),
    "an empty certificate":      ("server.pem",  lambda pem, key: b"",                                        "tls.cert_file"),
    "an empty key":              ("server.key",  lambda pem, key: b"",                                        "tls.key_file"),
    "a certificate in no PEM":   ("server.pem",  lambda pem, key: ssl.PEM_cert_to_DER_cert(pem.decode()),     "tls.cert_file"),
    "a key in no PEM":           ("server.key",  lambda pem, key: bytes(range(256)),                          "tls.key_file"),
    "a malformed certificate":   ("server.pem",  lambda pem, key: NO_BASE64,                                  "tls.cert_file"),
    "a cut certificate":         ("server.pem",  lambda pem, key: pem[:200],                                  "tls.cert_file"),
    "a cut key":                 ("server.key",  lambda pem, key: key[:100],                                  "tls.key_file"),
    "a malformed chain":         ("server.pem",  lambda pem, key: pem + NO_BASE64,                            "tls.cert_file"),
    "a key for a certificate":   ("server.pem",  lambda pem, key: key,                                        "tls.cert_file"),
    "a certificate for a key":   ("server.key",  lambda pem, key: pem,                                        "tls.key_file"),
    "a key with a passphrase":   ("server.key",  lambda pem, key: encrypted(key),                             "tls.key_file"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSABLE)
def test_b11_a_file_that_cannot_be_used_is_named_with_its_setting(world, case):
    name, content, setting = UNUSABLE[case]
    certificate = world.ca.issue_cert("127.0.0.1")
    pem, key = certificate.cert_chain_pems[0].bytes(), certificate.private_key_pem.bytes()
    files = {"server.pem": pem, "server.key": key}
    files[name] = content(pem, key)
    for each, data in files.items():
        if data is not None:
            (world.folder / each).write_bytes(data)
    with pytest.raises(ConfigError) as wrong:
        world.gateway(None, top=FILES)
    (mistake,) = wrong.value.mistakes
    assert mistake.startswith(f"{setting}: {world.folder / name}: ")
    assert "PRIVATE" not in mistake
    assert len(mistake) < len(str(world.folder)) + 200


def test_b11_a_certificate_that_openssl_finds_too_weak(world):
    key = rsa.generate_private_key(65537, 1024)
    name, now = x509.Name([]), datetime.now(timezone.utc)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    pem = builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
    (world.folder / "server.pem").write_bytes(pem)
    (world.folder / "server.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigError) as wrong:
        world.gateway(None, top=FILES)
    assert wrong.value.mistakes == [f"tls: OpenSSL refuses {world.folder / 'server.pem'}: ee key too small"]


@pytest.mark.parametrize("kind", [ECDSA, RSA], ids=["same kind", "other kind"])
def test_b11_a_key_of_another_certificate(world, kind):
    world.ca.issue_cert("127.0.0.1").cert_chain_pems[0].write_to_path(str(world.folder / "server.pem"))
    other = world.ca.issue_cert("127.0.0.1", key_type=kind)
    other.private_key_pem.write_to_path(str(world.folder / "server.key"))
    with pytest.raises(ConfigError) as wrong:
        world.gateway(None, top=FILES)
    (mistake,) = wrong.value.mistakes
    assert (
        mistake
        == f"tls: {world.folder / 'server.key'} is not the key of the certificate in {world.folder / 'server.pem'}"
    )


def test_b11_b2_all_that_is_wrong_is_said_at_once(world):
    providers = [{"name": "p1", "base_url": "https://127.0.0.1/v1", "ca_file": "ca-of-p1.pem"}]
    with pytest.raises(ConfigError) as wrong:
        world.gateway(None, top={**FILES, "providers": providers})
    settings = [mistake.partition(": ")[0] for mistake in wrong.value.mistakes]
    assert sorted(settings) == ["providers[0].ca_file", "tls.cert_file", "tls.key_file"]


@pytest.mark.parametrize("content", [None, b"", b"no PEM", NO_BASE64], ids=["missing", "empty", "text", "malformed"])
def test_b11_a_ca_file_that_cannot_be_used(world, content):
    if content is not None:
        (world.folder / "own.pem").write_bytes(content)
    providers = [{"name": "p1", "base_url": "https://127.0.0.1/v1", "ca_file": "own.pem"}]
    with pytest.raises(ConfigError) as wrong:
        world.gateway(None, top={"providers": providers})
    (mistake,) = wrong.value.mistakes
    assert mistake.startswith(f"providers[0].ca_file: {world.folder / 'own.pem'}: ")


# B11: whom the gateway trusts

NOW = datetime.now(timezone.utc)
DAY = timedelta(days=1)


def provider_with(world, certificate, *protocols: bytes):
    """A provider that shows ``certificate``."""
    provider = world.provider()
    options = tls_options(certificate)
    options._acceptableProtocols = list(protocols) or options._acceptableProtocols
    port = reactor.listenSSL(0, provider, options, interface="127.0.0.1")
    world._closers.append(port.stopListening)
    provider.port, provider.tls = port.getHost().port, True
    return provider


#   a provider at 127.0.0.1        its certificate                                                         why not
DISTRUSTED = {
    "another host's":             (lambda ca: ca.issue_cert("elsewhere.example"),                          "the certificate is not for this host"),
    "another address's":          (lambda ca: ca.issue_cert("127.0.0.2"),                                  "the certificate is not for this host"),
    "a name where an address is": (lambda ca: ca.issue_cert("localhost"),                                  "the certificate is not for this host"),
    "of a CA that is unknown":    (lambda ca: trustme.CA().issue_cert("127.0.0.1"),                        "the certificate has an unknown issuer"),
    "expired":                    (lambda ca: ca.issue_cert("127.0.0.1", not_before=NOW - 9 * DAY, not_after=NOW - DAY),
                                                                                                           "the certificate has expired"),
    "not yet valid":              (lambda ca: ca.issue_cert("127.0.0.1", not_before=NOW + DAY, not_after=NOW + 9 * DAY),
                                                                                                           "the certificate is not valid yet"),
}  # fmt: skip


@pytest.mark.parametrize("case", DISTRUSTED)
@ensureDeferred
async def test_b11_a_provider_that_cannot_prove_who_it_is_gets_no_request(world, case):
    issue, why = DISTRUSTED[case]
    provider = provider_with(world, issue(world.ca))
    gateway = world.gateway(provider, world.provider())

    got = await gateway.ask()

    assert (got.status, got.headers["x-aigw-provider"], got.body) == (200, "p2", completion())
    first, second = world.records[0]["attempts"]
    assert (first["outcome"], first["status"], second["outcome"]) == ("unreachable", None, "ok")
    assert first["message"].startswith(f"TLS: {why}")
    assert provider.requests == []
    lines = [re.sub(r'"host":"[^"]*"', "", line) for line in alarming(world)]
    assert not any(name in line for line in lines for name in ("example", "127.0.0", "localhost"))


@ensureDeferred
async def test_b11_ca_file_makes_a_private_ca_acceptable_and_nothing_else_does(world):
    own = trustme.CA()
    own.cert_pem.write_to_path(str(world.folder / "own.pem"))
    provider = provider_with(world, own.issue_cert("127.0.0.1"))
    url = world.base_url(provider)
    named = {"name": "p1", "base_url": url}

    without = await world.gateway(provider, top={"providers": [named]}).ask()
    assert (without.status, without.error["attempts"][0]["outcome"]) == (502, "unreachable")
    assert provider.requests == []

    got = await world.gateway(provider, top={"providers": [{**named, "ca_file": "own.pem"}]}).ask()
    assert (got.status, got.body) == (200, completion())


@ensureDeferred
async def test_b11_a_ca_file_may_hold_several_and_a_provider_a_chain(world):
    own = trustme.CA()
    (world.folder / "both.pem").write_bytes(world.ca.cert_pem.bytes() + b"# a comment\n" + own.cert_pem.bytes())
    for ca in (world.ca, own):
        named = {"name": "p1", "base_url": world.base_url(provider_with(world, ca.issue_cert("127.0.0.1")))}
        got = await world.gateway(None, top={"providers": [{**named, "ca_file": "both.pem"}]}).ask()
        assert got.status == 200


@ensureDeferred
async def test_b11_a_provider_is_verified_by_name_where_its_url_has_one(world):
    good = provider_with(world, world.ca.issue_cert("localhost"))
    bad = provider_with(world, world.ca.issue_cert("127.0.0.1"))
    for provider, status in ((good, 200), (bad, 502)):
        url = world.base_url(provider).replace("127.0.0.1", "localhost")
        named = {"name": "p1", "base_url": url, "ca_file": str(world.ca_file)}
        assert (await world.gateway(None, top={"providers": [named]}).ask()).status == status
    assert bad.requests == []


@ensureDeferred
async def test_s5_providers_are_asked_for_http_1_1_only(world):
    provider = provider_with(world, world.ca.issue_cert("127.0.0.1"), b"h2", b"http/1.1")
    assert (await world.gateway(provider).ask()).status == 200
    assert provider.connections[0].transport.negotiatedProtocol == b"http/1.1"


@ensureDeferred
async def test_b11_a_provider_that_does_not_speak_tls(world):
    provider = world.provider(on_connect=raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    provider.tls = True
    got = await world.gateway(provider, world.provider()).ask()
    assert got.headers["x-aigw-provider"] == "p2"
    first = world.records[0]["attempts"][0]
    assert first["outcome"] == "unreachable"
    assert first["message"].startswith("TLS: ")
    assert provider.requests == []


# S7: clients that do not finish a handshake


def hello() -> bytes:
    """The first flight of a TLS client."""
    sent = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return sent.read()


HELLO = hello()
FIRST_BYTES = {
    "nothing": b"",
    "half a hello": HELLO[:50],
    "a hello": HELLO,
    "a hello, then nonsense": HELLO + b"nonsense" * 100,
    "nonsense": b"\xff" * 500,
    "plain HTTP": HEALTH,
    "SSL 2": b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + b"\0" * 37,
    "an alert": b"\x15\x03\x01\x00\x02\x02\x28",
}


@pytest.mark.parametrize("leave", ["loseConnection", "abortConnection"])
@pytest.mark.parametrize("case", FIRST_BYTES)
@ensureDeferred
async def test_s7_b11_a_client_that_leaves_in_its_handshake_alarms_nobody(world, case, leave):
    gateway = secure(world)
    client = await gateway.send(FIRST_BYTES[case])  # this client knows no TLS
    if case in ("a hello", "a hello, then nonsense", "nonsense", "plain HTTP"):
        await until(lambda: client.received or client.closed.called)
    getattr(client.transport, leave)()
    await bounded(client.closed)
    assert HEALTHY not in client.received
    assert (await visit(gateway.port, trusting(world))).answer.endswith(HEALTHY)
    alarms = alarming(world)
    assert ["uses plain HTTP" in line for line in alarms] == [True] * (case == "plain HTTP"), alarms
    assert not any("traceback" in line for line in world.log)
    assert world.records == []
