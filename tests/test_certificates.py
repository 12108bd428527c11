"""B11: whom the gateway takes for its provider, certificate by certificate, each judged by a real handshake; and by curl.

The two must agree. Where the gateway is stricter, STRICTER says why; it is never laxer.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IHandshakeListener, IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from aigw.commands.check_providers import Check
from aigw.errors import ConfigError
from aigw.upstream import trust
from aigw.upstream.client import ascii_url
from aigw.upstream.hostname import reference_of
from aigw.upstream.trust import ProviderTls, Trust
from tests.certificates import (
    CLIENT,
    DAY,
    DIRECTORY_NAME,
    EDI_PARTY,
    NOW,
    REGISTERED_ID,
    SRV,
    Issued,
    authority,
    der,
    dns,
    email,
    ip,
    issue,
    other,
    uri,
)
from tests.harness import bounded

ROOT = authority()
MIDDLE = authority("intermediate", by=ROOT)
STRANGER = authority("stranger")
HOST = "api.lab.example"
GOOD = dns(HOST)


def of(*entries: bytes, **more) -> Callable[[], Issued]:
    return lambda: issue(*entries, **{"by": ROOT, **more})


def constrained(*, permitted: str) -> Issued:
    names = x509.NameConstraints([x509.DNSName(permitted)], None)
    return authority("constrained", by=ROOT, more=((names, True),))


NOBODY = "the certificate has no host name (no subject alternative name)"
OTHERS = "the certificate is not for this host"
UNREADABLE = "the names in the certificate cannot be read"
UNKNOWN = "the certificate has an unknown issuer"


def judged(odd: str, otherwise: str | None) -> str | None:
    return UNREADABLE if odd in UNREADABLE_TO_US else UNKNOWN if odd in BROKEN else otherwise


# What is odd, alone and beside a good entry. Alone none of it is for HOST.
ODD = {
    "an email address":                     email("a@api.lab.example"),
    "a URI":                                uri("https://api.lab.example/"),
    "an IP address written as a DNS name":  dns("10.0.0.1"),
    "an IPv6 address as a DNS name":        dns("2001:db8::1"),
    "a wildcard over one label":            dns("*.lab"),
    "a wildcard over a top-level domain":   dns("*.example"),
    "a wildcard within":                    dns("api.*.example"),
    "two wildcards":                        dns("*.*.example"),
    "a wildcard for all":                   dns("*"),
    "part of a label and a wildcard":       dns("a*.lab.example"),
    "a wildcard and part of a label":       dns("*i.lab.example"),
    "a wildcard in an xn-- label":          dns("xn--*.lab.example"),
    "a wildcard without a dot":             dns("*api.lab.example"),
    "a wildcard and two dots":              dns("*..lab.example"),
    "an SRV name":                          other(SRV, der(0x16, b"_https.api.lab.example")),
    "an SRV name of another type":          other(SRV, der(0x0C, b"_https.api.lab.example")),
    "an SRV name without a service":        other(SRV, der(0x16, b"api.lab.example")),
    "an SRV name that is a number":         other(SRV, der(0x02, b"\x05")),
    "an empty DNS name":                    dns(""),
    "a space":                              dns(" "),
    "a DNS name with a NUL at its end":     dns(b"api.lab.example\0"),
    "a DNS name with a NUL and more":       dns(b"api.lab.example\0.evil.example"),
    "a DNS name behind a NUL":              dns(b"\0api.lab.example"),
    "a dot in front":                       dns(".lab.example"),
    "two dots at the end":                  dns("api.lab.example.."),
    "an underscore":                        dns("_api.lab.example"),
    "a URL as a DNS name":                  dns("https://api.lab.example"),
    "a port in a DNS name":                 dns("api.lab.example:443"),
    "a label of 300 bytes":                 dns("a" * 300 + ".example"),
    "a registered id":                      REGISTERED_ID,
    "a directory name":                     DIRECTORY_NAME,
    "an empty other name":                  other(SRV),
    "an EDI party name":                    EDI_PARTY,
    "a DNS name in UTF-8":                  dns("bücher.example"),
    "a DNS name of 8-bit bytes":            dns(b"\xff\xfe"),
    "an IP address of three bytes":         ip(b"\x0a\x00\x00"),
    "an IP network":                        ip(b"\x0a\x00\x00\x00\xff\x00\x00\x00"),
    "an IP address of no bytes":            ip(b""),
    "an entry of an unknown kind":          der(0x8B, b"?"),
    "an entry that is cut":                 b"\x82\x40short",
}  # fmt: skip
# RFC 5280 does not allow these, and cryptography reads no list that has one: nobody is in it, as up to Twisted 25.5.
UNREADABLE_TO_US = {
    "an EDI party name",
    "a DNS name of 8-bit bytes",
    "an IP address of three bytes",
    "an IP address of no bytes",
}
# And with these OpenSSL itself can do nothing; it looks for no issuer then.
BROKEN = {"an empty other name", "an entry of an unknown kind", "an entry that is cut"}

#   kind                                     host                     certificate                                    why not, None: it is good
KINDS: dict[str, tuple[str, Callable[[], Issued], str | None]] = {
    "the host":                              (HOST,                   of(GOOD),                                      None),
    "the host among others":                 (HOST,                   of(dns("a.example"), GOOD, dns("b.example")),  None),
    "the host without a common name":        (HOST,                   of(GOOD, cn=None),                             None),
    "the host and another's common name":    (HOST,                   of(GOOD, cn="evil.example"),                   None),
    "upper case":                            (HOST,                   of(dns("API.Lab.EXAMPLE")),                    None),
    "upper case in the URL":                 ("API.lab.example",      of(GOOD),                                      None),
    "a dot at the end":                      (HOST,                   of(dns("api.lab.example.")),                   None),
    "a dot at the end of the URL's":         ("api.lab.example.",     of(GOOD),                                      None),
    "no names at all":                       (HOST,                   of(cn=None),                                   NOBODY),
    "no alternative name, the common name":  (HOST,                   of(cn=HOST),                                   NOBODY),
    "no alternative name, another's common": (HOST,                   of(cn="other.example"),                        NOBODY),
    "an empty list of names":                (HOST,                   of(raw=der(0x30)),                             OTHERS),
    "an email address, the common name":     (HOST,                   of(email("a@lab.example"), cn=HOST),           OTHERS),
    "another host":                          (HOST,                   of(dns("other.example")),                      OTHERS),
    "another host, the common name":         (HOST,                   of(dns("other.example"), cn=HOST),             OTHERS),
    "a parent":                              (HOST,                   of(dns("lab.example")),                        OTHERS),
    "a child":                               (HOST,                   of(dns("x.api.lab.example")),                  OTHERS),
    "a name that ends in it":                (HOST,                   of(dns("evilapi.lab.example")),                OTHERS),
    "a name that begins with it":            (HOST,                   of(dns("api.lab.example.evil.test")),          OTHERS),
    "a wildcard":                            (HOST,                   of(dns("*.lab.example")),                      None),
    "a wildcard in upper case":              (HOST,                   of(dns("*.LAB.example")),                      None),
    "a wildcard, the parent itself":         ("lab.example",          of(dns("*.lab.example")),                      OTHERS),
    "a wildcard, two labels":                ("a.api.lab.example",    of(dns("*.lab.example")),                      OTHERS),
    "a wildcard too deep":                   (HOST,                   of(dns("*.api.lab.example")),                  OTHERS),
    "a wildcard over a domain":              ("lab.example",          of(dns("*.example")),                          OTHERS),
    "a wildcard over an address":            ("127.0.0.1",            of(dns("*.0.0.1")),                            OTHERS),
    "a wildcard over an IDNA label":         ("bücher.lab.example",   of(dns("*.lab.example")),                      None),
    "one label":                             ("gateway",              of(dns("gateway")),                            None),
    "one label and a wildcard":              ("gateway",              of(dns("*")),                                  OTHERS),
    "localhost":                             ("localhost",            of(dns("localhost")),                          None),
    "an underscore in both":                 ("my_api.lab.example",   of(dns("my_api.lab.example")),                 None),
    "IDNA":                                  ("bücher.example",       of(dns("xn--bcher-kva.example")),              None),
    "IDNA written as xn--":                  ("xn--bcher-kva.example", of(dns("xn--bcher-kva.example")),             None),
    "IDNA in upper case":                    ("BÜCHER.example",       of(dns("XN--BCHER-KVA.example")),              None),
    "IDNA and what it resembles":            ("bücher.example",       of(dns("bucher.example")),                     OTHERS),
    "IPv4":                                  ("127.0.0.1",            of(ip("127.0.0.1")),                           None),
    "IPv4 among names":                      ("127.0.0.1",            of(GOOD, ip("127.0.0.1")),                     None),
    "another IPv4":                          ("127.0.0.1",            of(ip("127.0.0.2")),                           OTHERS),
    "IPv4 as a name":                        ("127.0.0.1",            of(dns("127.0.0.1")),                          OTHERS),
    "IPv4 as the common name":               ("127.0.0.1",            of(cn="127.0.0.1"),                            NOBODY),
    "IPv4 as a URI":                         ("127.0.0.1",            of(uri("https://127.0.0.1/")),                 OTHERS),
    "IPv4, and IPv6 that maps it":           ("127.0.0.1",            of(ip("::ffff:127.0.0.1")),                    OTHERS),
    "IPv6":                                  ("::1",                  of(ip("::1")),                                 None),
    "IPv6 written at length":                ("0:0:0:0:0:0:0:1",      of(ip("::1")),                                 None),
    "another IPv6":                          ("::1",                  of(ip("::2")),                                 OTHERS),
    "IPv6 as a name":                        ("::1",                  of(dns("::1")),                                OTHERS),
    "IPv6 that maps IPv4, and IPv4":         ("::ffff:127.0.0.1",     of(ip("127.0.0.1")),                           OTHERS),
    "IPv6 that maps IPv4":                   ("::ffff:127.0.0.1",     of(ip("::ffff:127.0.0.1")),                    None),
    "a name for an address":                 ("127.0.0.1",            of(dns("localhost")),                          OTHERS),
    "an address for a name":                 ("localhost",            of(ip("127.0.0.1")),                           OTHERS),
    "an intermediate, sent":                 (HOST,                   of(GOOD, by=MIDDLE),                           None),
    "an intermediate, not sent":             (HOST,                   lambda: issue(GOOD, by=MIDDLE).alone(),        UNKNOWN),
    "an intermediate that has expired":      (HOST,                   of(GOOD, by=authority("old", by=ROOT, ends=NOW - DAY / 2)), "a CA certificate of the chain has expired"),
    "an intermediate that is no CA":         (HOST,                   of(GOOD, by=issue(GOOD, by=ROOT, cn="leaf", key_name="leaf 2")), "a CA certificate of the chain is refused by OpenSSL: invalid ca"),
    "an intermediate for other names":       (HOST,                   lambda: issue(GOOD, by=constrained(permitted="other.example")), "the certificate has a name that its CA may not give"),
    "an intermediate for these names":       (HOST,                   lambda: issue(GOOD, by=constrained(permitted="lab.example")), None),
    "an unknown CA":                         (HOST,                   of(GOOD, by=STRANGER),                         UNKNOWN),
    "an unknown CA of the same name":        (HOST,                   of(GOOD, by=authority("root", key_name="no root")), UNKNOWN),
    "a forged signature":                    (HOST,                   lambda: forged(),                              "the certificate has a wrong signature"),
    "self-signed":                           (HOST,                   of(GOOD, by=None),                             "the certificate is self-signed and not trusted"),
    "a chain to an unknown root":            (HOST,                   lambda: with_root(issue(GOOD, by=STRANGER)),   "a CA certificate of the chain is the root of its chain and not trusted"),
    "expired":                               (HOST,                   of(GOOD, ends=NOW - DAY / 2),                  "the certificate has expired"),
    "not valid yet":                         (HOST,                   of(GOOD, begins=NOW + DAY),                    "the certificate is not valid yet"),
    "expired, and another host":             (HOST,                   of(dns("other.example"), ends=NOW - DAY / 2),  "the certificate has expired"),
    "for clients only":                      (HOST,                   of(GOOD, usage=(CLIENT,)),                     "the certificate is not for servers (its key usage)"),
    "for any use":                           (HOST,                   of(GOOD, usage=()),                            None),
    "a CA's own":                            (HOST,                   of(GOOD, ca=True),                             None),
    "an unknown critical extension":         (HOST,                   of(GOOD, more=((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True),)), "the certificate is refused by OpenSSL: unhandled critical extension"),
    "a key of 1024 bits":                    (HOST,                   of(GOOD, key_name="rsa 1024"),                 "the certificate is refused by OpenSSL: key too small"),
    "a key of 2048 bits":                    (HOST,                   of(GOOD, key_name="rsa 2048"),                 None),
    "no list but a string":                  (HOST,                   of(raw=der(0x16, b"api.lab.example")),         UNKNOWN),
    "a list with bytes behind it":           (HOST,                   of(raw=der(0x30, GOOD) + b"\0\0"),             UNREADABLE),
    **{f"{odd}, alone":                      (HOST,                   of(entry),                                     judged(odd, OTHERS)) for odd, entry in ODD.items()},
    **{f"{odd}, beside the host":            (HOST,                   of(entry, GOOD),                               judged(odd, None)) for odd, entry in ODD.items()},
    **{f"{odd}, behind the host":            (HOST,                   of(GOOD, entry),                               judged(odd, None)) for odd, entry in ODD.items()},
}  # fmt: skip


def forged() -> Issued:
    """What the root did not sign, with the root's name and key identifier on it."""
    made = issue(GOOD, by=ROOT)
    data = bytearray(made.certificate.public_bytes(Encoding.DER))
    place = data.index(b"api.lab.example")
    data[place] = ord("b")
    return Issued(x509.load_der_x509_certificate(bytes(data)), made.key)


