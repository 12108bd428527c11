"""S25: which sessions of clients are resumed, in memory: Python's own ``ssl`` against the listeners' Identity."""

from __future__ import annotations

import contextlib
import ssl
from types import SimpleNamespace

import pytest
from OpenSSL import SSL

from aigw.net import tls
from aigw.net.tls import TICKET_SECONDS, Identity
from aigw.settings.tls_files import CertificateFiles, TlsFiles
from tests.certificates import CLIENT, DAY, NOW, authority, dns, issue

ROOT, CLIENTS = authority(), authority("clients")
MIDDLE = authority("middle", by=CLIENTS)
ENDS = NOW.replace(microsecond=0) + 10 * DAY
SHOWN, OTHER = issue(dns("a.example"), by=ROOT), issue(dns("b.example"), by=ROOT)
VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}


class Clock:
    """The time since the start, and that of the day."""

    def __init__(self) -> None:
        self.passed = 0.0

    def seconds(self) -> float:
        return self.passed

    def time(self) -> float:
        return NOW.timestamp() + self.passed


class Listener:
    def __init__(self, folder, monkeypatch, **more) -> None:
        self.clock = Clock()
        monkeypatch.setattr(tls, "time", SimpleNamespace(time=self.clock.time))
        self.folder = folder
        pairs = []
        for name, issued in (
            ("a", SHOWN),
            ("b", OTHER),
            ("client", issue(dns("client"), by=MIDDLE, usage=(CLIENT,), ends=ENDS)),
        ):
            (folder / f"{name}.pem").write_bytes(issued.pem)
            (folder / f"{name}.key").write_bytes(issued.key_pem)
            pairs.append(CertificateFiles(str(folder / f"{name}.pem"), str(folder / f"{name}.key")))
        (folder / "ca.pem").write_bytes(ROOT.pem)
        (folder / "clients.pem").write_bytes(CLIENTS.pem)
        if more.get("client_ca"):
            more["client_ca"] = str(folder / "clients.pem")
        self.files = TlsFiles(pairs[0].cert_file, pairs[0].key_file, others=(pairs[1],), **more)
        self.identity = Identity(self.files, self.clock.seconds)


def client_of(listener, version, shows=None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(listener.folder / "ca.pem"))
    context.minimum_version = context.maximum_version = version
    if shows:
        context.load_cert_chain(listener.folder / f"{shows}.pem", listener.folder / f"{shows}.key")
    return context


def connect(listener, context, session=None, name="a.example"):
    """A handshake and a byte of data; gives the client's side. Raises SSL.Error where the gateway refuses."""
    server = listener.identity.connection(SimpleNamespace(factory=SimpleNamespace(wrappedFactory=None)))
    server.set_accept_state()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name, session=session)
    done = set()
    for _ in range(10):
        for side, step in (("client", client.do_handshake), ("server", server.do_handshake)):
            if side not in done:
                try:
                    step()
                    done.add(side)
                except (ssl.SSLWantReadError, SSL.WantReadError):
                    pass
            if outgoing.pending:
                server.bio_write(outgoing.read())
            with contextlib.suppress(SSL.WantReadError):
                incoming.write(server.bio_read(65536))
    assert done == {"client", "server"}
    server.send(b"x")
    incoming.write(server.bio_read(65536))
    assert client.read(1) == b"x"  # with TLS 1.3 the tickets come before it
    server.shutdown()
    return client


@pytest.fixture(params=VERSIONS)
def version(request):
    return VERSIONS[request.param]


@pytest.mark.parametrize("name", ["a.example", "b.example"])
def test_s25_for_an_hour(tmp_path, monkeypatch, version, name):
    """Of every certificate, and also where each resumed session gives a new ticket."""
    listener = Listener(tmp_path, monkeypatch)
    context = client_of(listener, version)
    newest = first = connect(listener, context, name=name).session
    for _ in range(3):
        listener.clock.passed += TICKET_SECONDS / 4
        again = connect(listener, context, newest, name)
        assert again.session_reused
        newest = again.session
    listener.clock.passed = TICKET_SECONDS
    for old in (first, newest):
        assert not connect(listener, context, old, name).session_reused
    assert connect(listener, context, connect(listener, context, name=name).session, name).session_reused


def test_s25_no_session_of_another_configuration(tmp_path, monkeypatch, version):
    """As of the one before a reload, or of another process."""
    one, other = Listener(tmp_path, monkeypatch), Listener(tmp_path, monkeypatch)
    context = client_of(one, version)
    session = connect(one, context).session
    assert not connect(other, context, session).session_reused
    assert connect(one, context, session).session_reused


@pytest.mark.parametrize("required", [True, False])
def test_s25_a_client_with_a_certificate_resumes(tmp_path, monkeypatch, version, required):
    listener = Listener(tmp_path, monkeypatch, client_ca=True, client_required=required)
    context = client_of(listener, version, "client")
    session = connect(listener, context).session
    assert connect(listener, context, session).session_reused
    if required:
        with pytest.raises((SSL.Error, ssl.SSLError)):
            connect(listener, client_of(listener, version))


def test_s25_a_session_ends_with_the_certificate_of_the_client(tmp_path, monkeypatch, version):
    listener = Listener(tmp_path, monkeypatch, client_ca=True, client_required=True)
    context = client_of(listener, version, "client")
    session = connect(listener, context).session
    until = ENDS.timestamp()
    wall = [until - 1]
    monkeypatch.setattr(tls, "time", SimpleNamespace(time=lambda: wall[0]))
    assert connect(listener, context, session).session_reused
    wall[0] = until + 1
    with pytest.raises(SSL.Error, match="expired"):
        connect(listener, context, session)


def test_s25_a_check_that_cannot_be_made_is_a_refusal(tmp_path, monkeypatch, version):
    listener = Listener(tmp_path, monkeypatch, client_ca=True, client_required=True)

    def broken():
        raise ValueError("no time")

    monkeypatch.setattr(tls, "time", SimpleNamespace(time=broken))
    with pytest.raises(ValueError, match="no time"):
        connect(listener, client_of(listener, version, "client"))


@pytest.mark.parametrize("required", [True, False])
def test_s25_a_session_without_a_certificate_is_none_of_a_listener_that_requires_one(
    tmp_path, monkeypatch, version, required
):
    open_to_all = Listener(tmp_path, monkeypatch)
    context = client_of(open_to_all, version)
    session = connect(open_to_all, context).session
    listener = Listener(tmp_path, monkeypatch, client_ca=True, client_required=required)
    if required:
        with pytest.raises((SSL.Error, ssl.SSLError)):
            connect(listener, context, session)
    else:
        assert not connect(listener, context, session).session_reused
