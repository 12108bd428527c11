"""S26: which TLS sessions with a provider are resumed. In memory, but for the last."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading

import pytest
from OpenSSL import SSL
from pytest_twisted import ensureDeferred

from aigw.net.tls import ClientIdentity
from aigw.upstream.trust import SESSION_SECONDS, ProviderTls, Trust
from tests.certificates import CLIENT, DAY, NOW, authority, dns, ip, issue
from tests.harness import until

ROOT, OTHER_ROOT = authority(), authority("other")
SHORT_ROOT = authority("short", ends=NOW + DAY / 48)  # half an hour
HOST = "api.example"
VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}


def server_context(folder, issued, version, *, clients=None, tickets=True) -> ssl.SSLContext:
    (folder / "shown.pem").write_bytes(issued.pem)
    (folder / "shown.key").write_bytes(issued.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(folder / "shown.pem", folder / "shown.key")
    if not tickets:
        context.options |= ssl.OP_NO_TICKET
    if clients:
        (folder / "clients.pem").write_bytes(clients.pem)
        context.load_verify_locations(folder / "clients.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Wall:
    """The time of the day."""

    passed = 0.0

    def __call__(self) -> float:
        return NOW.timestamp() + self.passed


@contextlib.contextmanager
def connected(creator, context):
    """A connection with a byte of data from the server; gives whether it resumed a session."""
    client = creator.clientConnectionForTLS(None)
    client.set_connect_state()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    done = set()
    try:
        for _ in range(10):
            for side, step in (("client", client.do_handshake), ("server", server.do_handshake)):
                if side not in done:
                    with contextlib.suppress(ssl.SSLWantReadError, SSL.WantReadError):
                        step()
                        done.add(side)
                with contextlib.suppress(SSL.WantReadError):
                    incoming.write(client.bio_read(65536))
                if outgoing.pending:
                    client.bio_write(outgoing.read())
        assert done == {"client", "server"}
        server.write(b"x")
        client.bio_write(outgoing.read())
        assert client.recv(10) == b"x"  # with TLS 1.3 the tickets come before it
        yield server.session_reused
    finally:
        client.ended()


def resumes(creator, context) -> bool:
    with connected(creator, context) as resumed:
        return resumed


@pytest.fixture(params=VERSIONS)
def version(request):
    return VERSIONS[request.param]


@pytest.fixture
def shown():
    return issue(dns(HOST), by=ROOT)


def test_s26_the_session_of_the_newest_connection_is_resumed(tmp_path, version, shown):
    context, creator = server_context(tmp_path, shown, version), ProviderTls(HOST, Trust(ROOT.pem))
    assert [resumes(creator, context) for _ in range(4)] == [False, True, True, True]
    with connected(creator, context), connected(creator, context) as resumed:
        assert resumed, "while the other one is open"


def test_s26_of_no_other_host_and_with_no_other_trust(tmp_path, version, shown):
    """Each provider has its own, and a reload makes new ones."""
    identity = issue(dns("gateway"), by=OTHER_ROOT, usage=(CLIENT,))
    (tmp_path / "c.pem").write_bytes(identity.pem)
    (tmp_path / "c.key").write_bytes(identity.key_pem)
    context, trust = server_context(tmp_path, shown, version), Trust(ROOT.pem)
    assert not resumes(ProviderTls(HOST, trust), context)
    assert not resumes(ProviderTls(HOST, trust), context)
    with pytest.raises(Exception, match="not for this host"):
        resumes(ProviderTls("other.example", trust), context)
    with pytest.raises(Exception, match=r"refused|issuer|self"):
        resumes(ProviderTls(HOST, Trust(OTHER_ROOT.pem)), context)
    known = Trust(ROOT.pem, identity=ClientIdentity(str(tmp_path / "c.pem"), str(tmp_path / "c.key")))
    assert not resumes(ProviderTls(HOST, known), context)


def test_s26_k10_with_a_certificate_of_the_gateway(tmp_path, version, shown):
    identity = issue(dns("gateway"), by=OTHER_ROOT, usage=(CLIENT,))
    (tmp_path / "c.pem").write_bytes(identity.pem)
    (tmp_path / "c.key").write_bytes(identity.key_pem)
    trust = Trust(ROOT.pem, identity=ClientIdentity(str(tmp_path / "c.pem"), str(tmp_path / "c.key")))
    context, creator = server_context(tmp_path, shown, version, clients=OTHER_ROOT), ProviderTls(HOST, trust)
    assert [resumes(creator, context) for _ in range(3)] == [False, True, True]


@pytest.mark.parametrize("root", [ROOT, SHORT_ROOT], ids=["for an hour", "until a certificate of the chain ends"])
def test_s26_how_long(tmp_path, version, root):
    wall, end = Wall(), SESSION_SECONDS if root is ROOT else SESSION_SECONDS / 2
    context = server_context(tmp_path, issue(dns(HOST), by=root), version)
    creator = ProviderTls(HOST, Trust(root.pem), wall)
    assert not resumes(creator, context)
    for _ in range(3):
        wall.passed += end / 4
        assert resumes(creator, context), "although each of them gives a new session"
    wall.passed = end + 1
    assert not resumes(creator, context)


def test_s26_a_provider_that_resumes_nothing_is_checked_each_time(tmp_path, version, shown):
    context = server_context(tmp_path, shown, version)
    creator = ProviderTls(HOST, Trust(ROOT.pem))
    assert not resumes(creator, context)
    for stranger in (issue(dns("other.example"), by=ROOT), issue(dns(HOST), by=OTHER_ROOT)):
        with pytest.raises(Exception, match=r"not for this host|refused|issuer|self"):
            resumes(creator, server_context(tmp_path, stranger, version))
        assert not resumes(creator, context), "a failed handshake ends the session"
        assert resumes(creator, context)


def test_s26_a_session_that_was_not_resumed_does_not_lend_its_time(tmp_path, version, shown):
    wall = Wall()
    creator = ProviderTls(HOST, Trust(ROOT.pem), wall)
    assert not resumes(creator, server_context(tmp_path, shown, version))
    wall.passed = SESSION_SECONDS / 2
    other = server_context(tmp_path, shown, version)
    assert not resumes(creator, other), "it has other keys for its tickets"
    wall.passed = SESSION_SECONDS * 1.25
    assert resumes(creator, other)


class Closing(threading.Thread):
    """A provider over TLS that closes each connection after its answer, properly or not."""

    ANSWER = b'{"choices": [{"message": {"content": "hi"}}]}'

    def __init__(self, context, clean) -> None:
        super().__init__(daemon=True)
        self.context, self.clean = context, clean
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.resumed: list[bool] = []
        self.start()

    def run(self) -> None:
        while True:
            try:
                plain, _ = self.listening.accept()
            except OSError:
                return
            plain.settimeout(5)
            with contextlib.suppress(OSError), self.context.wrap_socket(plain, server_side=True) as tls:
                self.resumed.append(tls.session_reused)
                while b'"messages"' not in tls.recv(65536):
                    pass
                tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
                tls.sendall(b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(self.ANSWER), self.ANSWER))
                if self.clean:
                    tls.unwrap()


@pytest.mark.parametrize("clean", [True, False], ids=["with a close of TLS", "without"])
@ensureDeferred
async def test_s26_the_gateway_resumes_and_a_reload_begins_anew(world, version, clean):
    provider = Closing(server_context(world.folder, issue(ip("127.0.0.1"), by=ROOT), version), clean)
    world._closers.append(lambda: provider.listening.shutdown(socket.SHUT_RDWR) or provider.listening.close())
    (world.folder / "ca.pem").write_bytes(ROOT.pem)
    entry = {"name": "p1", "base_url": f"https://127.0.0.1:{provider.port}/v1", "api_key": "k1", "ca_file": "ca.pem"}
    gateway = world.gateway(None, top={"providers": [entry]})
    for number in range(3):
        assert (await gateway.ask()).status == 200
        await until(lambda number=number: len(provider.resumed) == number + 1)
    assert provider.resumed == [False, True, True]
    assert await gateway.reload()
    assert (await gateway.ask()).status == 200
    assert provider.resumed[3:] == [False]