def with_root(made: Issued) -> Issued:
    return Issued(made.certificate, made.key, (STRANGER.certificate,))


COMMON_NAME = "curl falls back on the common name, which says nothing of hosts: RFC 9525 has done away with it"
ENCODING = "RFC 5280 does not allow this list, and two readers may read it differently: the gateway reads none of it"
STRICTER = {
    "no alternative name, the common name": COMMON_NAME,
    "an email address, the common name": COMMON_NAME,
    "IPv4 as the common name": COMMON_NAME,
    "a list with bytes behind it": ENCODING,
    **{f"{odd}, {where} the host": ENCODING for odd in UNREADABLE_TO_US for where in ("beside", "behind")},
}
"""Where curl accepts what the gateway refuses, and why the gateway does."""


class ServerConnection(Protocol):
    """The provider's end of one connection."""

    def connectionMade(self) -> None:
        self.factory.open.add(self)

    def dataReceived(self, data: bytes) -> None:
        self.factory.received += data
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        self.transport.loseConnection()

    def connectionLost(self, reason) -> None:
        self.factory.open.discard(self)


@implementer(IOpenSSLServerConnectionCreator)
class Server(Factory):
    """A provider on loopback that shows whatever certificate it is to show, however weak."""

    protocol = ServerConnection
    noisy = False

    def __init__(self) -> None:
        self.port = reactor.listenTCP(0, TLSMemoryBIOFactory(self, False, self), interface="127.0.0.1")
        self.number = self.port.getHost().port
        self.received = b""
        self.open: set[ServerConnection] = set()

    def show(self, issued: Issued, ciphers: bytes = b"ALL", version: int = SSL.TLS1_3_VERSION) -> None:
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_cipher_list(ciphers + b":@SECLEVEL=0")
        context.set_max_proto_version(version)
        context.use_certificate(crypto.X509.from_cryptography(issued.certificate))
        context.use_privatekey(crypto.PKey.from_cryptography_key(issued.key))
        for each in issued.above:
            context.add_extra_chain_cert(crypto.X509.from_cryptography(each))
        self.context = context
        self.received = b""

    def serverConnectionForTLS(self, protocol) -> SSL.Connection:
        return SSL.Connection(self.context, None)


