"""K10: the gateway's own certificate towards a provider that asks for one, in real handshakes."""

from __future__ import annotations

import pytest
from OpenSSL import SSL, crypto
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from aigw.errors import ConfigError
from tests.certificates import CLIENT, DAY, NOW, Issued, authority, dns, ip, issue
from tests.providers import Provider, as_asked

ROOT, CLIENTS, STRANGER = authority(), authority("clients"), authority("stranger")
MIDDLE = authority("middle", by=CLIENTS)
SHOWN = issue(ip("127.0.0.1"), by=ROOT)


def client(by: Issued, **more) -> Issued:
    return issue(dns("gateway.example"), by=by, usage=(CLIENT,), **more)


@implementer(IOpenSSLServerConnectionCreator)
class Asks:
    """A provider that requires a certificate of the CA ``CLIENTS``, and remembers which it got."""

    def __init__(self, version: int) -> None:
        self.context = context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
        context.use_certificate(crypto.X509.from_cryptography(SHOWN.certificate))
        context.use_privatekey(crypto.PKey.from_cryptography_key(SHOWN.key))
        context.get_cert_store().add_cert(crypto.X509.from_cryptography(CLIENTS.certificate))
        self.got: list[int] = []
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, self.look)

    def look(self, connection, certificate, code, depth, good) -> bool:
        if depth == 0 and good:
            self.got.append(certificate.get_serial_number())
        return bool(good)

    def serverConnectionForTLS(self, protocol) -> SSL.Connection:
        return SSL.Connection(self.context, None)


@pytest.fixture(params=[SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["TLS 1.2", "TLS 1.3"])
def asks(request, world):
    asks = Asks(request.param)
    asks.provider = provider = Provider([as_asked()])
    port = reactor.listenTCP(0, TLSMemoryBIOFactory(asks, False, provider), interface="127.0.0.1")
    provider.port, provider.tls = port.getHost().port, True
    world._closers.append(port.stopListening)
    world._closers.append(lambda: [each.transport.abortConnection() for each in provider.connections])
    (world.folder / "ca.pem").write_bytes(ROOT.pem)
    return asks


def show(world, issued: Issued) -> None:
    (world.folder / "client.pem").write_bytes(issued.pem)
    (world.folder / "client.key").write_bytes(issued.key_pem)


OURS = {"client_cert": "client.pem", "client_key": "client.key"}


def gateway_for(world, asks, **more):
    entry = {
        "name": "p1",
        "base_url": world.base_url(asks.provider),
        "api_key": "key-of-p1",
        "ca_file": "ca.pem",
        **more,
    }
    return world.gateway(asks.provider, top={"providers": [entry]})


#   which certificate the gateway has                                    whether the provider takes it
CERTIFICATES = {
    "a good one":           (lambda: client(CLIENTS),                        True),
    "of an intermediate":   (lambda: client(MIDDLE),                         True),
    "of another CA":        (lambda: client(STRANGER),                       False),
    "an expired one":       (lambda: client(CLIENTS, ends=NOW - DAY / 2),    False),
    "none":                 (None,                                           False),
}  # fmt: skip


@pytest.mark.parametrize("case", CERTIFICATES)
@ensureDeferred
async def test_k10_the_certificate_is_shown_and_a_refusal_says_what_to_do(world, asks, case):
    make, good = CERTIFICATES[case]
    if make is not None:
        show(world, make())
    gateway = gateway_for(world, asks, **(OURS if make else {}))
    got = await gateway.ask()
    assert got.status == (200 if good else 502)
    assert len(asks.got) == good
    if not good:
        (attempt,) = got.error["attempts"]
        assert attempt["outcome"] == "unreachable"
        assert "set client_cert and client_key to a certificate that the provider accepts" in attempt["message"]
        assert asks.provider.requests == []


@ensureDeferred
async def test_k10_d1_a_reload_shows_a_renewed_certificate_and_leaves_the_old_connections(world, asks):
    first, second = client(CLIENTS), client(CLIENTS)
    show(world, first)
    gateway = gateway_for(world, asks, **OURS)
    for _ in range(2):
        assert (await gateway.ask()).status == 200
    assert asks.got == [first.certificate.serial_number], "the connection was used again"
    assert await gateway.reload()
    assert (await gateway.ask()).status == 200
    assert len(asks.got) == 1, "nothing changed"
    show(world, second)
    assert await gateway.reload()
    assert (await gateway.ask()).status == 200
    assert asks.got == [each.certificate.serial_number for each in (first, second)]


def other_key(folder):
    (folder / "client.key").write_bytes(client(CLIENTS, key_name="another").key_pem)


def without(name):
    return lambda folder: (folder / name).unlink()


def holds(name, data):
    return lambda folder: (folder / name).write_bytes(data)


MISTAKES = {
    "no certificate file": (without("client.pem"), ["providers[0].client_cert: {}/client.pem: No such file or directory"]),
    "no key file": (without("client.key"), ["providers[0].client_key: {}/client.key: No such file or directory"]),
    "no PEM": (holds("client.pem", b"x"), ["providers[0].client_cert: {}/client.pem: does not hold a PEM certificate"]),
    "no key": (holds("client.key", b"x"), ["providers[0].client_key: {}/client.key: does not hold a PEM private key without a passphrase"]),
    "of another": (other_key, ["providers[0].client_cert: {0}/client.key is not the key of the certificate in {0}/client.pem"]),
    "all at once": (
        lambda folder: [(folder / name).unlink() for name in ("client.pem", "client.key", "ca.pem")],
        [f"providers[0].{one}: {{}}/{two}: No such file or directory" for one, two in (("ca_file", "ca.pem"), ("client_cert", "client.pem"), ("client_key", "client.key"))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
@ensureDeferred
async def test_k10_mistakes_are_clear_and_a_reload_with_one_changes_nothing(world, asks, case, monkeypatch):
    monkeypatch.setattr("aigw.net.tls.quoted_file", str)  # the temporary folder's name looks like a key
    show(world, client(CLIENTS))
    gateway = gateway_for(world, asks, **OURS)
    spoil, mistakes = MISTAKES[case]
    spoil(world.folder)
    expected = [each.format(world.folder) for each in mistakes]
    with pytest.raises(ConfigError) as wrong:
        gateway_for(world, asks, **OURS)
    assert wrong.value.mistakes == expected
    assert await gateway.reload() is False
    assert (await gateway.ask()).status == 200


def test_k10_a_certificate_without_tls_has_no_effect_and_is_warned_of(world):
    show(world, client(CLIENTS))
    provider = world.provider()
    entry = {"name": "p1", "base_url": world.base_url(provider), "api_key": "key-of-p1", **OURS}
    gateway = world.gateway(provider, top={"providers": [entry]})
    (warning,) = gateway.service.config.warnings
    assert warning.startswith("providers[0].client_cert: has no effect without TLS")
