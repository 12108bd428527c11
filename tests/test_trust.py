"""B11, D1: providers that trust the same share one OpenSSL context, and each has its own certificate checked."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from OpenSSL import SSL, crypto
from twisted.internet.task import Clock

from aigw.config import loader
from aigw.upstream import providers
from aigw.upstream.providers import Upstream
from aigw.upstream.reasons import CertificateRefused
from aigw.upstream.trust import ProviderTls, Trust
from tests.certificates import Issued, authority, dns, ip, issue
from tests.memory import Door

ROOT = authority()


class Handshake:
    """One of a client with a server that shows a certificate, flight by flight; ``result`` is how it ended."""

    def __init__(self, creator: ProviderTls, shown: Issued) -> None:
        context = SSL.Context(SSL.TLS_METHOD)
        context.use_certificate(crypto.X509.from_cryptography(shown.certificate))
        context.use_privatekey(crypto.PKey.from_cryptography_key(shown.key))
        self.client, self.server = creator.clientConnectionForTLS(None), SSL.Connection(context, None)
        self.client.set_connect_state()
        self.server.set_accept_state()
        self.result: str | None = None

    def go_on(self) -> None:
        for one, two in ((self.client, self.server), (self.server, self.client)):
            try:
                one.do_handshake()
                if one is self.client:
                    self.result = self.result or "good"
            except CertificateRefused as error:
                self.result = error.why
            except SSL.Error as error:
                if one is self.client and not isinstance(error, SSL.WantReadError):
                    self.result = self.result or repr(error)
            with suppress(SSL.WantReadError):
                two.bio_write(one.bio_read(65536))


def test_b11_handshakes_that_share_a_context_each_have_their_own_verdict():
    """They take turns, so that one is refused between the flights of the others."""
    trust = Trust(ROOT.pem)
    names = [f"p{number}.example" for number in range(6)]
    shown = [issue(dns(name if number % 3 else "else.example"), by=ROOT) for number, name in enumerate(names)]
    shown[4] = issue(dns(names[4]), by=authority("stranger"))
    running = [Handshake(ProviderTls(name, trust), certificate) for name, certificate in zip(names, shown, strict=True)]
    running.append(Handshake(ProviderTls("127.0.0.1", trust), issue(ip("127.0.0.1"), by=ROOT)))
    for _ in range(6):
        for each in running:
            each.go_on()
    wrong, stranger = "the certificate is not for this host", "the certificate has an unknown issuer"
    assert [each.result for each in running] == [wrong, "good", "good", wrong, stranger, "good", "good"]


@pytest.mark.parametrize(
    ("more", "made"),
    [
        ([{}] * 200, 1),
        ([{"tls": {"legacy": True}}] * 50 + [{}] * 50, 2),
        ([{"ca_file": "one.pem"}, {"ca_file": "copy-of-one.pem"}, {"ca_file": "two.pem"}] * 20, 2),
        ([{"ca_file": "one.pem"}, {}, {"ca_file": "one.pem", "tls": {"legacy": True}}] * 20, 3),
    ],
    ids=["the CAs of the system", "legacy", "files", "all"],
)
def test_b11_d1_who_trusts_the_same_shares_its_cas(tmp_path, monkeypatch, more, made):
    """With a context for each of 200 providers a load took 2 s and 200 MiB, and freeing it 0.35 s on the event loop."""
    for name, ca in (("one", ROOT), ("copy-of-one", ROOT), ("two", authority("two"))):
        (tmp_path / f"{name}.pem").write_bytes(ca.pem)
    trusted = []
    monkeypatch.setattr(providers, "Trust", lambda *what: trusted.append(what) or Trust(*what))
    tree = {
        "api_key": "a-key-of-the-gateway",
        "providers": [{"name": f"p{n}", "base_url": f"https://p{n}.example/v1", **each} for n, each in enumerate(more)],
        "routes": [{"name": "route", "steps": [{"provider": "p0", "model": "m"}]}],
    }
    for _ in range(2):  # a reload reads them anew
        trusted.clear()
        Upstream(Clock(), loader.build(tree, {}, Path(tmp_path)).providers.values(), lambda host, port: Door())
        assert len(trusted) == made