@implementer(IHandshakeListener)
class Visitor(Protocol):
    """Sends a key as soon as it may."""

    def __init__(self) -> None:
        self.done: Deferred[str | None] = Deferred()

    def handshakeCompleted(self) -> None:
        self.transport.write(b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer provider-key\r\n\r\n")

    def dataReceived(self, data: bytes) -> None:
        if not self.done.called:
            self.done.callback(None)
        self.transport.loseConnection()

    def connectionLost(self, reason) -> None:
        if not self.done.called:
            self.done.errback(reason)


@contextmanager
def serving() -> Iterator[Server]:
    """A Server, closed in the end with all its connections."""
    server = Server()
    yield server
    for each in list(server.open):
        each.transport.abortConnection()
    server.port.stopListening()


@pytest.fixture(scope="module")
def server(warm_reactor):
    with serving() as server:
        yield server


async def verdict(server: Server, creator: ProviderTls) -> str | None:
    """Why this creator refuses what the server shows; None if it is content."""
    visitor = Visitor()
    factory = Factory.forProtocol(lambda: visitor)
    factory.noisy = False
    await bounded(wrapClientTLS(creator, TCP4ClientEndpoint(reactor, "127.0.0.1", server.number)).connect(factory))
    try:
        await bounded(visitor.done)
    except SSL.Error as error:
        return getattr(error, "why", error.args[0][-1][-1])
    return None


def curl(server: Server, host: str, ca_file: str) -> Deferred:
    """Whether curl takes the server for ``host``; it says 60 where the certificate is to blame."""
    where = f"[{host}]" if ":" in host else host
    words = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "10", "--http1.1", "--cacert", ca_file]
    words += ["--capath", "/nonexistent", "--connect-to", f"::127.0.0.1:{server.number}", f"https://{where}/"]

    def ask() -> tuple[int, str]:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, env={"LC_ALL": "C.UTF-8"})
        return done.returncode, done.stderr

    return bounded(deferToThread(ask), 25)


@pytest.mark.parametrize("kind", KINDS)
@ensureDeferred
async def test_b11_each_kind_of_certificate_is_judged_as_curl_judges_it(server, tmp_path, kind):
    assert shutil.which("curl"), "curl is missing: apt-get install curl"
    host, make, why = KINDS[kind]
    server.show(make())
    (tmp_path / "ca.pem").write_bytes(ROOT.pem)

    asked = f"[{host}]" if ":" in host else host
    ascii_host = ascii_url(f"https://{asked}/").split("/")[2].strip("[]")
    assert await verdict(server, ProviderTls(ascii_host, Trust(ROOT.pem))) == why
    assert (b"provider-key" in server.received) == (why is None), "not a byte to whom it is not for"

    code, said = await curl(server, host, str(tmp_path / "ca.pem"))
    assert code in (0, 35, 60), said  # 35: OpenSSL calls a wrong signature an error of another library
    assert (code == 0) == (why is None or kind in STRICTER), said


# B11: the decision fails closed


@pytest.mark.parametrize("error", [RuntimeError, ValueError, x509.DuplicateExtension, MemoryError, SystemExit])
@ensureDeferred
async def test_b11_whatever_goes_wrong_while_names_are_read_is_a_refusal(server, monkeypatch, error):
    def broken(*_):
        raise error("oh", x509.SubjectAlternativeName.oid) if error is x509.DuplicateExtension else error

    server.show(issue(GOOD, by=ROOT))
    monkeypatch.setattr(trust, "why_not_for", broken)
    assert await verdict(server, ProviderTls(HOST, Trust(ROOT.pem))) == UNREADABLE
    assert server.received == b""


@ensureDeferred
async def test_b11_a_refusal_of_one_connection_is_none_of_the_next(server):
    creator = ProviderTls(HOST, Trust(ROOT.pem))
    for _ in range(3):
        server.show(issue(by=ROOT))
        assert await verdict(server, creator) == NOBODY
        server.show(issue(GOOD, by=ROOT))
        assert await verdict(server, creator) is None


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
@ensureDeferred
async def test_b11_names_are_looked_at_in_both_versions_of_tls(server, version):
    for shown, why in ((issue(by=ROOT), NOBODY), (issue(GOOD, by=ROOT), None)):
        server.show(shown, version=version)
        assert await verdict(server, ProviderTls(HOST, Trust(ROOT.pem))) == why
        assert (server.received == b"") == (why is not None)


def test_b11_connections_share_a_context_and_no_session():
    """Where a session is resumed OpenSSL looks at no certificate."""
    creator = ProviderTls(HOST, Trust(ROOT.pem))
    first, second = creator.clientConnectionForTLS(None), creator.clientConnectionForTLS(None)
    assert first.get_context() is second.get_context()
    assert first.get_session() is second.get_session() is None
    assert first.get_context().get_session_cache_mode() == SSL.SESS_CACHE_OFF


@pytest.mark.parametrize(
    ("host", "sent"),
    [
        (HOST, HOST),
        ("API.lab.example.", HOST),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("127.0.0.1", None),
        ("::1", None),
    ],
)
def test_b11_only_names_are_sent_as_server_name(host, sent):
    connection = ProviderTls(host, Trust(ROOT.pem)).clientConnectionForTLS(None)
    assert connection.get_servername() == (sent and sent.encode())


@pytest.mark.parametrize(
    "host",
    ["", ".", "*", "*.example", "bücher.example", "127.1", "1", "1.2.3.4.5", "0177.0.0.1", "256.0.0.1", "10.0.0.1."],
)
def test_b11_a_host_that_no_certificate_can_name_is_refused(host):
    with pytest.raises(ValueError, match=r"a host is|ends in a number"):
        reference_of(host)


def test_b11_b2_such_a_host_is_a_mistake_of_the_configuration(world):
    with pytest.raises(ConfigError) as wrong:
        world.gateway("https://127.1/v1")
    (mistake,) = wrong.value.mistakes
    assert mistake.startswith("providers[0].base_url: the host is not a valid host name")


#   what stands in the ca_file    and the certificate                why not
ANCHORS = {
    "the intermediate CA":       (lambda: MIDDLE.alone(),            lambda: issue(GOOD, by=MIDDLE),              None),
    "another root":              (lambda: STRANGER,                  lambda: issue(GOOD, by=MIDDLE),              "a CA certificate of the chain has an unknown issuer"),
    "the self-signed one":       (lambda: OWN,                       lambda: OWN,                                 None),
    "the one itself, of a CA":   (lambda: PINNED,                    lambda: PINNED,                              None),
    "one that shares its key":   (lambda: PINNED,                    lambda: issue(GOOD, by=STRANGER),            UNKNOWN),
    "itself, for another host":  (lambda: ELSEWHERE,                 lambda: ELSEWHERE,                           OTHERS),
    "itself, that names nobody": (lambda: NAMELESS,                  lambda: NAMELESS,                            NOBODY),
}  # fmt: skip
OWN, PINNED, ELSEWHERE, NAMELESS = issue(GOOD, cn="own"), issue(GOOD, by=ROOT), issue(dns("else.example")), issue()


@pytest.mark.parametrize("case", ANCHORS)
@ensureDeferred
async def test_b11_what_stands_in_the_ca_file_is_trusted_as_curl_trusts_it(server, tmp_path, case):
    anchor, make, why = ANCHORS[case]
    pem = anchor().pem
    (tmp_path / "ca.pem").write_bytes(pem)
    server.show(make())
    assert await verdict(server, ProviderTls(HOST, Trust(pem))) == why
    code, said = await curl(server, HOST, str(tmp_path / "ca.pem"))
    assert (code == 0) == (why is None), said


@ensureDeferred
async def test_b11_without_a_ca_file_the_systems_cas_are_trusted(server, tmp_path, monkeypatch):
    """OpenSSL lets SSL_CERT_FILE stand for them."""
    (tmp_path / "system.pem").write_bytes(ROOT.pem)
    server.show(issue(GOOD, by=ROOT))
    assert await verdict(server, ProviderTls(HOST, Trust(b""))) == UNKNOWN
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    assert await verdict(server, ProviderTls(HOST, Trust(b""))) is None
    assert await verdict(server, ProviderTls(HOST, Trust(STRANGER.pem))) == UNKNOWN, "a ca_file replaces them"


# B11: versions and cipher suites


@ensureDeferred
async def test_b11_providers_are_not_asked_for_tls_1_1(server):
    server.show(issue(GOOD, by=ROOT), version=SSL.TLS1_1_VERSION)
    for legacy in (False, True):
        assert "protocol version" in await verdict(server, ProviderTls(HOST, Trust(ROOT.pem, legacy)))


#   suite of TLS 1.2                  with legacy only  key
SUITES = {
    "ECDHE-ECDSA-AES128-GCM-SHA256":  (False,           "leaf"),
    "ECDHE-ECDSA-CHACHA20-POLY1305":  (False,           "leaf"),
    "ECDHE-RSA-AES256-GCM-SHA384":    (False,           "rsa 2048"),
    "ECDHE-ECDSA-AES128-SHA":         (True,            "leaf"),
    "ECDHE-RSA-AES128-SHA256":        (True,            "rsa 2048"),
    "AES128-GCM-SHA256":              (True,            "rsa 2048"),
    "AES128-SHA":                     (True,            "rsa 2048"),
    "AES256-SHA256":                  (True,            "rsa 2048"),
    "AES256-CCM":                     (True,            "rsa 2048"),
    "ARIA128-GCM-SHA256":             (None,            "rsa 2048"),
    "CAMELLIA128-SHA":                (None,            "rsa 2048"),
    "AECDH-AES128-SHA":               (None,            "leaf"),
    "ADH-AES128-GCM-SHA256":          (None,            "leaf"),
    "NULL-SHA256":                    (None,            "rsa 2048"),
}  # fmt: skip


@pytest.mark.parametrize("suite", SUITES)
@ensureDeferred
async def test_b11_a_provider_without_forward_secrecy_or_aead_takes_legacy(server, suite):
    only_legacy, key_name = SUITES[suite]
    server.show(issue(GOOD, by=ROOT, key_name=key_name), suite.encode(), SSL.TLS1_2_VERSION)
    for legacy in (False, True):
        got = await verdict(server, ProviderTls(HOST, Trust(ROOT.pem, legacy)))
        assert (got is None) == (only_legacy is not None and legacy >= only_legacy), got
        assert (server.received == b"") == (got is not None)


def provider(server: Server, **more) -> dict:
    return {
        "name": "p1",
        "base_url": f"https://localhost:{server.number}/v1",
        "api_key": "provider-key-1",
        "ca_file": "root.pem",
        **more,
    }


@ensureDeferred
async def test_b11_legacy_is_a_setting_of_a_provider_and_a_reload_takes_it(world, server):
    (world.folder / "root.pem").write_bytes(ROOT.pem)
    server.show(issue(dns("localhost"), by=ROOT, key_name="rsa 2048"), b"AES128-SHA", SSL.TLS1_2_VERSION)
    gateway = world.gateway(None, top={"providers": [provider(server)]})
    got = await gateway.ask()
    assert (got.status, server.received) == (502, b"")
    assert "handshake failure" in got.error["attempts"][0]["message"]

    gateway.tree["providers"] = [provider(server, tls={"legacy": True})]
    assert await gateway.reload()
    await gateway.ask()
    assert b"Bearer provider-key-1" in server.received

    gateway.tree["providers"] = [provider(server, tls={"legacy": False})]
    server.received = b""
    assert await gateway.reload()
    assert ((await gateway.ask()).status, server.received) == (502, b"")


# B11: end to end


@pytest.mark.parametrize(
    "entries", [[], [email("a@localhost")], [dns("*.lab")], [dns("10.0.0.1")], [other(SRV, der(0x02, b"\x05"))]]
)
@ensureDeferred
async def test_b11_a_provider_whose_certificate_names_nobody_gets_no_byte(world, server, entries):
    (world.folder / "root.pem").write_bytes(ROOT.pem)
    server.show(issue(*entries, by=ROOT, cn="localhost"))
    tree = {"providers": [provider(server)]}
    gateway = world.gateway(None, top=tree)
    got = await gateway.ask()
    assert (got.status, server.received) == (502, b"")
    (attempt,) = got.error["attempts"]
    assert attempt["outcome"] == "unreachable"
    assert attempt["message"].startswith(f"TLS: {OTHERS if entries else NOBODY}")

    ((found,), (step,)) = await bounded(Check(gateway.service.config, gateway.service._runtime.upstream, reactor).run())
    assert (found.reachable, found.certificate, found.key, step.works) == (True, False, None, False)
    assert found.problem == attempt["message"]
    assert server.received == b""
